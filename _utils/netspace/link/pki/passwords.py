"""Random passwords of environments' broker accounts, each in its own file that only root can read.

The files are ``<records>/credentials/<environment>.json``. A password is returned to the caller only, and never logged.
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
    """Return the environment's password; None if it has none."""
    record = files.read_json(_path(layout, environment))
    return None if record is None else _password(record, environment)


def read_all(layout: Layout) -> dict[str, str]:
    """Return the passwords of all environments that have one, by environment."""
    records = files.read_records(layout.records("credentials"))
    return {name: _password(record, name) for name, record in records.items()}


def ensure(layout: Layout, environments: Collection[str], known: dict[str, str]) -> dict[str, str]:
    """Return the passwords of *environments*; make one for each that has none in *known*."""
    passwords = {}
    for environment in environments:
        password = known.get(environment)
        if password is None:
            password = secrets.token_urlsafe(32)
            files.write_json(_path(layout, environment), {"password": password})
        passwords[environment] = password
    return passwords


def remove(layout: Layout, environments: Collection[str]) -> None:
    """Delete the passwords of *environments*."""
    for environment in environments:
        files.remove(_path(layout, environment))
    try:
        layout.records("credentials").rmdir()
    except OSError:  # it has other passwords, or doesn't exist
        return


def _password(record: dict[str, object], environment: str) -> str:
    password = record.get("password")
    if not isinstance(password, str) or not password:
        raise StateError(f"the broker credentials of {environment} hold no password; remove the file and apply again")
    return password
