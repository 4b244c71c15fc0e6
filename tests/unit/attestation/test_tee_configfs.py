"""Reports by the kernel's configfs: a report covers the bytes written for it, and no entry is left behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from netspace.attestation import evidence
from netspace.attestation.tee import configfs
from netspace.attestation.tee.configfs import FOLDER, Taken, TsmError

DATA = bytes(range(64))


class FakeKernel:
    """The configfs-tsm of Linux 6.7 to 6.18 (drivers/virt/coco/guest/report.c).

    Attributes appear with the directory. The kernel processes a binary attribute when its file is closed, and reports
    no error then. It makes the report at the first read, and again after each write.
    """

    def __init__(self, provider: str = "sev_guest", table: bytes | None = b"certificates", floor: int | None = 0):
        self.provider, self.table, self.floor = provider, table, floor
        self.entries: dict[Path, dict[str, object]] = {}
        self.made: list[Path] = []
        self.fail: dict[str, int] = {}
        self.between: list[str] = []
        self.report = b"report over "

    def _entry(self, path: Path) -> dict[str, object]:
        if path.parent not in self.entries:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return self.entries[path.parent]

    def _fails(self, name: str) -> None:
        if name in self.fail:
            raise OSError(self.fail[name], os.strerror(self.fail[name]))

    def make(self, path: Path) -> None:
        self._fails("make")
        assert path not in self.entries and path.parent.as_posix().endswith(FOLDER)
        self.entries[path] = {"generation": 0, "inblob": b"", "privlevel": 0}
        self.made.append(path)

    def remove(self, path: Path) -> None:
        self._fails("remove")
        del self.entries[path]

    def write(self, path: Path, data: bytes) -> None:
        entry = self._entry(path)
        self._fails(path.name)
        if path.name == "inblob":
            if "lost" in self.between:
                return  # refused on close, which says nothing
            assert len(data) <= 64
            entry["inblob"] = data
        elif path.name == "privlevel" and self.floor is not None:
            if not self.floor <= int(data) <= 3:
                raise OSError(errno.EINVAL, "Invalid argument")
            entry["privlevel"] = int(data)
        else:
            raise PermissionError(errno.EACCES, "Permission denied")
        entry["generation"] = int(str(entry["generation"])) + 1

    def read(self, path: Path, limit: int) -> bytes:
        entry = self._entry(path)
        self._fails(path.name)
        if path.name == "provider":
            return f"{self.provider}\n".encode()
        if path.name == "generation":
            return f"{entry['generation']}\n".encode()
        if path.name == "privlevel_floor" and self.floor is not None:
            return f"{self.floor}\n".encode()
        if path.name in ("outblob", "auxblob"):
            if not entry["inblob"]:
                raise OSError(errno.EINVAL, "Invalid argument")
            if path.name == "outblob":
                if "other" in self.between:
                    self.between.remove("other")
                    self.write(path.parent / "inblob", b"somebody else's")
                if self.floor and entry["privlevel"] != self.floor:
                    raise OSError(errno.EIO, "Input/output error")
                assert isinstance(entry["inblob"], bytes)
                return (self.report + entry["inblob"])[: limit + 1]
            if self.table is not None:
                return self.table[: limit + 1]
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")


def test_a_report_is_over_what_was_written() -> None:
    kernel = FakeKernel()
    found = configfs.take(Path("/"), DATA, kernel)
    assert found == Taken("sev_guest", b"report over " + DATA, b"certificates")
    assert kernel.entries == {} and len(kernel.made) == 1


def test_a_provider_without_certificates_gives_none() -> None:
    found = configfs.take(Path("/"), DATA, FakeKernel("tdx_guest", None, None))
    assert found == Taken("tdx_guest", b"report over " + DATA, b"")


def test_a_guest_below_the_best_level_asks_for_its_own() -> None:
    kernel = FakeKernel(floor=2)
    assert configfs.take(Path("/"), DATA, kernel).report.endswith(DATA)
    assert kernel.entries == {}


def test_a_report_that_another_changed_is_taken_anew() -> None:
    kernel = FakeKernel()
    kernel.between = ["other"]
    assert configfs.take(Path("/"), DATA, kernel).report == b"report over " + DATA
    assert len(kernel.made) == 2 and kernel.entries == {}


def test_a_report_that_is_always_changed_is_given_up() -> None:
    kernel = FakeKernel()
    kernel.between = ["other"] * 10
    with pytest.raises(TsmError, match="another process"):
        configfs.take(Path("/"), DATA, kernel)
    assert len(kernel.made) == 3 and kernel.entries == {}


def test_a_write_that_the_kernel_lost_is_noticed() -> None:
    kernel = FakeKernel()
    kernel.between = ["lost"]
    with pytest.raises(TsmError):
        configfs.take(Path("/"), DATA, kernel)
    assert kernel.entries == {}


@pytest.mark.parametrize("name", ["make", "provider", "generation", "inblob", "outblob", "auxblob", "privlevel_floor"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EBUSY, errno.EACCES, errno.ENXIO])
def test_a_failure_leaves_nothing_behind(name: str, number: int) -> None:
    kernel = FakeKernel()
    kernel.fail = {name: number}
    with pytest.raises(TsmError, match="sys/kernel/config/tsm/report"):
        configfs.take(Path("/"), DATA, kernel)
    assert kernel.entries == {}


def test_a_directory_that_stays_is_told() -> None:
    kernel = FakeKernel()
    kernel.fail = {"remove": errno.EBUSY}
    with pytest.raises(TsmError, match="rmdir"):
        configfs.take(Path("/"), DATA, kernel)


@pytest.mark.parametrize("table", [b"x" * (evidence.MAX_TABLE + 1)])
def test_a_table_beyond_all_bounds_is_refused(table: bytes) -> None:
    with pytest.raises(TsmError, match="auxblob has more than"):
        configfs.take(Path("/"), DATA, FakeKernel(table=table))


def test_a_report_beyond_all_bounds_is_refused() -> None:
    kernel = FakeKernel()
    kernel.report = b"x" * evidence.MAX_REPORT
    with pytest.raises(TsmError, match="outblob has more than"):
        configfs.take(Path("/"), DATA, kernel)


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_a_report_is_over_64_bytes(size: int) -> None:
    with pytest.raises(TsmError, match="64 bytes"):
        configfs.take(Path("/"), bytes(size), FakeKernel())


def test_a_host_without_the_kernels_folder_has_none(tmp_path: Path) -> None:
    assert not configfs.available(tmp_path)
    (tmp_path / FOLDER).mkdir(parents=True)
    assert configfs.available(tmp_path)
    # A folder that is not the kernel's has no attributes: an error, and nothing is left in it.
    with pytest.raises(TsmError):
        configfs.take(tmp_path, DATA)
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_the_kernels_files_are_read_to_their_end_and_no_further(tmp_path: Path) -> None:
    kernel, path = configfs.Kernel(), tmp_path / "outblob"
    path.write_bytes(b"x" * 100_000)
    assert len(kernel.read(path, 50_000)) == 50_001
    assert kernel.read(path, 200_000) == b"x" * 100_000
    kernel.write(path, b"new")
    assert path.read_bytes()[:3] == b"new"
