"""Every limit except the sizes of disks: one environment exceeds the limit while its neighbour continues to work.

Each limit is also changed, lost and repaired. The result depends on the kernel's counters and the order of events, not
on a fixed time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.environments.environment_host import Host, shell
from support.environments.supervised import daemon_pid
from support.sampling import todays
from support.waiting import until

from netspace.environment.container import cgroups
from netspace.environment.storage import mounts
from netspace.layout import Layout
from netspace.supervision import cgroup, turns, weights

pytestmark = pytest.mark.root

# Gives the kernel something to do until it is told to end.
BUSY = "trap 'exit 0' TERM; while :; do :; done"
# Forks nothing: what does ends where there are too many processes.
SLEEPS = {"command": ["/bin/sleep", "1000"], "stop_timeout": 0.1}
TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def pair(host: Host) -> Host:
    """A host with a neighbour beside the tested environment."""
    host.run("neighbour")
    return host


@pytest.fixture
def on_disk(disk: Path) -> Iterator[None]:
    """Put the layers on the machine's disk, because a sandbox's own state folder is in memory."""
    layers = Layout().layers
    folder = disk / "layers"
    folder.mkdir(exist_ok=True)
    layers.mkdir(parents=True, exist_ok=True)
    mounts.mount(folder, layers, "none", mounts.BIND)
    yield
    mounts.unmount(layers)


def goes_on(host: Host, name: str = "neighbour") -> bool:
    return host.kind.list()[name]["state"] == "running" and host.sh(name, "echo alive") == "alive"


def group(host: Host, name: str) -> cgroups.Group:
    hierarchies = cgroups.Hierarchies(mounts.table(), host.kind.making.controllers)
    return cgroups.Group(host.kind.making.cgroup(name), hierarchies)


def read(host: Host, name: str, file: str) -> str:
    own = group(host, name)
    return Path(own._file(file)).read_text().strip()


def settle(condition: Callable[[], bool]) -> bool:
    """Return whether *condition* becomes true within a generous time; no test depends on its length."""
    for _ in range(600):
        if condition():
            return True
        time.sleep(0.05)
    return False


# -- memory -------------------------------------------------------------------------


def test_memory_that_is_too_much_ends_the_program_and_not_its_neighbour(pair):
    eats = shell("sleep 0.3; x=0123456789abcdef; while :; do x=$x$x; done")
    pair.apply({"web": pair.desired("web", command=eats, restart="never", limits={"memory": "16M"})})
    assert settle(lambda: pair.kind.list()["web"]["state"] != "running")
    assert pair.kind.list()["web"]["exit"] == "oom"
    assert pair.kind.list()["web"]["oom_kills"] == 1
    assert goes_on(pair)


UNREAD = """
import socket
listener, held, total = socket.socket(), [], 0
listener.bind(("127.0.0.1", 0))
listener.listen(64)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 30)
chunk = b"x" * (1 << 20)
try:
    while total < 192 << 20 and len(held) < 600:
        sender = socket.socket()
        sender.connect(listener.getsockname())
        sender.settimeout(0.02)
        held += [sender, listener.accept()[0]]
        try:
            for _ in range(8):
                total += sender.send(chunk)
        except TimeoutError:
            pass
except OSError:
    pass
print(total)
"""


@pytest.mark.exhaustion
def test_what_nobody_reads_from_connections_is_bounded(pair, debian):
    """An environment leaves data in its connections unread; its memory limit covers that data, and the host works."""
    pair.run("web", image=f"dir:{debian}", limits={"memory": "48M", "files": 2048})
    subprocess.run(["ip", "-n", pair.layout.netns_name("web"), "link", "set", "lo", "up"], check=True)
    done = pair.operations.exec("web", ["/usr/bin/python3", "-c", UNREAD], timeout=120)
    # Version 2 counts it as memory: then it may have been killed for it. Without a bound 192 MiB are held.
    held = int(done["stdout"] or 0)
    assert held < 2 * 48 * 1024**2, done
    assert held > 0 or done["retcode"] != 0
    assert goes_on(pair)


@pytest.fixture
def swap(disk: Path) -> Iterator[None]:
    """Swap of the machine during the test: larger than the tested environments' limits, with lowest priority."""
    file = disk / "swap"
    file.touch(mode=0o600)
    with file.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, 128 * 1024**2)
    subprocess.run(["mkswap", "-q", file], check=True)
    subprocess.run(["swapon", file], check=True)
    yield
    subprocess.run(["swapoff", file], check=True)
    file.unlink()


