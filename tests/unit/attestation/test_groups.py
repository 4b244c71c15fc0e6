"""Groups of hosts, as the master's configuration declares them."""

from __future__ import annotations

from typing import Any

import pytest

from netspace.attestation.fleet import groups
from netspace.errors import NetspaceError


def test_the_first_group_that_matches_counts_and_default_is_the_last() -> None:
    found = groups.parse(
        [{"name": "default", "minimum": "L1"}, {"name": "a", "match": ["web1"]}, {"name": "b", "match": ["web*"]}]
    )
    assert [groups.of(found, name).name for name in ("web1", "web2", "db")] == ["a", "b", "default"]
    assert groups.of(found, "db").minimum == 1
    assert [one.name for one in groups.parse([])] == ["default"]


def test_a_group_is_matched_by_ids_in_salts_words() -> None:
    nodes = {"racks": "L@db1,db2 or N@edge", "edge": ["e*", "or", "E@edge-[0-9]+$"], "loop": "N@loop", "not": "not L@x"}
    found = groups.parse([{"name": "a", "match": ["web*", "N@racks"]}, {"name": "b", "match": ["E@b[12]$"]}], nodes)
    names = ("web1", "db2", "db3", "e7", "edge-1", "edge-x", "b1", "b12")
    assert [groups.of(found, name).name for name in names] == ["a", "a", "default", "a", "a", "a", "b", "default"]
    for term in ("G@os:Debian", "I@role:web", "S@10.0.0.0/8", "N@none", "N@loop", "N@not", "E@(", "X@y"):
        with pytest.raises(NetspaceError, match="match"):
            groups.parse([{"name": "a", "match": [term]}], nodes)


@pytest.mark.parametrize(
    "data",
    [
        {},
        [1],
        [{"name": "A", "match": ["*"]}],
        [{"name": "../x", "match": ["*"]}],
        [{"name": "a"}],
        [{"name": "a", "match": []}],
        [{"name": "a", "match": ["*"], "grain": "x"}],
        [{"name": "a", "match": ["*"], "minimum": "L6"}],
        [{"name": "a", "match": ["*"], "minimum": "L0"}],
        [{"name": "a", "match": ["*"], "pcrs": [24]}],
        [{"name": "a", "match": ["*"], "deadline": 1}],
        [{"name": "a", "match": ["*"]}, {"name": "a", "match": ["*"]}],
        [{"name": "default", "match": ["web*"]}],
    ],
)
def test_groups_that_are_none(data: Any) -> None:
    with pytest.raises(NetspaceError, match=r"netspace\.attestation:groups"):
        groups.parse(data)
