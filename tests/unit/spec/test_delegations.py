"""The key ``delegates``: its checks, and that a delegated right is never more than its holder's."""

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
from netspace.spec import delegations, parse, peer, spawns
from netspace.spec.delegations import Granted
from netspace.spec.types import Declaration, Link

NAMES = ("web", "orders", "till", "aid", "bank")
ASK = ["delegate", "revoke"]


def whole() -> dict[str, Any]:
    image = {"image": "tar:/x.tar"}
    bound = {"to": ["till"], "rate": 5, "size": "4K", "lifetime": 60}
    return {
        "environments": {
            "web": {**image, "host": ASK, "delegates": {"orders": bound}},
            "till": {**image, "host": ASK, "delegates": {"orders": {"to": ["aid"], "length": 10}}},
            "aid": image,
            "orders": image,
        },
        "links": [
            {"from": "web", "to": "orders", "rate": 9, "length": 500, "monitor": True, "as": "shop"},
            {"from": "web", "to": "till"},
            {"from": "till", "to": "aid"},
        ],
    }


def test_all_that_could_be_delegated_is_declared() -> None:
    links = {link.name: link for link in parse.declaration(whole()).links}
    assert set(links) == {"web.orders", "web.till", "till.aid", "till.orders", "aid.orders"}
    made = links["till.orders"]
    assert (made.rate, made.size, made.length, made.local, made.monitor) == (5, 4096, 500, None, False)
    assert (links["aid.orders"].rate, links["aid.orders"].size, links["aid.orders"].length) == (5, 4096, 10)
    assert [link.name for link in delegations.always(parse.declaration(whole()))] == [
        "web.orders",
        "web.till",
        "till.aid",
    ]


def test_right_without_bounds_has_a_queue_of_its_own() -> None:
    data = whole()
    data["links"][0] = {"from": "web", "to": "orders"}
    del data["environments"]["web"]["delegates"]["orders"]["rate"]
    links = {link.name: link for link in parse.declaration(data).links}
    assert links["web.orders"].length is None and links["till.orders"].length == delegations.LENGTH


Change = Callable[[dict[str, Any]], object]


def _bound(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = data["environments"]["web"]["delegates"]["orders"]
    return found


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        (lambda data: _bound(data).update(rate=10), "orders:rate", "exceeds web's own limit of 9"),
        (lambda data: _bound(data).update(length=501), "orders:length", "exceeds web's own limit of 500"),
        (lambda data: _bound(data).update(to=[]), "orders:to", "expected 1 to 16"),
        (lambda data: _bound(data).update(to=["till", "till"]), "orders:to:1", "listed twice"),
        (lambda data: _bound(data).update(to=["orders"]), "orders:to:0", "the receiver itself"),
        (lambda data: _bound(data).update(to=["aid"]), "orders:to:0", "web has no link to aid"),
        (lambda data: _bound(data).update(to=["till@h2"]), "orders:to:0", "can't be an environment's name"),
        (
            lambda data: data["environments"]["web"]["delegates"].update({"orders@h2": {"to": ["till"]}}),
            "delegates:orders@h2",
            "isn't an environment of this host",
        ),
        (lambda data: _bound(data).update(at_most=0), "orders:at_most", "out of 1..16"),
        (lambda data: _bound(data).update(lifetime=math.inf), "orders:lifetime", "out of 1..604800"),
        (lambda data: _bound(data).update(lifetime=0), "orders:lifetime", "out of 1..604800"),
        (lambda data: _bound(data).update(ttl=5), "orders:ttl", "unknown"),
        (lambda data: _bound(data).pop("to"), "delegates:orders", "to"),
        (
            lambda data: data["environments"]["web"]["delegates"].update(bank={"to": ["till"]}),
            "delegates:bank",
            "web has no link to bank",
        ),
        (lambda data: data["environments"]["web"].update(delegates={}), "web:delegates", "needs a link"),
        (lambda data: data["environments"]["web"].update(host=["whoami"]), "web:host", "has no delegate"),
        (
            lambda data: data["links"].append({"from": "till", "to": "orders"}),
            "orders:to:0",
            "a link to orders of its own",
        ),
        (
            lambda data: data["links"].append({"from": "aid", "to": "orders"}),
            "orders:to:0",
            "a link to orders of its own",
        ),
        (
            lambda data: (
                data["links"].append({"from": "web", "to": "aid"}),
                _bound(data).update(to=["till", "aid"]),
            ),
            "till:delegates:orders:to:0",
            "web may delegate this to aid, too",
        ),
        (lambda data: data.update(never=[{"from": "aid", "to": "orders"}]), "never:0", "aid -> orders"),
        (
            lambda data: data["environments"]["web"].update(
                host=[*ASK, "spawn"], spawns={"w": {"image": "tar:/x.tar", "host": ["delegate"]}}
            ),
            "spawns:w:host:0",
            "a child delegates nothing",
        ),
        (
            lambda data: (
                data["environments"]["web"].update(
                    host=[*ASK, "spawn"], spawns={"w": {"image": "tar:/x.tar", "from_parent": {}}}
                ),
                data["environments"]["web"]["delegates"].update({"web-w-1": {"to": ["till"]}}),
            ),
            "delegates:web-w-1",
            "is a child",
        ),
    ],
)
def test_wrong_delegation_is_refused_with_its_path(change: Change, path: str, message: str) -> None:
    data = whole()
    change(data)
    with pytest.raises(SpecError) as refused:
        parse.declaration(data)
    found = refused.value.problems
    assert any(one.path.endswith(path) and message in one.message for one in found), found


