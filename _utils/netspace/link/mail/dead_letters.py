"""Dead letters (messages that no mailbox could keep): show them, send them again through their link, or discard them.

The headers ``x-first-death-...`` of a dead letter can be trusted: the broker overwrites them when a message dies. So
the exchange in them is the one to which the message was sent. A dead letter is sent again through the link of that
exchange only, and only if the link is still declared. If an end of the link was renamed, it is the same link under its
present name.

Dead letters are listed by the management API. To send a dead letter again or to discard it, netspace holds it
unacknowledged (``amqp``), so that no other consumer can get it. It is removed from its queue after the mailbox has
confirmed it. If a run is killed, the broker requeues the held dead letters: none is lost, and at worst one is sent
twice with the same ``message_id``.
"""

from __future__ import annotations

import base64
import contextlib
import os
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link.broker import access, amqp
from netspace.link.broker.management import Management
from netspace.link.pki import authority
from netspace.link.record import read
from netspace.link.topology import draining, names
from netspace.spec.types import ClusterBroker, LocalBroker
from netspace.text import printable

MOST = 1000
EVERY = 2**31 - 1
UNKNOWN = "unknown"
SHOWN = 4096
"""The most bytes of a payload to show."""
_ITS_OWN = ("x-death", "x-delivery-count", "x-acquired-count", "CC", "BCC")
_DEATHS = ("x-first-death-", "x-last-death-")
LOGIN_SECONDS = 600.0


@dataclass(frozen=True)
class Letter:
    """One dead letter.

    :param link: ``<from>.<to>``, by the names of the time when it was sent; ``unknown`` if its headers name no link.
    :param reason: the broker's reason for the message's death, such as ``rejected``.
    :param died: the time of the message's death, in seconds since 1970.
    :param size: the bytes of the payload.
    """

    link: str
    reason: str
    died: int
    size: int
    properties: Mapping[str, Any] = field(repr=False)
    payload: str = field(default="", repr=False)

    def shown(self, payload: bool) -> dict[str, Any]:
        """Return the dead letter in the form in which operators see it.

        :param payload: whether to include the first ``SHOWN`` bytes of its payload.
        """
        about: dict[str, Any] = {
            "link": self.link,
            "reason": printable(self.reason[:256]),
            "died": self.died,
            "bytes": self.size,
        }
        for key in ("message_id", "content_type"):
            if key in self.properties:
                about[key] = printable(str(self.properties[key])[:256])
        if payload:
            try:
                raw = base64.b64decode(self.payload)[:SHOWN]
            except ValueError:  # the broker always sends base64; a letter that can't be read costs no other one
                raw = b""
            about["payload"] = printable(raw.decode(errors="backslashreplace"), kept="\n\t")
        return about


@dataclass(frozen=True)
class LetterFilter:
    """A choice of dead letters.

    :param limit: the greatest number of dead letters to choose.
    :param link: choose only dead letters of this link; ``unknown``: only those with an unknown link; None: of any link.
    :param message_id: choose only dead letters with this id; None: with any id.
    """

    limit: int = 100
    link: str | None = None
    message_id: str | None = None

    def takes(self, link: str, message_id: str | None) -> bool:
        return self.link in (None, link) and self.message_id in (None, message_id)


