"""The inventory's file: read again after a change, and only up to its size limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from netspace import files
from netspace.attestation.registrar import inventory
from netspace.errors import NetspaceError

ONE, OTHER = "01" * 32, "02" * 32


def test_a_changed_file_is_read_again_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    whole = files.read
    monkeypatch.setattr(files, "read", lambda path, most=None: read.append(path) or whole(path, most))
    path = tmp_path / "tpms"
    path.write_text(f"web1 {ONE}\n")
    assert inventory.read(path).owners == inventory.read(path).owners == {ONE: "web1"}
    assert read == [path]
    path.write_text(f"web1 {ONE} {OTHER}\n")
    assert inventory.read(path).owners == {ONE: "web1", OTHER: "web1"}
    path.unlink()
    with pytest.raises(NetspaceError, match="No such file"):
        inventory.read(path)


def test_of_a_file_that_is_too_long_no_more_than_its_bound_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"web1 {ONE}\n"
    path = tmp_path / "tpms"
    path.write_text(line)
    monkeypatch.setattr(inventory, "MAX_FILE", len(line))
    assert inventory.read(path).minions == {"web1"}
    path.write_text(line * 1000)
    sizes: list[int] = []
    whole = files.read

    def read(path: Path, most: int | None = None) -> bytes:
        raw = whole(path, most)
        sizes.append(len(raw))
        return raw

    monkeypatch.setattr(files, "read", read)
    with pytest.raises(NetspaceError, match=f"more than {len(line)} bytes"):
        inventory.read(path)
    assert sizes == [len(line) + 1]
