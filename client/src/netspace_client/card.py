"""Parser of the card ``/run/netspace/environment.json``, in which the host describes an environment's links.

This library takes all names, addresses and credentials from the card, and makes none itself. The module only reads
files. Unknown keys are ignored, because a newer host may add some; an unknown ``version`` is an error.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netspace_client.endorsement import Endorser
from netspace_client.errors import CardError
from netspace_client.keys import Ring, ring
from netspace_client.seal import Sealed

FOLDER = Path("/run/netspace")
VERSIONS = (1, 2)
MAX_CARD = 16 * 1024 * 1024


@dataclass(frozen=True)
class Broker:
    """A broker's address and log-in. Credentials are read from their files at each connect.

    :param password_file: for a log-in by password.
    :param certificate: for a log-in by certificate (EXTERNAL), together with *key*.
    :param authority: file of the trusted certificates for the broker; if given, the connection uses TLS.
    :param server_name: the name that must be in the broker's certificate.
    """

    host: str
    port: int
    vhost: str
    username: str = ""
    password_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None
    server_name: str | None = None


@dataclass(frozen=True)
class Narrowed:
    """Declared limits of a link's messages; None: not limited.

    :param size: bytes of a body.
    :param rate: messages per second.
    """

    size: int | None = None
    content_type: str | None = None
    rate: float | None = None


@dataclass(frozen=True)
class Peer:
    """An environment to which this one may send.

    :param name: the peer's own name; ``<name>@<host>`` if it is on another host.
    :param broker: the broker of the link: this environment's own, or that of the peer's host.
    :param replies: for ``request``: (own replies queue, exchange to which it is bound).
    :param monitor: source of notices about the peer: (the notices' exchange, the peer's queue).
    :param notices: the queue to which these notices are delivered.
    :param message_size: the most bytes of a message, on a link to another host.
    :param local: the peer's local name in this environment's programs; None: programs use the peer's own name.
    :param durable: False: messages and answers of the link are only in the broker's memory.
    :param verbs: the requests that this environment may make, if the peer is its host.
    """

    name: str
    pattern: str
    exchange: str
    broker: Broker
    replies: tuple[str, str] | None = None
    seal: Sealed | None = None
    monitor: tuple[str, str] | None = None
    notices: str | None = None
    message_size: int | None = None
    narrowed: Narrowed = Narrowed()
    local: str | None = None
    durable: bool = True
    verbs: tuple[str, ...] = ()

    @property
    def called(self) -> str:
        """The name that programs use: the local name, or else the peer's own."""
        return self.local or self.name


@dataclass(frozen=True)
class Sender:
    """An environment that may send to this one. Only the sender can publish into *exchange*.

    Several may have the same name: after a link's exchange was renamed, messages from the old exchange are still read.

    :param reply_exchange: for ``request``: the exchange for answers to the sender.
    :param former: whether *exchange* is an old exchange of the link.
    :param durable: False: messages and answers of the link are only in the broker's memory.
    """

    name: str
    pattern: str
    exchange: str
    reply_exchange: str | None = None
    former: bool = False
    seal: Sealed | None = None
    narrowed: Narrowed = Narrowed()
    durable: bool = True


@dataclass(frozen=True)
class Card:
    """The content of ``environment.json``.

    :param queues: all queues that this environment reads.
    :param peers: the peers, by their own names.
    :param senders: the senders, by their exchange.
    :param keys: file of this environment's own keys; None: none of its links is sealed.
    :param audit: whether the host records refused accesses of this environment.
    :param values: the values that the declaration gives to this environment.
    :param secrets: the names of the secrets that this environment has now.
    """

    name: str
    queues: tuple[str, ...] = ()
    broker: Broker | None = None
    peers: Mapping[str, Peer] = field(default_factory=dict)
    senders: Mapping[str, Sender] = field(default_factory=dict)
    trust: Mapping[str, Any] = field(default_factory=dict)
    keys: Path | None = None
    audit: bool = False
    values: Mapping[str, Any] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()

    @functools.cached_property
    def called(self) -> Mapping[str, Peer]:
        """The peers by all names that programs may use: local names and the peers' own."""
        return {**self.peers, **{peer.called: peer for peer in self.peers.values()}}

    @property
    def brokers(self) -> list[Broker]:
        """All brokers in the card: the environment's own broker, and the broker of each peer's link."""
        own = [] if self.broker is None else [self.broker]
        return own + [peer.broker for peer in self.peers.values()]


