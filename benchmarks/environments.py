"""The time to make, check and remove environments, and the cost of an idle environment, compared with peers.

usage: sudo python benchmarks/environments.py [--json | --markdown] [--count N] [--many N] [--rounds N]

It starts a sandbox (``scripts/sandbox``). Progress goes to stderr. In each round, netspace and its peers are measured
one after the other, so that other load on this machine affects all of them. The results are medians. These figures are
compared:

*one environment* -- a network namespace, a veth pair with addresses and an overlay with mapped ids are made, ``true``
is started and ends, and everything is removed. netspace does this by the library, like an apply, with records that
survive a power cut, a packet filter, checks and the supervisor. The peer is crun without netspace (``by_hand.py``): the
same namespaces, addresses, mounts and ``config.json``, by bare system calls and hand-packed netlink. Another
environment exists already, so the figure includes neither the supervisor's start nor the image's build. If podman and
docker are installed, they run the same files with their own defaults, which harden less.

*its program alone* -- ``true`` from start to exit, by an operator's restart of an existing environment. The peer is
``crun run`` of the same bundle.

*through Salt* -- ``salt-call state.apply netspace`` of a pillar with N environments of kind veth: all of Salt, the
states and all four kinds. One figure is the whole time. Another is the time minus that of ``salt-call test.ping``,
which any call of Salt takes. The peer is crun without netspace, one environment after another.

*memory* -- the host's memory for each idle environment, without the program itself: anonymous memory, kernel memory and
files in memory of everything in the sandbox (by its memory cgroup, so that other work on this machine doesn't count),
minus the memory of the same program outside of an environment. The peer is again crun without netspace, which needs the
same kernel memory for namespaces, control groups and mounts. The least possible value for both is the memory of an
empty network namespace with its pair.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bench
from bench import Rounds, line, say
from engines import ENGINES, Engine, Missing

IDLE = ["/bin/sh", "-c", 'trap "exit 0" TERM; while :; do sleep 1000 & wait; done']
NOTHING = "state.apply of four test.nop"
BESIDE = ("podman", "docker")


# -- what is run ------------------------------------------------------------------------
def image(folder: Path) -> Path:
    """Make a root with a static busybox."""
    busybox = shutil.which("busybox")
    assert busybox, "busybox is missing: apt-get install busybox-static (scripts/provision --test)"
    root = folder / "image"
    (root / "bin").mkdir(parents=True)
    for path in (root, root / "bin"):
        path.chmod(0o755)
    shutil.copy(busybox, root / "bin" / "busybox")
    for applet in ("sh", "sleep", "true"):
        (root / "bin" / applet).symlink_to("busybox")
    return root


def declared(root: Path, count: int, prefix: str = "bench") -> dict[str, Any]:
    one = {"image": f"dir:{root}", "command": IDLE, "interface": {"kind": "veth"}}
    return {"environments": {f"{prefix}{number}": one for number in range(count)}}


# -- one environment --------------------------------------------------------------------
class One:
    """Measurements of making and removing one environment, by netspace and without it."""

    def __init__(self, folder: Path, root: Path) -> None:
        from by_hand import Environment

        from netspace.host.host import Host
        from netspace.layout import Layout

        self.root = root
        self.layout = Layout()
        self.host = Host(self.layout)
        self._apply({"resident": self._spec(IDLE)})
        self._apply({"one": self._spec(["/bin/true"])})
        record = self.host.environments.recorded()["one"]
        mounted = self.host.environments.store.mountpoint(record.image.digest)
        config = json.loads((self.layout.bundle("one") / "config.json").read_bytes())

        def hand(number: int) -> Environment:
            return Environment(folder, number, mounted, like(config, folder, number, record.base), record.base)

        self.hand = hand
        self.hands = [hand(number) for number in range(HANDS)]
        self._remove("one")
        Path("/run/netns").mkdir(exist_ok=True)

    def _spec(self, command: Sequence[str]) -> dict[str, Any]:
        return {
            "image": f"dir:{self.root}",
            "command": list(command),
            "interface": {"kind": "veth"},
            "restart": "on-failure",
        }

    def _apply(self, environments: Mapping[str, Any]) -> None:
        from netspace.spec import parse

        # As the state netspace_environment.running does: it makes the namespace and the interface too.
        result = self.host.converge_environments(parse.declaration({"environments": environments}))
        assert result.ok, result.failures

    def _remove(self, *names: str) -> None:
        result = self.host.remove_environments(names)
        assert result.ok, result.failures

    def ours(self, rounds: Rounds) -> None:
        with rounds.timed("one"):
            with rounds.timed("one make and run"):
                self._apply({"one": self._spec(["/bin/true"])})
                # On a busy machine, the apply may have returned as soon as the program ran.
                while (status := self.host.environments.list()["one"])["state"] == "running":
                    time.sleep(0.002)
                assert (status["state"], status["exit"]) == ("stopped", "exit 0"), status
            with rounds.timed("one remove"):
                self._remove("one")

    def by_hand(self, rounds: Rounds) -> None:
        hand = self.hands[0]
        with rounds.timed("hand"):
            with rounds.timed("hand make"):
                hand.make()
            with rounds.timed("hand run"):
                hand.run()
            with rounds.timed("hand remove"):
                hand.drop()

    def program(self, rounds: Rounds) -> None:
        """Measure how long a program runs in an existing environment: once under netspace, once under crun alone."""
        self._apply({"one": self._spec(["/bin/true"])})
        supervisor = self.host.supervisor
        with rounds.timed("program"):
            assert not supervisor.start(["environment-one"])
            while supervisor.observe()["environment-one"].state != "stopped":
                time.sleep(0.002)
        self._remove("one")
        hand = self.hands[0]
        hand.make()
        rounds.time("hand program", hand.run)
        hand.drop()

    def many_by_hand(self, rounds: Rounds) -> None:
        """Make many environments without netspace, one after another, and keep them."""
        few = self.hands[1:]
        with rounds.timed("hand create", len(few)):
            for hand in few:
                hand.make()
                hand.start()
        with rounds.timed("hand destroy", len(few)):
            for hand in few:
                hand.kill()
                hand.drop()

    def memory_by_hand(self, rounds: Rounds, count: int) -> None:
        many = [self.hand(HANDS + number) for number in range(count)]
        before = settled()
        for hand in many:
            hand.network()
        rounds.note("network memory", (settled() - before) / count)
        for hand in many:
            hand.drop_network()
        before = settled()
        for hand in many:
            hand.make()
            hand.start()
        rounds.note("hand memory", (settled() - before) / count)
        for hand in many:
            hand.kill()
            hand.drop()

    def end(self) -> None:
        result = self.host.teardown()
        assert result.ok, result.failures


HANDS = 11


def like(config: Mapping[str, Any], folder: Path, number: int, base: int) -> bytes:
    """Return netspace's container configuration with the paths and names of the peer's environment *number*."""
    copy: dict[str, Any] = json.loads(json.dumps(config))
    bundle = folder / f"hand{number}"
    copy["root"]["path"] = str(bundle / "rootfs")
    copy["hostname"] = bundle.name
    copy["linux"]["cgroupsPath"] = f"/hand/{number}"
    if number:
        copy["process"]["args"] = IDLE
    for namespace in copy["linux"]["namespaces"]:
        if namespace["type"] == "network":
            namespace["path"] = f"/run/netns/hand{number}"
        elif namespace["type"] == "user":
            namespace["path"] = str(bundle / "users")
    for mount in copy["mounts"]:
        if mount["destination"] == "/run/netspace":
            mount["source"] = str(bundle / "inside")
    return json.dumps(copy).encode()


# -- other container managers -------------------------------------------------------------
def works(name: str, folder: Path, root: Path) -> tuple[Engine, list[str]] | None:
    """Start an engine; return it with the networks that work on this machine.

    If the engine doesn't work, print the reason and return None.
    """
    engine = ENGINES[name](folder, root)
    try:
        engine.start()
    except Missing as err:
        say(f"left out: {err}")
        engine.stop()
        return None
    networks = []
    for network in ("none", "bridge"):
        try:
            engine.once(network)
            networks.append(network)
        except Missing as err:
            say(f"{name} with network {network} doesn't work here: {err}")
    return engine, networks


# -- through Salt --------------------------------------------------------------------------
class Salt:
    """``scripts/salt-call`` with a separate pillar."""

    def __init__(self, folder: Path) -> None:
        self.pillar = folder / "pillar"
        self.pillar.mkdir()
        (self.pillar / "top.sls").write_text("base: {'*': [declared]}\n")
        self.nothing = folder / "nothing"
        self.nothing.mkdir()
        names = ("attestation", "interfaces", "links", "environments")
        (self.nothing / "nothing.sls").write_text("#!json\n" + json.dumps({name: {"test.nop": []} for name in names}))
        self.declare({})

    def declare(self, declaration: Mapping[str, Any]) -> None:
        (self.pillar / "declared.sls").write_text("#!json\n" + json.dumps({"netspace": declaration}))

    def call(self, *arguments: str) -> Any:
        command = [str(bench.ROOT / "scripts" / "salt-call"), "--out=json", f"--pillar-root={self.pillar}"]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)["local"]

    def floor(self, rounds: Rounds) -> None:
        """Record the time and processor time that Salt takes for four states without effect, beyond ``test.ping``."""
        values = []
        for arguments in (("test.ping",), (f"--file-root={self.nothing}", "state.apply", "nothing")):
            start, used = time.perf_counter(), bench.processor()
            answer = self.call(*arguments)
            values.append((time.perf_counter() - start, bench.processor() - used))
        assert len(answer) == 4, answer
        (ping, ping_cpu), (nothing, nothing_cpu) = values
        rounds.note("nop", nothing - ping)
        rounds.note("nop cpu", nothing_cpu - ping_cpu)

    def apply(self) -> int:
        """Apply the declaration; return how many things changed."""
        states = self.call("state.apply", "netspace")
        assert isinstance(states, dict), states
        wrong = [state["comment"] for state in states.values() if state["result"] is not True]
        assert not wrong, wrong[0][:2000]
        return sum(len(one["changes"]) for tag, one in states.items() if not tag.endswith(("_|-present", "_|-absent")))

    def measure(self, rounds: Rounds, root: Path, count: int, again: int = 1) -> None:
        """Create *count* environments, find them unchanged (*again* times), and remove them.

        A test.ping is measured beside each step.
        """
        key = f"{count} "
        for what, declaration, changed in (
            ("create", declared(root, count), True),
            *(("unchanged", declared(root, count), False),) * again,
            ("destroy", {"environments": {}}, True),
        ):
            self.declare(declaration)
            start = time.perf_counter()
            used = bench.processor()
            self.call("test.ping")
            ping = time.perf_counter() - start
            rounds.note("ping cpu", bench.processor() - used)
            start, used = time.perf_counter(), bench.processor()
            assert bool(self.apply()) is changed, what
            whole = time.perf_counter() - start
            rounds.note(f"{key}{what} cpu", bench.processor() - used)
            rounds.note(f"{key}{what} whole", whole)
            rounds.note(f"{key}{what}", whole - ping)
            rounds.note("ping", ping)


# -- memory ----------------------------------------------------------------------------------
def used() -> float:
    """Return two figures of the sandbox in kB: its memory without cached files of the disk, and its per-CPU memory."""
    folder = Path("/sys/fs/cgroup")
    if (folder / "memory.stat").exists():
        stat = dict(one.split() for one in (folder / "memory.stat").read_text().splitlines())
        charged = int(stat["anon"]) + int(stat["kernel"]) + int(stat["shmem"])
    else:
        folder = folder / "memory"
        stat = dict(one.split() for one in (folder / "memory.stat").read_text().splitlines())
        charged = int(stat["total_rss"]) + int(stat.get("total_shmem", 0))
        charged += int((folder / "memory.kmem.usage_in_bytes").read_text())
    return charged / 1024


def settled() -> float:
    """Return :func:`used` after the kernel has freed the memory that it frees late (by RCU, by work queues)."""
    values = []
    for _ in range(6):
        time.sleep(0.5)
        values.append(used())
    return min(values)


def memory(rounds: Rounds, folder: Path, root: Path, count: int) -> None:
    from netspace.host.host import Host
    from netspace.layout import Layout
    from netspace.spec import parse

    def apply(wanted: int) -> None:
        declaration = parse.declaration(declared(root, wanted, "idle"))
        for result in (
            host.converge_interfaces(declaration, whole=True),
            host.converge_environments(declaration, whole=True),
        ):
            assert result.ok, result.failures

    host = Host(Layout())
    apply(10)
    before = settled()
    apply(10 + count)
    rounds.note("memory", (settled() - before) / count)
    result = host.teardown()
    assert result.ok, result.failures

    outside = [str(root / "bin" / "busybox"), *IDLE[0].split("/")[-1:], *IDLE[1:]]
    variables = {"PATH": f"{root}/bin"}
    before = settled()
    programs = [subprocess.Popen(outside, env=variables, start_new_session=True) for _ in range(count)]
    rounds.note("plain memory", (settled() - before) / count)
    for program in programs:
        os.killpg(program.pid, signal.SIGKILL)
    for program in programs:
        program.wait()


# -- all of it -------------------------------------------------------------------------------
def measure(options: Any, folder: Path) -> Rounds:
    rounds = Rounds()
    root = image(folder)
    one = One(folder, root)
    engines = [found for name in BESIDE if (found := works(name, folder, root))]
    try:
        for number in range(options.rounds * 3 + 1):
            say(f"one environment: round {number + 1} of {options.rounds * 3 + 1}")
            kept = Rounds() if number == 0 else rounds  # the first round, which loads modules, isn't recorded
            one.by_hand(kept)
            one.ours(kept)
            one.program(kept)
            if number <= options.rounds:
                one.many_by_hand(kept)
                for engine, networks in engines:
                    for network in networks:
                        with kept.timed(f"{engine.name} {network}"):
                            engine.once(network)
    finally:
        for engine, _ in engines:
            engine.stop()
    if options.idle:
        say(f"memory: {options.idle} environments by hand")
        one.memory_by_hand(rounds, options.idle)
    one.end()
    salt = Salt(folder)
    salt.apply()  # of an empty declaration, so that Salt's first compilation of modules isn't measured
    for number in range(options.rounds):
        say(f"{options.count} environments through Salt: round {number + 1} of {options.rounds}")
        salt.measure(rounds, root, options.count)
        salt.floor(rounds)
    if options.idle:
        say(f"memory: {options.idle} environments")
        memory(rounds, folder, root, options.idle)
    if options.many:
        say(f"{options.many} environments through Salt")
        salt.measure(rounds, root, options.many, again=options.rounds)
    salt.call("netspace.teardown")
    return rounds


def lines(rounds: Rounds, options: Any) -> dict[str, dict[str, Any]]:
    middle, count, many = rounds.middle, options.count, options.many
    hand = "raw crun by hand"
    found = {
        "one environment, nothing to nothing": line(middle("one"), "ms", hand, middle("hand"), ratio=1.3),
        "one environment, processor time": line(middle("one cpu"), "ms", hand, middle("hand cpu")),
        "its program alone, start to exit": line(
            middle("program"), "ms", "crun run of the bundle", middle("hand program"), ratio=1.3
        ),
    }
    found["its program alone, processor time"] = line(
        middle("program cpu"), "ms", "crun run of the bundle", middle("hand program cpu")
    )
    for engine in BESIDE:
        for network in ("none", "bridge"):
            if f"{engine} {network}" in rounds:
                found[f"one environment beside {engine}, network {network}"] = line(
                    *(middle("one"), "ms", f"{engine} run --rm", middle(f"{engine} {network}")),
                    ratio=0.1 if engine == "docker" else None,
                )
    each = 1000 / count
    found |= {
        f"{count} through Salt, create each": line(
            middle(f"{count} create") * each, "ms", hand, middle("hand create"), limit=20
        ),
        f"{count} through Salt, create each, Salt's own start too": line(
            middle(f"{count} create whole") * each, "ms", hand, middle("hand create")
        ),
        f"{count} through Salt, create each, processor time": line(
            (middle(f"{count} create cpu") - middle("ping cpu")) / count, "ms", hand, middle("hand create cpu")
        ),
        f"{count} through Salt, destroy each": line(
            middle(f"{count} destroy") * each, "ms", "create", middle(f"{count} create") * each, ratio=1.0
        ),
        f"{count} by hand, destroy each": line(middle("hand destroy"), "ms", "create", middle("hand create")),
        f"{count} through Salt, unchanged": line(middle(f"{count} unchanged"), "s", NOTHING, middle("nop"), limit=0.2),
        f"{count} through Salt, unchanged, processor time": line(
            (middle(f"{count} unchanged cpu") - middle("ping cpu")) / 1000, "s", NOTHING, middle("nop cpu") / 1000
        ),
    }
    if options.idle:
        plain, by_hand = middle("plain memory"), middle("hand memory")
        found |= {
            "memory per idle environment beyond its program": line(
                middle("memory") - plain, "kB", hand, by_hand - plain, limit=100
            ),
            "memory per idle environment beyond raw crun": line(
                middle("memory") - by_hand, "kB", "all of it", middle("memory"), limit=100
            ),
            "memory of a network namespace and a pair, with nothing in it": line(
                middle("network memory"), "kB", "goal for all of it", 100
            ),
        }
    if many:
        found |= {
            f"{many} through Salt, create each": line(
                middle(f"{many} create") * 1000 / many, "ms", hand, middle("hand create"), limit=20
            ),
            f"{many} through Salt, destroy each": line(
                middle(f"{many} destroy") * 1000 / many, "ms", "create", middle(f"{many} create") * 1000 / many, ratio=1
            ),
            f"{many} through Salt, unchanged": line(
                middle(f"{many} unchanged"), "s", NOTHING, middle("nop"), limit=max(0.2, 2 * many / 1000)
            ),
            f"{many} through Salt, unchanged, processor time": line(
                (middle(f"{many} unchanged cpu") - middle("ping cpu")) / 1000, "s", NOTHING, middle("nop cpu") / 1000
            ),
        }
    return found


def main() -> None:
    parser = bench.arguments(__doc__)
    parser.add_argument("--count", type=int, default=50, help="environments of a batch (default 50)")
    parser.add_argument(
        "--many", type=int, default=1000, help="environments of the large batch (default 1000; 0: none)"
    )
    parser.add_argument(
        "--idle", type=int, default=100, help="environments whose memory is measured (default 100; 0: none)"
    )
    options = parser.parse_args()
    if options.count < 1 or options.rounds < 1 or min(options.many, options.idle) < 0:
        parser.error("want at least one environment and one round, and no negative numbers")
    bench.on_a_host_of_its_own()
    with bench.disk(in_memory=options.memory_disk) as folder:
        rounds = measure(options, folder)
    bench.tell(lines(rounds, options), options)


if __name__ == "__main__":
    main()