@pytest.mark.usefixtures("swap")
def test_what_would_fit_with_swap_is_killed_all_the_same(pair):
    """A program above its memory limit is killed. With a higher limit on swap, the same program succeeds."""
    if not Path(group(pair, "neighbour")._file("memory.memsw.limit_in_bytes")).exists():
        pytest.skip("the kernel does not account swap in cgroups of version 1; version 2 is tried in a booted machine")
    limits = {"memory": "32M", "tmp": "96M"}
    for name in ("web", "neighbour"):
        pair.run(name, restart="never", limits=limits)
    eats = "busybox dd if=/dev/zero of=/tmp/big bs=1M count=48 2>&1; echo $?"
    assert pair.sh("web", eats).splitlines()[-1:] != ["0"]
    Path(group(pair, "neighbour")._file("memory.memsw.limit_in_bytes")).write_text(str(256 * 1024**2))
    assert pair.sh("neighbour", eats).splitlines()[-1] == "0"
    stat = dict(line.split() for line in read(pair, "neighbour", "memory.stat").splitlines())
    assert int(stat["swap"]) > 0


def test_there_is_no_swap(pair):
    pair.run("web", limits={"memory": "32M"})
    limits = pair.kind.recorded()["web"].spec.limits
    found = {one.file: one for one in cgroups.settings(limits, (), group(pair, "web").unified)}
    for file in ("memory.memsw.limit_in_bytes", "memory.swap.max"):
        if file in found and Path(group(pair, "web")._file(file)).exists():
            assert read(pair, "web", file) == found[file].value
            return
    # Without swap accounting the kernel counts no swap; then there must be none.
    assert len(Path("/proc/swaps").read_text().splitlines()) == 1


# -- CPU -----------------------------------------------------------------------------


def test_cpu_time_is_bounded_and_the_neighbour_has_its_own(host):
    host.run("web", command=shell(BUSY), limits={"cpus": 0.1})
    host.run("neighbour", command=shell(BUSY), limits={"cpus": 0.5})

    def used(name: str) -> float:
        user, system = Path(f"/proc/{host.pid(name)}/stat").read_text().rsplit(") ", 1)[1].split()[11:13]
        return (int(user) + int(system)) / TICKS

    start = {name: used(name) for name in ("web", "neighbour")}
    began = time.monotonic()
    # Until the neighbour has had a second of CPU time, however long that takes.
    assert settle(lambda: used("neighbour") - start["neighbour"] > 1.0)
    passed = time.monotonic() - began
    # Far from what an unbounded one would have had, and not more than its share of the time that passed.
    assert used("web") - start["web"] < 0.1 * passed * 1.5 + 0.2
    assert int(read(host, "web", "cpu.stat").split("nr_throttled ")[1].split()[0]) > 0


# -- processes and files -------------------------------------------------------------


def test_processes_are_refused_and_the_neighbour_s_are_not(pair):
    pair.run("web", limits={"pids": 6}, **SLEEPS)
    out = pair.sh("web", "for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; echo through")
    assert "can't fork" in out
    assert int(read(pair, "web", "pids.events").split()[-1]) > 0 or "Resource" in out
    assert int(read(pair, "web", "pids.current")) <= 6
    assert "can't fork" not in pair.sh("neighbour", "for i in 1 2 3 4 5 6 7 8; do sleep 0 & done; wait; echo through")


def test_open_files_are_refused(pair):
    pair.run("web", limits={"files": 64})
    # Each shell opens one more and has the next one inherit them.
    script = "opens() { [ $1 = 0 ] || opens $(($1 - 1)) </etc/motd; }; opens 80 && echo all"
    assert "all" not in pair.sh("web", script).splitlines()
    assert pair.sh("neighbour", script).splitlines()[-1] == "all"


@pytest.mark.parametrize(("key", "folder"), [("shm", "/dev/shm"), ("tmp", "/tmp")])
def test_the_folders_in_memory_are_full_at_their_size(pair, key, folder):
    pair.run("web", limits={key: "1M"})
    out = pair.sh("web", f"busybox dd if=/dev/zero of={folder}/big bs=65536 count=32 2>&1")
    assert "No space left on device" in out
    assert "No space" not in pair.sh("neighbour", f"busybox dd if=/dev/zero of={folder}/big bs=65536 count=32 2>&1")


def test_the_number_of_files_in_memory_is_bounded(pair):
    """Files without content fill an environment's /tmp until its limit; their names and inodes count as its memory."""
    pair.run("web", limits={"memory": "16M", "tmp": "4K"}, restart="never")
    out = pair.sh("web", "echo begun; cd /tmp; i=0; while touch $i; do i=$((i+1)); done 2>&1; echo made $i")
    assert goes_on(pair)
    assert out.startswith("begun")
    assert "No space left" in out or "made" not in out, "or it is killed for lack of memory"


