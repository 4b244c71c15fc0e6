"""A token (PKCS #11) made of software: SoftHSM."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

PIN = "8465201397"
LIBRARIES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so")


def missing() -> str:
    """Return the reason why no token can be made here; empty if one can be made."""
    there = any(Path(path).exists() for path in LIBRARIES) and shutil.which("softhsm2-util") is not None
    return "" if there else "softhsm2 missing: apt-get install softhsm2"


def make(folder: Path) -> dict[str, str]:
    """Make a token; return its settings. The variable SOFTHSM2_CONF must name ``conf`` in *folder* beforehand."""
    (folder / "tokens").mkdir()
    (folder / "conf").write_text(f"directories.tokendir = {folder}/tokens\nobjectstore.backend = file\n")
    (folder / "pin").write_text(f"{PIN}\n")
    (folder / "pin").chmod(0o600)
    command = ["softhsm2-util", "--init-token", "--free", "--label", "netspace", "--pin", PIN, "--so-pin", "1" + PIN]
    subprocess.run(command, check=True, capture_output=True)
    library = next(path for path in LIBRARIES if Path(path).exists())
    return {"module": library, "token": "netspace", "pin_file": str(folder / "pin")}
