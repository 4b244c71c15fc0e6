"""The time to make the page with a fleet's picture, for 10, 100, 1,000 and 10,000 environments with three links each.

usage: python benchmarks/pictures.py [--json | --markdown] [--counts N,N] [--rounds N]

It needs no root, no browser and no Salt. The page shows the environments' state. These figures are measured, the times
in milliseconds of this process's processor time:

*page* -- from the compiled declaration and the hosts' parsed answers to the page. The peer is ``json.dumps`` of the
same facts, which every page would have to contain.

*layout* -- the part of *page* that places the boxes. The peer is *page*.

*size* -- kilobytes of the page. The peer is the size of that JSON.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import bench
from bench import ROOT, Rounds, line, say

sys.path.insert(0, str(ROOT / "tests"))

TIME, SIZE = 1000.0, 2000.0
"""The goals for 1,000 environments and 3,000 links: milliseconds and kilobytes."""


def used(work: Callable[..., Any], *arguments: Any) -> float:
    """Return the milliseconds of processor time that a call takes."""
    begin = time.process_time()
    work(*arguments)
    return (time.process_time() - begin) * 1000


def main() -> None:
    parser = bench.arguments(__doc__)
    parser.add_argument("--counts", default="10,100,1000,10000", help="numbers of environments (10,100,1000,10000)")
    options = parser.parse_args()
    bench.note_load()
    from support.fleet import pictures

    from netspace.plugin import fleet_picture
    from netspace.plugin.picture import layout

    fleet_picture.picture("html", pictures.compiled(pictures.shop()))  # imports jinja2, compiles the template
    lines: dict[str, dict[str, Any]] = {}
    for count in map(int, options.counts.split(",")):
        rounds = Rounds()
        made = pictures.compiled(pictures.large(count, max(count // 10, 2), min(3, count - 1)))
        now = pictures.seen(made)
        page = fleet_picture.picture("html", made, now)
        held = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)[0]
        data, graph = json.loads(held), fleet_picture.graph(made, now)
        for turn in range(options.rounds):
            say(f"{count} environments, round {turn + 1} of {options.rounds}")
            rounds.note("page", used(fleet_picture.picture, "html", made, now))
            rounds.note("json", used(json.dumps, data))
            rounds.note("layout", used(layout.layout, graph))
        middle, goal = rounds.middle, count == 1000
        lines |= {
            f"page, {count}": line(
                middle("page"), "ms", "json.dumps of its facts", middle("json"), limit=TIME if goal else None
            ),
            f"layout, {count}": line(middle("layout"), "ms", "the page", middle("page")),
            f"size, {count}": line(
                len(page.encode()) / 1000, "kB", "that JSON", len(held) / 1000, limit=SIZE if goal else None
            ),
        }
    bench.tell(lines, options, "medians of processor time")


if __name__ == "__main__":
    main()
