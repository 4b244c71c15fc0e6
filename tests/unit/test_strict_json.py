"""Strict reading of JSON from untrusted writers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace import strict_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_written_json_is_read_back(value: Any) -> None:
    assert strict_json.loads(json.dumps(value)) == strict_json.loads(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":1}',
        '{"b":[{"a":1,"\\u0061":2}]}',
        '{"a":NaN}',
        "[Infinity]",
        "-Infinity",
        "[" * 100_000,
        '{"a":' * 100_000,
        "",
        "{'a':1}",
        "[1,]",
        b"\xff",
    ],
)
def test_ambiguous_or_broken_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        strict_json.loads(text)
