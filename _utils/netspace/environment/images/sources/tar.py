"""``tar:/srv/shop.tar``: a tar archive of a root, plain or compressed (gzip, xz, bzip2).

It is never unpacked: mkfs.erofs reads it straight, so no member can reach a path of the host.
File times are kept (Python trusts its compiled modules by them); they are part of the input.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import IO

from netspace.environment.images import sources
from netspace.errors import NetspaceError

_ZSTD = b"\x28\xb5\x2f\xfd"


def fingerprint(location: str) -> str:
    return sources.of_stat(Path(location))


def identity(location: str) -> str:
    return sources.of_content(Path(location))


def build(location: str, target: Path, scratch: Path) -> sources.Defaults:
    with Path(location).open("rb") as stream:
        start = stream.read(6)
    if start.startswith(_ZSTD):
        raise NetspaceError(f"image source {location}: zstd is not read here; unpack it: zstd -d {location}")
    if _opener(start) is None:
        sources.make_erofs(target, [location], "--mkfs-time", "--tar=f")
        return sources.Defaults()

    def feed(pipe: IO[bytes]) -> None:
        import lzma
        import zlib

        try:
            with _unpacked(location, start) as stream:
                shutil.copyfileobj(stream, pipe, 1 << 20)
        except (EOFError, ValueError, lzma.LZMAError, zlib.error, OSError) as err:
            # gzip and bz2 say it with an OSError that has no number; others are the system's.
            if isinstance(err, OSError) and err.errno is not None:
                raise
            raise NetspaceError(f"image source {location}: damaged archive: {err}") from err

    sources.make_erofs(target, [], "--mkfs-time", "--tar=f", feed=feed)
    return sources.Defaults()


def _opener(start: bytes) -> str | None:
    for magic, module in ((b"\x1f\x8b", "gzip"), (b"\xfd7zXZ\x00", "lzma"), (b"BZh", "bz2")):
        if start.startswith(magic):
            return module
    return None


def _unpacked(location: str, start: bytes) -> IO[bytes]:
    kind = _opener(start)
    if kind == "gzip":
        import gzip

        return gzip.open(location, "rb")  # type: ignore[return-value]
    if kind == "lzma":
        import lzma

        return lzma.open(location, "rb")
    import bz2

    return bz2.open(location, "rb")
