"""A hostile tenant, who writes its own part with every key of an environment, tries to get beyond what it may have.

The attacks are combined at random. No declaration that the parser accepts may give the tenant more than the claims
below, and no answer may depend on what other parties have. Without one of the parser's checks, the search finds the
hole.
"""

from __future__ import annotations

import contextlib
import copy
import posixpath
import random
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest

from netspace.errors import SpecError
from netspace.spec import parse, publish, reach
from netspace.spec.tenancy import names, parts, permissions, quota, separation
from netspace.spec.types import Declaration, Environment

TRIES = 400
PARSE = parse.declaration  # as it is, before conftest.py has its results validated
EVIL = "evil-a"
QUOTA = {"environments": 3, "memory": "1G", "cpus": 3, "pids": 400, "disk": "64M", "children": 2, "links": 5}
ROOM = {"messages": 90_000, "waiting": "1G", "connections": 4096}
DIGEST = "sha256:" + "d" * 64


def world(part: dict[str, Any], secret: str = "ledger") -> dict[str, Any]:
    """Return the declaration of a host with a hostile tenant, another tenant, and the operator's own environments.

    :param secret: the end of the name of another party's environment.
    """
    victim = {
        "quota": {**QUOTA, **ROOM},
        "images": ["tar:/srv/victim/*"],
        "interfaces": [{"kind": "veth"}],
        "ports": [9000],
        "folders": ["/srv/victim"],
        "environments": {
            f"victim-{secret}": {
                "image": "tar:/srv/victim/x.tar",
                "read_only": True,
                "source_hash": DIGEST,
                "volumes": [{"target": "/d", "source": f"/srv/victim/{secret}"}],
                "interface": {"kind": "veth", "publish": ["9000:80"]},
                "offers": ["books"],
            }
        },
    }
    evil = {
        "quota": {**QUOTA, **ROOM},
        "images": ["tar:/srv/evil/*.tar", "tar:/srv/evil/*/app.tar", f"oci:/srv/shared/shop:*@{'sha256:' + 'e' * 64}"],
        "interfaces": [{"kind": "veth"}],
        "outside": ["203.0.113.0/24", "deb.example.org"],
        "ports": ["8000-8009"],
        "folders": ["/srv/evil/data"],
        "host": ["whoami", "who", "spawn"],
        **part,
    }
    gate = {"image": "tar:/srv/gate.tar", "volumes": [{"target": "/d", "source": f"/srv/gate-{secret}"}]}
    return {
        "tenants": {"victim": victim, "evil": evil},
        "environments": {f"gate-{secret}": gate},
        "links": [{"from": f"gate-{secret}", "to": f"victim-{secret}", "pattern": "request"}],
    }


SMALL = {"memory": "8M", "pids": 4, "cpus": 0.01}


def plain() -> dict[str, Any]:
    return {"image": "tar:/srv/evil/a.tar", "read_only": True, "limits": dict(SMALL)}


Part = dict[str, Any]
GUESSED = ("victim-ledger", "gate-ledger", "victim-none", "host", "evil-b", "x@h2", "victim-ledger@h2", "evil-a-w-1")
PATHS = (
    "/srv/victim/x.tar",
    "/srv/evil/../victim/x.tar",
    "/srv/evil/x/y.tar",
    "/srv/evil/../app.tar",
    "/srv/evil//a.tar",
    "/dev/zero.tar",
)
FOLDERS = (
    "/srv/victim/ledger",
    "/srv/evil/database",
    "/srv/evil/data/../../victim",
    "/srv",
    "/srv/gate-ledger",
    "/data",
)
ADDRESSES = ("0.0.0.0/0", "::/0", "10.203.0.1", "203.0.113.1", "203.0.113.1/32", "192.0.2.0/24", "203.0.112.0/23")
NAMES = (
    "victim-new",
    "gate-new",
    "evilx",
    "evil",
    "Evil-b",
    "evil-b\n",
    "evil-b.victim",
    "evil/b",
    "é",
    "",
    "evil-\u2215",
    "host",
)


def _environment(chance: random.Random, part: Part) -> dict[str, Any]:
    found: dict[str, Any] = part["environments"][chance.choice(sorted(part["environments"]))]
    return found


def _key(key: str, *values: Any) -> Callable[[random.Random, Part], None]:
    return lambda chance, part: _environment(chance, part).update({key: copy.deepcopy(chance.choice(values))})


def _named(chance: random.Random, part: Part) -> None:
    part["environments"][chance.choice(NAMES + GUESSED)] = plain()


