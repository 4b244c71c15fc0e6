"""Local names are only in the card; no object on the broker contains one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_link_hosts import CALLED, H1, SCHEMA, objects

from netspace.layout import Layout
from netspace.link import plan as planning
from netspace.link.card import card
from netspace.link.plan import Observed
from netspace.link.reconciler import DesiredLinks
from netspace.link.record import Record, read, write
from netspace.spec.types import Link, LocalBroker

ENDS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(["a", "b", "c", "x@h2", "y@h3"])).filter(
        lambda ends: ends[0] != ends[1]
    ),
    unique=True,
)
LINK = Link(source="web", target="orders", pattern="request")
NAMED = msgspec.structs.replace(LINK, local="shop")


@st.composite
def links(draw: st.DrawFn) -> list[Link]:
    made = []
    for source, target in draw(ENDS):
        buffered = "@" in target and draw(st.booleans())
        pattern = "send" if buffered else draw(st.sampled_from(["send", "request"]))
        via = "buffered" if buffered else "direct"
        made.append(Link(source=source, target=target, pattern=pattern, via=via))
    return made


@given(links(), st.data())
def test_the_broker_s_objects_are_the_same_with_and_without(plain: list[Link], data: st.DataObject) -> None:
    named = [
        msgspec.structs.replace(link, local=data.draw(st.none() | st.just(f"n{index}")))
        for index, link in enumerate(plain)
    ]
    assert objects(*named) == objects(*plain)
    for name in ("a", "b", "c"):
        before, after = (card(name, some, "netspace", CALLED, identity="x", broker=H1) for some in (plain, named))
        assert {peer["to"]: peer.pop("as", None) for peer in after["peers"]} == {
            link.target: link.local for link in named if link.source == name
        }
        assert after == before, "clients that don't know of it find all where it was"


def test_a_card_with_a_local_name_is_as_the_schema_says() -> None:
    told = card("web", [NAMED], "netspace", CALLED, identity="spiffe://d/host/h/env/web")
    jsonschema.validate(told, SCHEMA)
    assert (told["peers"][0]["to"], told["peers"][0]["as"]) == ("orders", "shop")
    told["peers"][0]["as"] = "shop@h2"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(told, SCHEMA)


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        (LINK, NAMED, {"as": {"old": None, "new": "shop"}}),
        (NAMED, LINK, {"as": {"old": "shop", "new": None}}),
        (NAMED, NAMED, None),
    ],
)
def test_a_plan_shows_the_name_that_was_and_the_one_that_is_to_be(
    tmp_path: Path, old: Link, new: Link, changes: dict[str, Any] | None
) -> None:
    layout = Layout(root=tmp_path)
    write(layout, Record(LocalBroker(), {old.name: old}))
    observed = Observed(read(layout), "running")
    plan = planning.plan(layout, DesiredLinks(LocalBroker(), (new,)), observed)
    shown = {step.name: step.changes for step in plan.steps if step.name == LINK.name}
    assert shown == ({} if changes is None else {LINK.name: changes})


def test_a_new_broker_shows_no_empty_setting(tmp_path: Path) -> None:
    plan = planning.plan(Layout(root=tmp_path), DesiredLinks(LocalBroker(), (LINK,)), Observed(Record(), "absent"))
    (changes,) = [step.changes for step in plan.steps if step.name == "broker"]
    assert changes["broker:kind"] == {"old": None, "new": "local"}
    assert [key for key, change in changes.items() if change["new"] in ({}, [], (), "", None)] == []
