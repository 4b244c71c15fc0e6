"""Text for nft has no hidden meaning: a name is refused, or stands only for itself."""

from __future__ import annotations

import errno
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.interface.firewall import host_table
from netspace.nftables import library, words
from netspace.nftables.table import Base, Chain, Collection, Table, creation, difference

HOSTILE = ['a"; flush ruleset; "', "a b", "a\nflush ruleset", "a{", "a*", "a#", "a\\", "$a", "@a", "", "1;", "é"]


@pytest.mark.parametrize("text", HOSTILE)
def test_name_that_could_mean_more_is_refused(text: str) -> None:
    table = Table({"chain": Chain(["accept"])})
    with pytest.raises(ValueError, match="not usable"):
        creation(text, table)
    with pytest.raises(ValueError, match="not usable"):
        creation("netspace", Table({text: Chain(["accept"])}))
    with pytest.raises(ValueError, match="not usable"):
        creation("netspace", Table(sets={text: Collection(("ifname",))}))
    with pytest.raises(ValueError, match="not usable"):
        str(Base("filter", "egress", device=text or " "))
    with pytest.raises(ValueError, match="not usable"):
        words.elements(("ifname",), {text.encode().ljust(16, b"\0"): None})
    with pytest.raises(ValueError, match="not usable"):
        words.elements(("ifname",), {b"eth0".ljust(16, b"\0"): words.to_goto(text)})


@given(st.text(max_size=20))
def test_any_name_is_itself_or_refused(text: str) -> None:
    for write, quoted in ((words.name, text), (words.link, f'"{text}"')):
        try:
            assert write(text) == quoted
        except ValueError:
            continue
        assert text.isascii()
        assert not set(text) & set(" \t\r\n\"'\\;{}()[]*$#,=<>!&|")


@given(
    st.binary(min_size=6, max_size=6),
    st.ip_addresses(v=4),
    st.ip_addresses(v=6),
    st.integers(0, 255),
    st.integers(0, 65535),
)
def test_key_is_written_as_it_is_in_the_kernel(mac: bytes, v4: object, v6: object, protocol: int, port: int) -> None:
    name, padded = b"ns1".ljust(16, b"\0"), mac + b"\0\0"
    four, six = v4.packed, v6.packed  # type: ignore[attr-defined]
    ports = bytes([protocol, 0, 0, 0]) + port.to_bytes(2, "big") + b"\0\0"
    assert words.key(("ifname", "ether_addr", "ipv4_addr"), name + padded + four) == f'"ns1" . {mac.hex(":")} . {v4}'
    assert words.key(("inet_proto", "inet_service", "ipv6_addr"), ports + six) == f"{protocol} . {port} . {v6}"
    with pytest.raises(ValueError, match="20 bytes"):
        words.key(("ifname",), name + four)


def test_bytes_are_written_in_parts_that_a_register_holds() -> None:
    assert words.write("network", 8, bytes(range(18))) == (
        "@nh,64,128 set 0x000102030405060708090a0b0c0d0e0f @nh,192,16 set 0x1011"
    )
    assert words.at("link", 6, b"\x02\x01", negate=True) == "@ll,48,16 != 0x0201"


def test_tables_that_differ_in_elements_alone_change_elements_alone() -> None:
    def table(*names: str) -> Table:
        keys = {name.encode().ljust(16, b"\0"): None for name in names}
        return Table({"chain": Chain(["iifname @ends accept"])}, {"ends": Collection(("ifname",), keys)})

    assert difference("t", table("a", "b"), table("b", "c")).splitlines() == [
        'delete element inet t ends { "a" }',
        'add element inet t ends { "c" }',
    ]
    assert not difference("t", table("a"), table("a"))


def test_error_names_the_kernels_reason_and_the_command() -> None:
    said = "Error: Could not process rule: Operation not supported\nadd table inet a;add chain inet a c;x y\n"
    found = library._explained(said + " " * 21 + "^^^^^\n")
    assert (found.errno, found.strerror) == (
        errno.EOPNOTSUPP,
        "Could not process rule: Operation not supported (add chain inet a c)",
    )
    assert library._explained("something else").errno == errno.EINVAL


def test_missing_library_is_told_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_NAME", "libnftables.so.none")
    library._library.cache_clear()
    with pytest.raises(library.LibraryMissingError) as refused:
        library._library()
    library._library.cache_clear()
    told = "libnftables .* is missing on this host; install it: salt-call state.apply netspace.packages"
    assert re.match(told, str(host_table.explained(refused.value)))