class Letters:
    """The dead letters of one instance's broker."""

    def __init__(self, layout: Layout) -> None:
        record = read(layout)
        if record.broker is None or not record.links:
            if names.DEAD in record.parked:
                raise NetspaceError(
                    "the dead letters are kept, but the broker doesn't run without a link: declare one to see them, "
                    "or delete them (netspace_link.absent with purge)"
                )
            raise NetspaceError("there are no links, and so no dead letters")
        self.layout = layout
        self.broker = record.broker
        self.vhost = access.vhost(layout, record.broker)
        self.called = names.used(layout, record.broker)
        self.exchanges = {  # by the link's name in the exchange's name
            ".".join(names.environments_of(exchange, "link") or ()): exchange
            for exchange in map(self.called.exchange, record.links.values())
        }
        self.renamed = draining.renamed_links(record.links, record.former, record.passed)
        self.sealed = {name for name, link in record.links.items() if link.seal}

    def queues(self, api: Management) -> list[str]:
        """Return the queues of dead letters. Queues with old names come first, because their messages are older."""
        today = (self.called.dead, self.called.late)
        there = [one["name"] for one in api.get("queues", self.vhost, query="columns=name") or []]
        ours = names.is_dead if isinstance(self.broker, LocalBroker) else (*today, self.called.again).__contains__
        former = [name for name in there if ours(name) and name not in today]
        return [*sorted(former), *(name for name in today if name in there)]

    def number(self, api: Management) -> tuple[int, int]:
        """Return the number of dead letters that need attention, and the number of late ones.

        Late dead letters expired or were dropped from a full queue.
        """
        counts = {queue: _waiting(_get(api, self.vhost, queue, 1, truncate=1)) for queue in self.queues(api)}
        late = counts.pop(self.called.late, 0)
        return sum(counts.values()), late

    def count(self, limit: int = 20, payload: bool = False) -> dict[str, Any]:
        """Return a summary of the dead letters, as ``{count, late, letters}``.

        ``count`` is the number of all dead letters. ``late`` is the number of dead letters that expired or were dropped
        from a full queue. ``letters`` lists the first dead letters, up to *limit* of them.
        """
        _within(limit)
        counts: dict[str, int] = {}
        found: list[dict[str, Any]] = []
        with access.management(self.layout, self.broker) as api:
            for queue in self.queues(api):
                got = _get(api, self.vhost, queue, max(1, limit - len(found)), truncate=SHOWN if payload else 1)
                counts[queue] = _waiting(got)
                found += [letter(one).shown(payload) for one in got][: limit - len(found)]
        return {"count": sum(counts.values()), "late": counts.get(self.called.late, 0), "letters": found}

    def redeliver(self, choice: LetterFilter | None = None, test: bool = False) -> dict[str, Any]:
        """Send dead letters again.

        :param choice: the dead letters to send; None: up to 100.
        :param test: whether to change nothing, and only to return the result that a real run would have.
        :return: ``sent``: the number of sent dead letters by link; ``kept``: the number of dead letters that weren't
            sent, by link, with the reason.
        """
        return self._each(choice or LetterFilter(), "sent", self._why_not, self._send, test)

    def discard(self, choice: LetterFilter | None = None, test: bool = False) -> dict[str, Any]:
        """Delete dead letters. The result is that of :meth:`redeliver`, with ``discarded`` in place of ``sent``."""
        return self._each(choice or LetterFilter(), "discarded", lambda _: "", lambda *_: "", test)

    def _each(
        self,
        choice: LetterFilter,
        done: str,
        why_not: Callable[[str], str],
        act: Callable[[amqp.Connection, str, amqp.Held], str],
        test: bool,
    ) -> dict[str, Any]:
        """Call *act* for each chosen dead letter, wherever it is in its queue; return the numbers by link.

        :param done: the key of the result for dead letters that were handled.
        :param why_not: returns why a link's dead letters can't be handled, or an empty text.
        :param act: handles a dead letter; returns why that failed, or an empty text. After a success the message is
            removed.
        :param test: whether to change nothing, and only to return the result that a real run would have.
        """
        _within(choice.limit)
        tally = _Tally()
        with access.management(self.layout, self.broker) as api:
            queues = self.queues(api)
            if test:
                for queue in queues:
                    for one in map(letter, _get(api, self.vhost, queue, EVERY, truncate=1)):
                        if tally.finished < choice.limit:
                            chosen = choice.takes(one.link, one.properties.get("message_id"))
                            tally.add(one.link, why_not(one.link) if chosen else "not asked for")
                return tally.told(done)
            with self._connected(api) as connection:
                for queue in queues:
                    while tally.finished < choice.limit and (held := connection.hold(queue)) is not None:
                        link = came_by(held.header("x-first-death-exchange"))
                        why = why_not(link) if choice.takes(link, held.text("message_id")) else "not asked for"
                        why = why or act(connection, link, held)
                        if not why:
                            connection.remove(held)
                        tally.add(link, why)
        return tally.told(done)

    def _why_not(self, link: str) -> str:
        if link == UNKNOWN:
            return "its link is unknown"
        now = self.renamed.get(link, link)
        if now not in self.exchanges:
            return "the link is revoked"
        if now != link and now in self.sealed:  # a seal covers the names of both ends
            return f"the link is {now} now, and the letter is sealed under the former name; discard it"
        return ""

    def _send(self, connection: amqp.Connection, link: str, held: amqp.Held) -> str:
        """Publish a dead letter through its link; return why the broker refused it, or an empty text.

        It waits for the broker's confirmation.
        """
        properties = {key: value for key, value in held.properties.items() if key != "user_id"}
        headers = {
            key: value for key, value in held.headers.items() if key not in _ITS_OWN and not key.startswith(_DEATHS)
        }
        return connection.publish(self.exchanges[self.renamed.get(link, link)], held.body, properties, headers)

    @contextlib.contextmanager
    def _connected(self, api: Management) -> Iterator[amqp.Connection]:
        """Yield an AMQP connection of the host itself.

        On our broker, the connection logs in by a temporary account, named by the broker's own SPIFFE ID. Only this
        host has a certificate with that name. If a killed run leaves the account behind, the next apply removes it as
        undeclared.
        """
        try:
            if isinstance(self.broker, ClusterBroker):
                with _first(self.broker, self.vhost) as connection:
                    yield connection
                return
            known = authority.read(self.layout)
            if known is None:
                raise NetspaceError("this host has no certificate authority for its links yet; apply again")
            now = time.time()
            account = known.id(None)
            rights = {"configure": "^$", "write": r"^link\.", "read": "^dead"}
            user = {"name": account, "password_hash": "", "tags": [], "limits": {}}
            permission = {"user": account, "vhost": self.vhost, **rights}
            shown = authority.Issuer(known).client(now, LOGIN_SECONDS)
            api.post("definitions", body={"users": [user], "permissions": [permission]})
            try:
                with amqp.Connection(
                    "127.0.0.1", self.broker.port, self.vhost, _trust(known, shown), authority.SERVER_NAMES[0], None
                ) as connection:
                    yield connection
            finally:
                api.delete("users", account)
        except OSError as err:
            raise NetspaceError(f"the broker can't be reached, or ended the connection: {err}") from err


