"""Tests: one environment of each class is enough to compute a change of the packet filter.

The result is the same as from all interfaces.
"""

from __future__ import annotations

from hypothesis import given, settings
from support.interfaces.claimed import changes

from netspace.interface import claims, host_filter
from netspace.interface.claims import Claims, made
from netspace.layout import Layout
from netspace.nftables.table import difference

Change = tuple[dict[str, Claims], dict[str, Claims], set[str]]
LAYOUT = Layout()


def lines(text: str) -> list[str]:
    """Return the lines of a difference. Elements are in the order of the interfaces, which doesn't matter."""
    return [" ".join(sorted(line.replace(",", " ").split())) for line in text.splitlines()]


@settings(deadline=None, max_examples=400)
@given(changes())
def test_parts_differ_exactly_as_the_complete_tables_do(change: Change) -> None:
    before, after, changed = change
    whole = [host_filter.table(LAYOUT, known) for known in (before, after)]
    parts = host_filter.parts(LAYOUT, before, after, changed)
    assert bool(parts[1].chains) == bool(whole[1].chains)
    if whole[0].chains and whole[1].chains:  # else the table is loaded or removed as a whole
        assert sorted(lines(difference("t", *parts))) == sorted(lines(difference("t", *whole)))
        assert parts[0].same_structure(parts[1]) == whole[0].same_structure(whole[1])


def weight(known: dict[str, Claims]) -> int:
    return sum(claims.weigh(name, its) for name, its in known.items())


@settings(deadline=None, max_examples=400)
@given(changes())
def test_equal_marks_mean_equal_tables(change: Change) -> None:
    before, after, _ = change
    if claims.mark(weight(before)) == claims.mark(weight(after)):
        assert host_filter.table(LAYOUT, before).digest == host_filter.table(LAYOUT, after).digest
    elif before == after:
        raise AssertionError("the same claims have one mark")


def test_thousand_alike_interfaces_make_a_small_table() -> None:
    before = {f"e{n}": made("veth", {"ipv4": f"10.203.{n // 250}.{n % 250 + 2}"}, {}, f"ns{n}", connections=64)
              for n in range(1000)}  # fmt: skip
    after = {**before, "one": made("veth", {"ipv4": "10.203.9.9"}, {}, "ns9999", connections=64)}
    parts = host_filter.parts(LAYOUT, before, after, {"one"})
    assert [len(table.sets["ends"].elements) for table in parts] == [1, 2]
