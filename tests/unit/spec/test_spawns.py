"""Templates of children: their checks, and that a child never has a right that its parent lacks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from netspace.environment import record
from netspace.errors import SpecError
from netspace.host import keeper
from netspace.spec import parse, spawns
from netspace.spec.types import Declaration, Environment, Link

NAMES = ("web", "orders", "audit", "till")
VERBS = ("whoami", "values", "who", "attest")


def whole() -> dict[str, Any]:
    worker = {
        "image": "tar:/w.tar",
        "at_most": 2,
        "host": ["whoami"],
        "links": {"orders": {"rate": 5, "size": "4K"}},
        "to_parent": {"size": "1K"},
        "from_parent": {},
        "values": {"task": "none", "count": 0, "more": {"a": 1}, "deep": [1], "on": False},
    }
    web = {"image": "tar:/x.tar", "host": ["spawn", "whoami"], "spawns": {"worker": worker}, "seccomp": "standard"}
    link = {"from": "web", "to": "orders", "length": 10, "rate": 10, "as": "shop", "monitor": True}
    return {"environments": {"web": web, "orders": {"image": "tar:/o.tar"}}, "links": [link]}


def test_template_makes_places_that_are_stopped() -> None:
    declared = parse.declaration(whole())
    assert list(declared.environments) == ["web", "orders", "web-worker-1", "web-worker-2"]
    place = declared.environments["web-worker-2"]
    assert (place.state, place.restart, place.read_only, place.interface.NONE) == ("stopped", "never", True, True)
    assert (place.seccomp, place.host, place.values["task"]) == ("standard", ("whoami",), "none")
    links = {link.name: link for link in declared.links}
    assert set(links) == {"web.orders"} | {
        name for n in "12" for name in (f"web-worker-{n}.orders", f"web-worker-{n}.web", f"web.web-worker-{n}")
    }
    handed = links["web-worker-1.orders"]
    assert (handed.rate, handed.size, handed.length, handed.local, handed.monitor) == (5, 4096, 10, "shop", False)
    known = declared.environments
    assert spawns.parent_of("web-worker-1", known.get) == "web"
    assert [spawns.parent_of(name, known.get) for name in ("web-worker-3", "web", "web-orders-1")] == [""] * 3


def _worker(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = data["environments"]["web"]["spawns"]["worker"]
    return found


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        (
            lambda data: _worker(data)["links"].update(orders={"rate": 11}),
            "worker:links:orders",
            "beyond its parent's 10",
        ),
        (
            lambda data: _worker(data)["links"].update(orders={"length": 11}),
            "worker:links:orders",
            "beyond its parent's 10",
        ),
        (lambda data: _worker(data)["links"].update(audit={}), "worker:links:audit", "has no link to audit"),
        (lambda data: _worker(data)["links"].update({"audit@h2": {}}), "worker:links:audit@h2", "another host"),
        (lambda data: _worker(data).update(to_parent={"rate": 5}), "worker:to_parent:rate", "needs length"),
        (lambda data: _worker(data).update(volumes=[]), "worker:volumes", "unknown"),
        (lambda data: _worker(data).update(interface={"kind": "veth"}), "worker:interface", "unknown"),
        (lambda data: _worker(data).update(seccomp="standard"), "worker:seccomp", "unknown"),
        (lambda data: _worker(data).update(at_most=65), "worker:at_most", "out of 1..64"),
        (lambda data: _worker(data).update(at_most=10**12), "worker:at_most", "out of 1..64"),
        (lambda data: _worker(data).update(lifetime=0), "worker:lifetime", "out of 1..604800"),
        (lambda data: _worker(data).update(stop_timeout=11), "worker:stop_timeout", "out of 0..10"),
        (lambda data: _worker(data).update(host=["who"]), "worker:host:0", "its parent may not send this request"),
        (lambda data: _worker(data).update(host=["spawn"]), "worker:host:0", "a child has no children"),
        (lambda data: _worker(data).update(image="x"), "worker:image", ""),
        (lambda data: _worker(data).update(values={"A": 1}), "worker:values:A", "can't be a value's name"),
        (lambda data: data["environments"]["web"].update(host=["whoami"]), "web:host", "has no spawn"),
        (lambda data: data["environments"]["web"].update(spawns={}), "web:spawns", "needs a template"),
        (lambda data: data["environments"]["web"]["spawns"].update({"a" * 47: _worker(data)}), "a" * 47, "too long"),
        (lambda data: data["environments"]["web"]["spawns"].update({"a~b": _worker(data)}), "a~b", "template's name"),
        (
            lambda data: data["environments"].update({"web-worker-1": {"image": "tar:/o.tar"}}),
            "worker",
            "name of a child",
        ),
        (lambda data: data["links"].append({"from": "orders", "to": "web-worker-1"}), "links", "is a child"),
        (lambda data: data["links"].append({"from": "web-worker-1", "to": "web"}), "links", "is a child"),
        (
            lambda data: data.update(never=[{"from": "web-worker-1", "to": "orders", "by": "messages"}]),
            "never:0",
            "web-worker-1",
        ),
    ],
)
def test_wrong_template_is_refused_with_its_path(change: Change, path: str, message: str) -> None:
    data = whole()
    change(data)
    with pytest.raises(SpecError) as refused:
        parse.declaration(data)
    found = refused.value.problems
    assert any(one.path.endswith(path) and message in one.message for one in found), found


@pytest.mark.parametrize("names", [("web", "web-a"), ("web-a", "web")])
def test_place_of_two_parents_is_refused(names: tuple[str, str]) -> None:
    data, templates = whole(), {"web": "a-b", "web-a": "b"}
    one = {"image": "tar:/x.tar", "at_most": 1}
    data["environments"] = {
        name: {"image": "tar:/x.tar", "host": ["spawn"], "spawns": {templates[name]: one}} for name in names
    }
    data["links"] = []
    with pytest.raises(SpecError, match=f"web-a-b-1 is the name of a child of {names[0]}, too"):
        parse.declaration(data)


def test_change_of_templates_restarts_no_parent() -> None:
    def print_of(data: dict[str, Any]) -> str:
        from netspace.environment.runtimes import USUAL

        return record.fingerprint(parse.declaration(data).environments["web"], None, USUAL)

    other = whole()
    _worker(other)["at_most"] = 1
    assert print_of(whole()) == print_of(other)


@pytest.mark.parametrize(
    ("given_values", "why"),
    [
        ({}, ""),
        ({"task": "add", "count": 1.5, "more": {}, "deep": [], "on": True}, ""),
        ({"task": 1}, "values:task: expected a text, got a number"),
        ({"count": True}, "values:count: expected a number, got true or false"),
        ({"on": 1}, "values:on: expected true or false, got a number"),
        ({"more": []}, "values:more: expected a mapping, got a list"),
        ({"other": 1}, "values:other: not a value of the template; it has count, deep, more, on, task"),
        ({"task": None}, "values:task: expected a text, got nothing"),
        ({"task": "x" * 40_000}, "bytes as JSON"),
        ({"more": {"A": 1}}, "can't be a value's name"),
        ({"count": 2**60}, "beyond"),
    ],
)
def test_values_are_those_of_the_template(given_values: dict[str, Any], why: str) -> None:
    template = parse.declaration(whole()).environments["web"].spawns["worker"]
    said = spawns.mistyped(template, given_values)
    assert why in said and bool(why) == bool(said)


def test_verbs_about_children_are_those_of_the_keeper() -> None:
    assert set(get_args(keeper.Verb)) >= spawns.VERBS


# -- a child never has more than its parent ------------------------------------------------------------------------
BOUNDS = st.fixed_dictionaries(
    {}, optional={"rate": st.sampled_from([1.0, 5.0, 9.0]), "size": st.sampled_from([1024, 4096])}
)


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    """Return a declaration of environments with random links, rights and templates, some of which hand on too much."""
    environments: dict[str, Any] = {name: {"image": "tar:/x.tar"} for name in NAMES}
    links = [
        {"from": source, "to": target, "length": draw(st.sampled_from([5, 50])), **draw(BOUNDS)}
        | draw(st.sampled_from([{}, {"pattern": "request"}, {"durable": False}, {"ttl": 5.0}, {"seal": True}]))
        for source in NAMES
        for target in NAMES
        if source != target and draw(st.booleans())
    ]
    ends = {(link["from"], link["to"]) for link in links}
    for name in draw(st.sets(st.sampled_from(NAMES), min_size=1)):
        targets = [target for target in NAMES if (name, target) in ends or draw(st.integers(0, 9)) == 0]
        handed = {
            target: {**draw(BOUNDS), **draw(st.sampled_from([{}, {"length": 5}, {"length": 50}]))}
            for target in targets
            if target != name and draw(st.booleans())
        }
        template = {"image": "tar:/w.tar", "at_most": draw(st.integers(1, 2)), "links": handed}
        template["host"] = draw(st.lists(st.sampled_from(VERBS), max_size=2, unique=True))
        own = draw(st.lists(st.sampled_from(VERBS), max_size=4, unique=True))
        environments[name].update(host=["spawn", *own], spawns={"w": template})
    return {"environments": environments, "links": links}


def rights(links: Collection[Link], name: str) -> dict[str, tuple[Any, ...]]:
    """Return an environment's rights by receiver.

    A child's first values must equal its parent's; the numbers after them are limits, and must not be higher.
    """
    return {
        link.target: (
            (link.pattern, link.seal, link.full, link.content_type, link.attestation),
            tuple(math.inf if bound is None else bound for bound in (link.rate, link.size, link.length, link.ttl)),
            link.durable,
        )
        for link in links
        if link.source == name
    }


def no_child_has_more(declared: Declaration, links: Collection[Link]) -> None:
    for parent, spec in declared.environments.items():
        for place in spawns.places(parent, spec):
            child: Environment = declared.environments[place.name]
            assert set(child.host) <= set(spec.host) - spawns.VERBS and not child.spawns
            assert child.interface.NONE and not child.volumes and not child.target
            assert (child.seccomp, child.apparmor, child.attestation) == (spec.seccomp, spec.apparmor, spec.attestation)
            mine, most = rights(links, place.name), rights(links, parent)
            for target, (kind, bounds, durable) in mine.items():
                assert target in most, f"{place.name} may send to {target}, its parent may not"
                assert kind == most[target][0] and durable <= most[target][2]
                assert all(bound <= limit for bound, limit in zip(bounds, most[target][1], strict=True))


def hold(data: dict[str, Any], chance: Any) -> None:
    try:
        declared = parse.declaration(copy.deepcopy(data))
    except SpecError:
        return
    no_child_has_more(declared, declared.links)
    # Links that trust withholds, and links that an apply left narrower than they are declared.
    permitted = tuple(
        msgspec.structs.replace(link, rate=0.5) if chance.random() < 0.2 and link.rate is not None else link
        for link in declared.links
        if chance.random() < 0.7
    )
    no_child_has_more(declared, spawns.within(declared, permitted))


def tried(examples: int) -> None:
    """Try the property with random trees, up to the first that violates it."""
    test = given(trees(), st.randoms(use_true_random=False))(hold)
    settings(max_examples=examples, deadline=None, phases=(Phase.generate,), database=None)(test)()


def test_child_never_has_more_than_its_parent() -> None:
    tried(80)


@pytest.mark.parametrize("check", ["exceeds", "within", "_links_wrong", "wrong"])
def test_property_finds_a_check_that_is_taken_out(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    none: dict[str, Any] = {
        "exceeds": lambda *_: "",
        "within": lambda _, permitted: permitted,
        "_links_wrong": lambda *_: (),
        "wrong": lambda *_: (),
    }
    monkeypatch.setattr(spawns, check, none[check])
    with pytest.raises(AssertionError):
        tried(2000)  # it ends with the first violation


def test_child_keeps_no_link_whose_parent_must_prove_more() -> None:
    """A single state demands a level for the parent's link: the child's earlier link, without this demand, must end."""
    own = Link(source="web", target="orders", attested="L3")
    assert spawns.exceeds(Link(source="web-worker-1", target="orders"), own) == "attested is not its parent's"