def _link(chance: random.Random, part: Part) -> None:
    ends = [*GUESSED, EVIL, EVIL, "evil-b"]
    more = chance.choice([{}, {"pattern": "request"}, {"as": "victim-ledger"}, {"length": 5}, {"monitor": True}])
    part["links"].append({"from": chance.choice(ends), "to": chance.choice(ends), **more})


def _image(chance: random.Random, part: Part) -> None:
    scheme = chance.choice(["tar:", "erofs:", "dir:", "oci:", "tar:salt:/", "tar:salt://..", "oci:/srv/shared/shop:1#"])
    its = _environment(chance, part)
    its["image"] = scheme.rstrip("#") + ("" if scheme.endswith("#") else chance.choice(PATHS))
    its["source_hash"] = chance.choice([None, DIGEST, "sha256:" + "e" * 64, "sha256:" + "E" * 64])


def _straight(chance: random.Random, part: Part) -> None:
    _environment(chance, part)["image"] = f"tar:/srv/evil/{chance.choice(['x', '..', '.', 'a/..'])}/app.tar"


def _interface(chance: random.Random, part: Part) -> None:
    kinds = [
        *[{"kind": "veth"}] * 4,
        {"kind": "veth", "ipv4": "10.203.0.2"},
        {"kind": "macvlan", "parent": "eth0", "ipv4": "192.0.2.7/24"},
        {"kind": "bridge", "bridge": "br0", "isolated": False, "ipv4": "192.0.2.7/24"},
        {"kind": "wireguard", "ipv4": "192.0.2.7/24", "listen_port": 53},
    ]
    found = copy.deepcopy(chance.choice(kinds))
    if chance.random() < 0.5:
        rule = {"direction": chance.choice(["in", "out"]), "cidr": chance.choice(ADDRESSES)}
        if chance.random() < 0.4:
            rule = {"direction": "out", "name": chance.choice(["evil.example.org", "deb.example.org"])}
            rule |= chance.choice([{}, {"cidr": "10.0.0.0/8"}, {"cidr": "127.0.0.0/8"}])
        found["allow"] = [rule]
    if chance.random() < 0.3:
        found["connections"] = chance.choice([1, 4096, 1_000_000])
    _environment(chance, part)["interface"] = found


def _publish(chance: random.Random, part: Part) -> None:
    port = chance.choice(["9000:80", "8005:80", "5682:5672", "22:22", "198.51.100.1:8010:1"])
    _environment(chance, part)["interface"] = {"kind": "veth", "publish": [port]}


def _volume(chance: random.Random, part: Part) -> None:
    volume = {"target": "/data", "source": chance.choice(FOLDERS)}
    if chance.random() < 0.3:
        volume = {"target": "/data", "size": chance.choice(["16M", "1T"])}
    _environment(chance, part)["volumes"] = [volume]


def _children(chance: random.Random, part: Part) -> None:
    template = {
        "image": chance.choice(["tar:/srv/evil/w.tar", "tar:/srv/victim/x.tar"]),
        "at_most": chance.choice([1, 2, 60]),
    }
    template["host"] = chance.choice([[], ["whoami"]])
    template["limits"] = {**SMALL, "memory": chance.choice(["8M", "8M", "1T"])}
    _environment(chance, part).update(host=["spawn", "whoami"], spawns={"w": template})


MESH = (EVIL, "evil-b", "evil-c")


def _mesh(chance: random.Random, part: Part) -> None:
    part["environments"] |= {name: plain() for name in MESH}
    part["links"] = [{"from": one, "to": two} for one in MESH for two in MESH if one != two]


def _kernel(chance: random.Random, part: Part) -> None:
    limits = {**SMALL, "memory": "512M", "pids": 16}
    part["environments"][EVIL] = {"kernel": chance.choice(["/srv/victim/k", "/srv/evil/a.tar"]), "limits": limits}


MOVES: tuple[Callable[[random.Random, Part], None], ...] = (
    _named,
    _link,
    _link,
    _image,
    _straight,
    _publish,
    _interface,
    _interface,
    _volume,
    _children,
    _children,
    _mesh,
    _kernel,
    _key("limits", {"memory": "1T"}, {"cpus": 64}, {"pids": 100_000}, {"disk": "1T"}, {"disk": "16M"}, {"files": 64}),
    _key("read_only", False),
    _key("after", ["victim-ledger"], ["gate-ledger"], ["evil-b"], ["evil-none"]),
    _key("tenant", "victim", "evil", ""),
    _key("runtime", "runc", "crun"),
    _key("seccomp", "standard", "file:/srv/victim/p.json"),
    _key("apparmor", "off"),
    _key("target", True),
    _key("host", ["who"], ["values"], ["attest"], ["whoami", "whoami"]),
    _key("stop_timeout", 3600, 30),
    _key("settle", 600),
    _key("health", {"exec": ["/x"], "interval": 0.1}, {"exec": ["/x"]}, {"mailbox": True}),
    _key("offers", ["books"]),
    _key("formerly", "victim-ledger", "victim-old", "gate-old", "evil-b", "evil-old", "host"),
    lambda chance, part: part["environments"].update({f"evil-{one}": plain() for one in range(chance.choice([1, 9]))}),
)


