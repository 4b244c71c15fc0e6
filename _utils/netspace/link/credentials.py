"""The password of each environment's broker account: random, one root-only file each.

The files are ``<records>/credentials/<environment>.json``; nothing here logs or returns
a password to anybody but the caller.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from pathlib import Path

from netspace import files
from netspace.errors import StateError
from netspace.layout import Layout


def _path(layout: Layout, environment: str) -> Path:
    return layout.records("credentials") / f"{environment}.json"


def read(layout: Layout, environment: str) -> str | None:
    """Return the environment's password, or None where it has none."""
    record = files.read_json(_path(layout, environment))
    return None if record is None else _password(record, environment)


def read_all(layout: Layout) -> dict[str, str]:
    """Return every environment's password."""
    records = files.read_records(layout.records("credentials"))
    return {name: _password(record, name) for name, record in records.items()}


def ensure(layout: Layout, environments: Collection[str], known: dict[str, str]) -> dict[str, str]:
    """Make a password for those that have none in *known*; return all of theirs."""
    passwords = {}
    for environment in environments:
        password = known.get(environment)
        if password is None:
            password = secrets.token_urlsafe(32)
            files.write_json(_path(layout, environment), {"password": password})
        passwords[environment] = password
    return passwords


def remove(layout: Layout, environments: Collection[str]) -> None:
    """Forget the passwords of *environments*."""
    for environment in environments:
        files.remove(_path(layout, environment))
    try:
        layout.records("credentials").rmdir()
    except OSError:  # others' are in it, or there is none
        return


def _password(record: dict[str, object], environment: str) -> str:
    password = record.get("password")
    if not isinstance(password, str) or not password:
        raise StateError(f"the broker credentials of {environment} hold no password; remove the file and apply again")
    return password
