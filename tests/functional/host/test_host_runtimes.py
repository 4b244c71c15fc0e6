"""Runtimes, applied by Salt: an environment under each runtime of this host, and the result of its audit.

``test_host_audit.py`` tests the audit under crun.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.hosts.whole_host import Salt, by_id

from netspace.environment import runtimes
from netspace.host import audit
from netspace.host.host import Host
from netspace.layout import Layout
from netspace.spec.types import Network

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]

PAGE = Path(__file__).parents[3] / "docs/isolation.md"
LIMITS = {"memory": "256M", "pids": 256, "cpus": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    folder.chmod(0o755)
    (folder / "bin").mkdir(mode=0o755)
    shutil.copy("/bin/busybox", folder / "bin/busybox")
    for applet in ("sh", "sleep", "id"):
        (folder / "bin" / applet).symlink_to("busybox")
    return folder


def declared(root: Path, names: list[str]) -> dict[str, Any]:
    own = {
        "image": f"dir:{root}",
        "command": ["/bin/sh", "-c", "trap 'exit 0' TERM; echo up; while :; do sleep 0.2; done"],
        "limits": LIMITS,
    }
    return {
        "runtimes": {"default": names[0]},
        "environments": {f"by-{name}": {**own, "runtime": name} for name in names},
    }


def test_what_the_audit_finds_under_another_runtime_is_what_the_page_says(salt: Salt, root: Path) -> None:
    there = [name for name in runtimes.running("images") if not runtimes.look(name, {}).error]
    salt.declare(declared(root, there))
    applied = salt("state.apply", "netspace")
    assert all(one["result"] for one in applied.values()), applied
    again = salt("state.apply", "netspace")
    assert not any(one["changes"] for one in again.values()), again

    host = Host(Layout())
    assert {told["runtime"] for told in host.environments.list().values()} == set(there)
    for name in there:
        done = host.operations.exec(f"by-{name}", ["/bin/id", "-u"])
        assert (done["retcode"], done["stdout"]) == (0, "1000\n"), name

    section = PAGE.read_text().split("## Under another runtime")[1].split("\n## ")[0]
    allowed = {"runsc": set(re.findall(r"^\| `(.*?)` \|", section, re.MULTILINE))}
    assert len(allowed["runsc"]) == 8
    for name in there:
        if name == "crun":
            continue  # test_host_audit.py
        rows = audit.audit(host, f"by-{name}", Network())
        found = {row["name"]: row["detail"] for row in rows if row["outcome"] == "succeeded"}
        assert found.keys() <= allowed.get(name, set()), (name, found)

    # One that is not there is refused, with its path and what to do; the others stay as they are.
    wanted = declared(root, there)
    wanted["runtimes"]["runsc"] = {"program": "/usr/local/bin/no-such-runsc"}
    wanted["environments"]["other"] = {**wanted["environments"]["by-crun"], "runtime": "runsc"}
    salt.declare(wanted)
    text = json.dumps(by_id(salt("state.apply", "netspace", check=False)))
    assert "netspace:environments:other:runtime: runsc can't be used here: the program /usr/local/bin/no-such" in text
    assert "other" not in host.environments.list()
