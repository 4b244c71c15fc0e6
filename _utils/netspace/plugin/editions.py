"""Check of the edition of a fleet's declaration, on the host, before a pillar is applied. Imports no Salt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netspace.fleet import edition
from netspace.plugin import arguments


def check(opts: Mapping[str, Any], pillar: Mapping[str, Any], *, note: bool) -> None:
    """Refuse a pillar of a lower edition than this host was given before.

    :param note: whether to note the pillar's edition, because the pillar is applied now.
    :raises NetspaceError: the pillar is refused, or the host's record is damaged.
    """
    file = edition.EditionFile(arguments.layout(opts).records("fleet") / "edition.json")
    found = edition.admitted(file, pillar)
    if note and found:
        file.note(found)
