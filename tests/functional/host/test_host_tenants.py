"""A tenant's file on a real host: applied, shown, and given to an environment that already runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.hosts.whole_host import IDLE, Salt, all_true, changes, python

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]


def declared(image: Path, file: Path, **section: Any) -> dict[str, Any]:
    quota = {"environments": 2, "memory": "256M", "cpus": 2, "pids": 256}
    tenant = {"quota": quota, "names": ["web"], "images": [f"tar:{image}"], "include": [str(file)], **section}
    return {"tenants": {"acme": tenant}}


def test_running_environment_gets_a_tenant_without_restart(salt: Salt, image: Path, tmp_path: Path) -> None:
    spec = {
        "image": f"tar:{image}",
        "command": python(IDLE),
        "read_only": True,
        "limits": {"memory": "64M", "pids": 16},
    }
    all_true(salt.apply({"environments": {"web": spec}}))
    before = salt("netspace_environment.list")["web"]
    assert "tenant" not in before and "tenant" not in salt("netspace.metrics")

    file = tmp_path / "acme.yaml"
    file.write_text(f"environments:\n  web: {{image: 'tar:{image}', read_only: true, limits: {{memory: 512M}}}}\n")
    salt.declare(declared(image, file))
    beyond = salt("netspace.check", check=False)
    assert [one["path"] for one in beyond["problems"]] == ["netspace:tenants:acme:quota:memory"]

    file.write_text(json.dumps({"environments": {"web": spec}}))
    owned = declared(image, file)
    assert changes(salt.apply(owned)) == {"netspace environments": {"web": {"tenant": {"old": None, "new": "acme"}}}}
    after = salt("netspace_environment.list")["web"]
    assert (after["pid"], after["tenant"]) == (before["pid"], "acme")
    assert 'netspace_environment_tenant{environment="web",tenant="acme"} 1' in salt("netspace.metrics")
    row = salt("netspace.tenants")["acme"]
    assert row["quota"]["memory"] == {"declared": "64M", "most": "256M"}
    assert (row["environments"], row["running"]) == (["web"], 1)
    assert "tenant acme" in salt("netspace.graph")
    assert changes(salt.apply(owned)) == {}
