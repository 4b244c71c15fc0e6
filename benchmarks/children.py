"""The time from a program's request for a child to the child's first instruction, compared with ``crun run`` alone.

usage: sudo python benchmarks/children.py [--json | --markdown] [--rounds N]

It starts a sandbox (``scripts/sandbox``), with a host that has a broker and an environment that may spawn. In each
round a child is spawned and ended, and then ``crun run`` runs the bundle of the same child, so that other load on this
machine affects both. The child's first instructions print the time. These figures are compared:

*to the first instruction* -- from the request, by ``netspace-client`` over the broker, to the time that the child
prints. The peer is the same from the start of ``crun run``, without broker, records, checks and supervisor.

*whole* -- from the request for a child to the answer to its end, and the processor time of everything in the sandbox
meanwhile. The peer is ``crun run`` until it has ended.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bench
from bench import Rounds, line, say

sys.path.insert(0, str(bench.ROOT / "client/src"))

GOAL = 60.0
"""Milliseconds from the request to the child's first instruction."""
PROGRAM = """
#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>
static void end(int number) { _exit(number != SIGTERM); }
int main(int count, char **words) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    signal(SIGTERM, end);
    if (words[1][0] != 'i') dprintf(1, "%ld.%09ld\\n", (long)now.tv_sec, now.tv_nsec);
    return words[1][0] == 'o' ? 0 : pause();
}
"""
ONCE, STAYS, IDLE = (["/bin/now", word] for word in ("once", "stays", "idle"))


def declared(root: Path) -> dict[str, Any]:
    one = {"image": f"dir:{root}", "limits": {"memory": "64M"}}
    child = {**one, "command": STAYS, "to_parent": {}, "lifetime": 3600}
    web = {**one, "command": IDLE, "host": ["spawn", "end", "children"], "spawns": {"worker": child}}
    return {"environments": {"web": web}}


def image(folder: Path) -> Path:
    """Make a root with one static program."""
    root = folder / "image"
    (root / "bin").mkdir(parents=True)
    for path in (root, root / "bin"):
        path.chmod(0o755)
    command = ["gcc", "-O1", "-static", "-x", "c", "-", "-o", str(root / "bin" / "now")]
    subprocess.run(command, input=PROGRAM, text=True, check=True)
    return root


def by_crun(bundle: Path, rounds: Rounds) -> None:
    """Run a bundle by crun alone, until it has printed the time."""
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["args"] = ONCE
    config["linux"]["cgroupsPath"] = "/bench-children"
    config["linux"]["namespaces"] = [one for one in config["linux"]["namespaces"] if one["type"] != "network"]
    place = bundle.parent / "bench-bundle"
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(config))
    with rounds.timed("crun"):
        began = time.time()
        done = subprocess.run(
            ["crun", "run", "--bundle", str(place), "bench-child"], capture_output=True, text=True, check=False
        )
    if done.returncode:
        sys.exit(f"crun run: {done.stderr}")
    rounds.note("crun first", (float(done.stdout.split()[0]) - began) * 1000)


async def measured(rounds: Rounds, count: int) -> None:
    from netspace.host.host import Host
    from netspace.layout import Layout
    from netspace.threads import enter_network
    from netspace_client import Mailbox

    layout, host = Layout(), Host(Layout())
    enter_network(layout.netns("web"))
    async with Mailbox(layout.inside("web")) as mailbox:
        await mailbox.host.children()
        for number in range(count + 1):
            kept = rounds if number else Rounds()  # the first one loads modules, so it isn't recorded
            with kept.timed("spawn"):
                began = time.time()
                await mailbox.host.spawn("worker", "w")
                kept.note("answer", (time.time() - began) * 1000)
                await mailbox.host.end("w")
            said = host.operations.logs("web-worker-1", 1)["lines"][-1]
            kept.note("spawn first", (float(said) - began) * 1000)
            by_crun(layout.bundle("web-worker-1"), kept)
            say(f"round {number}: {kept.values['spawn first'][-1]:.1f} ms; crun {kept.values['crun first'][-1]:.1f} ms")


def main() -> None:
    options = bench.arguments(__doc__, rounds=20).parse_args()
    bench.on_a_host_of_its_own()
    from netspace.host.host import Host
    from netspace.layout import Layout
    from netspace.spec import parse

    rounds = Rounds()
    with bench.disk(in_memory=options.memory_disk) as folder:
        host = Host(Layout())
        try:
            for converge in host.each_kind(parse.declaration(declared(image(folder)))).values():
                result = converge()
                assert result.ok, (result.failures, result.plan.refusals)
            asyncio.run(measured(rounds, options.rounds))
        finally:
            host.teardown()
    bench.tell(
        {
            "to the first instruction": line(
                rounds.middle("spawn first"), "ms", "`crun run`", rounds.middle("crun first"), limit=GOAL
            ),
            "to the answer": line(rounds.middle("answer"), "ms", "`crun run`, whole", rounds.middle("crun")),
            "whole": line(rounds.middle("spawn"), "ms", "`crun run`, whole", rounds.middle("crun")),
            "whole, processor time": line(rounds.middle("spawn cpu"), "ms", "`crun run`", rounds.middle("crun cpu")),
        },
        options,
    )


if __name__ == "__main__":
    main()