def test_fewer_places_than_rights_end_some() -> None:
    data = whole()
    data["links"].append({"from": "web", "to": "bank"})
    data["environments"]["bank"] = {"image": "tar:/x.tar"}
    _bound(data)["to"] = ["till", "bank"]
    limits = Granted("web", 5, 4096, 500)
    for most, count in ((2, 2), (1, 1)):
        _bound(data)["at_most"] = most
        declared = parse.declaration(data)
        there = delegations.standing(
            declared.environments, declared.links, {"till.orders": limits, "bank.orders": limits}
        )
        assert len({"till.orders", "bank.orders"} & {link.name for link in there}) == count


def test_circle_of_holders_has_no_right() -> None:
    data = whole()
    data["links"] += [{"from": "aid", "to": "till"}]
    data["environments"]["aid"] = {"image": "tar:/x.tar", "host": ASK, "delegates": {"orders": {"to": ["till"]}}}
    del data["environments"]["web"]["delegates"], data["environments"]["web"]["host"]
    with pytest.raises(SpecError, match="nobody may delegate one to it"):
        parse.declaration(data)


def test_change_of_delegations_restarts_nothing() -> None:
    from netspace.environment.runtimes import USUAL

    other = whole()
    _bound(other)["rate"] = 1
    prints = [record.fingerprint(parse.declaration(data).environments["web"], None, USUAL) for data in (whole(), other)]
    assert prints[0] == prints[1]


def test_verbs_of_children_rights_and_keys_are_the_keeper_s() -> None:
    assert set(get_args(keeper.Verb)) == spawns.VERBS | delegations.VERBS | peer.KEYED


# -- nobody has more than was given --------------------------------------------------------------------------------
BOUNDS = st.fixed_dictionaries(
    {}, optional={"rate": st.sampled_from([1.0, 5.0, 9.0]), "size": st.sampled_from([1024, 4096])}
)


@st.composite
def worlds(draw: st.DrawFn) -> dict[str, Any]:
    """Return a declaration with random links and delegations, some of which ask for too much."""
    environments: dict[str, Any] = {name: {"image": "tar:/x.tar"} for name in NAMES}
    every = [(source, target) for source in NAMES for target in NAMES if source != target]
    pairs = set(draw(st.lists(st.sampled_from(every), min_size=5, max_size=9, unique=True)))
    links = [
        {"from": source, "to": target, "length": draw(st.sampled_from([5, 50])), **draw(BOUNDS)}
        | draw(st.sampled_from([{}, {"pattern": "request"}, {"durable": False}, {"ttl": 5.0}, {"seal": True}]))
        for source, target in sorted(pairs)
    ]
    held, given_already = set(pairs), set()
    for _ in range(draw(st.integers(1, 4))):
        careless = draw(st.integers(0, 5)) == 0
        ways = [
            (holder, target, to)
            for holder, target in sorted(held if not careless else set(every))
            for to in NAMES
            if to != target and to != holder
            if careless or ((holder, to) in pairs and (to, target) not in pairs | given_already)
        ]
        if not ways:
            break
        holder, target, to = draw(st.sampled_from(ways))
        held.add((to, target))
        given_already.add((to, target))
        spec = environments[holder]
        spec["host"] = ["delegate"]
        usual = {"to": [], **draw(BOUNDS), **draw(st.sampled_from([{}, {"length": 5}, {"at_most": 1}]))}
        bound = spec.setdefault("delegates", {}).setdefault(target, usual)
        bound["to"] = sorted({*bound["to"], to})
    return {"environments": environments, "links": links}


