"""Secrets of this environment: files in memory that the host writes, and replaces when a secret changes.

A secret is never in the card, a variable or an argument. Read it each time you need it, and keep no copy, so that the
next use gets a changed secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import TypeVar

from netspace_client import card as cards
from netspace_client.errors import NoSecret

T = TypeVar("T")

MOST = 16 * 1024
"""The most bytes of a secret."""
_NAME = re.compile(r"[a-z](?:[a-z0-9_-]{0,46}[a-z0-9])?")


def secret(name: str, folder: str | os.PathLike[str] = cards.FOLDER) -> bytes:
    """Return a secret that the declaration gives to this environment, as it is now.

    :param folder: the folder of ``environment.json``.
    :raises NoSecret: this environment has no such secret (now).
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise NoSecret(f"{name!r:.60} can't be the name of a secret")
    path = Path(folder) / f"secret.{name}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb") as stream:
            return stream.read(MOST)
    except OSError as err:
        remedy = "declare it under secrets; the host's apply tells if it is withheld"
        raise NoSecret(f"no secret {name} is here ({err.strerror}); {remedy}") from err


def present(names: Iterable[str], folder: Path) -> dict[str, bytes]:
    """Return the secrets that this environment has now, out of *names*, by name."""
    found = {}
    for name in names:
        with contextlib.suppress(NoSecret):  # withdrawn since the card was read
            found[name] = secret(name, folder)
    return found


async def changes(ensure: Callable[[], None], read: Callable[[], T]) -> AsyncIterator[T]:
    """Yield what *read* returns now, and again each time when it has changed.

    :param ensure: raises an error once there is nothing more to read.
    """
    ensure()
    known = read()
    yield known
    while True:
        await asyncio.sleep(0.5)
        ensure()
        if (now := read()) != known:
            known = now
            yield now
