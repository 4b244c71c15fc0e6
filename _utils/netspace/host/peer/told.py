"""Knowledge of the peer: ``told.json`` in its folder, which root writes and the peer reads. All of it may be told.

It holds no secret, and no more of an environment than the environment itself may ask for.
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
VERSION = 1
MOST = 64 * 1024 * 1024

Level = Literal["L0", "L1", "L2", "L3", "L4", "L5"]


class Reached(msgspec.Struct, frozen=True):
    """An environment of this host to which another one may send.

    :param called: the name by which the sender's program knows it.
    """

    name: str
    called: str
    pattern: Literal["send", "request"]


class Offering(msgspec.Struct, frozen=True):
    """An environment that offers services, with the control group of its program.

    :param checked: it has a health check.
    """

    services: tuple[str, ...]
    group: str
    checked: bool = False


class Known(msgspec.Struct, frozen=True):
    """The peer's knowledge of an environment.

    :param verbs: what it may ask for.
    :param group: the control group of its program, below the root of the hierarchy.
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

    :param until: the end of its validity, in seconds since 1970.
    """

    level: Level = "L0"
    verifier: str = "none"
    until: float = 0.0


class Vouched(msgspec.Struct, frozen=True):
    """The key of environments' tokens, as the host vouches for it.

    :param about: what the message depends on; root compares it.
    :param since: when the host vouched, in seconds since 1970.
    :param host: the host's name in tokens, and *boot* the kernel's id of this boot.
    :param kid: thumbprint of the key.
    :param message: the message that vouches (``KEY_TYPE``); empty: there is none.
    :param problem: why there is none.
    """

    about: str
    since: float
    host: str
    boot: str
    kid: str
    message: str
    problem: str = ""


class Told(msgspec.Struct, frozen=True):
    """All that the peer knows.

    :param host: the host's name in links; None: none is declared.
    :param offering: the environments that offer services, by name; only those to which somebody who may ask may send.
    :param vouched: None: nobody may ask for a token.
    """

    version: int
    host: str | None
    trust: Trust
    environments: dict[str, Known]
    offering: dict[str, Offering] = {}
    vouched: Vouched | None = None

    def level(self, now: float) -> Level:
        """Return the host's trust level at the time *now*."""
        return self.trust.level if now < self.trust.until else "L0"


class Sender(msgspec.Struct, frozen=True, rename={"name": "from"}):
    """An environment that may ask, in the peer's card."""

    name: str
    exchange: str
    reply_exchange: str


class Tls(msgspec.Struct, frozen=True):
    server_name: str


class Broker(msgspec.Struct, frozen=True):
    vhost: str
    tls: Tls


class Card(msgspec.Struct, frozen=True):
    """The part of the peer's card that the peer needs."""

    queues: tuple[str, ...]
    senders: tuple[Sender, ...]
    broker: Broker


def read() -> tuple[Told, Card]:
    """Return the files of the working folder.

    :raises OSError: one is missing.
    :raises ValueError: one is damaged.
    """
    told, card = (_file(name) for name in (FILE, CARD))
    found = msgspec.json.decode(told, type=Told)
    if found.version != VERSION:
        raise ValueError(f"{FILE}: version {found.version}, expected {VERSION}")
    return found, msgspec.json.decode(card, type=Card)


def key() -> bytes:
    """Return the private key of environments' tokens.

    :raises OSError: there is none.
    """
    return _file(KEY)


def _file(name: str) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with open(fd, "rb") as stream:
        return stream.read(MOST)