def rights(link: Link) -> tuple[Any, ...]:
    bounds = (math.inf if bound is None else bound for bound in (link.rate, link.size, link.length, link.ttl))
    return (link.pattern, link.seal, link.full, link.content_type, link.attestation), tuple(bounds), link.durable


def nobody_has_more(declared: Declaration, data: dict[str, Any], there: Collection[Link]) -> int:
    """Check each link that isn't in *data*: its maker is declared, has the right itself, and gives no more."""
    known = {link.name: link for link in there}
    own = {f"{link['from']}.{link['to']}" for link in data["links"]}
    made = [link for link in there if link.name not in own]
    for link in made:
        holders = [
            (name, spec["delegates"][link.target])
            for name, spec in data["environments"].items()
            if link.source in spec.get("delegates", {}).get(link.target, {}).get("to", ())
        ]
        assert len(holders) == 1, f"{link.name} is nobody's to give, or two's"
        (holder, bound), *_ = holders
        assert f"{holder}.{link.source}" in own and f"{holder}.{link.target}" in known, link.name
        kind, bounds, durable = rights(link)
        most = rights(known[f"{holder}.{link.target}"])
        assert kind == most[0] and durable <= most[2] and link.local is None and not link.monitor
        assert all(mine <= limit for mine, limit in zip(bounds, most[1], strict=True)), link.name
        limits = (bound.get("rate", math.inf), bound.get("size", math.inf), bound.get("length", math.inf))
        assert all(mine <= limit for mine, limit in zip(bounds, limits, strict=False)), link.name
        count = sum(f"{to}.{link.target}" in known for to in bound["to"])
        assert count <= bound.get("at_most", count) or there is declared.links
    return len(made)


COUNT = [0]


def hold(data: dict[str, Any], chance: Any) -> None:
    try:
        declared = parse.declaration(copy.deepcopy(data))
    except SpecError:
        return
    COUNT[0] += nobody_has_more(declared, data, declared.links)
    # What programs were granted, and links that an apply took away or made narrower meanwhile.
    holders = {f"{to}.{target}": name for name, to, target in delegations.possible(declared.environments).values()}
    granted = {
        name: Granted(
            chance.choice([holders[name], "web"]),
            chance.choice([link.rate, 1.0, 9.0, None]),
            chance.choice([link.size, 512, None]),
            chance.choice([link.length, 5, 60]),
        )
        for name, link in {link.name: link for link in declared.links if link.name in holders}.items()
        if chance.random() < 0.8
    }
    permitted = tuple(
        msgspec.structs.replace(link, rate=0.5) if chance.random() < 0.2 and link.rate is not None else link
        for link in declared.links
        if chance.random() < 0.8
    )
    there = delegations.standing(declared.environments, permitted, granted)
    assert {link.name for link in there} & holders.keys() <= granted.keys(), "nobody delegated it"
    assert all(granted[name].holder == holders[name] for name in {link.name for link in there} & holders.keys())
    nobody_has_more(declared, data, there)


def tried(examples: int) -> None:
    test = given(worlds(), st.randoms(use_true_random=False))(hold)
    settings(max_examples=examples, deadline=None, phases=(Phase.generate,), database=None, derandomize=True)(test)()


def test_nobody_has_more_than_was_given() -> None:
    COUNT[0] = 0
    tried(100)
    assert COUNT[0] > 20, "the declarations have delegations"


@pytest.mark.parametrize("check", ["exceeds", "_receiver_wrong", "_least", "standing"])
def test_property_finds_a_check_that_is_left_out(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    none: dict[str, Any] = {
        "exceeds": lambda *_: "",
        "_receiver_wrong": lambda *_: "",
        "_least": lambda *_: None,
        "standing": lambda _, permitted, __: permitted,
    }
    monkeypatch.setattr(delegations, check, none[check])
    with pytest.raises(AssertionError):
        tried(1000)  # it ends with the first violation
