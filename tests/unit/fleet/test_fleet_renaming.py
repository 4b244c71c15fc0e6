"""A renamed environment in a fleet: it stays with its mailbox, its peers are told, and nobody else is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from support.fleet.fleets import fleets, published, written

from netspace.fleet import compile as compiler
from netspace.fleet.compile import Compiled
from netspace.fleet.planning import plans
from netspace.fleet.types import FleetError
from netspace.plan import Plan, Step
from netspace.spec import parse

FLEET = """
hosts: {h1: {address: 198.51.100.1}, h2: {address: 198.51.100.2}, h3: {address: 198.51.100.3}}
environments:
  shop: {"on": h1, image: tar:/srv/shop.tar}
  www:  {"on": "h*", image: tar:/srv/shop.tar}
  log:  {"on": h3, image: tar:/srv/shop.tar}
links:
  - {from: shop, to: www, via: buffered}
"""
WAS = {"shop": ("h1",), "www": ("h2",), "log": ("h3",)}


def data(**web: Any) -> dict[str, Any]:
    """Return the fleet after www was renamed to web."""
    found: dict[str, Any] = yaml.safe_load(FLEET)
    found["environments"]["web"] = {**found["environments"].pop("www"), "formerly": "www", **web}
    found["links"][0]["to"] = "web"
    return found


def made(found: dict[str, Any], previous: dict[str, tuple[str, ...]] = WAS, **more: Any) -> Compiled:
    return compiler.fleet({"fleet.yaml": found}, published(found["hosts"]), {}, previous, **more)


def problems(found: dict[str, Any]) -> dict[str, str]:
    try:
        return {one.path: one.reason for one in made(found).problems}
    except FleetError as err:
        return {one.path: one.reason for one in err.problems}


@pytest.mark.parametrize("host", ["h1", "h2", "h3"])
def test_a_renamed_environment_stays_on_its_host(host: str) -> None:
    found = made(data(), {**WAS, "www": (host,)})
    assert found.problems == () and found.placed["web"] == (host,)
    assert [(move.environment, move.reason) for move in found.moves] == [("www", "it is renamed to web")]
    remembered = made(data(), {"shop": ("h1",)}, remembered={"www": (host,)})
    assert remembered.placed["web"] == (host,), "it was left out for a while"


def test_those_concerned_learn_the_former_name_and_no_other() -> None:
    slices = made(data()).slices
    own, peer = slices["h2"]["netspace"], slices["h1"]["netspace"]
    assert own["environments"]["web"]["formerly"] == "www" and "formerly" not in own["links"][0]
    assert peer["links"] == [
        {"from": "shop", "to": "web@h2", "via": "buffered", "as": "web", "formerly": {"to": "www"}}
    ]
    assert "www" not in json.dumps(slices["h3"])
    ends = [parse.declaration(one).links[0].former_name for one in (own, peer)]
    assert ends == ["shop@h1.www", "shop.www@h2"]


def test_a_renamed_sender_is_told_to_its_receivers() -> None:
    found = data()
    found["links"] = [{"from": "web", "to": "log"}]
    slices = made(found).slices
    assert slices["h3"]["netspace"]["links"] == [{"from": "web@h2", "to": "log", "formerly": {"from": "www"}}]
    assert parse.declaration(slices["h2"]["netspace"]).links[0].former_name == "www.log@h3"


def test_a_rename_with_a_move_is_refused_with_the_way() -> None:
    found = problems(data(on="h3"))
    assert found.keys() == {"environments:web:formerly"}
    assert "the mailbox of www is on h2, and web would run on h3; rename it there first" in str(found)
    after = {"shop": ("h1",), "log": ("h3",), "web": ("h2",)}
    moved = made(data(on="h3"), after, remembered={"www": ("h2",)}, claimed=lambda: {"web": "www"})
    assert moved.problems == () and moved.placed["web"] == ("h3",), "after the rename, it may move"


@pytest.mark.parametrize("claims", [{}, {"log": "www"}])
def test_a_claim_from_another_host_is_refused(claims: dict[str, str]) -> None:
    """Claim a mailbox for an environment that runs on another host already: that host hasn't the mailbox."""
    leaving = made(data(), {**WAS, "web": ("h3",)})
    gone = {"shop": ("h1",), "log": ("h3",), "web": ("h3",)}
    parked = made(data(), gone, remembered={"www": ("h2",)}, claimed=lambda: claims)
    for found in (leaving, parked):
        (problem,) = found.problems
        assert problem.path == "environments:web:formerly", problem
        assert "the mailbox of www is on h2, and web would run on h3" in problem.reason


