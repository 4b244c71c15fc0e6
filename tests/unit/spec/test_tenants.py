"""Tenants: their sections, their parts, their quotas, and the proof that they don't reach each other."""

from __future__ import annotations

import copy
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from netspace.environment import record
from netspace.environment.comparison import differences
from netspace.environment.runtimes import USUAL
from netspace.errors import SpecError
from netspace.link.topology import policies
from netspace.plugin import arguments, tenant_files
from netspace.spec import parse, reach
from netspace.spec.tenancy import names, quota, separation
from netspace.spec.types import Declaration, Environment, Size, Tenant

QUOTA = {
    "environments": 4,
    "memory": "2G",
    "cpus": 4,
    "pids": 1000,
    "disk": "1G",
    "children": 2,
    "links": 8,
    "messages": 60_000,
    "waiting": "1G",
    "connections": 2048,
}


def web(**more: Any) -> dict[str, Any]:
    return {"image": "tar:/srv/acme/web.tar", "read_only": True, **more}


def section(**more: Any) -> dict[str, Any]:
    found = {
        "quota": dict(QUOTA),
        "images": ["tar:/srv/acme/*.tar", f"oci:/srv/images/shop:*@sha256:{'a' * 64}", "kernel:/srv/acme/k"],
        "interfaces": [{"kind": "veth"}, {"kind": "vlan", "parent": "eth1", "id": 7, "ipv4": "198.51.100.7/24"}],
        "outside": ["203.0.113.0/24", "198.51.100.9", "deb.example.org"],
        "ports": ["8080-8089"],
        "folders": ["/srv/acme/data"],
        "host": ["whoami", "spawn"],
        "environments": {"acme-web": web(), "acme-db": web()},
        "links": [{"from": "acme-web", "to": "acme-db", "pattern": "request"}],
    }
    return {**found, **more}


def umbra(**more: Any) -> dict[str, Any]:
    own = {"image": "tar:/srv/umbra/x.tar", "read_only": True}
    found = {"quota": dict(QUOTA), "images": ["tar:/srv/umbra/x.tar"], "environments": {"umbra-x": own}}
    return {**found, **more}


def whole(**more: Any) -> dict[str, Any]:
    return {"tenants": {"acme": section(), "umbra": umbra()}, "environments": {"gate": {"image": "tar:/g.tar"}}, **more}


def told(data: dict[str, Any]) -> dict[str, str]:
    """Return the messages of a declaration's problems, by path."""
    with pytest.raises(SpecError) as refused:
        parse.declaration(data)
    return {problem.path.removeprefix("netspace:"): problem.message for problem in refused.value.problems}


# -- the parts, joined ---------------------------------------------------------------------------------
def test_part_of_a_tenant_is_joined_to_the_whole() -> None:
    declared = parse.declaration(whole())
    assert {name: spec.tenant for name, spec in declared.environments.items()} == {
        "gate": None,
        "acme-web": "acme",
        "acme-db": "acme",
        "umbra-x": "umbra",
    }
    assert [link.name for link in declared.links] == ["acme-web.acme-db"]
    again = parse.declaration(parse.encode(declared))
    assert again == declared, "the operator may write what a part has"


def test_record_and_fingerprint_without_tenant_are_as_before() -> None:
    spec = parse.environment("web", {"image": "tar:/x.tar"})
    owned = parse.environment("web", {"image": "tar:/x.tar", "tenant": "acme"})
    assert "tenant" not in record._spec(spec) and record._spec(owned)["tenant"] == "acme"
    assert record.fingerprint(spec, None, USUAL) == record.fingerprint(owned, None, USUAL)
    assert differences.differences(spec, owned) == {"tenant": {"old": None, "new": "acme"}}
    assert "tenant" in differences.LIVE, "no restart"


Change = Callable[[dict[str, Any]], object]


