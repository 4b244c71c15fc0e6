"""Isolation of real environments: each has only what its declaration gives to it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import tempfile
from pathlib import Path

import pytest
from support.environments.environment_host import STAY, shell
from support.waiting import until

from netspace import files
from netspace.environment import user_ids
from netspace.environment.storage import guest_files, mounts

pytestmark = pytest.mark.root


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_the_program_has_ids_of_its_own_and_no_right(host):
    host.run("web", limits={"memory": "32M", "files": 100})
    pid = host.pid("web")
    base = host.kind.recorded()["web"].base
    facts = status(pid)
    assert facts["Uid"].split() == [str(base + 1000)] * 4
    assert facts["Gid"].split() == [str(base + 1000)] * 4
    assert facts["Groups"] == ""
    assert {facts[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert facts["NoNewPrivs"] == "1"
    assert facts["Seccomp"] == "2"
    assert facts["Umask"] == "0077"
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "500"
    assert Path(f"/proc/{pid}/uid_map").read_text().split() == ["0", str(base), str(user_ids.COUNT)]
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    table = {line[:26].strip(): line[26:].split()[:2] for line in limits}
    assert table["Max open files"] == ["100", "100"]
    assert table["Max core file size"] == ["1", "1"]
    assert table["Max pending signals"] == ["1024", "1024"]
    assert table["Max msgqueue size"] == ["0", "0"]
    assert table["Max processes"] == ["128", "128"]
    for kind in ("user", "pid", "ipc", "uts", "mnt", "cgroup", "time", "net"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
    assert os.path.samestat(os.stat(f"/proc/{pid}/ns/net"), os.stat(host.layout.netns("web")))


def test_what_is_run_beside_it_has_no_more(host):
    host.run("web")
    facts = host.sh("web", "cat /proc/self/status")
    assert "NoNewPrivs:\t1" in facts
    assert "Seccomp:\t2" in facts
    assert facts.count("\t" + "0" * 16) >= 5
    assert "Umask:\t0077" in facts
    assert host.sh("web", "cat /proc/self/oom_score_adj") == "500"
    assert host.sh("web", "id") == "uid=1000 gid=1000"
    assert host.sh("web", "unshare -U true") == "unshare: unshare(0x10000000): Operation not permitted"
    assert "not permitted" in host.sh("web", "mount -t tmpfs x /tmp") or "denied" in host.sh("web", "mount x /tmp")


def test_the_root_is_the_image_with_a_layer_of_its_own(host):
    host.run("web")
    host.run("other")
    # The environment's user owns nothing of the image, and modes count.
    assert host.sh("web", "cat /etc/motd") == "hello"
    assert "Permission denied" in host.sh("web", "cat /etc/shadow")
    assert "Permission denied" in host.sh("web", "touch /etc/new")
    assert host.sh("web", "echo mine > /tmp/x && cat /tmp/x") == "mine"
    assert "No such file" in host.sh("other", "cat /tmp/x")
    listed = host.sh("web", "ls /; ls /dev")
    assert "sys" not in listed.split()
    assert not {"kmsg", "mem", "mqueue", "pts", "console"} & set(listed.split())


def test_no_path_of_the_host_is_seen_inside(host):
    host.run("web")
    seen = host.sh("web", "cat /proc/self/mountinfo /proc/self/cgroup /proc/1/environ")
    for path in (str(host.image), "/var/lib", "layers"):
        assert path not in seen
    root = next(line for line in seen.splitlines() if line.split()[4] == "/")
    assert "nosuid,nodev" in root
    assert "lowerdir=/proc/self/fd/" in root


def test_masked_files_are_empty(host):
    host.run("web")
    assert host.sh("web", "cat /proc/kallsyms /proc/cmdline /proc/interrupts /proc/keys") == ""
    assert "Read-only" in host.sh("web", "echo 1 > /proc/sys/kernel/domainname") or "denied" in host.sh(
        "web", "echo 1 > /proc/sys/kernel/domainname"
    )


# Takes all that there is of what the kernel counts by user, says how much that was, and keeps it until it is told.
TAKE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
instances = 0
while libc.inotify_init1(0) >= 0:
    instances += 1
watcher = libc.inotify_init1(0)
number, timers, timer = 222 if os.uname().machine == "x86_64" else 107, 0, ctypes.c_int()
while libc.syscall(ctypes.c_long(number), 1, None, ctypes.byref(timer)) == 0:
    timers += 1
print(instances, timers, flush=True)
sys.stdin.read()
"""


