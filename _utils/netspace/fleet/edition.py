"""Edition of a fleet's declaration: a number that the operator raises with each change. Decides between two masters.

Masters of the same minions may have different versions of the declaration, because one of them was down when the files
changed. Nothing but this number tells which one is newer. Each master serves with every pillar the highest edition that
it has ever had in force. A host notes the highest edition that it was given, and refuses any lower one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from netspace import files
from netspace.errors import NetspaceError, StateError
from netspace.fleet.types import Fleet, Problem

KEY = "netspace_edition"
"""The key of a pillar that has the edition, beside ``netspace``."""
MOST = 2**53
"""The highest edition: the greatest number that every JSON parser keeps exactly."""


class EditionFile:
    """The highest edition so far, in a file of its own. Without the file, it is 0, which means no edition."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> int:
        """Return the highest edition so far.

        :raises StateError: the file is damaged.
        """
        found = files.read_json(
            self.path, "write the edition of the declaration that you know to be the newest into it"
        )
        if found is None:
            return 0
        edition = found.get("edition")
        if not isinstance(edition, int) or not valid(edition):
            raise StateError(
                f"{self.path}: {edition!r:.40} is not a valid edition; write the newest one that you know into it"
            )
        return edition

    def note(self, edition: int) -> None:
        """Store an edition, unless a higher one is stored."""
        if edition > self.read():
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.write_json(self.path, {"edition": edition})

    def note_declared(self, declared: Fleet | None) -> None:
        """Store the edition of a declaration that comes in force, or is planned."""
        if declared is not None:
            self.note(declared.edition)

    def lower(self, file: str, declared: Fleet | None) -> Iterator[Problem]:
        """Yield a problem if a declaration has a lower edition than the stored one.

        :param file: the declaration's first file.
        """
        highest = self.read()
        if declared is not None and declared.edition < highest:
            why = f"{declared.edition or 'none'} is lower than {highest}, which was in force or planned; raise it"
            yield Problem(file, "edition", why)


def valid(edition: Any) -> bool:
    """Return whether a value can be an edition."""
    return type(edition) is int and 0 <= edition <= MOST


def admitted(file: EditionFile, pillar: Any) -> int:
    """Return the edition of a pillar that a host may apply; 0 if the pillar has none, as one that isn't a fleet's.

    :param file: the host's own record.
    :raises NetspaceError: the host was given a higher edition before.
    """
    found, highest = pillar.get(KEY, 0), file.read()
    if not valid(found):
        raise NetspaceError(f"pillar:{KEY}: {found!r:.40} is not a valid edition")
    if found < highest:
        raise NetspaceError(
            f"pillar:{KEY}: this host was given edition {highest} before, and this master has "
            f"{found or 'none'}; bring this master up to date. To accept its older declaration, remove {file.path}"
        )
    return int(found)
