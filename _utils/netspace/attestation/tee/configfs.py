"""Guest's side of TEE evidence: gets a report from the kernel (configfs-tsm, Linux 6.7 and later).

Linux: Documentation/ABI/testing/configfs-tsm-report. This module makes a directory in ``/sys/kernel/config/tsm/report``
for each report, and the kernel adds the attributes. The module writes the 64 bytes that the report must cover to
``inblob``. It reads the report from ``outblob`` and the host's certificates from ``auxblob``. Each successful write
increments the attribute ``generation``. From its value, the module detects that another process wrote, too, or that its
own write failed. (The kernel handles a binary attribute when its file is closed, and can't report an error at that
point.)

The module needs root. At the end, it always removes the directory.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import NamedTuple, Protocol

from netspace.attestation.evidence import MAX_REPORT, MAX_TABLE
from netspace.errors import NetspaceError

FOLDER = "sys/kernel/config/tsm/report"
INPUT = 64
_ATTEMPTS = 3


class TsmError(NetspaceError):
    """Error: the kernel gives no report."""


class Taken(NamedTuple):
    """An unverified report from the kernel."""

    provider: str
    report: bytes
    certificates: bytes


class Files(Protocol):
    """Interface for operations on a report's directory.

    :class:`Kernel` implements it; tests use another implementation.
    """

    def make(self, path: Path) -> None:
        """Make a directory."""

    def remove(self, path: Path) -> None:
        """Remove a report's directory. The kernel removes the attributes in it."""

    def write(self, path: Path, data: bytes) -> None:
        """Write an attribute with one call of write(2)."""

    def read(self, path: Path, limit: int) -> bytes:
        """Read an attribute, at most *limit* + 1 bytes."""


class Kernel:
    """Operations on the kernel's configfs."""

    def make(self, path: Path) -> None:
        path.mkdir(mode=0o700)

    def remove(self, path: Path) -> None:
        path.rmdir()

    def write(self, path: Path, data: bytes) -> None:
        handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            if os.write(handle, data) != len(data):
                raise OSError(f"{path}: the kernel took only a part of the bytes")
        finally:
            os.close(handle)

    def read(self, path: Path, limit: int) -> bytes:
        with path.open("rb", buffering=0) as stream:
            found = b""
            while len(found) <= limit and (part := stream.read(limit + 1 - len(found))):
                found += part
        return found


def available(root: Path) -> bool:
    """Return whether this host is a confidential guest that can get reports.

    :param root: the host's root folder, ``/``; another folder in tests.
    """
    return (root / FOLDER).is_dir()


def take(root: Path, data: bytes, files: Files | None = None) -> Taken:
    """Get a report over *data* from the kernel.

    :param root: the host's root folder, ``/``; another folder in tests.
    :param data: the 64 bytes that the report must cover.
    :param files: access to the report's directory; :class:`Kernel`, except in tests.
    :raises TsmError: when the kernel gives no report, or a report that is too large.
    """
    if len(data) != INPUT:
        raise TsmError(f"a report covers exactly {INPUT} bytes, not {len(data)}")
    files = files or Kernel()
    last: TsmError | None = None
    for _ in range(_ATTEMPTS):
        entry = root / FOLDER / f"netspace-{os.getpid()}-{secrets.token_hex(8)}"
        try:
            files.make(entry)
        except OSError as err:
            raise TsmError(f"{entry.parent}: {err.strerror or err}; run as root, and mount configfs") from err
        try:
            return _report(files, entry, data)
        except OSError as err:
            last = TsmError(f"{entry.parent}: {err.strerror or err}; see the kernel's log")
        except _Changed as err:
            last = TsmError(f"{entry.parent}: {err}")
        finally:
            _removed(files, entry)
    assert last is not None
    raise last


class _Changed(Exception):
    """Error: the report is empty, or may cover bytes that another process wrote. A new attempt may help."""


def _report(files: Files, entry: Path, data: bytes) -> Taken:
    provider = files.read(entry / "provider", 64).decode("ascii", "replace").strip()
    before = _number(files, entry / "generation")
    writes = 1
    level = _level(files, entry)
    if level:
        files.write(entry / "privlevel", str(level).encode())
        writes += 1
    files.write(entry / "inblob", data)
    report = _blob(files, entry / "outblob", MAX_REPORT)
    certificates = _blob(files, entry / "auxblob", MAX_TABLE, optional=True)
    if _number(files, entry / "generation") != before + writes:
        raise _Changed("another process wrote into the same report, or the kernel refused the input")
    if not report or not provider:
        raise _Changed("the kernel gave an empty report")
    return Taken(provider, report, certificates)


def _level(files: Files, entry: Path) -> int:
    """Return the most privileged level (SNP's VMPL) for which this guest may get reports; 0 if there are no levels."""
    try:
        return _number(files, entry / "privlevel_floor")
    except FileNotFoundError:
        return 0


def _number(files: Files, path: Path) -> int:
    text = files.read(path, 32).decode("ascii", "replace").strip()
    if not text.isdecimal():
        raise _Changed(f"{path.name} is not a number")
    return int(text)


def _blob(files: Files, path: Path, limit: int, *, optional: bool = False) -> bytes:
    try:
        found = files.read(path, limit)
    except FileNotFoundError:
        if optional:
            return b""
        raise
    if len(found) > limit:
        raise _Changed(f"{path.name} has more than {limit} bytes")
    return found


def _removed(files: Files, entry: Path) -> None:
    try:
        files.remove(entry)
    except OSError as err:
        raise TsmError(f"{entry}: {err.strerror or err}; remove it with rmdir") from err
