"""Sources of images: one module for each scheme (``tar:/srv/shop.tar``). A new module here adds a scheme.

Each module has

- ``fingerprint(location)``: text that changes whenever the source may have changed. It is cheap, because it needs only
  stat data or an index;
- ``identity(location)``: text that changes exactly when the source's content changes. If the source has a hash, the
  text ends in ``sha256:<hash>``. A declared ``source_hash`` must be equal to it;
- ``build(location, target, scratch)``: makes the erofs file *target*, works in the empty folder *scratch*, and returns
  the image's own settings (:class:`Defaults`). :func:`pack` makes the file from a tree
  (``netspace.environment.images.tree``).

and, if the file of a location can be fetched from elsewhere:

- ``split(location)``: the file's path, and the rest of the location after the path;
- ``pin(path, folder)``, only if the path may be a folder: copies the parts on which the identity depends into *folder*,
  and returns the path of the copy.

and, if the names of the source's files can be read without building:

- ``listed(location, scratch)``: the source's tree, in which names can be looked up, and the image's own settings.

All functions raise NetspaceError if the location can't be used.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import itertools
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol, cast, runtime_checkable

import msgspec

from netspace.environment.images import tools
from netspace.environment.images.bounds import Budget
from netspace.environment.images.tree import Piece, Tree
from netspace.errors import NetspaceError
from netspace.log import Log

# Every image has this UUID ("netspace" and zeros), so that equal content is an equal file.
UUID = "6e657473-7061-6365-0000-000000000000"
# Sources for netspace itself. They have no module in this package, so no declaration can name them.
_INTERNAL = {"kernel": "netspace.environment.container.unikernel"}
_BESIDE = 1000  # names beside a missing source that are compared with it
_CHUNK = 1 << 20
_LITTLE = 1 << 20
_FULL = 128 * 1024  # with fewer free bytes, the disk counts as full
_LOOK = 0.2  # seconds between looks at mkfs.erofs
_STUCK = 120.0  # seconds without progress after which mkfs.erofs is killed

log = Log(__name__)


class Defaults(msgspec.Struct, frozen=True):
    """An image's own settings for running it. Missing settings are empty.

    :param user: the uid; 0 if the image names no usable user (then *group* is 0, too).
    :param notes: notes for the operator, for example on omitted files or an unusable user.
    """

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    working_dir: str = ""
    user: int = 0
    group: int = 0
    notes: tuple[str, ...] = ()

    def encode(self) -> dict[str, Any]:
        return {
            "entrypoint": list(self.entrypoint),
            "cmd": list(self.cmd),
            "env": dict(self.env),
            "working_dir": self.working_dir,
            "user": self.user,
            "group": self.group,
            "notes": list(self.notes),
        }

    @classmethod
    def decode(cls, data: dict[str, Any]) -> Defaults:
        return cls(
            tuple(data["entrypoint"]),
            tuple(data["cmd"]),
            tuple(data["env"].items()),
            data["working_dir"],
            data["user"],
            data["group"],
            tuple(data["notes"]),
        )


class Source(Protocol):
    """The interface of a source module."""

    def fingerprint(self, location: str) -> str: ...

    def identity(self, location: str) -> str: ...

    def build(self, location: str, target: Path, scratch: Path) -> Defaults: ...


@runtime_checkable
class Listed(Protocol):
    """The interface of a source module that can also list a source's files without building the image."""

    def listed(self, location: str, scratch: Path) -> tuple[Tree, Defaults]: ...


def split(image: str) -> tuple[Source, str]:
    """Return the source module and the location of ``<scheme>:<location>``."""
    scheme, _, location = image.partition(":")
    try:
        module = importlib.import_module(_INTERNAL.get(scheme, f"{__name__}.{scheme}"))
    except ModuleNotFoundError as err:
        raise NetspaceError(f"image {image!r}: there is no source {scheme!r}") from err
    return cast(Source, module), location


def of_stat(path: Path) -> str:
    """Return a fingerprint of one file, from its stat data.

    :raises NetspaceError: when the file can't be read.
    """
    try:
        info = path.stat()
    except OSError as err:
        raise _unreadable(path, err) from err
    return f"{info.st_dev}:{info.st_ino}:{info.st_size}:{info.st_mtime_ns}:{info.st_ctime_ns}"


