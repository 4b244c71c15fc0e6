"""Drained hosts, on the master's disk. An environment runs on a drained host only if no other host is possible."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from netspace import files
from netspace.errors import StateError
from netspace.spec.types import NAME

MAX_FILE = 16 * 1024 * 1024


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    hosts: tuple[str, ...]
    version: Literal[1] = 1


class Drained:
    """The list of drained hosts in the file at *path*, which only the master's user can write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> frozenset[str]:
        """Return the names of the drained hosts.

        :raises StateError: the file is damaged.
        """
        try:
            raw = files.read(self.path, MAX_FILE + 1)
            if len(raw) > MAX_FILE:
                raise ValueError(f"larger than {MAX_FILE} bytes")
            found = msgspec.json.decode(raw, type=_Content).hosts
            if wrong := [name for name in found if not NAME.fullmatch(name)]:
                raise ValueError(f"{wrong[0]!r:.80} can't be a host's name")
        except FileNotFoundError:
            return frozenset()
        except (OSError, ValueError, RecursionError) as err:
            raise StateError(f"{self.path}: {err}; remove the file, and drain the hosts again") from err
        return frozenset(found)

    def change(self, hosts: Iterable[str], *, undo: bool) -> bool:
        """Drain hosts; with *undo*, let them have environments again. Return whether anything changed.

        :raises StateError: the file is damaged.
        """
        with files.locked(self.path.parent / ".lock"):
            old = self.read()
            new = old - set(hosts) if undo else old | set(hosts)
            if new == old:
                return False
            return files.write(self.path, msgspec.json.encode(_Content(tuple(sorted(new)))) + b"\n")
