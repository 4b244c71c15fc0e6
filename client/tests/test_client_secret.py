"""Secrets as a program reads them: the present file, and nothing beside it."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from netspace_client import Mailbox, NoSecret, secret

CARD = {"version": 2, "name": "web", "peers": [], "senders": []}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, {"db": b"first"})
    return tmp_path


def write(folder: Path, secrets: dict[str, bytes]) -> None:
    """Write secrets and card as a host does: each by a rename."""
    for name, content in secrets.items():
        (folder / ".new").write_bytes(content)
        (folder / ".new").rename(folder / f"secret.{name}")
    named = {"secrets": sorted(secrets)} if secrets else {}
    (folder / ".new").write_text(json.dumps({**CARD, **named}))
    (folder / ".new").rename(folder / "environment.json")
    for path in folder.glob("secret.*"):
        if path.name.removeprefix("secret.") not in secrets:
            path.unlink()


def test_secret_is_read_anew_each_time(folder: Path) -> None:
    assert secret("db", folder) == b"first"
    write(folder, {"db": b"second"})
    assert secret("db", folder) == b"second" and Mailbox(folder).secret("db") == b"second"
    write(folder, {})
    with pytest.raises(NoSecret, match="no secret db"):
        secret("db", folder)


@pytest.mark.parametrize("name", ["", "../environment.json", "/etc/passwd", "DB", "a\0b", "x" * 49, "db/", 7, None])
def test_name_of_another_form_is_no_secret(folder: Path, name: object) -> None:
    with pytest.raises(NoSecret):
        secret(name, folder)  # type: ignore[arg-type]


def test_link_and_pipe_are_no_secrets(folder: Path) -> None:
    (folder / "secret.link").symlink_to(folder / "secret.db")
    os.mkfifo(folder / "secret.pipe")
    with pytest.raises(NoSecret):
        secret("link", folder)
    assert secret("pipe", folder) == b"", "nothing waits for a writer"


def test_changes_are_told_until_the_last_secret_is_gone(folder: Path) -> None:
    async def scenario() -> list[dict[str, bytes]]:
        seen: list[dict[str, bytes]] = []
        async with Mailbox(folder) as mailbox:
            async for secrets in mailbox.secret_changes():
                seen.append(dict(secrets))
                write(folder, [{"db": b"second"}, {"db": b"second", "k": b"\0\xff"}, {}, {}][len(seen) - 1])
                if not secrets:
                    return seen
        return seen

    assert asyncio.run(asyncio.wait_for(scenario(), 30)) == [
        {"db": b"first"},
        {"db": b"second"},
        {"db": b"second", "k": b"\0\xff"},
        {},
    ]
