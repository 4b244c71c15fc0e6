"""The checker of histories on a real broker: a short run finds no fault, and a real loss is found.

The long run is by hand: ``docs/checked-links.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from histories.faults import Disturbance, Target
from histories.run import Road, Run
from support.links.link_world import World
from support.links.programs import no_mail

from netspace.spec.types import Link

pytestmark = pytest.mark.root

SENT = Road(Link(source="web", target="orders"))
ALSO = Road(Link(source="till", target="orders"))
ASKED = Road(Link(source="clerk", target="desk", pattern="request"), "call")
MEMORY = Road(Link(source="web", target="audit", durable=False))
ROADS = (SENT, ALSO, ASKED, MEMORY)
NAMES = ("web", "till", "clerk", "orders", "desk", "audit")
DISTURBANCES = (
    ("client", "orders", "kill"),
    ("client", "web", "kill"),
    ("forwarder", "", "pause"),
    ("lo", "orders", "cut"),
    ("client", "clerk", "pause"),
    ("broker", "", "pause"),
    ("client", "orders", "kill"),
    ("forwarder", "", "kill"),
    ("broker", "", "kill"),
    ("client", "desk", "kill"),
)


@pytest.fixture
def linked(standing: World) -> World:
    standing.environment(*NAMES)
    standing.apply(*(road.link for road in ROADS), purge=True)
    no_mail(standing)
    return standing


def disturbances() -> Iterator[Disturbance]:
    for kind, name, how in DISTURBANCES:
        yield Disturbance(0.7, Target(kind, name), how, 0.0 if how == "kill" else 1.0)


def test_links_keep_their_promises_through_ten_disturbances(linked: World, tmp_path: Path) -> None:
    number = {SENT.name: 3000, ALSO.name: 3000, ASKED.name: 60}
    run = Run({"": linked}, None, (SENT, ALSO, ASKED), tmp_path, number)
    report = run(disturbances(), least=len(DISTURBANCES))
    assert report.good, "\n".join(report.lines())
    assert len(report.done) == len(DISTURBANCES)
    assert report.verdicts[SENT.name].counts["confirmed"] == report.verdicts[ALSO.name].counts["confirmed"] == 3000
    assert report.verdicts[ASKED.name].counts["confirmed"] > 0


def test_messages_that_memory_lost_are_found_missing(linked: World, tmp_path: Path) -> None:
    """A link in memory loses what waits when the broker is killed: the checker sees real losses."""
    run = Run({"": linked}, None, (MEMORY,), tmp_path, {MEMORY.name: 200}, late=("audit",))
    report = run(iter(()), at_end=linked.kill_broker)
    assert report.verdicts[MEMORY.name].faults == {"lost": 200}, "\n".join(report.lines())
    assert not report.good
