"""``runc``: the OCI's own. Only since 1.2 it has time namespaces and bind mounts with mapped ids.

Older versions also enter the user namespace first. They then lack the right to enter a network
namespace that the host owns, and netspace's are the host's. So runc makes the user namespace itself at a start;
for ``exec`` see ``elsewhere``.
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
