"""A new environment gets the same address and user ids whether or not the other environments' claims were decoded."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Mapping

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from netspace.environment import claims as environments
from netspace.environment import user_ids
from netspace.interface import addresses, plan
from netspace.interface import claims as interfaces
from netspace.known import Known, Lines, without

RANGE = ipaddress.ip_network("10.9.0.0/29")  # five addresses, so that new names often meet taken ones
NAMES = st.sampled_from([f"n{number}" for number in range(12)])
HOSTS = st.sampled_from([str(RANGE[number]) for number in range(8)])


def noted(
    values: Mapping[str, interfaces.Claims], new: Mapping[str, interfaces.Claims | None]
) -> Known[interfaces.Claims]:
    lines = Lines.of(dict(values), interfaces.Claims)
    return Known(Lines(lines.text, interfaces.Claims), lambda its: its.sort, None, new)


def claimed(address: str) -> interfaces.Claims:
    return interfaces.made("veth", {"ipv4": address}, {"ipv4": str(RANGE[1])}, "nsx")


@given(
    st.dictionaries(NAMES, HOSTS, max_size=5),
    st.dictionaries(NAMES, st.none() | HOSTS, max_size=3),
    st.dictionaries(NAMES, st.none() | HOSTS, min_size=1, max_size=3),
)
def test_address_is_that_of_the_whole_allocation(
    recorded: dict[str, str], changed: dict[str, str | None], asking: dict[str, str | None]
) -> None:
    after = {**recorded, **{name: address for name, address in changed.items() if address is not None}}
    after = {name: address for name, address in after.items() if changed.get(name, address) is not None}
    assume(len(set(after.values())) == len(after))
    new = {name: None if address is None else claimed(address) for name, address in changed.items()}
    known = noted({name: claimed(address) for name, address in recorded.items()}, new)
    found = plan._few(RANGE, "ipv4", asking, known)
    assert found is None or found == addresses.allocate(RANGE, asking, after)


def test_new_address_among_thousand_decodes_none() -> None:
    many = {f"other{number}": claimed(f"10.9.{1 + number // 250}.{2 + number % 250}") for number in range(1000)}
    lines = Lines.of(many, interfaces.Claims)
    noted = Lines(lines.text, interfaces.Claims)
    found = plan._few(ipaddress.ip_network("10.9.0.0/16"), "ipv4", {"one": None}, Known(noted, lambda its: its.sort))
    assert found is not None and found.addresses.keys() == {"one"}
    assert noted._whole is None


@given(st.sets(st.integers(0, 8), max_size=6), st.sets(st.integers(0, 8), max_size=3), st.integers(0, 8))
def test_user_ids_are_those_of_the_whole_allocation(there: set[int], gone: set[int], mine: int) -> None:
    start = int.from_bytes(hashlib.sha256(b"one").digest()[:8], "big")

    def base(offset: int) -> int:
        return user_ids.FIRST + (start + offset) % user_ids.RANGES * user_ids.COUNT

    all_ = {f"n{offset}": environments.Claims(base(offset)) for offset in there}
    lines = Lines(Lines.of(all_, environments.Claims).text, environments.Claims)
    known = without(Known(lines, environments.sort), {f"n{offset}" for offset in gone})
    taken = environments.Bases(known)
    taken.add(base(mine))
    others = {name: its.base for name, its in known.items()}
    assert user_ids.free("one", taken) == user_ids.allocate(["one"], {**others, "mine": base(mine)})["one"]


@pytest.mark.parametrize("more", [{}, {"after": ("a",)}, {"promised": 7, "tenant": "t"}])
def test_noted_claims_begin_with_the_user_ids(more: dict[str, object]) -> None:
    base = user_ids.FIRST
    known = Known(Lines.of({"web": environments.Claims(base, **more)}, environments.Claims), environments.sort)  # type: ignore[arg-type]
    assert base in environments.Bases(known) and base + user_ids.COUNT not in environments.Bases(known)
    assert not known.lack(f"[{base},".encode())
