"""Facts that the master learned about hosts when they joined: one small file for each minion.

A host's answers are not trusted to be well-formed. So the master checks the facts before it stores them, and again when
it reads the files. Each file is replaced by a rename. So the folder's time of change shows whether anything is new.
"""

from __future__ import annotations

import hashlib
import re
import urllib.parse
from pathlib import Path

import msgspec

from netspace import files
from netspace.errors import NetspaceError, StateError
from netspace.fleet import public_keys
from netspace.fleet.types import Published
from netspace.spec.hosts import DOMAIN

MAX_FILE = 32 * 1024
MAX_CHAIN = 16 * 1024
MAX_GRAIN = 255
MAX_NAME = 200
_PUBLIC = re.compile(r"[A-Za-z0-9_-]{43}")


class Register:
    """The facts about hosts, in files in *folder*, which only the master's user can write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, minion: str) -> Path:
        """Return the path of a minion's file. Whatever the minion's name is, the path is in the folder."""
        return self.folder / file_name(minion)

    def read(self, minion: str) -> Published | None:
        """Return the facts that a minion has published; None if it has published nothing.

        :raises StateError: the file is damaged.
        """
        return _read(self.path(minion))

    def read_all(self) -> tuple[dict[str, Published], list[str]]:
        """Return the published facts by minion, and a list of damaged files' problems."""
        found, problems = {}, []
        for path in sorted(self.folder.glob("*.json")) if self.folder.is_dir() else ():
            try:
                one = _read(path)
                if one is not None and self.path(one.minion) != path:
                    raise StateError(f"{path}: has the facts of another minion, {one.minion!r:.100}; {_remedy(path)}")
            except StateError as err:
                problems.append(str(err))
                continue
            if one is not None:
                found[one.minion] = one
        return found, problems

    def write(self, facts: Published) -> bool:
        """Store the facts that a minion has published; return whether they differ from the stored ones.

        A lock is held from before the key is checked until the facts are stored. So if two minions publish the same key
        at the same moment, only one of them succeeds.

        :raises NetspaceError: a value is malformed, or another minion has published the same key.
        """
        if reason := check(facts):
            raise NetspaceError(f"{facts.minion:.100}: {reason}")
        with files.locked(self.folder.parent / ".lock"):
            try:
                old = self.read(facts.minion)
            except StateError:
                old = None  # damaged: replace it
            if (owner := self.owner(facts.public_key, facts.minion)) is not None:
                raise NetspaceError(self.anothers(facts.minion, owner))
            if old is not None and msgspec.structs.replace(old, joined=facts.joined) == facts:
                return False
            return files.write(self.path(facts.minion), msgspec.json.format(msgspec.json.encode(facts)) + b"\n")

    def owner(self, public_key: str, but: str) -> str | None:
        """Return the minion other than *but* that has published this key in any spelling; None if there is none."""
        others = ((minion, facts) for minion, facts in self.read_all()[0].items() if minion != but)
        return next((minion for minion, facts in others if public_keys.same(facts.public_key, public_key)), None)

    @staticmethod
    def anothers(minion: str, owner: str) -> str:
        """Return the error message for a minion that has published another minion's key."""
        return f"{minion}: netspace_link.public_key: the key is {owner}'s; each host has its own"

    def remove(self, minion: str) -> bool:
        """Delete the facts about a minion; return whether anything was stored."""
        with files.locked(self.folder.parent / ".lock"):
            return files.remove(self.path(minion))


def file_name(minion: str) -> str:
    """Return the name of the file about a minion. It contains no slash, whatever the minion's name is."""
    name = urllib.parse.quote(minion, safe="")
    if len(name) > MAX_NAME:
        name = hashlib.sha256(minion.encode()).hexdigest()
    return f"{name}.json"


def check(facts: Published) -> str:
    """Return the reason why these facts can't be used; empty if they can."""
    if not 0 < len(facts.minion) <= 255:
        return "the minion's id is empty or too long"
    if not DOMAIN.fullmatch(facts.trust_domain):
        return f"{facts.trust_domain!r:.80} is not a trust domain"
    if not _PUBLIC.fullmatch(facts.public_key):
        return f"{facts.public_key!r:.80} is not a public key, as `netspace_link.public_key` prints it"
    if not facts.chain.isascii() or len(facts.chain) > MAX_CHAIN:
        return f"the certificates are not PEM text of up to {MAX_CHAIN} characters"
    if facts.secret_key:
        from netspace.attestation import sealed_value

        try:
            sealed_value.recipient(facts.secret_key)
        except NetspaceError as err:
            return str(err)
    if len(facts.grains) > 64 or any(len(word) > MAX_GRAIN for pair in facts.grains.items() for word in pair):
        return f"more than 64 grains, or one of more than {MAX_GRAIN} characters"
    return ""


def _remedy(path: Path) -> str:
    minion = urllib.parse.unquote(path.name.removesuffix(".json"))
    return f"salt-run netspace_fleet.join {minion} makes it again, salt-run netspace_fleet.leave {minion} removes it"


def _read(path: Path) -> Published | None:
    try:
        raw = files.read(path, MAX_FILE + 1)
    except FileNotFoundError:
        return None
    except OSError as err:
        raise StateError(f"{path}: {err.strerror}") from err
    try:
        if len(raw) > MAX_FILE:
            raise ValueError(f"larger than {MAX_FILE} bytes")
        facts = msgspec.json.decode(raw, type=Published)
    except (ValueError, RecursionError) as err:  # msgspec's errors are ValueErrors
        raise StateError(f"{path}: {err}; {_remedy(path)}") from err
    if reason := check(facts):
        raise StateError(f"{path}: {reason}; {_remedy(path)}")
    return facts