def _acme(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = data["tenants"]["acme"]
    return found


def _web(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = _acme(data)["environments"]["acme-web"]
    return found


WEB = "tenants:acme:environments:acme-web"


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        (lambda data: _web(data).update(image="tar:/srv/umbra/x.tar"), f"{WEB}:image", "isn't an image of the tenant"),
        (lambda data: _web(data).update(image="tar:/srv/acme/../umbra/x.tar"), f"{WEB}:image", "image of the tenant"),
        (lambda data: _web(data).update(image="tar:/srv/acme/sub/x.tar"), f"{WEB}:image", "image of the tenant"),
        (lambda data: _web(data).update(image="oci:/srv/images/shop:1"), f"{WEB}:image", "image of the tenant"),
        (lambda data: _web(data).update(runtime="runc"), f"{WEB}:runtime", "leave it out"),
        (lambda data: _web(data).update(seccomp="standard"), f"{WEB}:seccomp", "it may name: strict"),
        (lambda data: _web(data).update(apparmor="off"), f"{WEB}:apparmor", "can't switch it off"),
        (lambda data: _web(data).update(target=True), f"{WEB}:target", "the operator's alone"),
        (lambda data: _web(data).update(read_only=False), f"{WEB}:limits:disk", "missing"),
        (lambda data: _web(data).update(host=["values"]), f"{WEB}:host:0", "may not request that"),
        (lambda data: _web(data).update(stop_timeout=61), f"{WEB}:stop_timeout", "at most 60"),
        (lambda data: _web(data).update(settle=11), f"{WEB}:settle", "at most 10"),
        (
            lambda data: _web(data).update(health={"exec": ["/x"], "interval": 0.5}),
            f"{WEB}:health:interval",
            "at least",
        ),
        (lambda data: _web(data).update(after=["gate"]), f"{WEB}:after:0", "not an environment of the tenant"),
        (lambda data: _web(data).update(tenant="umbra"), f"{WEB}:tenant", "leave it out"),
        (
            lambda data: _web(data).update(volumes=[{"target": "/d", "source": "/srv/acme/database"}]),
            f"{WEB}:volumes:0:source",
            "none of the tenant's folders",
        ),
        (
            lambda data: _web(data).update(interface={"kind": "veth", "ipv4": "10.203.0.9"}),
            f"{WEB}:interface",
            "{kind: veth}, {kind: vlan, ipv4: 198.51.100.7/24, parent: eth1, id: 7}",
        ),
        (
            lambda data: _web(data).update(interface={"kind": "veth", "publish": ["9000:80"]}),
            f"{WEB}:interface:publish:0",
            "none of the tenant's ports",
        ),
        (
            lambda data: _acme(data)["environments"].update({"umbra-y": web()}),
            "tenants:acme:environments:umbra-y",
            "not a name of the tenant acme",
        ),
        (
            lambda data: _acme(data)["environments"].update({"gate": web()}),
            "tenants:acme:environments:gate",
            "not a name of the tenant acme",
        ),
        (
            lambda data: data["environments"].update({"acme-web": {"image": "tar:/srv/acme/x.tar"}}),
            "environments:acme-web",
            "belongs to the tenant acme",
        ),
        (
            lambda data: data["environments"].update({"acme-web": web(tenant="acme")}),
            "tenants:acme:environments:acme-web",
            "declares it already",
        ),
        (
            lambda data: data["environments"].update({"gate": web(tenant="acme")}),
            "environments:gate",
            "not a name of the tenant acme",
        ),
        (
            lambda data: data["environments"].update({"gate": web(tenant="nobody")}),
            "environments:gate:tenant",
            "no tenant 'nobody'",
        ),
        (
            lambda data: _acme(data)["links"].append({"from": "acme-web", "to": "gate"}),
            "tenants:acme:links:1",
            "an end",
        ),
        (
            lambda data: _acme(data)["links"].append({"from": "acme-web", "to": "host"}),
            "tenants:acme:links:1",
            "an end",
        ),
        (
            lambda data: _acme(data)["links"].append({"from": "acme-web", "to": "x@h2"}),
            "tenants:acme:links:1",
            "an end",
        ),
        (lambda data: _acme(data).update(names=["umbra-x*"]), "tenants:umbra:names", "names in common"),
        (lambda data: _acme(data).update(names=["*"]), "tenants:acme:names:0", "expected a name"),
        (lambda data: _acme(data).update(names=["a/b"]), "tenants:acme:names:0", "expected a name"),
        (lambda data: _acme(data).update(images=["/srv"]), "tenants:acme:images:0", "expected <source>"),
        (lambda data: _acme(data).update(images=["sha256:" + "a" * 64]), "tenants:acme:images:0", "expected <source>"),
        (lambda data: _acme(data).update(runtimes=["x"]), "tenants:acme:runtimes:0", "not a runtime"),
        (lambda data: _acme(data).update(seccomp=["x"]), "tenants:acme:seccomp:0", "not a profile"),
        (lambda data: _acme(data).update(outside=["x"]), "tenants:acme:outside:0", "expected a network"),
        (
            lambda data: _web(data).update(delegates={"umbra-x": {"to": ["acme-db"]}}),
            f"{WEB}:delegates:umbra-x",
            "not an environment of the tenant",
        ),
        (
            lambda data: _web(data).update(delegates={"acme-db": {"to": ["umbra-x"]}}),
            f"{WEB}:delegates:acme-db:to:0",
            "not an environment of the tenant",
        ),
        (lambda data: _acme(data).update(ports=[0]), "tenants:acme:ports:0", "expected a port"),
        (lambda data: _acme(data).update(folders=["/etc"]), "tenants:acme:folders:0", "host's own"),
        (lambda data: _acme(data).update(host=["x"]), "tenants:acme:host:0", "is not a request that the host answers"),
        (lambda data: _acme(data).update(reaches=["acme"]), "tenants:acme:reaches:0", "not another tenant"),
        (lambda data: _acme(data).update(include=["/x.yaml"]), "tenants:acme:include", "on the host itself"),
        (lambda data: _acme(data).update(include=["x"]), "tenants:acme:include:0", "absolute path"),
        (lambda data: _acme(data).update(quotas={}), "tenants:acme:quotas", "did you mean quota?"),
        (lambda data: _acme(data)["quota"].update(cpus=-1), "tenants:acme:quota:cpus", "out of 0"),
        (lambda data: _acme(data)["quota"].pop("memory"), "tenants:acme:quota", "memory"),
        (lambda data: data["tenants"].update({"x" * 25: umbra()}), f"tenants:{'x' * 25}", "longer than 24"),
        (
            lambda data: data["tenants"]["umbra"].update(folders=["/srv/acme"]),
            "tenants:umbra:folders:0",
            "belongs to the tenant acme",
        ),
        (
            lambda data: data["tenants"]["umbra"].update(ports=[8081]),
            "tenants:umbra:ports:0",
            "belongs to the tenant acme",
        ),
        (
            lambda data: data["tenants"]["umbra"].update(interfaces=section()["interfaces"]),
            "tenants:umbra:interfaces:1",
            "belongs to the tenant acme",
        ),
    ],
)
def test_what_a_tenant_may_not_have_is_refused(change: Change, path: str, message: str) -> None:
    data = whole()
    change(data)
    found = told(data)
    assert message in found.get(path, ""), found


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"cidr": "203.0.113.0/25"}, ""),
        ({"cidr": "198.51.100.9"}, ""),
        ({"name": "deb.example.org"}, ""),
        ({"name": "deb.example.org", "cidr": "203.0.113.0/24"}, ""),
        ({"cidr": "203.0.113.7"}, "this very address"),
        ({"cidr": "10.0.0.0/8"}, "none of the networks"),
        ({"cidr": "0.0.0.0/0"}, "none of the networks"),
        ({"cidr": "::/0"}, "none of the networks"),
        ({"name": "evil.example.org"}, "none of the names"),
        ({"name": "deb.example.org", "cidr": "10.0.0.0/8"}, "none of the networks"),
    ],
)
def test_rule_of_a_tenant_stays_within_what_is_outside(rule: dict[str, Any], message: str) -> None:
    data = whole()
    _web(data)["interface"] = {"kind": "veth", "allow": [{"direction": "out", **rule}]}
    if message:
        assert message in told(data)[f"{WEB}:interface:allow:0"]
    else:
        parse.declaration(data)


