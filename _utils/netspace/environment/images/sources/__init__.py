"""Where images come from: one module per scheme (``tar:/srv/shop.tar``). A new file is a new source.

Each module has

- ``fingerprint(location)``: text that changes whenever the source may have changed,
  from stat data or an index alone; cheap;
- ``identity(location)``: text that changes exactly when the source's content did;
- ``build(location, target, scratch)``: makes the erofs file *target*, with the empty
  folder *scratch* to work in, and returns what the image itself says about running it.

All raise NetspaceError where the location can't be used.
"""

from __future__ import annotations

import hashlib
import importlib
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, cast

from netspace.errors import MissingError, NetspaceError

# Every image has this UUID ("netspace" and zeros), so that equal content is an equal file.
UUID = "6e657473-7061-6365-0000-000000000000"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Defaults:
    """What an image says about how to run it; empty where it says nothing."""

    command: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    working_dir: str = ""
    user: int = 0

    def encode(self) -> dict[str, Any]:
        return {
            "command": list(self.command),
            "env": dict(self.env),
            "working_dir": self.working_dir,
            "user": self.user,
        }

    @classmethod
    def decode(cls, data: dict[str, Any]) -> Defaults:
        return cls(tuple(data["command"]), tuple(data["env"].items()), data["working_dir"], data["user"])


class Source(Protocol):
    """What a module of this package offers."""

    def fingerprint(self, location: str) -> str: ...

    def identity(self, location: str) -> str: ...

    def build(self, location: str, target: Path, scratch: Path) -> Defaults: ...


def split(image: str) -> tuple[Source, str]:
    """Return the source module and the location of ``<scheme>:<location>``."""
    scheme, _, location = image.partition(":")
    try:
        module = importlib.import_module(f"{__name__}.{scheme}")
    except ModuleNotFoundError as err:
        raise NetspaceError(f"image {image!r}: there is no source {scheme!r}") from err
    return cast(Source, module), location


def of_stat(path: Path) -> str:
    """Fingerprint of one file.

    :raises NetspaceError: when it can't be read.
    """
    try:
        info = path.stat()
    except OSError as err:
        raise NetspaceError(f"image source {path}: {err.strerror}") from err
    return f"{info.st_dev}:{info.st_ino}:{info.st_size}:{info.st_mtime_ns}:{info.st_ctime_ns}"


def of_content(path: Path) -> str:
    """``sha256:<hex>`` of a file's content.

    :raises NetspaceError: when it can't be read.
    """
    try:
        with path.open("rb") as stream:
            return "sha256:" + digest(stream)
    except OSError as err:
        raise NetspaceError(f"image source {path}: {err.strerror}") from err


def digest(stream: IO[bytes]) -> str:
    """Hexadecimal sha256 of the rest of *stream*."""
    state = hashlib.sha256()
    while chunk := stream.read(_CHUNK):
        state.update(chunk)
    return state.hexdigest()


def make_erofs(
    target: Path,
    source: Sequence[str | Path],
    *options: str,
    feed: Callable[[IO[bytes]], None] | None = None,
) -> None:
    """Run ``mkfs.erofs`` so that the same input gives the same file, byte for byte.

    Owners and modes are kept. Set-user-id bits and device nodes are kept too and have no
    effect: images are mounted nosuid and nodev. Overlay's own attributes are left out.

    :param feed: writes the input to the given stream, the program's stdin.
    """
    command = ["mkfs.erofs", "--quiet", "-T0", "-U", UUID, "--ovlfs-strip=1", *options, str(target), *map(str, source)]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError as err:
        raise MissingError("the program mkfs.erofs", "install it: apt-get install erofs-utils") from err
    with process:
        try:
            if feed is not None:
                assert process.stdin is not None
                with process.stdin:
                    feed(process.stdin)
        except BrokenPipeError:
            pass  # it ended early, and says why below
        except BaseException:
            process.kill()
            raise
        assert process.stderr is not None
        message = process.stderr.read(65536).decode(errors="replace")
    if process.returncode != 0:
        raise NetspaceError(f"mkfs.erofs refuses the image: {' '.join(message.split()) or process.returncode}")