def _unreadable(path: Path, err: OSError) -> NetspaceError:
    """Return the error for a source that can't be opened, with a file of a similar name if there is one."""
    import difflib

    problem = f"image source {path}: {err.strerror}"
    if not isinstance(err, FileNotFoundError):
        return NetspaceError(problem)
    names: list[str] = []
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        names = [entry.name for entry in itertools.islice(entries, _BESIDE)]
    near = difflib.get_close_matches(path.name, names, n=1)
    remedy = f"did you mean {path.with_name(near[0])}?" if near else "put the image there, or correct the path"
    return NetspaceError(f"{problem}; {remedy}")


def of_content(path: Path) -> str:
    """Return ``sha256:<hex>`` of a file's content.

    :raises NetspaceError: when the file can't be read.
    """
    with opened(path) as stream:
        try:
            return "sha256:" + digest(stream)
        except OSError as err:  # the disk failed
            raise NetspaceError(f"image source {path}: {err.strerror}") from err


def digest(stream: IO[bytes]) -> str:
    """Return the hexadecimal sha256 of the rest of *stream*."""
    state = hashlib.sha256()
    while chunk := stream.read(_CHUNK):
        state.update(chunk)
    return state.hexdigest()


def opened(path: Path) -> IO[bytes]:
    """Return a source's file, open for reading.

    :raises NetspaceError: when the file can't be opened, or isn't a regular file.
    """
    try:
        # O_NONBLOCK: without it, open would wait for a writer if this is a named pipe.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as err:
        raise _unreadable(path, err) from err
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NetspaceError(f"image source {path}: not a regular file")
    return os.fdopen(fd, "rb")


def pinned(source: Source, location: str, folder: Path) -> str:
    """Copy the source into *folder*, where nobody else can change it; return the copy's location."""
    import shutil

    path, rest = cast(Any, source).split(location)
    if os.path.isdir(path):
        return f"{cast(Any, source).pin(Path(path), folder)}{rest}"
    copy = folder / "source"
    with opened(Path(path)) as stream, copy.open("wb") as target:
        shutil.copyfileobj(stream, target, _CHUNK)
    return f"{copy}{rest}"


def whole(stream: IO[bytes]) -> Piece:
    """Return the whole content of an open file as a :class:`Piece`."""
    return Piece(stream, 0, stream.seek(0, 2))


def pack(tree: Tree, target: Path, budget: Budget) -> None:
    """Make an erofs file of a tree. Equal trees give equal files, byte for byte.

    mkfs.erofs reads only an archive that this function writes, never an untrusted archive.

    :raises OSError: when the disk is full.
    """
    if not tree.root.children:
        raise budget.refuse("it has no files")
    _want_room(target, sum(node.content.size for _, node in tree.walk() if node.content is not None))
    # By default, the block size would be the page size of the building host.
    command = ["mkfs.erofs", "--quiet", "-b4096", "-T0", "--mkfs-time", "-U", UUID, "--tar=f", str(target)]
    with tools.started(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        with _watched(process, target):
            try:
                with process.stdin:
                    entries, size = tree.write(process.stdin.write)
                log.info("image source %s: packed %d files, %d bytes", budget.where, entries, size)
            except BrokenPipeError:
                pass  # it ended early; its message follows below
            message = tools.message(process.stderr.read(65536))
    if process.returncode != 0:
        _want_room(target, _LITTLE)  # on a full disk, mkfs.erofs reports other errors
        raise budget.refuse(f"mkfs.erofs failed: {message or process.returncode}")


def _want_room(target: Path, size: int) -> None:
    if _room(target) < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target.parent))


def _room(target: Path) -> int:
    info = os.statvfs(target.parent)
    return info.f_bfree * info.f_frsize


@contextlib.contextmanager
def _watched(process: subprocess.Popen[bytes], target: Path) -> Iterator[None]:
    """Context manager that kills mkfs.erofs if it makes no progress.

    mkfs.erofs 1.8 hangs forever if the disk is full.
    """
    done = threading.Event()

    def watch() -> None:
        last, still = None, 0
        while not done.wait(_LOOK):
            state = (_room(target), _ticks(process.pid))
            still = still + 1 if state == last else 0
            last = state
            if state[0] < _FULL or still * _LOOK > _STUCK:
                process.kill()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _ticks(pid: int) -> str:
    """Return the processor time of a process (user and system ticks), as text; empty if the process is gone."""
    try:
        return " ".join(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])
    except OSError:
        return ""