def load(folder: Path = FOLDER) -> Card:
    """Read the card in *folder*.

    :raises CardError: the card is missing or invalid.
    """
    path = folder / "environment.json"
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_CARD + 1)
    except OSError as err:
        raise CardError(f"{path}: {err.strerror}; is this an environment of netspace?") from err
    if len(raw) > MAX_CARD:
        raise CardError(f"{path}: larger than {MAX_CARD} bytes")
    try:
        return parse(json.loads(raw), folder)
    except (CardError, ValueError, RecursionError) as err:
        raise CardError(f"{path}: {err}") from err


def parse(value: Any, folder: Path = FOLDER) -> Card:
    """Parse and check a card.

    :param folder: replaces ``/run/netspace`` in the card's file names.
    :raises CardError: an entry is missing or invalid; the error names it.
    """
    top = _table(value, "the card")
    version = top.get("version")
    if version not in VERSIONS:
        known = ", ".join(map(str, VERSIONS))
        raise CardError(f"version {version!r} is not known (but {known}): a newer netspace-client is needed")
    broker = None if top.get("broker") is None else _broker(top["broker"], "broker", folder)
    notices = None if top.get("notices") is None else _text(top, "notices", "the card")
    peers, senders = {}, {}
    for index, entry in enumerate(_list(top, "peers")):
        where = f"peers:{index}"
        about = _table(entry, where)
        own = broker if about.get("broker") is None else _broker(about["broker"], f"{where}:broker", folder)
        if own is None:
            raise CardError(f"{where}: there is no broker")
        replies = None
        if about.get("replies") is not None:
            back = _table(about["replies"], f"{where}:replies")
            replies = (_text(back, "queue", f"{where}:replies"), _text(back, "exchange", f"{where}:replies"))
        name = _text(about, "to", where)
        watched, heard = None, None
        if about.get("monitor") is not None:
            news = _table(about["monitor"], f"{where}:monitor")
            watched = (_text(news, "exchange", f"{where}:monitor"), _text(news, "queue", f"{where}:monitor"))
            heard = notices if news.get("notices") is None else _text(news, "notices", f"{where}:monitor")
        pattern, exchange = _text(about, "pattern", where), _text(about, "exchange", where)
        most = None if about.get("message_size") is None else _size(about["message_size"], f"{where}:message_size")
        seal, narrowed = _seal(about, where), _narrowed(about, where)
        local = None if about.get("as") is None else _text(about, "as", where)
        durable = _durable(about, where)
        verbs = _texts(about, "verbs", where)
        peers[name] = Peer(
            *(name, pattern, exchange, own, replies, seal, watched, heard, most, narrowed, local, durable, verbs)
        )
    for index, entry in enumerate(_list(top, "senders")):
        where = f"senders:{index}"
        about = _table(entry, where)
        back_to = None if about.get("reply_exchange") is None else _text(about, "reply_exchange", where)
        name = _text(about, "from", where)
        exchange = _text(about, "exchange", where)
        pattern, former = _text(about, "pattern", where), bool(about.get("former"))
        seal, narrowed = _seal(about, where), _narrowed(about, where)
        durable = _durable(about, where)
        senders[exchange] = Sender(name, pattern, exchange, back_to, former, seal, narrowed, durable)
    queues = [] if top.get("mailbox") is None else [_text(top, "mailbox", "the card")]
    for index, queue in enumerate(_list(top, "queues")):
        if not isinstance(queue, str) or not queue:
            raise CardError(f"queues:{index}: expected the name of a queue")
        queues.append(queue)
    trust = _table(top.get("trust") or {}, "trust")
    own_keys = _table(top.get("seal") or {}, "seal")
    keys = _placed(_text(own_keys, "keys_file", "seal"), folder) if own_keys else None
    name, audit = _text(top, "name", "the card"), top.get("audit") is True
    values = _table(top.get("values") or {}, "values")
    secrets = _texts(top, "secrets", "card")
    return Card(name, tuple(dict.fromkeys(queues)), broker, peers, senders, trust, keys, audit, values, secrets)


