"""Tours through pairs of declarations, for ``test_host_pairs.py``."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from support.hosts.declared_pairs import Chooser, walk


@pytest.mark.parametrize("number", range(2, 9))
def test_walk_takes_each_pair_once_without_a_break(number: int) -> None:
    taken = list(walk(number))
    assert sorted(taken) == sorted(itertools.permutations(range(number), 2))
    assert all(one[1] == other[0] for one, other in itertools.pairwise(taken))
    assert list(walk(number + 1))[: len(taken)] == taken


def test_declarations_of_a_seed_differ_and_are_repeatable() -> None:
    def drawn(number: int) -> list[object]:
        return [*Chooser(1, Path("/srv"), Path("/srv/image"), [{"kind": "local"}], ["veth"]).several(number)]

    several = drawn(8)
    assert all(one != other for one, other in itertools.combinations(several, 2))
    assert drawn(3) == several[:3]
