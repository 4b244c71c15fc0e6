"""Readers of archives, plain or compressed (gzip, xz, bzip2, zstd). They count the bytes and check the digest.

File contents of a plain archive are read from the archive itself. An archive that is compressed, or whose digest is
checked, is read only once. Its file contents are written to an unnamed file, which the kernel removes when this process
ends for any reason.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol, cast

from netspace.environment.images import bounds, tools
from netspace.environment.images.bounds import Budget
from netspace.environment.images.tree import Piece
from netspace.errors import NetspaceError

_CHUNK = 1 << 20
_MAGIC = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\x00": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}


class Reader(Protocol):
    """An archive's bytes from its beginning to its end."""

    def take(self, count: int) -> bytes:
        """Return the next *count* bytes; fewer at the end."""
        ...

    def content(self, size: int) -> Piece | None:
        """Return the next *size* bytes as a content that can be read later; None if fewer bytes are left."""
        ...

    def finish(self) -> None:
        """Read the rest of the archive.

        :raises NetspaceError: when the unpacked content has another digest than the expected one.
        """
        ...


def compression(piece: Piece) -> str:
    """Return ``gzip``, ``xz``, ``bzip2``, ``zstd``, or an empty text if the archive is plain."""
    start = piece.read(6)
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "")


@contextlib.contextmanager
def reader(piece: Piece, budget: Budget, scratch: Path, *, packed: str = "", unpacked: str = "") -> Iterator[Reader]:
    """Yield a reader of an archive.

    :param packed: hexadecimal sha256 that the archive must have.
    :param unpacked: hexadecimal sha256 that its unpacked content must have.
    :raises NetspaceError: when the archive is damaged or has another digest.
    """
    kind = compression(piece)
    if not kind and not packed and not unpacked:
        yield _InPlace(piece, budget)
        return
    raw = _Raw(piece)
    try:
        with _unpacking(kind, raw, budget) as stream:
            # Contents are read after the end of this reader: the file closes with its last Piece.
            aside = cast(IO[bytes], tempfile.TemporaryFile(dir=scratch))  # noqa: SIM115
            yield _Unpacked(stream, raw, budget, aside, unpacked)
            raw.drain()
    except NetspaceError:
        # If the archive's digest is wrong, report that: it is the cause of any other error.
        raw.drain()
        _check(raw, packed, "content", budget)
        raise
    _check(raw, packed, "content", budget)


def _check(hashed: _Raw | _Unpacked, wanted: str, what: str, budget: Budget) -> None:
    if wanted and hashed.hash.hexdigest() != wanted:
        raise budget.refuse(f"its {what} does not match its digest (sha256:{wanted}); copy the image again")


class _InPlace:
    def __init__(self, piece: Piece, budget: Budget) -> None:
        self._piece = piece
        self._budget = budget
        self._at = 0

    def take(self, count: int) -> bytes:
        taken = self._piece.read(count, self._at)
        self._at += len(taken)
        return taken

    def content(self, size: int) -> Piece | None:
        if size > self._piece.size - self._at:
            return None
        self._budget.take_bytes(size)
        piece = Piece(self._piece.file, self._piece.offset + self._at, size)
        self._at += size
        return piece

    def finish(self) -> None:
        pass


class _Unpacked:
    def __init__(self, stream: IO[bytes], raw: _Raw, budget: Budget, aside: IO[bytes], unpacked: str) -> None:
        self._stream = stream
        self._raw = raw
        self._budget = budget
        self._aside = aside
        self._unpacked = unpacked
        self.hash = hashlib.sha256()
        self._out = 0

    def _read(self, count: int) -> bytes:
        import lzma
        import zlib

        try:
            chunk = self._stream.read(count)
        except (EOFError, ValueError, lzma.LZMAError, zlib.error, OSError) as err:
            # gzip and bz2 report damage by an OSError without a number; an error with a number comes from the system.
            if isinstance(err, OSError) and err.errno is not None:
                raise
            raise self._budget.refuse(f"damaged archive: {err}") from err
        self._out += len(chunk)
        self.hash.update(chunk)
        self._budget.take_bytes(len(chunk))
        self._budget.rate(self._raw.count, self._out)
        return chunk

    def take(self, count: int) -> bytes:
        parts = []
        while count:
            chunk = self._read(min(count, _CHUNK))
            if not chunk:
                break
            parts.append(chunk)
            count -= len(chunk)
        return b"".join(parts)

    def content(self, size: int) -> Piece | None:
        start = self._aside.tell()
        left = size
        while left:
            chunk = self._read(min(left, _CHUNK))
            if not chunk:
                return None
            self._aside.write(chunk)
            left -= len(chunk)
        self._aside.flush()
        return Piece(self._aside, start, size)

    def finish(self) -> None:
        while self._read(_CHUNK):
            pass
        _check(self, self._unpacked, "unpacked content", self._budget)


