"""The packet filter's text: default drop, constant cost, nothing of others'."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from netspace.interface import nft
from netspace.interface.firewall import Guarded, forwarded, render
from netspace.spec.types import Allow, Cidr

GATEWAYS = {"ipv4": "10.203.0.1", "ipv6": "fd00::1"}
RULES = st.builds(
    Allow,
    direction=st.sampled_from(["in", "out"]),
    cidr=st.sampled_from(["0.0.0.0/0", "198.51.100.0/24", "198.51.100.7/32", "::/0", "fd00:5::/32"]).map(Cidr),
    protocol=st.sampled_from(["tcp", "udp"]),
    port=st.sampled_from([None, 80, "8000-8100"]),
)


def guarded(number: int, *allow: Allow) -> Guarded:
    addresses = {"ipv4": f"10.203.1.{number}", "ipv6": f"fd00::1:{number}"}
    return Guarded(f"e{number}", f"ns{number}", f"02:00:00:00:00:{number:02x}", addresses, GATEWAYS, allow)


def chain(text: str, name: str) -> list[str]:
    body = text.split(f"\tchain {name} {{\n")[1].split("\t}")[0]
    return [line.strip() for line in body.splitlines()]


def test_no_interface_no_table() -> None:
    assert render("netspace", []) == "add table inet netspace\ndelete table inet netspace\n"


def test_without_rules_nothing_is_tracked_nor_translated() -> None:
    text = render("netspace", [guarded(1), guarded(2)])
    assert " ct " not in text
    assert "masquerade" not in text
    for name in ("beyond", "to_host", "towards"):
        assert chain(text, name) == ["drop"]


@given(st.lists(st.lists(RULES, max_size=4), min_size=1, max_size=8))
def test_a_packet_meets_the_same_few_rules_whatever_the_number_of_environments(rules: list[list[Allow]]) -> None:
    interfaces = [guarded(number, *allow) for number, allow in enumerate(rules, 1)]
    text = render("netspace", interfaces)
    for name in ("spoofed", "beyond", "to_host", "towards", "forward", "input", "output"):
        assert len(chain(text, name)) <= 6
    for name in ("beyond", "to_host", "towards", "spoofed"):
        assert chain(text, name)[-1] == "drop"
    assert chain(text, "forward")[1] == "iifname @ends oifname @ends drop"
    for interface in interfaces:
        assert f'"{interface.interface}"' in text
    assert text.count("policy accept") == text.count("hook ")
    assert render("netspace", interfaces[::-1]) == text


@given(RULES)
def test_only_a_single_address_can_mean_the_host(rule: Allow) -> None:
    text = render("netspace", [guarded(1, rule)])
    assert ("chain host." in text) == (rule.direction == "out" and rule.cidr.network.num_addresses == 1)


def test_interfaces_with_the_same_rules_share_chains() -> None:
    rule = Allow(direction="out", cidr=Cidr("198.51.100.0/24"))
    text = render("netspace", [guarded(1, rule), guarded(2, rule), guarded(3, rule, rule)])
    assert text.count("chain out.") == 4, "there and back, of two sets of rules"


def test_forwarding_is_needed_for_others_than_the_host() -> None:
    def rule(cidr: str) -> Allow:
        return Allow(direction="out", cidr=Cidr(cidr))

    assert forwarded([rule("10.203.0.1/32"), rule("fd00::1/128")], GATEWAYS) == set()
    assert forwarded([rule("10.203.0.0/16")], GATEWAYS) == {"ipv4"}
    assert forwarded([rule("fd00::/64")], GATEWAYS) == {"ipv6"}
    assert "masquerade" not in render("netspace", [guarded(1, rule("10.203.0.1/32"))])


def test_digest_ignores_the_order_of_elements_and_nothing_else() -> None:
    def listing(elements: str, verdict: str = "drop") -> str:
        head = f"table inet netspace {{\n\tset ends {{\n\t\telements = {{ {elements} }}\n\t}}\n"
        return f"{head}\tchain c {{ {verdict} }}\n}}\n"

    first = nft.digest(listing('"a",\n\t\t\t     "b"'))
    assert nft.digest(listing('"b", "a"')) == first
    assert nft.digest(listing('"a"')) != first
    assert nft.digest(listing('"a", "b"', "accept")) != first


def test_digest_leaves_out_what_packets_counted() -> None:
    head = "table inet netspace {\n\tset open.3 {\n\t\tsize 65536\n\t\tflags dynamic\n"
    counted = '\t\telements = { "a" ct count over 3 ,\n\t\t\t     "b" ct count over 3 }\n'
    tail = "\t}\n\tset ends {\n\t\ttype ifname\n\t\telements = { %s }\n\t}\n}\n"
    assert nft.digest(head + counted + tail % '"a"') == nft.digest(head + tail % '"a"')
    assert nft.digest(head + tail % '"b"') != nft.digest(head + tail % '"a"')