def load_keys(path: Path) -> Ring:
    """Read the environment's own keys.

    :raises CardError: the keys' file is missing or invalid.
    """
    try:
        with path.open("rb") as stream:
            value = json.loads(stream.read(MAX_CARD))
    except (OSError, ValueError, RecursionError) as err:
        raise CardError(f"{path}: {err}") from err
    return ring(_table(value, str(path)).get("keys"), f"{path}: keys", private=True)


def _seal(table: Mapping[str, Any], where: str) -> Sealed | None:
    if table.get("seal") is None:
        return None
    about = _table(table["seal"], f"{where}:seal")
    link, keys = _text(about, "link", f"{where}:seal"), ring(about.get("keys"), f"{where}:seal:keys")
    if about.get("endorser") is None:
        # Both ends are on this host. Messages from before one of them was renamed have other names in their seals.
        own, peer = (None if about.get(end) is None else _text(about, end, f"{where}:seal") for end in ("own", "peer"))
        return Sealed(link, keys, own, peer)
    by = _table(about["endorser"], f"{where}:seal:endorser")
    endorser = Endorser(_text(by, "id", f"{where}:seal:endorser"), ring(by.get("keys"), f"{where}:seal:endorser:keys"))
    own, peer = (_text(about, end, f"{where}:seal") for end in ("own", "peer"))
    return Sealed(link, keys, own, peer, endorser)


def _broker(value: Any, where: str, folder: Path) -> Broker:
    about = _table(value, where)
    port = about.get("port")
    if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
        raise CardError(f"{where}:port: expected a port, got {port!r}")

    tls = {} if about.get("tls") is None else _table(about["tls"], f"{where}:tls")

    def text(table: Mapping[str, Any], key: str) -> str | None:
        return None if table.get(key) is None else _text(table, key, where if table is about else f"{where}:tls")

    def file(table: Mapping[str, Any], key: str) -> Path | None:
        named = text(table, key)
        return None if named is None else _placed(named, folder)

    return Broker(
        host=_text(about, "host", where),
        port=port,
        vhost=_text(about, "vhost", where),
        username=text(about, "username") or "",
        password_file=file(about, "password_file"),
        certificate=file(tls, "certificate_file"),
        key=file(tls, "key_file"),
        authority=file(tls, "ca_file"),
        server_name=text(tls, "server_name"),
    )


def _placed(path: str, folder: Path) -> Path:
    """Return *path* with *folder* in place of ``/run/netspace``."""
    named = Path(path)
    return folder / named.relative_to(FOLDER) if named.is_relative_to(FOLDER) else named


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise CardError(f"{where}: expected a mapping, got {type(value).__name__}")
    return value


def _list(table: Mapping[str, Any], key: str) -> list[Any]:
    value = table.get(key) or []
    if not isinstance(value, list):
        raise CardError(f"{key}: expected a list, got {type(value).__name__}")
    return value


def _texts(table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = _list(table, key)
    if not all(isinstance(one, str) for one in value):
        raise CardError(f"{where}: {key}: expected texts")
    return tuple(value)


def _narrowed(table: Mapping[str, Any], where: str) -> Narrowed:
    size = None if table.get("size") is None else _size(table["size"], f"{where}:size")
    kind = None if table.get("content_type") is None else _text(table, "content_type", where)
    rate = table.get("rate")
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < math.inf):
        raise CardError(f"{where}:rate: expected a number of messages per second")
    return Narrowed(size, kind, rate)


def _durable(table: Mapping[str, Any], where: str) -> bool:
    value = table.get("durable", True)
    if not isinstance(value, bool):
        raise CardError(f"{where}:durable: expected true or false, got {value!r:.40}")
    return value


def _size(value: Any, where: str) -> int:
    if not isinstance(value, int) or value < 1:
        raise CardError(f"{where}: expected a number of bytes")
    return value


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value:
        raise CardError(f"{where}: {key} is missing, or is not a text")
    return value
