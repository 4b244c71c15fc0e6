"""Answers of the host to requests of this environment (``host_peer``)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Trust:
    """The trust level of the host, as the host reports it.

    :ivar level: ``L0`` to ``L5``.
    :ivar verifier: the verifier that appraised the host's evidence.
    :ivar told_by: who reports the level: always ``host``.
    """

    level: str
    verifier: str
    told_by: str


@dataclass(frozen=True)
class Self:
    """This environment, as its host describes it.

    :ivar image: digest of the environment's image.
    :ivar configuration: digest of the configuration with which its runtime runs it.
    :ivar started: when its program was started, in seconds since 1970; None: the host doesn't know.
    :ivar host: the host's name in links; None: the host has none.
    """

    name: str
    image: str
    configuration: str
    started: float | None
    host: str | None
    trust: Trust


@dataclass(frozen=True)
class Offer:
    """A peer that offers a service.

    :ivar name: the name to which messages to this peer are sent.
    :ivar pattern: ``send`` or ``request``.
    :ivar up: whether a process of the peer runs.
    """

    name: str
    pattern: str
    up: bool
    health: str | None = None


@dataclass(frozen=True)
class Child:
    """A child of this environment: a program that the host started for it.

    :ivar name: the name that this environment gave to it.
    :ivar environment: its name as an environment, by which messages reach it.
    :ivar until: when the host ends it, in seconds since 1970.
    """

    name: str
    environment: str
    until: float


@dataclass(frozen=True)
class Delegation:
    """A right that this environment delegated: a peer may send to the receiver of one of its links.

    :ivar link: the receiver of the messages, as this program calls it.
    :ivar to: the peer that has the right, as this program calls it.
    :ivar environment: the peer's name as an environment.
    :ivar rate: the most messages per second; None: no limit.
    :ivar size: the most bytes of a message's body; None: no limit.
    :ivar until: when the right ends, in seconds since 1970.
    """

    link: str
    to: str
    environment: str
    rate: float | None
    size: int | None
    until: float


@dataclass(frozen=True)
class Sealed:
    """A value that the host sealed for this environment.

    :ivar text: the sealed value; keep it anywhere.
    :ivar kept_in: the holder of the key: ``tpm``, ``token`` (PKCS #11) or ``file``.
    :ivar boot: whether it can be opened only while the host's PCRs have the same values.
    """

    text: str
    kept_in: str
    boot: bool


@dataclass(frozen=True)
class Signature:
    """A signature by a key of this environment.

    :ivar signature: r and s, 32 bytes each (ES256).
    :ivar key: the public key (JWK).
    :ivar kept_in: the holder of the private key: ``tpm``, ``token`` (PKCS #11) or ``file``.
    :ivar boot: whether the key can be used only while the host's PCRs have the same values.
    """

    signature: bytes
    key: dict[str, str]
    kept_in: str
    boot: bool