def test_operators_wrong_environment_keeps_its_path_and_name() -> None:
    """Operator and tenant declare the same name, the operator with a mistake: its path is the operator's.

    The tenant's environment is refused only because the name is taken.
    """
    data = whole()
    data["environments"]["acme-web"] = {"image": "tar:/srv/acme/web.tar", "health": {"interval": "soon"}}
    found = told(data)
    assert "environments:acme-web:health:interval" in found
    assert found["tenants:acme:environments:acme-web"].startswith("the operator declares it already")
    assert not any(path.startswith("tenants:acme:environments:acme-web:") for path in found)


def test_permitted_things_are_accepted() -> None:
    data = whole()
    _web(data).update(
        image="oci:/srv/images/shop:1",
        source_hash=f"sha256:{'A' * 64}",
        interface={"kind": "vlan", "parent": "eth1", "id": 7, "ipv4": "198.51.100.7/24", "rate": "1M"},
        volumes=[{"target": "/d", "source": "/srv/acme/data/web"}, {"target": "/e", "size": "16M"}],
        after=["acme-db"],
        host=["whoami"],
    )
    parse.declaration(data)


# -- links to other tenants --------------------------------------------------------------------------
ACROSS = {"from": "acme-web", "to": "umbra-x"}


def test_link_across_needs_both_parts_and_reaches() -> None:
    data = whole()
    _acme(data)["links"].append(dict(ACROSS))
    assert list(told(data)) == ["tenants:acme:links:1"]
    data["tenants"]["umbra"]["links"] = [dict(ACROSS)]
    assert "acme-web -> umbra-x: messages" in told(data)["tenants:acme"]
    _acme(data)["reaches"] = ["umbra"]
    assert "acme-web.umbra-x" in [link.name for link in parse.declaration(data).links]
    data["tenants"]["umbra"]["links"][0]["length"] = 7
    assert set(told(data)) == {"tenants:acme:links:1", "tenants:umbra:links:0"}


