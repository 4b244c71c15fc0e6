"""Values by name that are decoded on request: each query gives the same answer as a plain dict."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace import known
from netspace.known import Known, Lines


class Value(msgspec.Struct, frozen=True, array_like=True):
    kind: str
    address: str = ""


NAMES = st.sampled_from(["a", "ab", "b", "b-1", "one", "zz", *(f"other{number}" for number in range(12))])
VALUES = st.builds(
    Value,
    st.sampled_from(
        ["x", "y", '"\n"a":'],
    ),
    st.sampled_from(["", "10.0.0.1", "10.0.0.11", "a"]),
)


def sort(value: Value) -> str:
    return value.kind


def noted(values: dict[str, Value]) -> Known[Value]:
    """Return the values in the form of an index: as a text, with their sorts."""
    ordered = dict(sorted(values.items()))
    return Known(Lines(Lines.of(ordered, Value).text, Value), sort, known.grouped(ordered, sort))


@given(st.dictionaries(NAMES, VALUES), st.lists(st.dictionaries(NAMES, st.none() | VALUES), max_size=4))
def test_known_values_after_changes_equal_a_plain_dict(values, changes):
    seen, plain = noted(values), dict(values)
    for change in changes:
        seen = seen.but(change)
        plain = {name: value for name, value in {**plain, **change}.items() if value is not None}
        assert len(seen) == len(plain)
        assert {name: seen.get(name) for name in [*values, *change]} == {
            name: plain.get(name) for name in [*values, *change]
        }
        assert all((name in seen) == (name in plain) for name in [*values, *change])
        assert seen.examples() == known.examples(plain, sort)
        assert {key: count for key, (count, _) in seen.groups().items()} == {
            key: count for key, (count, _) in known.grouped(plain, sort).items()
        }
        assert dict(seen.items()) == plain


@given(st.dictionaries(NAMES, VALUES), st.dictionaries(NAMES, st.none() | VALUES), NAMES, VALUES)
def test_value_said_to_be_alone_with_a_text_is_alone(values, change, name, value):
    seen = noted(values).but(change)
    if value.address and seen.alone(name, value.address):
        assert [one for one, its in seen.items() if value.address in (its.address, its.kind)] in ([name], [])
        assert value.address in (values[name].address, values[name].kind)


@given(st.dictionaries(NAMES, VALUES), st.lists(st.tuples(NAMES, st.none() | VALUES)))
def test_lines_after_changes_equal_a_plain_dict(values, changes):
    lines = Lines(Lines.of(values, Value).text, Value)
    for name, value in changes:
        lines = lines.but({name: value})
        values = {one: its for one, its in {**values, name: value}.items() if its is not None}
    again = Lines(lines.text, Value)
    assert len(again) == len(values)
    assert again.whole() == values
    assert list(again.whole()) == sorted(values)


def test_example_of_a_sort_is_found_without_a_look_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = noted({f"other{number}": Value("x") for number in range(100)})
    monkeypatch.setattr(Lines, "whole", lambda self: pytest.fail("it looked at all values"))
    assert seen.but({"one": Value("x")}).examples() == {"one": Value("x")}
    assert seen.but({"other0": None, "other1": Value("y")}).examples() == {"other10": Value("x"), "other1": Value("y")}
