"""The address allocator: addresses are unique, stable and within the range, whatever environments come and go."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from netspace.interface.addresses import allocate, gateway, usable

NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,6}", fullmatch=True)
NETWORKS = st.one_of(
    st.integers(20, 32).map(lambda bits: ipaddress.ip_network(f"198.51.96.0/{bits}", strict=False)),
    st.integers(64, 128).map(lambda bits: ipaddress.ip_network(f"fd00:5::/{bits}", strict=False)),
)


@st.composite
def situations(draw: st.DrawFn) -> tuple:
    network = draw(NETWORKS)
    size = min(network.num_addresses, 40)
    address = st.integers(0, size - 1).map(lambda place: str(network[place]))
    strange = st.sampled_from(["203.0.113.9", "fd00:9::9"])
    wanted = draw(st.dictionaries(NAMES, st.one_of(st.none(), address, strange), max_size=20))
    recorded = draw(st.dictionaries(NAMES, st.one_of(address, strange), max_size=10))
    unique = {value: name for name, value in recorded.items()}
    return network, wanted, {name: value for value, name in unique.items()}


@given(situations())
def test_every_name_gets_one_usable_address_of_its_own_or_a_reason(situation: tuple) -> None:
    network, wanted, recorded = situation
    result = allocate(network, wanted, recorded)
    assert set(result.addresses) | set(result.refused) == set(wanted)
    assert not set(result.addresses) & set(result.refused)
    given_away = list(result.addresses.values())
    assert len(set(given_away)) == len(given_away)
    for address in given_away:
        parsed = ipaddress.ip_address(address)
        assert parsed in network
        assert int(parsed) - int(network.network_address) in usable(network)
        assert address != gateway(network)
    kept = {address for name, address in recorded.items() if name not in wanted or name in result.refused}
    assert not kept & set(given_away), "an address was given twice"
    for name, fixed in wanted.items():
        assert fixed is None or result.addresses.get(name, fixed) == fixed


@given(situations(), st.sets(NAMES, max_size=10))
def test_addresses_stay_when_others_come_and_go(situation: tuple, more: set[str]) -> None:
    network, wanted, recorded = situation
    first = allocate(network, wanted, recorded)
    known = {**recorded, **first.addresses}
    free = dict.fromkeys(first.addresses)
    again = allocate(network, {**{name: None for name in more if name not in known}, **free}, known)
    assert {name: again.addresses[name] for name in free} == first.addresses
    fewer = dict(list(free.items())[::2])
    assert allocate(network, fewer, known).addresses == {name: first.addresses[name] for name in fewer}


@given(st.sets(NAMES, min_size=1, max_size=30))
def test_same_names_get_same_addresses_on_a_new_host(names: set[str]) -> None:
    network = ipaddress.ip_network("10.203.0.0/16")
    wanted = dict.fromkeys(names)
    assert allocate(network, wanted, {}) == allocate(network, dict(reversed(wanted.items())), {})


@given(st.integers(25, 30))
def test_a_range_is_used_to_its_last_address(bits: int) -> None:
    network = ipaddress.ip_network(f"198.51.100.0/{bits}")
    room = network.num_addresses - 3
    result = allocate(network, {f"e{number}": None for number in range(room + 1)}, {})
    assert len(result.addresses) == room
    ((_, reason),) = result.refused.items()
    assert str(network) in reason
    assert "larger range" in reason


def test_a_fixed_address_of_somebody_else_is_refused_with_the_owner() -> None:
    network = ipaddress.ip_network("10.203.0.0/16")
    result = allocate(network, {"a": "10.203.0.9"}, {"b": "10.203.0.9"})
    assert "belongs to b;" in result.refused["a"]
    for reserved in ("10.203.0.0", "10.203.0.1", "10.203.255.255"):
        assert "reserved" in allocate(network, {"a": reserved}, {}).refused["a"]


def test_what_a_refused_name_goes_on_with_is_given_to_nobody() -> None:
    network = ipaddress.ip_network("198.51.96.0/20")
    result = allocate(network, {"a": "198.51.96.2", "b": "198.51.96.0"}, {"b": "198.51.96.2"})
    assert "belongs to b;" in result.refused["a"]
    full = dict.fromkeys("bcdef")
    result = allocate(ipaddress.ip_network("198.51.96.0/29"), {"a": "198.51.96.2", **full}, {"f": "198.51.96.2"})
    assert "belongs to f;" in result.refused["a"]
    assert result.addresses["f"] == "198.51.96.2"


@given(situations(), st.dictionaries(NAMES, st.integers(0, 9).map(lambda place: f"198.51.96.{place}"), max_size=10))
def test_a_record_that_names_an_address_twice_is_survived(situation: tuple, recorded: dict[str, str]) -> None:
    network, wanted, _ = situation
    given_away = list(allocate(network, wanted, recorded).addresses.values())
    assert len(set(given_away)) == len(given_away)


def test_ranges_too_small_give_nothing() -> None:
    for text in ("198.51.100.0/31", "198.51.100.0/32", "fd00::/127", "fd00::/128"):
        network = ipaddress.ip_network(text)
        assert gateway(network) is None
        assert allocate(network, {"a": None}, {}).refused
