"""Tenants in tables and in the graph. Without tenants, both are as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from netspace.environment import claims, record
from netspace.host import reach
from netspace.host.host import Host
from netspace.layout import Layout
from netspace.plugin import tables, views
from netspace.spec import parse

ROW: dict[str, Any] = {
    "state": "running",
    "restarts": 0,
    "health": "",
    "problem": "",
    "image": "tar:/x.tar",
    "since": 0,
}
SCREEN = views.Screen(1.0, tables.plain)


def test_list_has_a_column_of_tenants_if_there_is_one() -> None:
    alone = views.render({"gate": ROW}, SCREEN)
    both = views.render({"gate": ROW, "acme-web": {**ROW, "tenant": "acme"}}, SCREEN)
    assert alone is not None and not any("TENANT" in line for line in alone)
    assert both is not None and "TENANT" in both[0]
    assert any("acme-web" in line and " acme " in line for line in both)


def test_table_of_tenants_shows_each_part_of_a_quota() -> None:
    quota = {"memory": {"declared": "1G", "most": "2G"}, "links": {"declared": "3", "most": "3"}}
    told = {"acme": {"quota": quota, "environments": [], "running": 0, "names": [], "reaches": []}}
    lines = views.render(told, SCREEN)
    assert lines is not None and [line.split() for line in lines[1:]] == [
        ["acme", "memory", "1G", "2G"],
        ["acme", "links", "3", "3"],
    ]


def test_graph_has_a_group_for_each_tenant(tmp_path: Path) -> None:
    host = Host(Layout("netspace", root=tmp_path))
    owned = {"acme-web": {"image": "tar:/x.tar", "read_only": True}}
    quota = {"environments": 1, "memory": "1G", "cpus": 1, "pids": 200}
    tenants = {"acme": {"quota": quota, "images": ["tar:/x.tar"], "environments": owned}}
    environments = {"gate": {"image": "tar:/x.tar"}}
    with_one = reach.graph(host, "dot", parse.declaration({"environments": environments, "tenants": tenants}))
    assert 'label="tenant acme";' in with_one and '"acme-web"' in with_one
    without = reach.graph(host, "dot", parse.declaration({"environments": environments}))
    assert "tenant" not in without and "subgraph" not in without


def test_claims_have_the_tenant() -> None:
    spec = parse.environment("acme-web", {"image": "tar:/x.tar", "tenant": "acme"})
    kept = record.Record(spec, "running", 1, None, "", "")  # type: ignore[arg-type]
    assert claims.of(kept).tenant == "acme"
