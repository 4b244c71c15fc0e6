"""Parser of TCTI strings (TCG TSS 2.0 TCTI), which name a device or socket of this host. Pure."""

from __future__ import annotations

from pathlib import Path


def device_path(tcti: str) -> Path | None:
    """Return the absolute path of the device or socket in *tcti*; None if *tcti* has no such path."""
    for prefix in ("device:", "swtpm:path="):
        if tcti.startswith(prefix):
            path = tcti[len(prefix) :]
            if path.startswith("/") and not set(path) & {",", "\0"}:
                return Path(path)
    return None