def test_locked_memory_core_files_and_message_queues_are_bounded(pair):
    pair.run("web")
    out = pair.sh("web", "ulimit -l; ulimit -c; ulimit -u")
    assert out.split() == ["64", "0", "128"]
    assert Path(f"/proc/{pair.pid('web')}/limits").read_text().split("Max msgqueue size")[1].split()[:2] == ["0", "0"]


# -- io ------------------------------------------------------------------------------


DIRECT = {
    "read": "busybox dd if=/var/big of=/dev/null bs=65536 count=64 iflag=direct",
    "read_ops": "busybox dd if=/var/big of=/dev/null bs=4096 count=64 iflag=direct",
    "write_ops": "busybox dd if=/dev/zero of=/var/big bs=4096 count=64 oflag=direct conv=notrunc",
}


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize(("key", "rate"), todays([("read", "256K"), ("read_ops", 4), ("write_ops", 4)], 3))
def test_reads_and_operations_are_slowed_down_and_the_neighbour_s_are_not(host, writable, key, rate):
    """Two environments read and write without the page cache; the one with a limit finishes after the other."""
    if host.kind.observe().idle or "io" not in host.kind.making.controllers:
        pytest.skip("this machine has no disk of its own, or no controller")
    host.run("web", image=writable, limits={"io": {key: rate}})
    host.run("neighbour", image=writable)
    for name in ("web", "neighbour"):  # in blocks of which few are needed
        host.sh(name, "busybox dd if=/dev/zero of=/var/big bs=1M count=4 conv=fsync")
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(host.sh, "web", f"{DIRECT[key]}; echo done")
        assert "done" in host.sh("neighbour", f"{DIRECT[key]}; echo done")
        assert not slow.done()
        assert "64+0 records in" in slow.result()


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize("limits", todays([{}, {"disk": "64M"}], 2))
def test_writing_is_slowed_down_and_the_neighbour_s_is_not(host, writable, limits):
    """Two environments write the same amount; the one with a limit finishes after the other."""
    if host.kind.observe().idle or "io" not in host.kind.making.controllers:
        pytest.skip("this machine has no disk of its own, or no controller")
    host.run("web", image=writable, limits={**limits, "io": {"write": "256K"}})
    host.run("neighbour", image=writable, limits=limits)
    write = "busybox dd if=/dev/zero of=/var/big bs=65536 count=64 conv=fsync; echo written"
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(host.sh, "web", write)
        # 4 MiB are the matter of a moment for one, of a quarter of a minute for the other.
        assert "written" in host.sh("neighbour", write)
        assert not slow.done()
        assert "written" in slow.result()
    (device,) = host.kind.making.devices(host.kind.recorded()["web"].spec)
    pid = host.pid("web")
    for io in ({"write": "512K", "read_ops": 100}, {}):
        wanted = {"web": host.desired("web", image=writable, limits={**limits, "io": io})}
        assert host.plan(wanted).steps[0].action == "update"
        assert host.apply(wanted)["web"].error == ""
        assert group(host, "web").differing(wanted["web"].spec.limits, [device]) == ()
        assert host.pid("web") == pid
        assert host.plan(wanted).steps == []


def test_rates_where_there_is_no_disk_are_said_to_mean_nothing(host, monkeypatch):
    monkeypatch.setattr(cgroups, "disk", lambda path: None)
    plan = host.plan({"web": host.desired("web", limits={"io": {"write": "1M"}})})
    assert "run without limits:io, since this host has its state folder in memory or on a net" in plan.notes[-1]


# -- changes ----------------------------------------------------------------------------


def test_what_cgroups_keep_changes_without_a_restart(host):
    host.run("web", limits={"memory": "64M", "cpus": 0.5, "pids": 32}, **SLEEPS)
    pid = host.pid("web")
    for memory, cpus, pids in (("128M", 2, 16), ("32M", 0.2, 8)):
        wanted = {"web": host.desired("web", limits={"memory": memory, "cpus": cpus, "pids": pids}, **SLEEPS)}
        (step,) = host.plan(wanted).steps
        assert (step.action, sorted(step.changes)) == ("update", ["limits:cpus", "limits:memory", "limits:pids"])
        assert host.apply(wanted)["web"].error == ""
        assert host.pid("web") == pid
        record = host.kind.recorded()["web"]
        assert group(host, "web").differing(record.spec.limits, ()) == ()
        if cgroup.booted():  # the unit's own bounds, above those of what runs in it, follow
            unit = Path(f"{cgroups.ROOT}{host.kind.making.cgroup('web')}").parent
            assert int((unit / "memory.max").read_text()) == record.spec.limits.memory
            assert int((unit / "pids.max").read_text()) == pids
        assert host.plan(wanted).steps == []
    # And a start after that has them as well.
    host.operations.restart(["web"])
    assert host.plan(wanted).steps == []
    assert "can't fork" in host.sh("web", "for i in 1 2 3 4 5 6 7 8; do sleep 5 & done")


