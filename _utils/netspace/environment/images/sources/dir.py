"""``dir:/srv/root``: a folder that is a root. It is copied into the image, never mounted itself.

All file times become 0, so that copies of one folder are one image on every host.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from netspace.environment.images import sources
from netspace.errors import NetspaceError


def fingerprint(location: str) -> str:
    state = hashlib.sha256()
    for path, info in _walk(location):
        state.update(
            f"{path}\0{info.st_mode}:{info.st_uid}:{info.st_gid}:{info.st_size}:{info.st_ino}"
            f":{info.st_mtime_ns}:{info.st_ctime_ns}\0".encode(errors="surrogateescape")
        )
    return "walk:" + state.hexdigest()


def identity(location: str) -> str:
    """Of names, types, modes, owners, contents and extended attributes; not of times."""
    state = hashlib.sha256()
    for path, info in _walk(location):
        full = os.path.join(location, path)
        if stat.S_ISREG(info.st_mode):
            content = sources.of_content(Path(full))
        elif stat.S_ISLNK(info.st_mode):
            content = os.readlink(full)
        else:
            content = str(info.st_rdev)
        attributes = [(name, os.getxattr(full, name, follow_symlinks=False).hex()) for name in _attributes(full)]
        state.update(
            f"{path}\0{info.st_mode}:{info.st_uid}:{info.st_gid}:{content}\0{attributes}\0".encode(
                errors="surrogateescape"
            )
        )
    return "tree:" + state.hexdigest()


def build(location: str, target: Path, scratch: Path) -> sources.Defaults:
    sources.make_erofs(target, [location])
    return sources.Defaults()


def _attributes(path: str) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))


def _walk(location: str) -> Iterator[tuple[str, os.stat_result]]:
    """Every entry below *location* in a fixed order, by relative path; links are not followed."""
    try:
        yield "", os.stat(location)
        stack = [""]
        while stack:
            folder = stack.pop()
            with os.scandir(os.path.join(location, folder)) as found:
                entries = sorted(found, key=lambda entry: entry.name)
            for entry in entries:
                path = os.path.join(folder, entry.name)
                info = entry.stat(follow_symlinks=False)
                yield path, info
                if stat.S_ISDIR(info.st_mode):
                    stack.append(path)
    except OSError as err:
        raise NetspaceError(f"image source {err.filename or location}: {err.strerror}") from err
