"""The runtime that CONTRIBUTING shows is one file, and runs as it stands there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from environment_host import Host

from netspace.environment import runtimes

GUIDE = Path(__file__).parents[3] / "CONTRIBUTING.md"


@pytest.fixture
def youki(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    section = GUIDE.read_text().split("## Add a runtime")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (tmp_path / "youki.py").write_text(code)
    monkeypatch.setattr(runtimes, "__path__", [*runtimes.__path__, str(tmp_path)])
    runtimes.names.cache_clear()
    yield "youki"
    runtimes.names.cache_clear()
    runtimes.find.cache_clear()


def test_a_runtime_is_one_file(host: Host, youki: str) -> None:
    # Its program is any that knows the OCI's command line.
    host.settings[youki] = {"program": "/usr/bin/crun"}
    desired = host.run("web", runtime=youki)
    assert host.kind.list()["web"]["runtime"] == youki
    assert host.sh("web", "id -u") == "1000"
    assert host.plan({"web": desired}).steps == []
    assert host.operations.stop(["web"]) == {"web": ""}
    host.clear()