class _Raw(io.RawIOBase):
    """The archive's raw bytes, which are read once from the beginning, counted and hashed."""

    def __init__(self, piece: Piece) -> None:
        self._piece = piece
        self.count = 0
        self.hash = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._piece.read(min(len(buffer), _CHUNK), self.count)
        buffer[: len(chunk)] = chunk
        self.count += len(chunk)
        self.hash.update(chunk)
        return len(chunk)

    def drain(self) -> None:
        buffer = bytearray(_CHUNK)
        while self.readinto(buffer):
            pass


@contextlib.contextmanager
def _unpacking(kind: str, raw: _Raw, budget: Budget) -> Iterator[IO[bytes]]:
    packed = io.BufferedReader(raw, _CHUNK)
    if kind == "gzip":
        import gzip

        with gzip.GzipFile(fileobj=packed, mode="rb") as stream:
            yield cast(IO[bytes], stream)
    elif kind == "bzip2":
        import bz2

        with bz2.BZ2File(packed) as stream:
            yield cast(IO[bytes], stream)
    elif kind == "xz":
        with io.BufferedReader(_Xz(packed), _CHUNK) as stream:
            yield cast(IO[bytes], stream)
    elif kind == "zstd":
        with _zstd(packed, budget) as stream:
            yield stream
    else:
        yield cast(IO[bytes], packed)


class _Xz(io.RawIOBase):
    """Replacement of lzma.LZMAFile with a memory limit, because an xz header may ask for 4 GiB."""

    def __init__(self, packed: IO[bytes]) -> None:
        self._packed = packed
        self._next()

    def _next(self) -> None:
        import lzma

        # The decoder needs a little more than the dictionary.
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, bounds.DICTIONARY + 2**20)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._decoder.eof:
                rest = self._decoder.unused_data or self._packed.read(_CHUNK)
                # Streams may follow each other, with padding between them.
                rest = rest.lstrip(b"\0")
                if not rest:
                    return 0
                self._next()
            elif self._decoder.needs_input:
                rest = self._packed.read(_CHUNK)
                if not rest:
                    raise EOFError("it ends too early")
            else:
                rest = b""
            chunk = self._decoder.decompress(rest, len(buffer))
            if chunk:
                buffer[: len(chunk)] = chunk
                return len(chunk)


@contextlib.contextmanager
def _zstd(packed: IO[bytes], budget: Budget) -> Iterator[IO[bytes]]:
    """Unpack by the program zstd, because Python has no zstd before 3.14."""
    command = ["zstd", "-d", "-c", "-q", f"-M{bounds.DICTIONARY // 2**20}MB"]
    with tools.started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        feeder = threading.Thread(target=_feed, args=(packed, process.stdin), daemon=True)
        feeder.start()
        try:
            yield cast(IO[bytes], _Checked(process, budget))
        finally:
            # If the reader stops early, this kills the program, and a broken pipe ends the feeder.
            process.stdout.close()
            process.kill()
            feeder.join()


def _feed(packed: IO[bytes], pipe: IO[bytes]) -> None:
    with contextlib.suppress(OSError, ValueError):
        while chunk := packed.read(_CHUNK):
            pipe.write(chunk)
    with contextlib.suppress(OSError):
        pipe.close()


class _Checked(io.RawIOBase):
    """The output of a program. Reading it to the end fails if the program failed."""

    def __init__(self, process: subprocess.Popen[bytes], budget: Budget) -> None:
        self._process = process
        self._budget = budget

    def read(self, size: int = -1) -> bytes:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        chunk = self._process.stdout.read(size)
        if not chunk and size and self._process.wait() != 0:
            message = tools.message(self._process.stderr.read(65536)) or str(self._process.returncode)
            raise self._budget.refuse(f"damaged archive: {message}")
        return chunk