def test_link_across_may_be_the_operators_alone() -> None:
    data = whole(links=[dict(ACROSS)])
    assert "reaches the tenant umbra" in told(data)["tenants:acme"]
    _acme(data)["reaches"] = ["umbra"]
    parse.declaration(data)


# -- the proof --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("links", "reaches", "found"),
    [
        ([("acme-web", "gate", "send")], {}, {}),
        ([("acme-web", "gate", "send"), ("gate", "umbra-x", "send")], {}, {"acme"}),
        ([("acme-web", "gate", "send"), ("umbra-x", "gate", "request")], {}, {"acme"}),
        ([("acme-web", "gate", "request"), ("umbra-x", "gate", "request")], {}, {"acme", "umbra"}),
        ([("acme-web", "gate", "request"), ("umbra-x", "gate", "request")], {"acme": ["umbra"]}, {}),
        ([("acme-web", "umbra-x", "request")], {"acme": ["umbra"]}, {}),
        ([("acme-web", "umbra-x", "request")], {"umbra": ["acme"]}, {"acme"}),
    ],
)
def test_path_to_another_tenant_is_told(
    links: list[tuple[str, str, str]], reaches: dict[str, list[str]], found: Any
) -> None:
    data = whole(links=[{"from": one, "to": two, "pattern": how} for one, two, how in links])
    for name, others in reaches.items():
        data["tenants"][name]["reaches"] = others
    if not found:
        parse.declaration(data)
        return
    paths = told(data)
    assert set(paths) == {f"tenants:{name}" for name in found}, paths
    assert all("gate" in one or "umbra-x" in one for one in paths.values())


ENDS = ["acme-web", "acme-db", "umbra-x", "gate", "other-y"]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(ENDS), st.sampled_from(ENDS), st.sampled_from(["send", "request"])), max_size=6),
    st.lists(
        st.tuples(st.sampled_from(["acme", "umbra", "other"]), st.sampled_from(["acme", "umbra", "other"])), max_size=2
    ),
)
def test_proof_agrees_with_paths_to(links: list[tuple[str, str, str]], permitted: list[tuple[str, str]]) -> None:
    """Compare the proof with the paths that ``paths_to`` finds, for every two tenants."""
    data = whole(links=[])
    own = {"image": "tar:/srv/umbra/x.tar", "read_only": True}
    data["tenants"]["other"] = umbra(environments={"other-y": own})
    quota_of_all = {**QUOTA, "links": 99, "messages": 10**9, "waiting": "1T"}
    for name in data["tenants"]:
        data["tenants"][name]["quota"] = quota_of_all
        data["tenants"][name]["reaches"] = sorted({to for one, to in permitted if one == name != to})
    data["tenants"]["acme"]["links"] = []
    for one, two, how in {(one, two): (one, two, how) for one, two, how in links if one != two}.values():
        data["links"].append({"from": one, "to": two, "pattern": how})
    try:
        parse.declaration(data)
        found = set()
    except SpecError as err:
        found = {(one.path.split(":")[-1], one.message.split()[3]) for one in err.problems}
    world = reach.World(frozenset(ENDS), {}, tuple(parse.link(one) for one in data["links"]))
    expected = set()
    whose = {end: end.partition("-")[0] for end in ENDS if end != "gate"}
    for target, tenant in whose.items():
        for path in reach.paths_to(world, target):
            begun = not any(edge.answers for edge in path)
            one = whose.get(path[0].source)
            if one is None or one == tenant or (one, tenant) in permitted:
                continue
            if (tenant, one) not in permitted or begun:
                expected.add((one, tenant))
    # paths_to has one shortest path from each end, which may have an answer where a longer one has none.
    assert expected <= found
    assert {(one, to) for one, to in found if (to, one) not in permitted} <= expected


