"""Messages that daemon and client accept from each other."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.supervision.daemon import look, protocol
from netspace.supervision.definitions import NAME

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
names = st.lists(st.from_regex(NAME.pattern, fullmatch=True), unique=True, max_size=20)


@given(st.sampled_from(sorted(protocol.VERBS - set(protocol.NAMELESS))), names)
def test_a_request_survives_the_way(do: str, names: list[str]) -> None:
    for version in ("", "0123"):
        request = protocol.Request(do, tuple(names), version)
        assert protocol.parse_request(protocol.render(request)) == request


def test_without_a_version_a_request_is_what_older_daemons_know() -> None:
    assert json.loads(protocol.render(protocol.Request("renew"))) == {"do": "renew", "names": []}


@given(st.text(), st.dictionaries(st.text(), st.text()))
def test_an_answer_survives_the_way(version: str, errors: dict[str, str]) -> None:
    answer = protocol.Answer(version, errors)
    assert protocol.parse_answer(protocol.render(answer)) == answer


running = st.tuples(
    *(st.integers(0, 2**22), st.floats(0, 2**40), st.integers(0, 2**40), st.text(), st.integers(0, 2**40)),
    st.booleans(),
)


@given(st.dictionaries(st.from_regex(NAME.pattern, fullmatch=True), running, max_size=5))
def test_a_look_survives_the_way(found: dict[str, tuple[int, float, int, str, int, bool]]) -> None:
    told = look.parse(protocol.render_look(found))
    assert {name: msgspec.structs.astuple(one) for name, one in told.items()} == found


@pytest.mark.parametrize(
    "raw",
    [
        b'{"running": {"a": [1, 1.0, 0, "", 0, false, 1]}}',
        b'{"running": {"a": [1, 1.0, 0, "", 0]}}',
        b'{"running": {"a": [-1, 1.0, 0, "", 0, false]}}',
        b'{"running": {"a": [1, "1", 0, "", 0, false]}}',
        b'{"running": {"a": [1, 1.0, 0, "", 0, 0]}}',
        b'{"running": {}, "more": 1}',
        b"[" * 100_000,
        b" " * (protocol.LARGEST + 1),
    ],
    ids=["more", "less", "negative", "text", "number", "key", "deep", "large"],
)
def test_a_look_that_is_none_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):
        look.parse(raw)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_a_value_error(raw: bytes) -> None:
    for parse in (protocol.parse_request, protocol.parse_answer, look.parse):
        with pytest.raises(ValueError):
            parse(raw)


@given(
    st.dictionaries(st.sampled_from(["do", "names", "more"]), json_values | st.sampled_from(sorted(protocol.VERBS))),
)
def test_a_request_is_a_request_or_a_value_error(value: dict[str, object]) -> None:
    try:
        request = protocol.parse_request(json.dumps(value).encode())
    except ValueError:
        return
    assert value.keys() == {"do", "names"}
    assert request.do in protocol.VERBS
    assert all(NAME.fullmatch(name) for name in request.names)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"do": "start", "names": ["../../etc/passwd"]}',
        b'{"do": "start", "names": ["a/b"]}',
        b'{"do": "start", "names": [".a"]}',
        b'{"do": "start", "names": "a"}',
        b'{"do": ["start"], "names": []}',
        b'{"do": "renew", "names": ["a"]}',
        b'{"do": "start", "names": ["a"], "more": 1}',
        b"[" * 100_000,
        b" " * (protocol.LARGEST + 1),
        json.dumps({"do": "start", "names": ["a"] * (protocol.MOST_NAMES + 1)}).encode(),
    ],
    ids=["dots", "slash", "hidden", "text", "verb", "too many", "more", "deep", "large", "names"],
)
def test_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):
        protocol.parse_request(raw)


def test_a_name_given_twice_is_meant_once() -> None:
    assert protocol.parse_request(b'{"do": "stop", "names": ["a", "a"]}').names == ("a",)