def test_a_rename_that_one_host_has_applied_keeps_both_replicas() -> None:
    """Compile again when the first of two hosts has the new name: the second one's replica stays where it is."""
    for first, second in (("h1", "h2"), ("h2", "h3"), ("h3", "h1")):
        found = made(data(replicas=2), {**WAS, "www": (second,), "web": (first,)})
        assert found.problems == () and set(found.placed["web"]) == {first, second}


def test_a_rename_with_fewer_replicas_is_refused() -> None:
    was = {**WAS, "www": ("h2", "h3")}
    (problem,) = made(data(), was).problems
    assert (problem.path, "rename it there first" in problem.reason) == ("environments:web:formerly", True)
    assert made(data(replicas=2), was).placed["web"] == ("h2", "h3")
    assert made(data(replicas=3), was).problems == ()


@pytest.mark.parametrize(
    ("more", "path", "reason"),
    [
        ({"www": {"on": "h2"}}, "web", "is declared, too"),
        ({"www": {"on": "h2", "formerly": "web"}}, "web", "is renamed as well"),
        ({"site": {"on": "h3", "formerly": "www"}}, "site", "web has this former name, too"),
        ({"site": {"on": "h3", "formerly": "web"}}, "site", "is renamed as well"),
        ({"site": {"on": "h1", "formerly": "shop"}}, "site", "is declared, too"),
        ({"site": {"on": "h1", "formerly": "../x"}}, "site", "can't be an environment's name"),
    ],
)
def test_a_claim_to_anothers_mailbox_is_refused(more: dict[str, Any], path: str, reason: str) -> None:
    """An environment that claims another's name as its own former name is refused, in any file of the fleet."""
    extra = {name: {"image": "tar:/srv/shop.tar", **spec} for name, spec in more.items()}
    documents = {"fleet.yaml": data(), "team/more.yaml": {"environments": extra}}
    with pytest.raises(FleetError) as caught:
        compiler.fleet(documents, published(["h1", "h2", "h3"]), {}, WAS)
    found = {one.path: (one.file, one.reason) for one in caught.value.problems}
    file, why = found[f"environments:{path}:formerly"]
    assert reason in why and file == ("team/more.yaml" if path in more else "fleet.yaml")


def test_a_link_of_the_file_may_name_no_former_ends() -> None:
    found = data()
    found["links"][0]["formerly"] = {"to": "log"}
    assert "the renamed environment's own key counts" in problems(found)["links:0:formerly"]


def test_a_renamed_environment_may_move_with_its_former_name(tmp_path: Path) -> None:
    """Follow an operator who leaves ``formerly`` in the file: rename, move, and claim what another one left behind."""
    path, image = tmp_path / "fleet.yaml", {"image": "tar:/srv/shop.tar"}

    def problems(**environments: Any) -> list[str]:
        declared = {name: {**image, **body} for name, body in environments.items()}
        path.write_text(json.dumps({"hosts": {"h1": None, "h2": None}, "environments": declared}))
        written(tmp_path).answer("h1")
        return [one.reason for one in written(tmp_path).check().problems]

    log = {"on": "h1"}
    assert problems(www={"on": "h2"}, log=log) == []
    (why,) = problems(web={"on": "h1", "formerly": "www"}, log=log)
    assert "rename it there first and move it after the apply" in why
    assert problems(web={"on": "h2", "formerly": "www"}, log=log) == []
    assert problems(web={"on": "h1", "formerly": "www"}, log=log) == []
    assert problems(web={"on": "h1"}, log=log) == []
    (why,) = problems(web={"on": "h1"}, log={**log, "formerly": "www"})
    assert "the mailbox of www is on h2, and log would run on h1" in why


