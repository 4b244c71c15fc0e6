"""The minion reads its measurement list from any of the kernel's files for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.attestation import boot_logs
from test_ima import ALL
from test_ima_rules import by

from netspace.attestation.logs import ima
from netspace.attestation.minion import attester
from netspace.errors import NetspaceError

LIST = boot_logs.read("shim-grub/ima_binary_runtime_measurements") + b"".join(ALL)
FOLDER = "sys/kernel/security/ima"


def put(root: Path, name: str, raw: bytes, folder: str = FOLDER) -> None:
    path = root / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)


@pytest.mark.parametrize("folder", [FOLDER, "sys/kernel/security/integrity/ima"])
@pytest.mark.parametrize("bank", ["", "sha1", "sha256", "sha384", "sha512"])
def test_the_list_is_read_whatever_its_digests_are(tmp_path: Path, folder: str, bank: str) -> None:
    name = f"binary_runtime_measurements_{bank}" if bank else "binary_runtime_measurements"
    put(tmp_path, name, by(bank, LIST) if bank else LIST, folder)
    assert attester.measured(tmp_path, 0) == (0, LIST)
    assert attester.measured(tmp_path, 7) == (7, LIST[ima.offset(LIST, 7) :])
    assert attester.measured(tmp_path, 10_000) == (10_000, b"")


def test_the_list_of_all_kernels_is_preferred(tmp_path: Path) -> None:
    put(tmp_path, "binary_runtime_measurements_sha256", b"not read")
    put(tmp_path, "binary_runtime_measurements_sha1", LIST)
    (tmp_path / FOLDER / "binary_runtime_measurements").symlink_to("binary_runtime_measurements_sha1")
    assert attester.measured(tmp_path, 0).raw == LIST
    (tmp_path / FOLDER / "binary_runtime_measurements").unlink()
    assert attester.measured(tmp_path, 0).raw == LIST


def test_a_list_that_is_absent_or_broken_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert attester.measurement_list(tmp_path) is None
    with pytest.raises(NetspaceError, match="ima_policy=tcb"):
        attester.measured(tmp_path, 0)
    put(tmp_path, "binary_runtime_measurements", LIST[:-1])
    with pytest.raises(NetspaceError, match="IMA list: ends after"):
        attester.measured(tmp_path, 0)
    monkeypatch.setattr(ima, "MAX_LIST", 100)
    with pytest.raises(NetspaceError, match="at most 100 bytes"):
        attester.measured(tmp_path, 0)
