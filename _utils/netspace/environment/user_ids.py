"""Host user ids, to which an environment's ids 0..65535 are mapped. Pure: never touches the disk.

Every environment gets 65,536 host ids of its own, so its processes and files belong to nobody else
on the host. The ranges are parts of 1879048192..2147483647, which neither useradd, systemd nor
subuid allocates (systemd's "Users, Groups, UIDs and GIDs", section "Summary").
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Mapping

from netspace.errors import NetspaceError

FIRST = 1879048192
LAST = 2147483647
COUNT = 65536
RANGES = (LAST + 1 - FIRST) // COUNT


def allocate(names: Iterable[str], taken: Mapping[str, int]) -> dict[str, int]:
    """Return the first host id of each environment in *names*.

    A name in *taken* keeps its ids. For a new name, the search begins at a range that depends only on the name, so the
    name mostly gets the same ids on every host.

    :param taken: the first id of every existing environment, also of those that are not in *names*.
    :raises NetspaceError: when all ranges are in use.
    """
    used = set(taken.values())
    bases = {}
    for name in names:
        base = taken.get(name)
        if base is None:
            base = free(name, used)
            used.add(base)
        bases[name] = base
    return bases


def free(name: str, used: Container[int]) -> int:
    """Return the first host id of a new environment.

    :param used: the first ids of all existing environments.
    :raises NetspaceError: when all ranges are in use.
    """
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    for offset in range(RANGES):
        base = FIRST + (start + offset) % RANGES * COUNT
        if base not in used:
            return base
    raise NetspaceError(f"no user ids are left for environment {name}: all {RANGES} ranges are in use")
