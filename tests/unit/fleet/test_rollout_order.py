"""Order of hosts in a rollout, and its policy: receivers before senders, and the same batches each time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.fleet import policy as policies
from netspace.fleet.policy import Policy
from netspace.fleet.rollout.order import Batch, Order, order

Link = tuple[str, str]


def sections(hosts: Iterable[str], links: Iterable[Link], mark: str = "") -> dict[str, dict[str, Any]]:
    """Return each host's declaration, by the host's name.

    :param links: pairs of hosts: the sender and the receiver. The link joins one environment on each of these hosts;
        the environment is named like its host.
    :param mark: the value of ``as`` in each link; empty: the receiver's name.
    """
    found: dict[str, dict[str, Any]] = {host: {"broker": {"host": host, "hosts": {}}, "links": []} for host in hosts}
    for sender, receiver in links:
        found[sender]["links"].append({"from": sender, "to": f"{receiver}@{receiver}", "as": mark or receiver})
        found[receiver]["links"].append({"from": f"{sender}@{sender}", "to": receiver})
    return found


def ordered(hosts: str, old: Iterable[Link], new: Iterable[Link], most: int = 1, **policy: Any) -> Order:
    names = list(hosts)
    return order(sections(names, old), sections(names, new), names, Policy(**{"canary": 0, **policy}), most)


def batches(found: Order) -> list[str]:
    return ["".join(sorted(batch.hosts)) for batch in found.batches]


def test_the_receiver_of_a_new_link_is_first() -> None:
    found = ordered("abc", [], [("a", "b"), ("b", "c")], 3)
    assert batches(found) == ["c", "b", "a"] and found.before == {"a": ("b",), "b": ("c",)} and found.notes == ()


def test_the_sender_of_a_removed_link_is_first() -> None:
    assert batches(ordered("ab", [("b", "a")], [])) == ["b", "a"]
    assert batches(ordered("ab", [("a", "b")], [])) == ["a", "b"]


def test_a_moved_receiver_is_there_first_and_gone_last() -> None:
    # c's receiver moves from a to b.
    old, new = sections("abc", [("c", "a")]), sections("abc", [("c", "b")])
    assert batches(order(old, new, "abc", Policy(canary=0), 3)) == ["b", "c", "a"]


def test_links_that_stay_bind_nobody_but_decide_a_tie() -> None:
    found = ordered("ab", [("a", "b")], [("a", "b")])
    assert batches(found) == ["b", "a"] and found.before == {}
    assert batches(ordered("ab", [("a", "b")], [("a", "b")], 2)) == ["ab"]


def test_an_address_that_changes_counts_as_a_changed_link() -> None:
    old, new = sections("ab", [("a", "b")]), sections("ab", [("a", "b")])
    new["a"]["broker"]["hosts"]["b"] = {"address": "198.51.100.9:5671"}
    assert order(old, new, "ab", Policy(canary=0), 2).before == {"a": ("b",)}
    new = sections("ab", [("a", "b")])
    new["b"]["broker"]["listen"] = "198.51.100.9:5671"
    assert order(old, new, "ab", Policy(canary=0), 2).before == {"a": ("b",)}


def test_hosts_in_a_circle_change_together_or_it_is_said() -> None:
    circle = [("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")]
    found = ordered("abcd", [], circle, 3)
    assert batches(found) == ["abc", "d"] and not found.notes
    found = ordered("abcd", [], circle, 2)
    assert batches(found)[-1].endswith("d") and len(found.notes) == 1
    assert "a, b, c wait for one another, and a batch has at most 2" in " ".join(found.notes).replace(
        "b, c, a", "a, b, c"
    )
    assert found.before == {"d": ("a",)}


def test_hosts_outside_the_plan_bind_nobody() -> None:
    everything = sections("abc", [("a", "b"), ("a", "c")])
    assert order(sections("abc", []), everything, "ac", Policy(canary=0), 2).before == {"a": ("c",)}


def test_both_ends_on_one_host_need_no_order() -> None:
    new = {"a": {"broker": {"host": "a"}, "links": [{"from": "web", "to": "db"}]}}
    assert order({}, new, "a", Policy(), 1) == Order((Batch(("a",), True),), {}, ())


def test_canaries_by_number_follow_the_order() -> None:
    found = ordered("abcd", [], [("a", "d")], 2, canary=1)
    assert found.batches[0] == Batch(("b",), True) and not any(batch.canary for batch in found.batches[1:])
    found = ordered("abcd", [], [], 1, canary=2)
    assert [batch.canary for batch in found.batches] == [True, True, False, False]


def test_named_canaries_come_first_and_say_what_they_break() -> None:
    found = ordered("abc", [], [("a", "b")], 2, canary=("a", "x"))
    assert found.batches[0] == Batch(("a",), True)
    assert found.notes == ("canaries change too early for their links: a before b",)
    found = ordered("abc", [], [], 2, canary=("x",))
    assert found.batches[0] == Batch(("a",), True) and "none of the declared canaries" in found.notes[0]


@st.composite
def plans(draw: st.DrawFn) -> tuple[str, list[Link], list[Link], int, int]:
    hosts = "abcdefgh"[: draw(st.integers(1, 8))]
    pairs = [(one, other) for one in hosts for other in hosts if one != other]
    links = st.lists(st.sampled_from(pairs), max_size=10, unique=True) if pairs else st.just([])
    return hosts, draw(links), draw(links), draw(st.integers(1, 4)), draw(st.integers(0, 3))


@given(plans())
def test_every_host_changes_once_and_after_those_it_needs(plan: tuple[str, list[Link], list[Link], int, int]) -> None:
    hosts, old, new, most, canary = plan
    found = ordered(hosts, old, new, most, canary=canary)
    assert sorted(host for batch in found.batches for host in batch.hosts) == sorted(hosts)
    assert all(0 < len(batch.hosts) <= most for batch in found.batches)
    place = {host: number for number, batch in enumerate(found.batches) for host in batch.hosts}
    for host, earlier in found.before.items():
        assert all(place[other] <= place[host] for other in earlier), found
    if not found.notes:  # an edge between two batches is never the wrong way round
        for sender, receiver in set(new) - set(old):
            assert place[receiver] <= place[sender]
        for sender, receiver in set(old) - set(new):
            assert place[sender] <= place[receiver]
    assert min(canary, len(hosts)) <= sum(len(batch.hosts) for batch in found.batches if batch.canary)
    shuffled = order(
        sections(hosts, reversed(old)), sections(hosts, reversed(new)), hosts[::-1], Policy(canary=canary), most
    )
    assert shuffled == found, "the same plan has the same batches"


@pytest.mark.parametrize(
    ("policy", "hosts", "expected"),
    [
        (Policy(), 1000, (1, 1)),
        (Policy(max_fail="5%"), 1000, (50, 50)),
        (Policy(step="10%", max_fail=500), 1000, (100, 500)),
        (Policy(step="10%", max_fail="1%"), 5, (1, 1)),
        (Policy(step=3, max_fail=2), 5, (2, 2)),
    ],
)
def test_a_step_is_never_larger_than_what_may_fail(policy: Policy, hosts: int, expected: tuple[int, int]) -> None:
    found = policies.pace(policy, hosts)
    assert (found.step, found.max_fail) == expected


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("step", 0, "0: the least is 1"),
        ("step", "0%", "'0%': expected a number"),
        ("max_fail", 0, "0: without a host that may fail, no host can change"),
        ("max_fail", "101%", "'101%': expected a number"),
        ("canary", -1, "-1: expected a number of hosts"),
        ("canary", ("h9",), "h9: no host of the fleet"),
        ("settle", -1.0, "-1: expected 0 to 86400 seconds"),
        ("settle", float("nan"), "nan: expected"),
        ("deadline", 86401.0, "86401: expected"),
    ],
)
def test_a_policy_that_is_impossible_is_refused(key: str, value: Any, reason: str) -> None:
    ((where, why),) = policies.wrong(Policy(**{key: value}), ["h1"])
    assert where == key and why.startswith(reason)


def test_arguments_go_over_the_declared_policy() -> None:
    declared = Policy(canary=("h1",), settle=5.0)
    given = {"canary": "h2,h3", "step": "20%", "max_fail": None, "settle": None, "gate": "none"}
    assert policies.merged(declared, given) == {
        "canary": ["h2", "h3"],
        "step": "20%",
        "max_fail": 1,
        "settle": 5.0,
        "deadline": 60.0,
        "gate": [],
    }