# -- quotas ------------------------------------------------------------------------------------------------
LIMITS = st.fixed_dictionaries(
    {"memory": st.integers(4, 64), "cpus": st.sampled_from([0.1, 0.2, 0.7, 1]), "pids": st.integers(2, 99)},
    optional={"disk": st.integers(16, 32)},
)
SPECS = st.fixed_dictionaries(
    {"limits": LIMITS},
    optional={
        "health": st.just({"exec": ["/x"]}),
        "update": st.just({"rolling": False}),
        "volumes": st.lists(st.integers(16, 32), max_size=2),
        "connections": st.integers(1, 99),
        "publish": st.just(["8080:80"]),
        "at_most": st.integers(1, 3),
    },
)


@settings(max_examples=120, deadline=None)
@given(st.lists(SPECS, min_size=1, max_size=3), st.sampled_from(sorted(QUOTA)), st.sampled_from([0, 1]))
def test_sum_at_the_quota_passes_and_one_beyond_fails(specs: list[dict[str, Any]], key: str, less: int) -> None:
    environments: dict[str, Any] = {}
    sums = dict.fromkeys(("memory", "cpus", "pids", "disk", "children", "connections"), 0.0)
    for index, given_one in enumerate(specs):
        spec = copy.deepcopy(given_one)
        limits, made = spec["limits"], web()
        twice = 2 if "health" in spec and "update" not in spec else 1
        own = {**limits, "memory": f"{limits['memory']}M"}
        if "disk" in limits:
            own["disk"] = f"{limits['disk']}M"
        made |= {"limits": own, **{name: spec[name] for name in ("health", "update") if name in spec}}
        volumes = spec.get("volumes", [])
        made["volumes"] = [{"target": f"/v{number}", "size": f"{size}M"} for number, size in enumerate(volumes)]
        if "connections" in spec:
            publish = spec.get("publish", []) if index == 0 else []
            made["interface"] = {"kind": "veth", "connections": spec["connections"], "publish": publish}
            sums["connections"] += spec["connections"] * (2 if publish else 1)
        if "at_most" in spec:
            made |= {"host": ["spawn"]}
            small = {"memory": "4M", "pids": 2, "cpus": 0.5}
            made["spawns"] = {"w": {"image": "tar:/srv/acme/w.tar", "limits": small, "at_most": spec["at_most"]}}
            for name, value in (("children", 1), ("memory", 4), ("pids", 2), ("cpus", 0.5)):
                sums[name] += value * spec["at_most"]
        for name in ("memory", "cpus", "pids"):
            sums[name] += twice * limits[name]
        sums["disk"] += twice * limits.get("disk", 0) + sum(volumes)
        environments[f"acme-e{index}"] = made
    links = [{"from": f"acme-e{one}", "to": f"acme-e{one + 1}"} for one in range(len(specs) - 1)]
    asked = sum("at_most" in spec for spec in specs)
    boxes = len({f"acme-e{i}" for i, spec in enumerate(specs) if len(specs) > 1 or "at_most" in spec})
    exact = {
        **{name: f"{value:.0f}M" for name, value in sums.items() if name in ("memory", "disk")},
        **{name: round(sums[name], 6) for name in ("cpus",)},
        **{name: int(sums[name]) for name in ("pids", "children", "connections")},
        "environments": len(specs),
        "links": len(links) + asked,
        "messages": boxes * 10_000 + asked * (10_000 + 64),
        "waiting": f"{boxes * 64 + asked * (16 + 1)}M",
    }
    changed = copy.deepcopy(exact)
    if less:
        now = changed[key]
        changed[key] = (
            f"{int(now[:-1]) * 1024 * 1024 - 1}" if isinstance(now, str) else now - (0.01 if key == "cpus" else 1)
        )
    beyond = less and exact[key] not in (0, "0M")
    if less and not beyond:
        return
    data = whole()
    _acme(data).update(environments=environments, links=links, quota=changed)
    if beyond:
        assert list(told(data)) == [f"tenants:acme:quota:{key}"]
    else:
        parse.declaration(data)


