"""One environment's interface on a host with others: an apply of it neither inspects nor removes the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.interfaces.interface_bench import Bench, veth

from netspace.host.host import Host
from netspace.interface import forwarding, netns
from netspace.spec import parse

pytestmark = pytest.mark.root

OUT = {"direction": "out", "cidr": "198.18.0.0/15", "port": 443}


def declared(**interfaces: Any) -> Any:
    one = {"image": "dir:/nowhere", "command": ["/bin/true"]}
    return parse.declaration({"environments": {name: {**one, "interface": spec} for name, spec in interfaces.items()}})


def test_no_other_namespace_is_entered(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(bench.layout)
    assert host.converge_interfaces(declared(a=veth(), b=veth())).ok
    entered: set[Path] = set()
    real = netns.enter

    def enter(path: Path) -> None:
        entered.add(path)
        real(path)

    monkeypatch.setattr(netns, "enter", enter)
    assert host.converge_interfaces(declared(c=veth())).ok
    assert not host.converge_interfaces(declared(c=veth())).plan.steps
    assert entered == {bench.path("c")}
    entered.clear()
    assert host.remove_interfaces({"c"}).ok
    assert not entered, "with the host's end of a pair goes the other"
    assert not bench.path("c").exists()
    assert not host.converge_interfaces(declared(a=veth(), b=veth()), whole=True).plan.steps
    assert entered >= {bench.path("a"), bench.path("b")}, "a whole declaration is looked at as a whole"


def test_others_keep_their_forwarding_when_the_host_is_switched(bench: Bench) -> None:
    host = Host(bench.layout)
    assert host.converge_interfaces(declared(a=veth())).ok

    def forwards(name: str) -> str:
        return forwarding.read(f"net/ipv4/conf/{bench.host_end(name)}/forwarding")

    assert host.converge_interfaces(declared(b=veth(OUT))).ok
    assert (forwards("a"), forwards("b")) == ("0", "1")
    assert host.remove_interfaces({"b"}).ok
    assert forwards("a") == "0"
    assert not host.converge_interfaces(declared(a=veth()), whole=True).plan.steps


def test_record_overwritten_in_place_misleads_no_filter(bench: Bench) -> None:
    host, record = Host(bench.layout), bench.layout.records("interfaces") / "c.json"
    assert host.converge_interfaces(declared(a=veth(OUT))).ok
    assert host.converge_interfaces(declared(c=veth(OUT))).ok
    other = record.read_bytes()
    assert host.converge_interfaces(declared(c=veth())).ok
    record.write_bytes(other)  # as an editor may: the folder doesn't show it
    assert host.converge_interfaces(declared(c=veth(OUT))).ok
    assert not host.converge_interfaces(declared(a=veth(OUT), c=veth(OUT)), whole=True).plan.steps