def attack(chance: random.Random) -> Part:
    """Return a tenant's part with one to three attacks in it."""
    part: Part = {"environments": {EVIL: plain(), "evil-b": plain()}, "links": []}
    for move in chance.choices(MOVES, k=chance.choice([1, 1, 2, 3])):
        move(chance, part)
    return part


# -- what must hold, by other means than the checks ---------------------------------------------------
def harm(declared: Declaration) -> str:
    """Return what a hostile tenant got beyond its section; empty if it got nothing."""
    own = {name: spec for name, spec in declared.environments.items() if spec.tenant == "evil"}
    others = {name: spec for name, spec in declared.environments.items() if spec.tenant != "evil"}
    if set(others) != {"victim-ledger", "gate-ledger"} or len(own) > 3 + 2:
        return f"environments: {sorted(declared.environments)}"
    for name, spec in own.items():
        if not name.startswith("evil-") or not name.isascii() or set(name) & set("./\n@"):
            return f"name {name!r}"
        if spec.formerly is not None and (not spec.formerly.startswith("evil-") or spec.formerly in own):
            return f"mailbox of {spec.formerly}"
        if found := _held(spec):
            return f"{name}: {found}"
    for link in declared.links:
        if len({link.source, link.target} & own.keys()) == 1:
            return f"link {link.name}"
    there = reach.declared(declared)
    for one in others:
        if any(path[0].source in own for path in reach.paths_to(there, one)):
            return f"reaches {one}"
    for one in own:
        if any(path[0].source in others for path in reach.paths_to(there, one)):
            return f"is reached: {one}"
    twice = [2 if spec.health is not None else 1 for spec in own.values()]
    every = list(zip(own.values(), twice, strict=True))
    sums = {
        "memory": sum(spec.limits.memory * n for spec, n in every) <= 2**30,
        "cpus": sum(spec.limits.cpus * n for spec, n in every) <= 3.0001,
        "pids": sum(spec.limits.pids * n for spec, n in every) <= 400,
        "disk": sum((spec.limits.disk or 0) * n + sum(one.size or 0 for one in spec.volumes) for spec, n in every)
        <= 2**26,
        "links": sum(bool({link.source, link.target} & own.keys()) for link in declared.links) <= 5,
        "connections": sum(getattr(spec.interface, "connections", 0) for spec in own.values()) <= 4096,
    }
    return ", ".join(name for name, held in sums.items() if not held)


def _held(spec: Environment) -> str:
    location = spec.image.partition(":")[2]
    straight = posixpath.normpath(location) == location and (location.count("/") == 3 or location.endswith("/app.tar"))
    ours = straight and location.startswith("/srv/evil/") and spec.image.startswith("tar:")
    shared = spec.image == "oci:/srv/shared/shop:1" and (spec.source_hash or "").lower() == "sha256:" + "e" * 64
    if spec.kernel is not None or not (ours or shared):
        return f"image {spec.image} {spec.kernel}"
    if any(one.source is not None and not f"{one.source}/".startswith("/srv/evil/data/") for one in spec.volumes):
        return "volume"
    if (spec.runtime, spec.seccomp, spec.target, spec.apparmor == "off") != (None, "strict", False, False):
        return "hardening"
    if not set(spec.host) <= {"whoami", "who", "spawn"} or not set(spec.after) <= {"evil-a", "evil-b"}:
        return "verbs or order"
    if spec.stop_timeout > 60 or spec.settle > 10 or (spec.health is not None and spec.health.interval < 1):
        return "time"
    if not spec.read_only and spec.limits.disk is None:
        return "disk without bound"
    its = spec.interface
    if its.NONE:
        return ""
    if type(its).__name__ != "Veth" or its.ipv4 is not None:
        return "interface"
    for rule in its.allow:
        networks = [] if rule.cidr is None else [rule.cidr.network]
        inside = all(str(one).startswith("203.0.113.") and one.prefixlen >= 24 for one in networks)
        if (
            not inside
            or (rule.name is None and networks[0].num_addresses == 1)
            or rule.name not in (None, "deb.example.org")
        ):
            return f"rule {rule}"
    ports = [one.host.port for one in publish.published(its)]
    return "" if all(8000 <= port <= 8009 for port in ports) else "port"