def _free() -> tuple[bool, int]:
    """Return whether this process can make an inotify instance, and the number of signals queued for its user."""
    libc = ctypes.CDLL(None, use_errno=True)
    instance = libc.inotify_init1(0)
    if instance >= 0:
        os.close(instance)
    queued = status(os.getpid())["SigQ"].split("/")[0]
    return instance >= 0, int(queued)


def test_what_is_counted_by_user_is_taken_from_nobody_else(host, debian):
    """An environment takes all inotify instances and timers that it can get; root and its neighbour keep theirs."""
    image = {"image": f"dir:{debian}", "limits": {"files": 4096}}
    _, before = _free()
    host.run("web", **image, command=["/usr/bin/python3", "-c", f"import time\n{TAKE}\ntime.sleep(1000)"])
    host.run("other", **image)
    log = host.layout.logs / "environment-web.log"
    until(lambda: len(log.read_text().split()) == 2)
    instances, timers = map(int, log.read_text().split())
    assert 100 < instances < 4096  # as many as any user of the host may have
    assert timers <= 1024
    can_watch, queued = _free()
    assert can_watch
    assert queued < before + 500
    again = host.operations.exec("other", ["/usr/bin/python3", "-c", TAKE])["stdout"].split()
    its_instances, its_timers = map(int, again)
    assert its_instances == instances
    assert abs(its_timers - timers) < 16, "of 1,024; its own program may have a signal waiting"


# What of the host can be read, and is said to be (docs/isolation.md): as it is, and as it changes by itself.
FACTS = {"cpuinfo", "devices", "execdomains", "fb", "filesystems", "loadavg", "meminfo", "misc", "mounts", "net"}
FACTS |= {"self", "stat", "sys", "sysvipc", "thread-self", "uptime", "version", "version_signature"}
CHANGING = {"loadavg", "meminfo", "stat", "uptime", "sys/kernel/ns_last_pid", "sys/kernel/random/uuid"}
SCAN = """
import json, os, time
def look():
    found = {}
    for folder, folders, names in os.walk("/proc"):
        if folder == "/proc":
            folders[:] = [name for name in folders if not name.isdigit() and name not in ("self", "thread-self")]
        for name in names:
            path = os.path.join(folder, name)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                content = os.read(fd, 65536)
                os.close(fd)
            except OSError:
                continue
            if content:
                found[path[len("/proc/"):]] = content
    return found
first = look()
time.sleep(0.7)
second = look()
changing = [path for path in first if second.get(path) != first[path]]
print(json.dumps({"readable": list(first), "changing": changing}))
"""


def test_proc_tells_what_is_declared_and_no_more(host, debian):
    host.run("web", image=f"dir:{debian}")
    found = json.loads(host.operations.exec("web", ["/usr/bin/python3", "-c", SCAN])["stdout"])
    assert {path.split("/")[0] for path in found["readable"]} <= FACTS
    assert set(found["changing"]) <= CHANGING


CACHE = """
import ctypes, errno, mmap, os
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
fd = os.open("/usr/bin/perl", os.O_RDONLY)
size = os.fstat(fd).st_size
pages = (size + 4095) // 4096
resident = ctypes.create_string_buffer(pages)
address = libc.mmap(None, ctypes.c_size_t(size), 1, 1, fd, ctypes.c_long(0))
assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), resident) == 0
told = {byte & 1 for byte in resident.raw[:pages]}
answers = []
for offset in range(0, size, 4096):
    try:
        answers.append(os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT))
    except OSError as err:
        answers.append(errno.errorcode[err.errno])
print(sorted(told), sorted(set(map(str, answers))))
"""


def test_nobody_is_told_which_pages_of_a_shared_image_are_cached(host, debian):
    """Calls that ask which pages are cached give the same result before and after another environment reads the image.

    Environments share the image's page cache, so only access times may reveal cached pages.
    """
    for name in ("one", "two"):
        host.run(name, image=f"dir:{debian}")
    first = host.operations.exec("one", ["/usr/bin/python3", "-c", CACHE])["stdout"]
    host.operations.exec("two", ["/usr/bin/perl", "-e", "1"])
    assert host.operations.exec("one", ["/usr/bin/python3", "-c", CACHE])["stdout"] == first
    assert first.strip() == "[1] ['ENOTSUP']"  # all of them, as it says of every file that one doesn't own


