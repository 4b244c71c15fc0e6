"""``runc``: the OCI's reference runtime. Time namespaces and bind mounts with mapped ids need version 1.2.

Older versions enter the user namespace first, and then lack the right to enter a network namespace that the host owns.
The host owns all network namespaces of netspace. So for a start, runc makes the user namespace itself. For ``exec``,
see ``elsewhere``.
"""

from __future__ import annotations

import json
from pathlib import Path

from netspace.environment import runtimes

PROGRAM = PACKAGE = "runc"
RUNS = "images"
OWN_KERNEL = False
Settings = runtimes.Settings
LACKS = ("time", "idmap", "umask", "users", "sockets")
FIXED_NAMES = False
ENTRIES = ("{}",)


def options(settings: runtimes.Settings) -> tuple[str, ...]:
    return ("--log-format", "json")


def elsewhere(root: Path, name: str, scratch: Path) -> Path:
    state = json.loads((root / name / "state.json").read_bytes())
    state["config"]["namespaces"] = [one for one in state["config"]["namespaces"] if one["type"] != "NEWNET"]
    state["namespace_paths"].pop("NEWNET", None)
    (scratch / name).mkdir(mode=0o700)
    (scratch / name / "state.json").write_text(json.dumps(state))
    return scratch
