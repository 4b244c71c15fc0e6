"""Files of an environment under ``/run/netspace``: its card, its credentials and its secrets.

Each file has two copies. The *kept* copy is in the state folder, which only root can read. The *shown* copy is in the
folder that is mounted read-only into the environment; after a reboot it is restored from the kept copy.

The shown files belong to root of the environment's user namespace, and no program inside can become that user. The
environment's group may read them: mode 0440, in a folder of mode 0550. A program must not own them: the owner of a file
can take a lease on it, and so delay everybody who opens it (fcntl(2)). A change is a rename within that folder, so a
running environment sees it at once.

A private key is not kept on disk. Its issuer keeps it in memory, in ``layout.identity(<name>)``, and issues another key
after a reboot. A secret is not kept on disk, either: ``netspace.host.secrets`` holds it in ``layout.opened_secrets``.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path

from netspace import files
from netspace.layout import Layout, below
from netspace.patterns import pattern

_NAME = pattern(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_IDENTITY = "identity.pem"
SECRET = "secret."  # noqa: S105 (the beginning of a file's name)
"""The beginning of the names of files with secrets."""
_KEPT_MODE = 0o400
_FILE_MODE = 0o440
_FOLDER_MODE = 0o550


def digests(handed: Mapping[str, bytes]) -> dict[str, str]:
    """Return the sha256 of each file's content. A digest shows a change, and reveals no secret."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(handed.items())}


def _kept(layout: Layout, name: str) -> Path:
    return below(layout.environment(name), "handout")


def keep(layout: Layout, wanted: Mapping[str, Mapping[str, bytes]]) -> dict[str, str]:
    """Write the kept copies of these files, and delete all others; return the errors, by environment."""
    failed: dict[str, str] = {}
    contents: dict[Path, bytes] = {}
    owners: dict[Path, str] = {}
    for name, handed in wanted.items():
        if odd := [file for file in handed if not _NAME.fullmatch(file)]:
            failed[name] = f"environment {name}: {odd[0]!r} can't be the name of a file under /run/netspace"
            continue
        folder = _kept(layout, name)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as err:
            failed[name] = str(err)
            continue
        for file, content in handed.items():
            if not _is_kept(file):
                continue
            contents[folder / file] = content
            owners[folder / file] = name
    _, unwritten = files.write_all(contents, mode=_KEPT_MODE)
    failed.update({owners[path]: str(err) for path, err in unwritten.items()})
    for name, handed in wanted.items():
        if name not in failed:
            _forget_others(_kept(layout, name), set(filter(_is_kept, handed)))
    return failed


def show(layout: Layout, name: str, handed: Mapping[str, bytes], owner: tuple[int, int]) -> None:
    """Write exactly these files into the folder that the environment sees.

    :param owner: the host's ids of the files: the uid of root inside, and the gid of the environment's group.
    """
    inside = layout.inside(name)
    inside.mkdir(parents=True, exist_ok=True, mode=_FOLDER_MODE)
    for file, content in handed.items():
        files.write(inside / file, content, mode=_FILE_MODE, owner=owner)
    _forget_others(inside, handed)
    info = inside.stat()
    if (info.st_uid, info.st_gid) != owner:
        os.chown(inside, *owner)
    if stat.S_IMODE(info.st_mode) != _FOLDER_MODE:
        inside.chmod(_FOLDER_MODE)


def _forget_others(folder: Path, handed: Collection[str]) -> None:
    for entry in os.scandir(folder):
        if entry.name not in handed:
            os.unlink(entry.path)


def read(layout: Layout, name: str) -> dict[str, bytes]:
    """Return the kept files, and the private keys and secrets that are held in memory now."""
    keys = {file: content for file, content in _read(layout.identity(name)).items() if file == _IDENTITY}
    kept = {file: content for file, content in _read(_kept(layout, name)).items() if _is_kept(file)}
    return {**kept, **keys, **secrets(_read(layout.opened_secrets / name))}


def secrets(opened: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files with these secrets. A file that begins with a dot is left over by a killed run, and left out."""
    return {f"{SECRET}{name}": content for name, content in opened.items() if not name.startswith(".")}


def _is_kept(file: str) -> bool:
    return file != _IDENTITY and not file.startswith(SECRET)


def observe(layout: Layout, name: str) -> dict[str, str] | None:
    """Return the digests of the files that the environment sees; None if these files differ from the kept copies."""
    inside = digests(_read(layout.inside(name)))
    return inside if inside == digests(read(layout, name)) else None


def _read(folder: Path) -> dict[str, bytes]:
    try:
        return {entry: files.read(f"{folder}/{entry}") for entry in os.listdir(folder)}
    except FileNotFoundError:
        return {}
