"""The example runtime and tender in CONTRIBUTING are one file each, and work unchanged."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.environments import tiny_kernel
from support.environments.environment_host import Host
from support.waiting import until

from netspace.environment import runtimes

GUIDE = Path(__file__).parents[3] / "CONTRIBUTING.md"


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The guide's modules, each added to the runtimes under the name in the module's first line."""
    section = GUIDE.read_text().split("## Add a runtime")[1].split("\n## ")[0]
    modules = re.findall(r'```python\n("""``(\w+)``.*?)```', section, re.DOTALL)
    assert [name for _, name in modules] == ["youki", "qemu32"]
    for code, name in modules:
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setattr(runtimes, "__path__", [*runtimes.__path__, str(tmp_path)])
    runtimes.names.cache_clear()
    yield
    runtimes.names.cache_clear()
    runtimes.find.cache_clear()


def test_a_runtime_is_one_file(host: Host, shown: None) -> None:
    # Its program is any that knows the OCI's command line.
    host.settings["youki"] = {"program": "/usr/bin/crun"}
    desired = host.run("web", runtime="youki")
    assert host.kind.list()["web"]["runtime"] == "youki"
    assert host.sh("web", "id -u") == "1000"
    assert host.plan({"web": desired}).steps == []
    assert host.operations.stop(["web"]) == {"web": ""}
    host.clear()


def test_a_tender_is_one_file(host: Host, shown: None, tmp_path: Path) -> None:
    if error := runtimes.look("qemu32", {}).error:
        pytest.skip(f"qemu32: {error}")
    kernel = tiny_kernel.build(tmp_path / "tiny")
    keys = {
        "kernel": str(kernel),
        "runtime": "qemu32",
        "args": ["by-another"],
        "limits": {"memory": "160M", "cpus": 0.3},
        "stop_timeout": 60,
    }
    desired = host.run("tiny", files={"a": b"handed"}, **keys)
    until(lambda: "kernel: ready" in host.operations.logs("tiny")["lines"], "it did not boot", patience=120)
    assert {"kernel: started: /kernel by-another", "disk: a handed"} <= set(host.operations.logs("tiny")["lines"])
    assert host.plan({"tiny": desired}).steps == []
    assert host.operations.stop(["tiny"]) == {"tiny": ""}
    assert host.kind.list()["tiny"]["exit"] == "exit 0"
    host.clear()