def _first(broker: ClusterBroker, vhost: str) -> amqp.Connection:
    """Return a connection to the first node that answers."""
    failures = []
    for url in broker.urls:
        parts = urlsplit(url)
        secure = parts.scheme == "amqps"
        context = ssl.create_default_context(cafile=broker.ca) if secure else None
        host, port = str(parts.hostname), parts.port or (5671 if secure else 5672)
        try:
            return amqp.Connection(host, port, vhost, context, host, access.login(broker))
        except OSError as err:
            failures.append(f"{host}:{port}: {err}")
    raise NetspaceError(f"no node of the broker can be reached: {'; '.join(failures)}")


def _trust(known: authority.Authority, certificate: bytes) -> ssl.SSLContext:
    """Return a TLS context for our own broker.

    The context verifies the broker by the authority's trusted certificates, and presents *certificate* as the client's.
    """
    context = ssl.create_default_context(cadata=known.anchors.decode())
    with open(os.memfd_create("certificate", os.MFD_CLOEXEC), "wb") as memory:  # ssl loads only files
        memory.write(certificate)
        memory.flush()
        context.load_cert_chain(f"/proc/self/fd/{memory.fileno()}")
    return context


@dataclass
class _Tally:
    finished: int = 0
    done: dict[str, int] = field(default_factory=dict)
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, link: str, why: str) -> None:
        if why:
            self.kept.setdefault(link, {"number": 0, "why": why})["number"] += 1
        else:
            self.finished += 1
            self.done[link] = self.done.get(link, 0) + 1

    def told(self, done: str) -> dict[str, Any]:
        return {done: self.done, "kept": self.kept}


def came_by(exchange: str | None) -> str:
    """Return the link of an exchange; ``unknown`` if it isn't the exchange of a link."""
    return ".".join(names.environments_of(exchange or "", "link") or (UNKNOWN,))


def letter(got: Mapping[str, Any]) -> Letter:
    """Return the dead letter in an entry of the management API. Only fields that the broker itself writes are used.

    A sender may have set any other field. A field that doesn't have the broker's form counts as absent.
    """
    properties = _object(got.get("properties"))
    headers = _object(properties.get("headers"))
    queue, reason = headers.get("x-first-death-queue"), headers.get("x-first-death-reason")
    history = headers.get("x-death")
    deaths = map(_object, history if isinstance(history, list) else ())
    size, payload = got.get("payload_bytes"), got.get("payload")
    died = next((one.get("time") for one in deaths if one.get("queue") == queue), 0)
    return Letter(
        link=came_by(str(headers.get("x-first-death-exchange"))),
        reason=str(reason or UNKNOWN),
        died=died if isinstance(died, int) else 0,
        size=size if isinstance(size, int) else 0,
        properties=properties,
        payload=payload if isinstance(payload, str) else "",
    )


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _get(api: Management, vhost: str, queue: str, number: int, truncate: int) -> list[dict[str, Any]]:
    """Return the first messages of a queue, which stay in it.

    :param number: the most messages to return.
    :param truncate: the most bytes of each payload.
    """
    body = {"count": number, "ackmode": "ack_requeue_true", "encoding": "base64", "truncate": truncate}
    return api.post("queues", vhost, queue, "get", body=body, timeout=60.0) or []


def _waiting(got: list[dict[str, Any]]) -> int:
    return len(got) + (int(got[-1]["message_count"]) if got else 0)


def _within(limit: int) -> None:
    if not 1 <= limit <= MOST:
        raise NetspaceError(f"limit: {limit}: expected 1 to {MOST}")
