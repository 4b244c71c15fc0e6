"""The OCI project's ``runtimetest``, run inside an environment, finds only the deviations that the docs declare.

``scripts/test`` runs ``scripts/runtimetest``, which builds the tool from Debian's source package. If the tool was not
built (without a network), these tests are skipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

CHECKOUT = Path(__file__).parents[3]
PAGE = CHECKOUT / "docs" / "isolation.md"


@pytest.fixture
def program():
    found = os.environ.get("NETSPACE_RUNTIMETEST") or shutil.which("runtimetest") or CHECKOUT / ".cache/runtimetest"
    if not Path(found).exists():
        pytest.skip(__doc__.split("\n\n", 1)[1].replace("\n", " "))
    return Path(found)


def wait_for_the_end(host):
    deadline = time.monotonic() + 60
    while host.kind.list()["web"]["state"] in ("running", "starting") and time.monotonic() < deadline:
        time.sleep(0.05)
    return host.operations.logs("web", 10_000)["lines"]


def findings(output):
    """Return the lines of TAP that say ``not ok``, without their numbers."""
    return [match[1].strip() for match in re.finditer(r"^not ok \d+ - (.*)$", output, re.MULTILINE)]


def test_the_runtime_kept_what_the_configuration_says(host, image, program, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(image, root, symlinks=True)
    shutil.copy(program, root / "bin/runtimetest")
    (root / "bin/runtimetest").chmod(0o755)
    keys = {"image": f"dir:{root}", "command": ["/bin/runtimetest"], "working_dir": "/run/netspace", "restart": "never"}
    assert host.apply({"web": host.desired("web", state="present", **keys)})["web"].error == ""
    config = json.loads((host.layout.bundle("web") / "config.json").read_bytes())
    linux = config["linux"]
    for key in ("maskedPaths", "readonlyPaths"):
        # What this kernel hasn't got can be neither masked nor written; runtimetest stops at it.
        linux[key] = [path for path in linux[key] if Path(path).exists()]
    limits = config["process"]["rlimits"]
    config["process"]["rlimits"] = [
        one for one in limits if one["type"] != "RLIMIT_SIGPENDING"
    ]  # it knows no such name
    del linux["rootfsPropagation"]  # it would mount something to see, and may not
    files = {"config.json": json.dumps(config).encode()}
    host.apply({"web": host.desired("web", state="present", files=files, **keys)})
    host.operations.start(["web"])
    output = "\n".join(wait_for_the_end(host))
    assert re.search(r"^1\.\.\d+", output, re.MULTILINE), output[-2000:]
    passed = re.findall(r"^ok \d+", output, re.MULTILINE)
    assert len(passed) > 20
    # A finding that doesn't stand in the docs fails this; so does one that stands there and is none.
    declared = re.findall(r"^\| `runtimetest`: (.*?) \|", PAGE.read_text(), re.MULTILINE)
    assert sorted(set(findings(output))) == sorted(declared)
