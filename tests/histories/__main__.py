"""Check from outside that links keep their promises: ``sudo scripts/sandbox .venv/bin/python tests/histories``.

Two hosts, a cable between them, and five links: within each host, between them directly, by requests, and buffered.
Exits with 1 if the judge finds a fault; the notes then stay in the folder that the last line names.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent / "_utils"), str(TESTS.parent / "client" / "src")]

from support.links.linked_hosts import hosts  # noqa: E402

from histories.run import Road, Run, with_seed  # noqa: E402
from netspace.spec.types import Link  # noqa: E402

ROADS = (
    Road(Link(source="till@h2", target="orders@h2")),
    Road(Link(source="web@h1", target="orders@h2")),
    Road(Link(source="pump@h1", target="orders@h2", via="buffered")),
    Road(Link(source="shop@h1", target="audit@h1")),
    Road(Link(source="clerk@h1", target="desk@h2", pattern="request"), "call"),
)
QUESTIONS = 50
"""One message in so many is a question: each waits for its answer."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=10_000, metavar="N", help="of all links together")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument(
        "--every", type=float, default=3.0, metavar="S", help="seconds between disturbances, on average"
    )
    parser.add_argument("--quiet", action="store_true", help="don't show each disturbance")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="netspace-histories-", dir="/var/tmp"))
    print(f"seed {options.seed}", flush=True)
    (folder / "run").mkdir()
    with hosts(folder) as (h1, h2, cable):
        worlds = {"h1": h1, "h2": h2}
        links = [road.link for road in ROADS]
        for host, world in worlds.items():
            world.environment(*{name for road in ROADS for name, there in road.ends if there == host})
        for world in (h2, h1):
            world.declare(*links)
        share = {road.name: _share(road, options.messages) for road in ROADS}
        run = Run(worlds, cable, ROADS, folder / "run", share)
        report = run(with_seed(run, options.seed, options.every), (lambda _: None) if options.quiet else _say)
    print("\n".join(report.lines()), flush=True)
    if report.good:
        shutil.rmtree(folder)
        return 0
    print(f"the notes are in {folder}/run")
    return 1


def _share(road: Road, messages: int) -> int:
    questions = messages // QUESTIONS
    return questions if road.how == "call" else (messages - questions) // (len(ROADS) - 1) + 1


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
