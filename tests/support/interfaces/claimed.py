"""Random claims of interfaces (:mod:`netspace.interface.claims`), some of kinds that the packet filter covers."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st

from netspace.interface.claims import Claims, Rare, made
from netspace.spec import parse
from netspace.spec.types import Allow, Cidr

GATEWAYS = {"ipv4": "10.203.0.1", "ipv6": "fd00::1"}
NAMES = st.sampled_from([f"e{number}" for number in range(1, 9)])
_RULES = st.lists(
    st.builds(
        Allow,
        direction=st.sampled_from(["in", "out"]),
        cidr=st.sampled_from(["0.0.0.0/0", "198.51.100.0/24", "198.51.100.7/32", "::/0"]).map(Cidr),
        protocol=st.sampled_from(["tcp", "udp"]),
        port=st.sampled_from([None, 80]),
    ),
    max_size=2,
)


def _of(name: str, drawn: dict[str, Any]) -> Claims:
    kind, allow, families = drawn["kind"], tuple(drawn["allow"]), drawn["families"]
    if kind == "none":
        return made("none", {}, {})
    if kind == "vlan":  # addresses of external networks, which several may have
        return made("vlan", {"ipv4": drawn["outside"]}, {}, connections=drawn["connections"])
    number = int(name[1:])
    addresses = {"ipv4": f"10.203.1.{number}", "ipv6": f"fd00::1:{number}"}
    return made(
        kind,
        {family: addresses[family] for family in families},
        {family: GATEWAYS[family] for family in families},
        f"ns{number}",
        msgspec.json.encode(parse.encode(allow)).decode() if allow else "",
        drawn["connections"],
        Rare((f"{8000 + number}:80", f"127.0.0.1:{9000 + number}:53/udp")[: drawn["published"]], audit=drawn["audit"]),
    )


_DRAWN = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["veth", "veth", "veth", "tap", "vlan", "none"]),
        "allow": _RULES,
        "families": st.sampled_from([["ipv4", "ipv6"], ["ipv4"]]),
        "connections": st.sampled_from([64, 1024]),
        "published": st.sampled_from([0, 0, 1, 2]),
        "audit": st.sampled_from([False, False, False, True]),
        "outside": st.sampled_from(["192.0.2.1", "192.0.2.2"]),
    }
)


@st.composite
def changes(draw: st.DrawFn) -> tuple[dict[str, Claims], dict[str, Claims], set[str]]:
    """Return the claims on a host before and after a change, and the names of the environments that changed."""
    before = {name: _of(name, drawn) for name, drawn in draw(st.dictionaries(NAMES, _DRAWN, max_size=8)).items()}
    changed = draw(st.sets(NAMES, min_size=1, max_size=3))
    after = {name: its for name, its in before.items() if name not in changed}
    for name in sorted(changed):
        if draw(st.booleans()):
            after[name] = _of(name, draw(_DRAWN))
    return before, after, changed