def test_bounds_of_queues_are_those_of_the_policies() -> None:
    assert policies._MAILBOX["max-length"] == policies._OUTBOX["max-length"] == quota.MAILBOX_MESSAGES
    assert policies._MAILBOX["max-length-bytes"] == policies._LANE["max-length-bytes"] == quota.MAILBOX_BYTES
    assert policies._REPLIES["max-length"] == quota.REPLIES_MESSAGES
    assert policies._REPLIES["max-length-bytes"] == quota.REPLIES_BYTES


def test_link_with_length_counts_with_its_length() -> None:
    data = whole()
    _acme(data)["links"] = [{"from": "acme-web", "to": "acme-db", "length": 7}]
    used = quota.used(parse.declaration(data), "acme")
    assert (used.links, used.messages, used.waiting) == (1, 20_007, Size(3 * 64 * 1024**2))


# -- names --------------------------------------------------------------------------------------------
TEXT = st.text("ab-", min_size=1, max_size=4).filter(lambda text: text.strip("-") == text)
GRANT = st.builds(lambda text, star: text + "*" * star, TEXT, st.booleans())


@settings(max_examples=300, deadline=None)
@given(GRANT, GRANT, TEXT)
def test_name_of_two_grants_means_that_they_are_shared(one: str, other: str, name: str) -> None:
    if names.fits(one, name) and names.fits(other, name):
        assert names.shared(one, other) and names.shared(other, one)


# -- files ---------------------------------------------------------------------------------------------
PART = """
environments:
  acme-web: {image: 'tar:/srv/acme/web.tar', read_only: true}
links: []
"""


def included(tmp_path: Path, *texts: str | bytes) -> dict[str, Any]:
    data = whole()
    files = [tmp_path / f"{index}.yaml" for index, _ in enumerate(texts)]
    for file, text in zip(files, texts, strict=True):
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    _acme(data).update(environments={}, links=[], include=[str(file) for file in files])
    return data


