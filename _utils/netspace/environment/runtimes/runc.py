"""``runc``: the OCI's own. No time namespace before 1.2, and bind mounts with mapped ids only since then.

Until then, too, it enters a user namespace first, and has no right any more to enter a network
namespace that the host owns, as ours are: so at its start it makes the user namespace itself,
and of ``exec`` see ``elsewhere``.
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