def answer(part: Part, secret: str = "ledger") -> tuple[Declaration | None, list[str]]:
    try:
        return PARSE(world(copy.deepcopy(part), secret)), []
    except SpecError as err:
        return None, [str(problem) for problem in err.problems]


def search(tries: int, seed: int = 1) -> str:
    """Return the first harm that an attack does; empty if none does any."""
    chance = random.Random(seed)
    for _ in range(tries):
        declared, _ = answer(attack(chance))
        if declared is not None and (found := harm(declared)):
            return found
    return ""


def test_hostile_tenant_gets_nothing_beyond_its_section() -> None:
    assert search(TRIES) == ""


def test_attacks_are_accepted_and_refused() -> None:
    chance = random.Random(2)
    accepted = sum(answer(attack(chance))[0] is not None for _ in range(300))
    assert 20 < accepted < 250, "else the search tries nothing"


def test_answer_tells_nothing_of_other_parties() -> None:
    """Rename other parties' environments to names that no attack has: the tenant can't tell the difference."""
    chance = random.Random(3)
    refused = 0
    for _ in range(200):
        part = attack(chance)
        declared, told = answer(part)
        otherwise, other = answer(part, "unguessed")
        assert (declared is None, told) == (otherwise is None, other)
        assert not any("unguessed" in one for one in other)
        assert all(one.isprintable() for one in told)
        refused += declared is None
    assert refused > 50


Patch = tuple[Any, str, Any]
PERMITTED, OWNED = parts.permitted, parts.owned


def nothing(*_: object, **__: object) -> tuple[()]:
    return ()


def without(*patched: Patch) -> contextlib.ExitStack:
    stack = contextlib.ExitStack()
    for module, name, instead in patched:
        stack.enter_context(mock.patch.object(module, name, instead))
    return stack


def _skip(key: str) -> Callable[..., Iterator[tuple[str, str]]]:
    """Return the check of permissions without the problems of keys that begin with *key*."""
    whole = permissions.beyond
    return lambda *given: (one for one in whole(*given) if not one[0].startswith(key))


def _uncounted(key: str) -> Callable[..., Iterator[tuple[str, str, str]]]:
    whole = quota.exceeded
    return lambda *given: (one for one in whole(*given) if one[0] != key)


def _any_link(tenants: Any) -> Any:
    return {where: link for part in tenants.values() for where, link in part.links.items()}, []


KEYS = (
    *("image", "kernel", "runtime", "seccomp", "apparmor", "target", "limits:disk", "host", "stop_timeout", "settle"),
    *("health:interval", "volumes", "interface:allow", "interface:publish", "spawns:w:image"),
)
HOLES: dict[str, tuple[Patch, ...]] = {
    **{f"permission: {key}": ((permissions, "beyond", _skip(key)),) for key in KEYS},
    **{f"quota: {key}": ((quota, "exceeded", _uncounted(key)),) for key in ("memory", "cpus", "pids", "disk", "links")},
    "quota: environments": ((quota, "exceeded", _uncounted("environments")),),
    "quota: children": ((quota, "exceeded", _uncounted("children")),),
    "quota: connections": ((quota, "exceeded", _uncounted("connections")),),
    "interfaces": ((permissions, "_same", lambda *_: True),),
    "single addresses": (
        (permissions, "_network", lambda text: None if "/" not in text else permissions.Cidr("0.0.0.0/0").network),
    ),
    "straight paths": ((permissions, "clean", lambda path: True),),
    "names": ((names, "owns", lambda *_: True), (names, "owner", lambda *_: "evil"), (names, "misplaced", nothing)),
    "after": ((parts, "permitted", lambda *given: (one for one in PERMITTED(*given) if ":after:" not in one.path)),),
    "mailboxes": (
        (names, "misplaced", nothing),
        (parts, "owned", lambda *given: [one for one in OWNED(*given) if not one.path.endswith(":formerly")]),
    ),
    "links": ((parts, "inside", _any_link), (separation, "problems", nothing)),
}


@pytest.mark.parametrize("hole", [*HOLES])
def test_search_finds_the_hole_without_a_check(hole: str) -> None:
    with without(*HOLES[hole]):
        assert search(2 * TRIES) != ""


def test_links_across_are_found_by_the_proof_alone() -> None:
    """Without the rule for links in tenants' parts, the proof of separation still refuses a link between tenants."""
    with without((parts, "inside", _any_link)):
        part: Part = {"environments": {EVIL: plain()}, "links": [{"from": EVIL, "to": "victim-ledger"}]}
        assert any("reaches the tenant victim" in one for one in answer(part)[1])
