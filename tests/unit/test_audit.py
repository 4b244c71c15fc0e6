"""A twin's interface, made from its original's interface, and the targets that the twin may attack."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from netspace.environment.audit import twin
from netspace.host import audit
from netspace.interface import kinds
from netspace.plan import Plan, Result
from netspace.spec import parse
from netspace.spec.types import Network

NONE = parse.interface({"kind": "none"})


class Host:
    """A stand-in for the host that records the requested interfaces."""

    def __init__(self) -> None:
        self.made = []

    def connect(self, declared):
        self.made.append({name: spec.interface for name, spec in declared.environments.items()})
        return Result(Plan())


def connect(interface):
    host = Host()
    problem = audit._connect(host, ("one", "two"), interface and parse.interface(interface), Network())
    return problem, host.made


def test_the_same_kind_and_rules_with_an_address_of_its_own_and_no_published_port():
    rules = [{"direction": "out", "cidr": "198.51.100.0/24", "port": 443}]
    problem, made = connect(
        {"kind": "veth", "ipv4": "10.203.0.9", "allow": rules, "mtu": 1400, "publish": ["443:8443"]}
    )
    wanted = parse.interface({"kind": "veth", "allow": rules, "mtu": 1400})
    assert (problem, made) == ("", [{"one": wanted, "two": wanted}])
    assert connect(None) == ("", [{"one": NONE, "two": NONE}])


@pytest.mark.parametrize("kind", [name for name, module in kinds.modules().items() if module.FILTER == "inside"])
def test_no_twin_appears_on_a_network_beyond_this_host(kind, monkeypatch):
    interface = SimpleNamespace()
    monkeypatch.setattr(kinds, "of", lambda spec: kinds.modules()[kind])
    host = Host()
    tagged = type(kind, (), {"__struct_config__": SimpleNamespace(tag=kind)})
    interface = tagged()
    problem = audit._connect(host, ("one", "two"), interface, Network())
    assert problem == f"a twin has no interface of kind {kind}: it would be seen on a network beyond this host"
    assert host.made == [{"one": NONE, "two": NONE}]


@pytest.mark.parametrize(
    ("rule", "allowed"),
    [
        ({"direction": "out", "cidr": "10.203.0.0/16"}, True),
        ({"direction": "out", "cidr": "10.203.0.1", "port": 4242}, True),
        ({"direction": "out", "cidr": "10.203.0.1", "port": "4000-5000"}, True),
        ({"direction": "out", "cidr": "10.203.0.1", "port": 80}, False),
        ({"direction": "out", "cidr": "10.203.0.0/16", "protocol": "icmp"}, False),
        ({"direction": "in", "cidr": "10.203.0.0/16"}, False),
        ({"direction": "out", "cidr": "198.51.100.0/24"}, False),
        ({"direction": "out", "cidr": "fd00::/8"}, False),
    ],
)
def test_what_is_allowed_is_no_attempt_to_break_out(rule, allowed):
    interface = parse.interface({"kind": "veth", "allow": [rule]})
    assert audit._allowed("10.203.0.1", 4242, interface.allow) is allowed


def test_a_twin_that_takes_too_much_memory_is_not_killed_as_a_whole() -> None:
    """A twin's limits lack memory.oom.group, which would end the whole twin before it reports its outcomes."""
    whole = {"memory": {"limit": 1}, "unified": {"memory.oom.group": "1"}}
    assert twin.spared(whole) == {"memory": {"limit": 1}}
    assert twin.spared({"unified": {"memory.oom.group": "1", "memory.high": "1"}}) == {"unified": {"memory.high": "1"}}
    assert twin.spared({"memory": {"limit": 1}}) == {"memory": {"limit": 1}}