@pytest.mark.parametrize("key", ["files", "shm", "tmp", "pids"])
def test_what_needs_a_restart_says_why(host, key):
    host.run("web")
    (step,) = host.plan({"web": host.desired("web", limits={key: 65536})}).steps
    assert step.action == "restart"
    assert step.reason


def test_memory_that_is_in_use_can_t_be_taken_away_unseen(host):
    host.run("web", limits={"memory": "64M"})
    host.sh("web", "head -c 30000000 /dev/zero > /tmp/big")
    wanted = {"web": host.desired("web", limits={"memory": "8M"})}
    pid = host.pid("web")
    assert "limits:memory: it uses more than that now" in host.apply(wanted)["web"].error
    assert host.pid("web") == pid
    (step,) = host.plan(wanted).steps
    assert "memory" in step.reason
    host.sh("web", "rm -f /tmp/big")
    host.apply(wanted)
    assert host.plan(wanted).steps == []


@pytest.mark.parametrize(("key", "value"), [("memory", "-1"), ("cpus", "-1"), ("pids", "max")])
def test_a_limit_lifted_by_hand_is_seen_and_repaired(host, key, value):
    host.run("web", limits={"memory": "32M", "cpus": 0.5, "pids": 16})
    wanted = {"web": host.desired("web", limits={"memory": "32M", "cpus": 0.5, "pids": 16})}
    pid = host.pid("web")
    own = group(host, "web")
    for one in reversed(cgroups.settings(wanted["web"].spec.limits, (), own.unified)):
        if one.key == key and "period" not in one.file:
            path = Path(own._file(one.file))
            if path.exists():
                path.write_text("max" if own.unified else value)
    (step,) = host.plan(wanted).steps
    assert (step.action, step.reason) == ("update", f"these limits differ from the declaration: {key}")
    assert host.apply(wanted)["web"].error == ""
    assert host.pid("web") == pid
    assert host.plan(wanted).steps == []


def test_environments_together_weigh_less_than_a_program_of_root_s(host):
    """The common cgroup of all environments gets a lower processor weight than a program of root.

    Each start sets it again.
    """
    host.run("web")
    if Path(cgroups.ROOT, "cgroup.controllers").exists():
        weight, usual, lowered = Path("/sys/fs/cgroup/netspace/cpu.weight"), "100", "25"
    else:
        (weight,) = Path("/sys/fs/cgroup").glob("cpu*/netspace/cpu.shares")
        usual, lowered = "1024", "256"
    assert weight.read_text().strip() == lowered
    assert weights.lower(host.layout) == []
    # Each start gives it again, and the last environment's removal removes it.
    weight.write_text(usual)
    host.operations.restart(["web"])
    assert weight.read_text().strip() == lowered
    # As at a boot: before any program is started.
    host.operations.stop(["web"])
    weight.write_text(usual)
    assert host.kind.restore() == {}
    assert weight.read_text().strip() == lowered
    host.apply({}, ["web"])
    assert not weight.exists()


def test_who_computes_goes_after_its_neighbour(host):
    """An environment that uses much of the processors gets a lower weight, and its own again afterwards."""
    host.run("neighbour", **SLEEPS)
    host.run("worst", limits={"cpus": 1})
    unified = Path(cgroups.ROOT, "cgroup.controllers").exists()
    full, file = (100, "/sys/fs/cgroup{}/cpu.weight") if unified else (1024, "/sys/fs/cgroup/cpu{}/cpu.shares")
    now, mine = 0.0, turns.Turns(f"/{host.layout.instance}")

    def weight(name: str) -> int:
        return int(Path(file.format(host.kind.making.cgroup(name))).read_text())

    def look(seconds: float) -> int:
        """Measure the environment's use of the processors as the supervisor does.

        It divides the used time by *seconds*, so a small value feigns much use.
        """
        nonlocal now
        now += seconds
        mine.look(now)
        return weight("worst")

    with ThreadPoolExecutor() as threads:
        busy = shell("until [ -e /tmp/over ]; do :; done")
        computing = threads.submit(host.operations.exec, "worst", busy, timeout=60)
        until(lambda: look(0.001) <= full / 8, pause=0.2)
        neighbour = weight("neighbour")
        host.sh("worst", "touch /tmp/over")
        assert computing.result()["retcode"] == 0
    assert neighbour == full
    until(lambda: look(100.0) == full)
    # The supervisor does it: the next one sets each weight first, whatever this one has left.
    os.kill(daemon_pid(host.layout), signal.SIGKILL)
    Path(file.format(host.kind.making.cgroup("worst"))).write_text("2")
    until(lambda: weight("worst") == full)
