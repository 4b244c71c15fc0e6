"""Boot logs and measurement lists for tests, from the repository and from a folder of other machines' logs.

``NETSPACE_EVENTLOGS`` names that folder; the default is ``shared/data/eventlogs`` beside the
checkout. ``NETSPACE_TEE`` names the folder of recorded TEE reports. A test whose file is absent is skipped.
"""

from __future__ import annotations

import datetime
import os
import re
from pathlib import Path

import pytest

from support import checkout

FIXTURES = checkout.ROOT / "tests/fixtures/eventlogs"
THEN = datetime.datetime(2025, 6, 1, tzinfo=datetime.timezone.utc).timestamp()
"""A moment within the time of every certificate of the recorded TEE reports."""


def others() -> Path | None:
    """Return the folder of other machines' logs; None if the folder does not exist."""
    folder = Path(os.environ.get("NETSPACE_EVENTLOGS") or checkout.ROOT.parent / "shared/data/eventlogs")
    return folder if folder.is_dir() else None


def tee(name: str) -> Path | None:
    """Return the path of a recorded TEE report; None if the file does not exist."""
    path = Path(os.environ.get("NETSPACE_TEE") or checkout.ROOT.parent / "shared/data/tee") / name
    return path if path.is_file() else None


def recorded(name: str) -> bytes:
    """Return the content of a recorded TEE report; skip the test if the file does not exist."""
    path = tee(name)
    if path is None:
        pytest.skip(f"{name} is not in the folder of recorded reports (NETSPACE_TEE)")
    return path.read_bytes()


def pcrread(path: Path) -> dict[int, bytes]:
    """Return the PCR values of one bank from the output of ``tpm2_pcrread``."""
    return {int(p): bytes.fromhex(v) for p, v in re.findall(r"(\d+)\s*: 0x([0-9A-F]+)", path.read_text())}


def read(name: str) -> bytes:
    """Return a fixture, e.g. ``uki/quote.msg``."""
    return (FIXTURES / name).read_bytes()


def values(boot: str) -> dict[int, bytes]:
    """Return the TPM's PCR values after one of the recorded boots, in the SHA-256 bank."""
    return pcrread(FIXTURES / boot / "tpm2_pcrread_sha256.txt")