def test_a_read_only_root_has_no_lasting_layer(host):
    host.run("web", read_only=True)
    assert "Read-only file system" in host.sh("web", "touch /bin/x")
    assert host.sh("web", "cat /run/netspace/environment.json") == "{}"
    layers = host.layout.environment("web")
    assert [path.name for path in layers.iterdir()] == ["handout"]


@pytest.mark.parametrize("read_only", [False, True])
def test_what_is_handed_out_lies_in_a_file_system_of_its_own(host, read_only):
    """statfs(2) in an environment shows a small separate file system, and no other environment's use of space."""
    host.run("web", read_only=read_only)
    host.run("orders")
    shown = [("web", "/run/netspace"), ("orders", "/run/netspace"), *([("web", "/")] if read_only else [])]
    told = [os.statvfs(f"/proc/{host.pid(name)}/root{path}") for name, path in shown]
    assert {one.f_blocks * one.f_frsize for one in told} == {4 << 20}
    before = told[0].f_bavail
    files.write(host.layout.inside("orders") / "big", bytes(1 << 20), mode=0o400)
    assert os.statvfs(f"/proc/{host.pid('web')}/root/run/netspace").f_bavail == before
    assert os.stat(host.layout.inside("web")).st_dev != os.stat(host.layout.inside("orders")).st_dev
    mounts.unmount(host.layout.inside("web"))
    former = host.pid("web")
    host.run("web", read_only=read_only)
    assert host.pid("web") != former, "a program that sees no new card is started again"
    assert host.sh("web", "cat /run/netspace/environment.json") == "{}"
    host.apply({}, ["web", "orders"])
    assert not [path for path in mounts.table() if path.startswith(f"{host.layout.run}/environments")]


def test_nothing_of_a_former_declaration_is_in_a_root(host, tmp_path):
    """A volume's folder in a read-only root is gone after the volume is removed from the declaration."""
    host.run("web", read_only=True, volumes=[{"source": str(tmp_path / "data"), "target": "/data"}])
    assert host.sh("web", "ls -d /data") == "/data"
    scratch = host.layout.bundle("web") / "layer"
    assert scratch.is_dir()
    host.run("web", read_only=True)
    assert "No such file" in host.sh("web", "ls -d /data")
    host.run("web")
    assert not scratch.exists()


@pytest.mark.parametrize("read_only", [False, True])
def test_locks_on_the_same_image_file_don_t_meet(host, read_only):
    for name in ("one", "two"):
        host.run(name, read_only=read_only)
    with contextlib.ExitStack() as stack:

        def lock(name: str) -> None:
            stream = stack.enter_context(open(f"/proc/{host.pid(name)}/root/etc/motd"))
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)

        lock("one")
        with pytest.raises(BlockingIOError):
            lock("one")
        lock("two")


@pytest.mark.exhaustion
def test_memory_is_bounded(host):
    host.run("web", limits={"memory": "16M", "tmp": "64M"})
    # A tmpfs's pages are memory: the writer is killed long before /tmp is full.
    assert host.sh("web", "head -c 8000000 /dev/zero > /tmp/small && echo written") == "written"
    done = host.operations.exec("web", ["/bin/sh", "-c", "head -c 40000000 /dev/zero > /tmp/big && echo written"])
    assert "written" not in done["stdout"]
    assert done["retcode"] != 0


@pytest.mark.exhaustion
def test_processes_are_bounded(host):
    # Its own program forks nothing: it would end where there are too many processes.
    host.run("web", limits={"pids": 8}, command=["/bin/sleep", "1000"], stop_timeout=0.1)
    out = host.sh("web", "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 5 & done; echo through")
    assert "can't fork" in out
    assert int(host.operations.inspect("web")["usage"]["pids"]) <= 8


