"""Fleets for pictures of the tests, the benchmark and the documentation: declared, seen by the master, and planned."""

from __future__ import annotations

from typing import Any

import msgspec

from netspace.fleet import compile as compiler
from netspace.fleet.compile import Compiled
from netspace.fleet.seen import Glance, Seen
from netspace.fleet.status import Now
from netspace.plugin.picture.planned import Planned, PlannedChange
from support.fleet.fleets import published

MOMENT = 1_795_000_000.0
_IMAGE = {"image": "tar:salt://images/shop.tar"}
_TENANTS = ("shop", "bank", "post", "mail", "farm", "labs", "news")
_PARTS = ("web", "api", "db", "log", "job")


def shop() -> dict[str, Any]:
    """Return the declaration of a fleet of four hosts and ten replicas."""
    hosts = {
        f"h{number}": {"address": f"198.51.100.{number}", "labels": {"rack": f"r{number % 2}"}}
        for number in range(1, 5)
    }
    out = [{"direction": "out", "cidr": "203.0.113.0/24"}]
    environments: dict[str, Any] = {
        "shop-web": {"on": ["h1", "h2"], "replicas": 2, "interface": {"kind": "veth", "publish": ["443:8443"]}},
        "shop-cart": {"on": "h2"},
        "shop-search": {"on": "h1"},
        "orders": {"on": "h3", "attestation": {"policy": "require", "minimum": "L3"}},
        "bill-print": {"on": "h3"},
        "bill-mail": {"on": "h3", "interface": {"kind": "veth", "allow": out}},
        "vault": {"on": "h4", "attestation": {"policy": "require", "minimum": "L4"}},
        "log": {"on": "h4"},
        "audit": {"on": "h4", "state": "stopped"},
    }
    ask = {"pattern": "request"}
    links = [
        {"from": "shop-web", "to": "orders", **ask, "seal": True, "rate": 100, "length": 50},
        {"from": "shop-web", "to": "shop-cart", **ask},
        {"from": "shop-web", "to": "shop-search", **ask},
        {"from": "orders", "to": "vault", **ask, "seal": True},
        {"from": "orders", "to": "bill-print"},
        {"from": "orders", "to": "bill-mail"},
        {"from": "orders", "to": "log"},
        {"from": "vault", "to": "log"},
        {"from": "vault", "to": "audit"},
    ]
    return {
        "hosts": hosts,
        "environments": {name: {**_IMAGE, **one} for name, one in environments.items()},
        "links": links,
    }


def large(count: int = 1000, hosts: int = 100, links: int = 3) -> dict[str, Any]:
    """Return the declaration of a fleet of *count* environments, each with *links* links from it."""
    names = [f"{_TENANTS[number % 7]}-{_PARTS[number % 5]}-{number}" for number in range(count)]
    return {
        "hosts": {f"h{number}": {"address": f"10.1.{number // 250}.{number % 250 + 1}"} for number in range(hosts)},
        "environments": {
            name: {"on": f"h{number % hosts}", **_IMAGE, "command": ["/usr/bin/web"]}
            for number, name in enumerate(names)
        },
        "links": [
            {"from": name, "to": names[(number + step) % count], "pattern": "request", "seal": number % 2 == 0}
            for number, name in enumerate(names)
            for step in (7, 49, 91)[:links]
        ],
    }


def compiled(data: dict[str, Any]) -> Compiled:
    """Return a fleet in which all hosts have joined."""
    found = compiler.fleet({"/srv/fleet/fleet.yaml": data}, published(data["hosts"]), {}, {}, edges=True)
    assert not found.problems, found.problems[:3]
    return found


def seen(fleet: Compiled) -> Now:
    """Return the hosts' reports: most hosts are well, some have problems, and some don't answer."""
    assert fleet.declared is not None
    rows: dict[str, dict[str, Any]] = {host: {} for host in fleet.declared.hosts}
    links: dict[str, dict[str, Any]] = {host: {} for host in fleet.declared.hosts}
    refused: dict[str, dict[str, Any]] = {host: {} for host in fleet.declared.hosts}
    number = 0
    for name, hosts in sorted(fleet.placed.items()):
        for host in hosts:
            number += 1
            row: dict[str, Any] = {
                "state": "running",
                "health": "healthy" if number % 3 else "",
                "since": MOMENT - 900 * number,
            }
            if number % 17 == 5:
                row |= {"state": "failed", "problem": "it ended (exit 1)", "health": "", "restarts": 4}
            elif number % 23 == 7:
                row |= {"state": "starting", "health": ""}
            elif fleet.declared.environments[name].body.get("state") == "stopped":
                row |= {"state": "stopped", "declared_stopped": True, "health": ""}
            rows[host][name] = row
            if number % 13 == 3:
                what = "out: tcp to 192.0.2.7, port 25"
                refused[host][name] = [{"kind": "packets", "what": what, "count": 12, "last": MOMENT}]
    for number, edge in enumerate(fleet.edges):
        (source, near), (target, far) = (end.partition("@")[::2] for end in (edge.source, edge.target))
        if near and far and not edge.answers:
            name = f"{source}.{target}" if near == far else f"{source}.{target}@{far}"
            down = {"state": "stalled", "why": f"the broker of {far} can't be reached"}
            links[near][name] = {"state": "active"} if number % 29 != 6 else down
    told, verdicts = {}, {}
    few = len(rows) < 10
    for number, host in enumerate(rows):
        trust = {"level": "L1", "verifier": "self", "reason": "no TPM is named"}
        answer = {"trust": trust, "environments": rows[host], "links": links[host], "refused": refused[host]}
        silent = number == 3 if few else number % 29 == 3
        told[host] = Seen(None, "no answer within 20 s") if silent else Seen(msgspec.convert(answer, Glance))
        state, level, why = "trusted", "L4", "the boot is that of the policy"
        if number % 11 == 0:
            state, level, why = "degraded", "L2", "nobody vouches for the TPM's maker"
        elif number % 31 == 9:
            state, level, why = "failed", "L0", "the boot log isn't that of the policy"
        verdicts[host] = {"state": state, "level": level, "reason": why, "remedy": "", "evidence": MOMENT - 240}
    return Now(told, verdicts, MOMENT)


def planned() -> Planned:
    """Return a plan for the fleet of :func:`shop`."""
    return Planned(
        "9f3c2a71",
        [
            PlannedChange("h1", "environment", "shop-search", "changed", "image: 9f... -> 3c..., restart"),
            PlannedChange("h2", "environment", "shop-old", "removed", "it is no longer declared"),
            PlannedChange("h2", "link", "shop-web.shop-old", "removed"),
            PlannedChange("h4", "environment", "audit", "added"),
            PlannedChange("h4", "link", "vault.audit", "added"),
        ],
    )
