"""Facts for the peer's answers: the file ``told.json`` in the peer's folder, which root writes and the peer reads.

The file holds no secret. Its facts about an environment are only those that this environment itself may request.
"""

from __future__ import annotations

import os
from typing import Any, Literal

import msgspec

FILE = "told.json"
CARD = "card.json"
"""The peer's own card, in the form of an environment's (``docs/environment-json.md``)."""
KEY = "token-key.der"
"""The private key of environments' tokens."""
APPRAISAL = "appraisal.json"
"""The signed host appraisal, which names the token key; absent: there is none."""
VERSION = 1
MOST = 64 * 1024 * 1024

Level = Literal["L0", "L1", "L2", "L3", "L4", "L5"]


class Reached(msgspec.Struct, frozen=True):
    """An environment of this host to which another environment may send.

    :param name: its own name.
    :param called: the name by which the sender's program addresses it.
    :param pattern: the pattern of the link: ``send`` or ``request``.
    """

    name: str
    called: str
    pattern: Literal["send", "request"]


class Offering(msgspec.Struct, frozen=True):
    """An environment that offers services.

    :param services: the names of the services.
    :param group: the control group of its program.
    :param checked: whether it has a health check.
    """

    services: tuple[str, ...]
    group: str
    checked: bool = False


class Known(msgspec.Struct, frozen=True):
    """The peer's facts about an environment.

    :param verbs: the kinds of requests that it may send.
    :param image: the digest of its image.
    :param configuration: the digest of its runtime's configuration.
    :param group: the control group of its program, below the root of the hierarchy.
    :param values: the values that its declaration gives to it.
    :param peers: the environments of this host to which it may send.
    """

    verbs: tuple[str, ...]
    image: str
    configuration: str
    group: str
    values: dict[str, Any] = {}
    peers: tuple[Reached, ...] = ()


class Trust(msgspec.Struct, frozen=True):
    """The trust in the host.

    :param until: when the level stops being valid, in seconds since 1970.
    """

    level: Level = "L0"
    verifier: str = "none"
    until: float = 0.0


class Vouched(msgspec.Struct, frozen=True):
    """The host's signed statement about the key of environments' tokens; or why there is none.

    :param about: the facts on which the statement depends, as text. When they change, root makes a new statement.
    :param since: the time of the statement, in seconds since 1970.
    :param host: the host's name in tokens.
    :param boot: the kernel's id of this boot.
    :param kid: thumbprint of the tokens' key.
    :param message: the signed statement, as a message of type ``environment_token.KEY_TYPE``; empty: there is none.
    :param problem: why there is no statement.
    :param tried: the time of the last failed attempt to make a statement, in seconds since 1970.
    """

    about: str
    since: float
    host: str
    boot: str
    kid: str
    message: str
    problem: str = ""
    tried: float = 0.0


class Appraisal(msgspec.Struct, frozen=True):
    """The host appraisal: the signed statement of the fleet's verifier on this host, for those who check a token.

    :param kid: thumbprint of the tokens' key that it names.
    :param boot: the kernel's id of the boot that was judged.
    :param until: when it expires, in seconds since 1970.
    :param word: the signed host appraisal (``netspace.attestation.host_appraisal``).
    """

    kid: str
    boot: str
    until: float
    word: str


class Told(msgspec.Struct, frozen=True):
    """All facts that the peer answers with.

    :param host: the host's name in links; None: none is declared.
    :param environments: the environments that may send requests, by name.
    :param offering: environments that offer services, by name. An environment is listed only if one of *environments*
        may send to it.
    :param vouched: the host's statement about the key of environments' tokens; None: no environment may ask for tokens.
    """

    version: int
    host: str | None
    trust: Trust
    environments: dict[str, Known]
    offering: dict[str, Offering] = {}
    vouched: Vouched | None = None

    def level(self, now: float) -> Level:
        """Return the host's trust level at the time *now*; ``L0`` once its validity has ended."""
        return self.trust.level if now < self.trust.until else "L0"


class Sender(msgspec.Struct, frozen=True, rename={"name": "from"}):
    """An environment that may send requests to the host, as the peer's card lists it."""

    name: str
    exchange: str
    reply_exchange: str


class Tls(msgspec.Struct, frozen=True):
    server_name: str


class Broker(msgspec.Struct, frozen=True):
    vhost: str
    tls: Tls


class Card(msgspec.Struct, frozen=True):
    """The keys of the peer's card that the peer needs."""

    queues: tuple[str, ...]
    senders: tuple[Sender, ...]
    broker: Broker


def read() -> tuple[Told, Card]:
    """Return the facts and the card from the files in the working folder.

    :raises OSError: a file is missing.
    :raises ValueError: a file is damaged.
    """
    told, card = (_file(name) for name in (FILE, CARD))
    found = msgspec.json.decode(told, type=Told)
    if found.version != VERSION:
        raise ValueError(f"{FILE}: version {found.version}, expected {VERSION}")
    return found, msgspec.json.decode(card, type=Card)


def stamp() -> tuple[int, int]:
    """Return a stamp of the file of facts. Root replaces the file for new content, and so changes the stamp.

    :raises OSError: the file is missing.
    """
    found = os.stat(FILE, follow_symlinks=False)
    return found.st_ino, found.st_mtime_ns


def key() -> bytes:
    """Return the private key that signs environments' tokens.

    :raises OSError: there is no such key.
    """
    return _file(KEY)


def appraisal(vouched: Vouched, now: float) -> str:
    """Return the signed host appraisal for the tokens' key; empty if there is none that is valid now."""
    try:
        found = msgspec.json.decode(_file(APPRAISAL), type=Appraisal)
    except (OSError, ValueError):
        return ""
    return found.word if (found.kid, found.boot) == (vouched.kid, vouched.boot) and now < found.until else ""


def _file(name: str) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with open(fd, "rb") as stream:
        return stream.read(MOST)
