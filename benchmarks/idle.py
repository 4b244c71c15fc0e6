"""Memory and processor time of netspace's own processes on a host where nothing happens.

usage: sudo python benchmarks/idle.py [--json | --markdown] [--count N] [--seconds N]

It starts a sandbox (``scripts/sandbox``) and runs environments that sleep (``--count``, default 20). All have a health
check once an hour; two are joined by a link, and one may ask its host (``host: [whoami]``). So all of netspace's
services run. Then it waits, and reads for each process of netspace its proportional share of memory (PSS, proc(5)) and
its processor time, by the kernel's count of nanoseconds. Programs of environments don't count.

The peer of the memory of netspace's own processes is an empty Python process for each of them. The peer of the broker's
values is the same broker as Debian's package starts it, without netspace's settings.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bench
from bench import line, say

LIMIT_OWN, LIMIT_BROKER, LIMIT_IDLE = 30.0, 80.0, 0.3
SETTLE = 20.0  # seconds until Erlang has released the memory that only its start needed
BROKER = "beam.smp"
OWN = ("supervisor", "stand-by supervisor", "health", "peer")
PLAIN = "plain@localhost"


def pss(pid: int) -> float:
    """Return a process's proportional share of memory in MB."""
    for row in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if row.startswith("Pss:"):
            return int(row.split()[1]) / 1024
    return 0.0


def seconds(pid: int) -> float:
    """Return the seconds of processor time that a process's present threads have used."""
    tasks = Path(f"/proc/{pid}/task")
    found = 0
    for task in tasks.iterdir():
        with contextlib.suppress(OSError):
            found += int((task / "schedstat").read_text().split()[0])
    return found / 1e9


def processes() -> dict[str, list[int]]:
    """Return netspace's own processes by name. The stand-by supervisor is a child of the supervisor."""
    found: dict[str, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if not entry.name.isdigit():
                continue
            name = (entry / "comm").read_text().strip()
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if name in (BROKER, "haproxy"):
                found.setdefault(name, []).append(int(entry.name))
            elif b"/var/lib/netspace/lib/current" in words:
                found.setdefault(words[words.index(b"/var/lib/netspace/lib/current") + 1].decode(), []).append(
                    int(entry.name)
                )
    both = sorted(found.pop("supervise", []))
    return {**found, "supervisor": both[:1], "stand-by supervisor": both[1:]}


def settled(pids: list[int], wait: float, span: float) -> tuple[float, float]:
    """Return memory (MB) and share of a processor (percent) of processes together, measured over *span* seconds."""
    time.sleep(wait)
    before, begun = sum(map(seconds, pids)), time.monotonic()
    time.sleep(span)
    used = sum(map(seconds, pids)) - before
    return sum(map(pss, pids)), 100 * used / (time.monotonic() - begun)


def declared(root: Path, count: int) -> dict[str, Any]:
    from environments import IDLE

    check = {"exec": ["/bin/true"], "interval": 3600}
    one = {"image": f"dir:{root}", "command": IDLE, "interface": {"kind": "veth"}, "health": check}
    environments = {f"idle{number}": dict(one) for number in range(count)}
    environments["idle0"]["host"] = ["whoami"]
    return {"environments": environments, "links": [{"from": "idle0", "to": "idle1", "pattern": "request"}]}


def apply(declaration: dict[str, Any]) -> None:
    from netspace.host.host import Host
    from netspace.layout import Layout
    from netspace.spec import parse

    for converge in Host(Layout(), progress=say).each_kind(parse.declaration(declaration)).values():
        result = converge()
        assert result.ok, next(iter(result.failures))


@contextlib.contextmanager
def plain_broker(folder: Path) -> Iterator[int]:
    """Run Debian's broker without netspace's settings, with the same plugins of RabbitMQ's own; yield its process."""
    import pwd

    from netspace.link.broker import node

    account = pwd.getpwnam(node.USER)
    base = folder / "plain"
    base.mkdir()
    os.chown(base, account.pw_uid, account.pw_gid)
    for parent in (folder, *folder.parents[:-1]):
        parent.chmod(parent.stat().st_mode | 0o011)
    (base / "plugins").write_text("[rabbitmq_management].\n")
    (base / "rabbitmq.conf").write_text("listeners.tcp.1 = 127.0.0.1:5799\nmanagement.tcp.port = 15799\n")
    variables = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(base),
        "RUNNING_UNDER_SYSTEMD": "true",
        "RABBITMQ_NODENAME": PLAIN,
        "RABBITMQ_MNESIA_BASE": str(base / "data"),
        "RABBITMQ_LOG_BASE": str(base / "log"),
        "RABBITMQ_CONFIG_FILE": str(base / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(base / "plugins"),
        "RABBITMQ_DIST_PORT": "25799",
    }
    process = subprocess.Popen(
        [str(node.SERVER)],
        env=variables,
        user=node.USER,
        group=node.USER,
        extra_groups=(),
        cwd=base,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 90
        while not _serves(15799):
            assert time.monotonic() < end and process.poll() is None, "the plain broker doesn't start"
            time.sleep(0.5)
        yield process.pid
    finally:
        process.terminate()
        process.wait()
        # Its own name service, which netspace's broker doesn't need.
        subprocess.run(["epmd", "-kill"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def _serves(port: int) -> bool:
    import socket

    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def empty_python() -> float:
    """Return the memory (PSS, MB) of a Python process that does nothing, beside a second one."""
    command = [sys.executable, "-I", "-c", "import time; print(flush=True); time.sleep(60)"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for one in both:
            assert one.stdout
            one.stdout.readline()
        return pss(both[0].pid)
    finally:
        for one in both:
            one.kill()
            one.wait()


def main() -> None:
    parser = bench.arguments(__doc__)
    parser.add_argument("--count", type=int, default=20, help="environments (default 20, at least 2)")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long nothing happens (default 30)")
    options = parser.parse_args()
    bench.on_a_host_of_its_own()
    from environments import image

    lines = {}
    with bench.disk(in_memory=options.memory_disk) as folder:
        apply(declared(image(folder), max(2, options.count)))
        found = processes()
        say(f"processes: {found}")
        own = [pid for name in OWN for pid in found.get(name, ())]
        empty = empty_python()
        for name in (*OWN, "haproxy"):
            memory, share = settled(found.get(name, []), 0.0, 1.0)
            say(f"{name}: {memory:.1f} MB, {share:.2f} %")
            lines[f"memory of: {name}"] = line(memory, "MB", "an empty Python", empty)
        memory, share = settled(own, SETTLE, options.seconds)
        lines["memory of netspace's own processes"] = line(
            memory, "MB", f"{len(own)} empty Pythons", len(own) * empty, limit=LIMIT_OWN
        )
        lines["processor time of netspace's own processes"] = line(share, "%", "limit", LIMIT_IDLE, limit=LIMIT_IDLE)
        broker = settled(found[BROKER], 0.0, options.seconds)
        from netspace.host.host import Host
        from netspace.layout import Layout

        result = Host(Layout()).teardown()
        assert result.ok, next(iter(result.failures))
        with plain_broker(folder) as pid:
            beside = settled([pid], SETTLE, options.seconds)
        lines["memory of the broker"] = line(broker[0], "MB", "plain broker", beside[0], limit=LIMIT_BROKER)
        lines["processor time of the broker"] = line(broker[1], "%", "plain broker", beside[1], limit=LIMIT_IDLE)
    bench.tell(lines, options, "one measurement")


if __name__ == "__main__":
    main()