@settings(deadline=None, max_examples=40)
@given(fleets())
def test_renaming_moves_nothing_and_changes_no_replica(found: dict[str, Any]) -> None:
    before = made(found, {})
    if before.problems or not found["environments"]:
        return
    old = min(found["environments"])
    text = json.dumps({**found, "environments": {}}).replace(f'"{old}"', '"renamed"')
    after = {**json.loads(text), "environments": dict(found["environments"])}
    after["environments"]["renamed"] = {**after["environments"].pop(old), "formerly": old}
    if old in json.dumps(found.get("never", [])):
        return
    now = made(after, dict(before.placed))
    assert now.problems == ()
    assert now.placed == {"renamed" if name == old else name: hosts for name, hosts in before.placed.items()}
    for minion, slice_ in now.slices.items():
        links = [parse.link(one) for one in slice_["netspace"].get("links", ())]
        was = [parse.link(one) for one in before.slices[minion]["netspace"].get("links", ())]
        ends = [name.replace("renamed", old) for name in (link.name for link in links)]
        assert sorted(ends) == sorted(link.name for link in was)
        if old not in json.dumps(before.slices[minion]):
            assert old not in json.dumps(slice_), "a host that has nothing to do with it learns nothing"


# -- in a plan ---------------------------------------------------------------------------------------
NAME = {"name": {"old": "www", "new": "web"}}
STEPS = (
    Step("interface", "web", "rename", NAME),
    Step(
        "link",
        "broker",
        "change",
        {
            "environments:web": {
                "old": "www",
                "new": "mailbox, account; it reads the mailbox of www until it is empty",
            },
            "former queue:mailbox.www": {"old": None, "new": "read until it is empty"},
        },
    ),
    Step(
        "link", "shop.web", "rename", {"to": {"old": "www", "new": "web"}, "formerly:to": {"old": None, "new": "www"}}
    ),
    Step("link", "forwarder", "change", {"environments": {"old": ["www"], "new": ["web"]}}),
    Step("link", "seals", "change", {"web": {"old": "keys of www", "new": "keys"}}),
    Step("environment", "web", "rename", NAME, "renamed from www; its mailbox is kept"),
)


def test_a_rename_is_one_change_in_the_plan() -> None:
    found = plans.host_plan("h2", {}, Plan(STEPS), {"web": 3})
    (entry,) = plans.fold({"h2": found})
    assert plans.words(entry, str, 0) == (
        "h2: environment  and 1 more: rename (renamed from www; its mailbox is kept (3 messages); 1 more keys)"
    )
    assert plans.received(plans.plain(found)) == found


def test_the_number_of_messages_leaves_the_plan_valid() -> None:
    digests = {plans.host_plan("h2", {}, Plan(STEPS), messages).digest for messages in (None, {"web": 3}, {"web": 4})}
    assert len(digests) == 1
    assert plans.host_plan("h2", {}, Plan(STEPS[1:])).digest not in digests, "what isn't shown is covered"


@pytest.mark.parametrize(
    "step",
    [
        Step("interface", "web", "rename", {**NAME, "ipv4": {"old": None, "new": "10.203.0.9"}}),
        Step("link", "broker", "change", {"environments:log": {"old": None, "new": "mailbox, account"}}),
        Step("link", "shop.web", "rename", {"to": {"old": "log", "new": "web"}}),
        Step("link", "shop.web", "rename", {"to": {"old": "www", "new": "web"}, "size": {"old": 1, "new": 2}}),
        Step("link", "shop.web", "create", {"to": {"old": None, "new": "web"}}),
        Step("link", "forwarder", "change", {"environments": {"old": ["www", "log"], "new": ["web"]}}),
        Step("link", "forwarder", "change", {"state": {"old": "down", "new": "running"}}),
        Step("link", "seals", "change", {"web": {"old": "none", "new": "keys"}, "log": {"old": "keys", "new": None}}),
        Step("environment", "log", "restart", {"image": {"old": 1, "new": 2}}),
    ],
    ids=str,
)
def test_what_changes_besides_a_name_is_shown(step: Step) -> None:
    shown = plans.host_plan("h2", {}, Plan([*STEPS, step])).steps
    assert {(one.kind, one.name) for one in shown} == {("environment", "web"), (step.kind, step.name)}