def test_file_of_a_tenant_is_its_part(tmp_path: Path) -> None:
    other = '{"environments": {"acme-db": {"image": "tar:/srv/acme/db.tar", "read_only": true}}}'
    data = included(tmp_path, PART, other)
    found = tenant_files.declaration(data)
    assert {name for name, spec in found.environments.items() if spec.tenant == "acme"} == {"acme-web", "acme-db"}
    assert found == arguments.whole(None, {"netspace": data})


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("a: &x [1]\nb: *x\n", "", "an alias (*) isn't allowed"),
        ("environments: {a: 1, a: 2}", "", "a is given twice"),
        ("broker: {kind: local}", "", "broker: unknown"),
        ("tenants: {}", "", "tenants: unknown"),
        ("never: []", "", "never: unknown"),
        ("x" * (tenant_files.MOST + 1), "", "larger than 256 KiB"),
        (b"\xff", "", "UTF-8"),
        ("[" * 5000, "", "not valid YAML"),
        ("!!python/object/apply:os.system [id]", "", "not valid YAML"),
        # What ends PyYAML by an error that isn't its own
        *(
            (f"environments: {text}", "", "not valid YAML")
            for text in ("!!int ''", "!!bool x", "!!timestamp x", "!!map [a]")
        ),
        (f"environments: {{a: 1{':59' * 9000}.5}}", "", "not valid YAML"),
        (f"environments: {{a: 0x{'f' * 5000}}}", "", "a number of more than"),
        (
            PART.replace("read_only: true", f"limits: {{pids: 1{'0' * 90}}}"),
            ":environments:acme-web:limits:pids",
            "out of",
        ),
        *(
            (json.dumps({"environments": {"acme-web": {"image": "tar:/srv/acme/x.tar", **own}}}), where, "out of")
            for own, where in (
                ({"limits": {"pids": 10**400}}, ":environments:acme-web:limits:pids"),
                ({"health": {"exec": ["/x"], "retries": -(10**400)}}, ":environments:acme-web:health:retries"),
            )
        ),
        (f"environments: {{a: [{'1,' * tenant_files.MOST_VALUES}]}}", "", "more than 10000 values"),
        (f'{{"environments": {{"a": [{"1," * tenant_files.MOST_VALUES}1]}}}}', "", "more than 10000 values"),
        ("- 1", "", "expected a mapping"),
        ("environments: []", "", "expected environments"),
        (
            PART.replace("tar:/srv/acme", "tar:/srv/umbra"),
            ":environments:acme-web:image",
            "isn't an image of the tenant",
        ),
        (PART.replace("read_only: true", "limits: {memroy: 1}"), ":environments:acme-web:limits:memroy", "unknown"),
        (PART.replace("[]", "[{from: acme-web, to: umbra-x}]"), ":links:0", "an end isn't an environment"),
        (PART.replace("acme-web", '"\\e[2J"'), "", "not a name of the tenant|can't be an environment's name"),
    ],
)
def test_bad_file_is_refused_with_its_name(tmp_path: Path, text: str | bytes, path: str, message: str) -> None:
    data = included(tmp_path, text)
    with pytest.raises(SpecError) as refused:
        tenant_files.declaration(data)
    told_of = {problem.path: problem.message for problem in refused.value.problems}
    wanted = f"{tmp_path}/0.yaml{path}"
    assert any(
        one.startswith(wanted) and any(word in two for word in message.split("|")) for one, two in told_of.items()
    ), told_of
    assert str(refused.value).replace("\n", "").isprintable()


def test_file_that_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    data = included(tmp_path, PART)
    (tmp_path / "link").symlink_to(tmp_path / "0.yaml")
    for wrong in ("link", "nothing", "."):
        _acme(data)["include"] = [str(tmp_path / wrong)]
        with pytest.raises(SpecError, match="expected a plain file"):
            tenant_files.declaration(data)


def test_environment_in_two_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"1\.yaml:environments:acme-web: is declared twice"):
        tenant_files.declaration(included(tmp_path, PART, PART))


# -- states that declare one thing ---------------------------------------------------------------------
def test_state_for_a_tenants_environment_is_refused() -> None:
    pillar = {"netspace": whole()}
    with pytest.raises(SpecError, match="belongs to the tenant acme"):
        arguments.one_environment("acme-new", {"image": "tar:/x.tar"}, pillar)
    with pytest.raises(SpecError, match="belongs to the tenant acme"):
        arguments.one_interface("acme-new", {"kind": "veth"}, pillar)
    with pytest.raises(SpecError, match="belongs to the tenant umbra"):
        arguments.one_link("gate.umbra-x", {}, pillar)
    with pytest.raises(SpecError, match="a quota is for all"):
        arguments.one_environment("x", {"image": "tar:/x.tar", "tenant": "acme"}, {})
    assert arguments.one_environment("gate", {"image": "tar:/x.tar"}, pillar).environments["gate"].tenant is None


def test_separation_needs_no_time_without_tenants() -> None:
    declared = Declaration(
        environments={"a": Environment()}, tenants={"x": Tenant(quota=quota.used(Declaration(), "x"))}
    )
    assert separation.problems(declared, "netspace") == []


def test_example_of_the_page_is_accepted(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/tenants.md").read_text()
    blocks = [textwrap.dedent(one.partition("```")[0]) for one in page.split("```yaml\n")[1:]]
    operator, part = (yaml.safe_load(one) for one in blocks[:2])
    tenants = operator["netspace"]["tenants"]
    (tmp_path / "acme.yaml").write_text(yaml.safe_dump(part))
    (tmp_path / "umbra.yaml").write_text("")
    for name in tenants:
        tenants[name]["include"] = [str(tmp_path / f"{name}.yaml")]
    assert set(tenant_files.declaration(operator["netspace"]).environments) == {"acme-web", "acme-orders"}
