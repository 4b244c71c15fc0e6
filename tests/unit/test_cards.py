"""What a host tells its environments is found once for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from netspace import files
from netspace.environment import runtimes
from netspace.host import Host
from netspace.layout import Layout
from netspace.link.record import Record, write
from netspace.spec import parse
from netspace.spec.types import Environment, LocalBroker


def test_more_environments_are_no_more_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(Layout(root=tmp_path))
    links = tuple(parse.link({"from": "a", "to": to}, "links") for to in ("b", "c"))
    write(host.layout, Record(LocalBroker(), {link.name: link for link in links}, ()))
    read: list[Path] = []
    real = files.read_json
    monkeypatch.setattr(files, "read_json", lambda path: read.append(path) or real(path))

    def told(*names: str) -> dict[str, list[str]]:
        wanted: dict[str, Any] = {name: (Environment(image="dir:/"), "running", None, runtimes.USUAL) for name in names}
        desired = host._desired(wanted, links)
        return {name: one.files_summary["links"] for name, one in desired.items()}

    assert told("x") == {"x": []}
    few, read[:] = len(read), []
    assert told("x", "y", "z") == {"x": [], "y": [], "z": []}
    assert len(read) == few > 0
    assert told("a", "b") == {"a": ["a.b (send)", "a.c (send)"], "b": ["a.b (send)"]}