def test_files_inside_are_root_s_for_the_group_to_read_and_change(host):
    first = {"environment.json": b"1", "password": b"hidden"}
    host.run("web", files=first)
    pid, base = host.pid("web"), host.kind.recorded()["web"].base
    inside = host.layout.inside("web")
    for path, mode in ((inside, 0o550), (inside / "password", 0o440)):
        info = path.stat()
        assert (info.st_uid, info.st_gid, info.st_mode & 0o777) == (base, base + 1000, mode)
    assert host.sh("web", "cat /run/netspace/password") == "hidden"
    assert "Read-only" in host.sh("web", "touch /run/netspace/x")
    kept = host.layout.environment("web") / "handout"
    assert kept.stat().st_mode & 0o777 == 0o700

    wanted = {"web": host.desired("web", files={"environment.json": b"2", "more": b"m"})}
    (step,) = host.plan(wanted).steps
    assert step.action == "update"
    assert step.changes["files:password"] == {"old": "(old content)", "new": None}
    assert "hidden" not in repr(step.changes)
    host.apply(wanted)
    assert host.pid("web") == pid
    assert host.sh("web", "cat /run/netspace/environment.json; echo; ls /run/netspace").split() == [
        "2",
        "environment.json",
        "more",
    ]
    assert host.plan(wanted).steps == []


def test_no_user_of_the_host_reaches_into_an_environment(host):
    """No other user can list an environment's root or netspace's folders (EACCES)."""
    host.run("web")
    bundle, run = host.layout.bundle("web"), host.layout.run
    base = host.kind.recorded()["web"].base

    def reach() -> dict[str, str]:
        found = {}
        for path in (
            bundle / "rootfs/tmp",
            bundle / "inside",
            bundle,
            bundle.parent,
            run,
            run / "images",
            host.layout.identities,
        ):
            try:
                os.listdir(path)
                found[str(path)] = "read"
            except OSError as err:
                found[str(path)] = errno.errorcode[err.errno]
        return found

    # Some user; and another environment's.
    for user in (65534, base + user_ids.COUNT + 1000):
        assert set(guest_files.as_user(user, user, reach).values()) == {"EACCES"}


def test_users_of_the_host_see_arguments_and_no_variable(host):
    host.run("web", env={"TOKEN": "hush"}, command=shell(f"true an-argument; {STAY}"))
    process = Path(f"/proc/{host.pid('web')}")
    assert b"TOKEN=hush" in (process / "environ").read_bytes()  # root sees it

    def look() -> dict[str, str]:
        found = {"cmdline": (process / "cmdline").read_text()}
        for name in ("environ", "maps", "fd", "root"):
            try:
                (os.listdir if name in ("fd", "root") else os.path.getsize)(process / name)
                os.close(os.open(process / name, os.O_RDONLY))
                found[name] = "read"
            except OSError as err:
                found[name] = errno.errorcode[err.errno or 0]
        return found

    found = guest_files.as_user(65534, 65534, look)
    assert "an-argument" in found.pop("cmdline")
    assert found == dict.fromkeys(("environ", "maps", "fd", "root"), "EACCES")


RESERVE = """
import errno, os
file = os.open("/proc/1/fd/1", os.O_WRONLY)
try:
    os.posix_fallocate(file, 0, 1 << 30)
except OSError as err:
    print(errno.errorcode[err.errno])
"""


def test_a_program_has_no_file_of_the_host_s_to_fill(host, debian):
    """A program can't reserve space in its output (ESPIPE), because the output is a pipe and not a file."""
    host.run("web", image=f"dir:{debian}")
    done = host.operations.exec("web", ["/usr/bin/python3", "-c", RESERVE])
    assert done["stdout"].strip() == "ESPIPE", done


def test_a_volume_keeps_its_data_and_ids(host, tmp_path):
    source = tmp_path / "data"
    volumes = [{"source": str(source), "target": "/data"}]
    host.run("web", volumes=volumes)
    host.sh("web", "echo kept > /data/file")
    assert (source / "file").read_text() == "kept\n"
    assert ((source / "file").stat().st_uid, source.stat().st_mode & 0o777) == (1000, 0o700)
    assert host.apply({}, ["web"])["web"].error == ""
    assert (source / "file").read_text() == "kept\n"


def test_a_volume_that_others_could_reach_is_refused(host, tmp_path):
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        os.chmod(folder, 0o755)
        volumes = [{"source": f"{folder}/data", "target": "/data"}]
        outcome = host.apply({"web": host.desired("web", volumes=volumes)})["web"]
        assert f"chmod 0700 {folder}" in outcome.error
    (tmp_path / "link").symlink_to("/etc")
    volumes = [{"source": f"{tmp_path}/link", "target": "/data", "read_only": True}]
    assert "there is a link" in host.apply({"web": host.desired("web", volumes=volumes)})["web"].error
