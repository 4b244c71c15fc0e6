"""Decisions about children from the records of a host, in a folder of its own: no program runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from netspace.environment import record as records
from netspace.environment.images import Image
from netspace.environment.images.sources import Defaults
from netspace.host import child_records
from netspace.host.child_records import Child, Run
from netspace.host.children import Refused
from netspace.host.host import Host
from netspace.layout import Layout
from netspace.spec import parse
from netspace.spec.types import Declaration

ASK = ["spawn", "end", "children"]
GONE = Run("another boot", 1, 1)


def template(**more: Any) -> dict[str, Any]:
    return {"image": "tar:/w.tar", "command": ["/bin/true"], "at_most": 2, **more}


def parent(**templates: Any) -> dict[str, Any]:
    return {"image": "tar:/w.tar", "command": ["/bin/true"], "host": ASK, "spawns": templates}


def own_run() -> Run:
    """Return the run of this process, which lasts."""
    there = child_records.process.stat(os.getpid())
    assert there is not None
    return Run(child_records.boot(), os.getpid(), there.ticks)


def a_child(name: str = "w", **more: Any) -> Child:
    given = {"until": 2.0**40, "within": own_run(), "begun": own_run(), **more}
    return Child(**{"parent": "web", "template": "worker", "name": name, "values": {}, **given})


def recorded(host: Host, declared: Declaration, names: set[str] | None = None) -> None:
    """Record the environments as an apply does."""
    for name, spec in declared.environments.items():
        if names is None or name in names:
            image = Image("d" * 64, "i", Defaults())
            records.write(host.layout, name, records.Record(spec, spec.state, 1 << 20, image, "c", "r", {}))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    made = Host(Layout(root=tmp_path))
    made.layout.state.mkdir(parents=True)
    return made


@pytest.fixture
def declared(host: Host) -> Declaration:
    found = parse.declaration({"environments": {"web": parent(worker=template())}})
    recorded(host, found)
    return found


def test_child_of_another_parent_is_none_of_the_asker(host: Host, declared: Declaration) -> None:
    child_records.write(host.layout, "web-worker-1", a_child())
    child_records.write(host.layout, "web-worker-2", a_child("theirs", parent="web-worker"))
    assert list(host.children("web")) == ["web-worker-1"]
    with pytest.raises(Refused, match="has no child of this name"):
        host.end("web", "theirs")
