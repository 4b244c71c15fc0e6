"""The packet filter's table: it drops by default, its cost is constant, and it touches no other table."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from netspace.interface.firewall.host_rules import HostFiltered, build, forwarded
from netspace.interface.firewall.published import lead_name
from netspace.nftables.table import difference, whole
from netspace.spec.publish import Publication
from netspace.spec.types import Allow, Cidr

GATEWAYS = {"ipv4": "10.203.0.1", "ipv6": "fd00::1"}
RULES = st.builds(
    Allow,
    direction=st.sampled_from(["in", "out"]),
    cidr=st.sampled_from(["0.0.0.0/0", "198.51.100.0/24", "198.51.100.7/32", "::/0", "fd00:5::/32"]).map(Cidr),
    protocol=st.sampled_from(["tcp", "udp"]),
    port=st.sampled_from([None, 80, "8000-8100"]),
)


def guarded(number: int, *allow: Allow, publish: Sequence[str] = ()) -> HostFiltered:
    addresses = {"ipv4": f"10.203.1.{number}", "ipv6": f"fd00::1:{number}"}
    return HostFiltered(
        f"e{number}", f"ns{number}", f"02:00:00:00:00:{number:02x}", addresses, GATEWAYS, allow,
        publish=tuple(map(Publication.parse, publish)),
    )  # fmt: skip


JUDGES = ("beyond", "to_host", "towards")


def test_no_interface_no_table() -> None:
    assert not build([]).chains
    removal = ["add table inet netspace", "delete table inet netspace"]
    assert whole("netspace", build([])).splitlines() == removal, "made, so that it can be removed"


def test_without_rules_nothing_is_tracked_nor_translated() -> None:
    table = build([guarded(1), guarded(2)])
    assert not table.timeouts
    assert "outward" not in table.chains
    assert not any("ct " in rule for chain in table.chains.values() for rule in chain.rules)
    for name in JUDGES:
        assert table.chains[name].rules == [f"jump dropped.{'in' if name == 'towards' else 'out'}", "drop"]


@given(st.lists(st.lists(RULES, max_size=4), min_size=1, max_size=8))
def test_a_packet_meets_the_same_few_rules_whatever_the_number_of_environments(rules: list[list[Allow]]) -> None:
    interfaces = [guarded(number, *allow) for number, allow in enumerate(rules, 1)]
    table = build(interfaces)
    for name in (*JUDGES, "spoofed", "forward", "input", "output"):
        assert len(table.chains[name].rules) <= 5
    for name in (*JUDGES, "spoofed"):
        assert table.chains[name].rules[-1] == "drop"
    assert table.chains["forward"].rules[0] == "iifname @ends oifname @ends goto between"
    assert table.chains["between"].rules[-1] == "drop"
    assert set(table.sets["ends"].elements) == {one.interface.encode().ljust(16, b"\0") for one in interfaces}
    assert build(interfaces[::-1]).digest == table.digest
    assert not difference("netspace", table, build(interfaces[::-1]))


@given(RULES)
def test_only_a_single_address_can_mean_the_host(rule: Allow) -> None:
    led = bool(build([guarded(1, rule)]).sets["host"].elements)
    assert led == (rule.direction == "out" and rule.cidr.network.num_addresses == 1)


def test_interfaces_with_the_same_rules_share_chains() -> None:
    rule = Allow(direction="out", cidr=Cidr("198.51.100.0/24"))
    table = build([guarded(1, rule), guarded(2, rule), guarded(3, rule, rule)])
    assert sum(name.startswith("out.") for name in table.chains) == 4, "there and back, of two sets of rules"


@given(st.lists(st.lists(RULES, max_size=3), min_size=1, max_size=4), st.integers(0, 3), RULES)
def test_tables_that_mean_different_things_have_different_digests(
    rules: list[list[Allow]], which: int, more: Allow
) -> None:
    which %= len(rules)
    changed = [[*allow, more] if number == which else allow for number, allow in enumerate(rules)]
    old, new = (build([guarded(n, *allow) for n, allow in enumerate(each, 1)]) for each in (rules, changed))
    assert old.digest != new.digest
    assert difference("netspace", old, new)
    assert not difference("netspace", old, old)


def test_forwarding_is_needed_for_others_than_the_host() -> None:
    def rule(cidr: str) -> Allow:
        return Allow(direction="out", cidr=Cidr(cidr))

    assert forwarded([rule("10.203.0.1/32"), rule("fd00::1/128")], GATEWAYS) == set()
    assert forwarded([rule("10.203.0.0/16")], GATEWAYS) == {"ipv4"}
    assert forwarded([rule("fd00::/64")], GATEWAYS) == {"ipv6"}
    assert "outward" not in build([guarded(1, rule("10.203.0.1/32"))]).chains


def test_where_nothing_is_published_nothing_is_led() -> None:
    table = build([guarded(1, Allow(direction="in", cidr=Cidr("0.0.0.0/0")))], ["198.51.100.9"])
    assert not {"published", "published_here", "reserved", "lead", "led", "opened.led"} & table.chains.keys()
    assert not [name for name in table.sets if name.startswith(("published", "reserved", "led", "connections.led"))]


def test_a_packet_meets_as_many_rules_whatever_the_number_of_publications() -> None:
    one = build([guarded(1, publish=["443:8443"])], ["198.51.100.9"])
    many = build(
        [guarded(number, publish=[f"{1000 + number}:80", f"198.51.100.1:{number}:53/udp"]) for number in range(1, 200)],
        [f"198.51.100.{last}" for last in range(1, 200)],
    )
    for name in ("published", "published_here", "reserved", "lead", "led", "forward"):
        assert one.chains[name] == many.chains[name]
    assert many.chains["published"].rules[0] == "iifname @ends accept"


def test_one_publication_more_touches_nothing_of_the_others() -> None:
    few = build([guarded(number, publish=[f"{1000 + number}:80"]) for number in (1, 2, 3)])
    more = build([guarded(number, publish=[f"{1000 + number}:80"]) for number in (1, 2, 3, 4)])
    touched = difference("netspace", few, more)
    assert chain_of(4) in touched
    assert not any(chain_of(number) in touched for number in (1, 2, 3))


def chain_of(number: int) -> str:
    return lead_name(Publication("1:80"), f"10.203.1.{number}")
