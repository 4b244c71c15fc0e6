"""The process that answers requests of a host's environments, as the peer ``host`` (``python -m netspace peer``).

It is a service like the forwarder, and runs only while a declaration permits some environment to send requests. The
process starts as root and gives up all rights (``privileges``). After that it is an ordinary client of the broker: it
may read the queues of requests to the host, and write answers. Two files (``told``) have the environments that may send
requests, and the facts for the answers. The process reads the files again when they change. It sleeps while there is
nothing to do.

The broker delivers one request at a time from each environment's queue, in turn. So an environment that sends requests
without end waits for its own answers, and delays no other environment.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import msgspec

from netspace import folder_watch
from netspace.errors import NetspaceError
from netspace.host.peer import privileges, requests, told
from netspace.host.peer.asker import Asker, Later, Unchanged
from netspace.host.peer.errands import Errands, Way
from netspace.host.peer.health import Health, Marks
from netspace.host.peer.requests import Refused
from netspace.host.peer.told import Card, Sender, Told
from netspace.host.peer.uses import Uses
from netspace.layout import Layout
from netspace.link import host_peer
from netspace.link.broker.consumer import Consumer, Delivery
from netspace.spec import extensions
from netspace.spec.peer import CONTENT_TYPE

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
SAVE = 5.0
"""Seconds after a use until its count is written."""
AGAIN = 5.0
"""Seconds until a queue that couldn't be consumed is tried again."""
LOOK = 1.0
"""Seconds between two checks whether an answer that was held back has changed."""
KNOCK = 0.1
"""Seconds between two attempts to reach the keeper of children."""
PATIENCE = 30.0
"""Seconds until an answer that was held back is given, changed or not."""
HELD = 8
"""The most requests of one environment that wait for a change. A further request is answered at once."""
HELD_ALL = 1024
"""The most requests of all environments together that wait for a change."""
KEY = 200  # bytes of a routing key and of a correlation id; AMQP permits 255
IDENTITY, ANCHORS = "identity.pem", "ca.pem"


class Held(msgspec.Struct):
    """A request whose answer is held back until it changes, but at most until the time *until* (``time.monotonic``).

    :param body: the request, encoded again without white space.
    :param name: the environment that sent the request.
    """

    way: Way
    body: bytes
    name: str
    until: float


class Peer:
    """The peer: its connection to the broker, and the facts it answers with. Its folder is the working directory.

    :param verbs: the modules of the kinds of requests, by name.
    """

    def __init__(self, verbs: dict[str, ModuleType], health: Callable[[str], Health | None] = lambda _: None) -> None:
        self.verbs = verbs
        self.health = health
        self.errands = Errands(host_peer.KEEPER)
        self.held: list[Held] = []
        self._looked = 0.0
        self.uses = Uses()
        self.over = False
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._watch = folder_watch.begin(Path())
        self._said = ""
        self._stamp = (0, 0)

    def run(self) -> None:
        """Answer requests until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self.uses.load()
        pause = FIRST_PAUSE
        while not self.over:
            try:
                known, card = self._read()
                with self._connected(card) as consumer:
                    pause, self._said = FIRST_PAUSE, ""
                    self._serve(consumer, known, card)
            # The broker or the forwarder is down, or restarts; or it says what nobody expects.
            except (OSError, ValueError, LookupError, struct.error, NetspaceError) as err:
                if (text := str(err) or type(err).__name__) != self._said:
                    sys.stderr.write(f"netspace peer: no connection to the broker: {text}; tried again\n")
                    sys.stderr.flush()
                    self._said = text
                self._changed()  # all is read again below; a change so far must not end the pause
                self._wait((), pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        self._save()

    def _end(self, *_: object) -> None:
        self.over = True

    def _connected(self, card: Card) -> Consumer:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(ANCHORS)
        context.load_cert_chain(IDENTITY)  # read each time: it is replaced while this runs
        way = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            way.settimeout(30.0)
            way.connect(host_peer.SOCKET)
        except OSError:
            way.close()
            raise
        # As bytes: Python would load its tables of Unicode for a text.
        name = card.broker.tls.server_name.encode("ascii")
        return Consumer(way, card.broker.vhost, context, name, requests.SIZE)

    def _serve(self, consumer: Consumer, known: Told, card: Card) -> None:
        """Answer over one connection, until the connection or the process ends."""
        senders, saved, tried = _senders(card), time.monotonic(), time.monotonic()
        consumer.follow(card.queues)
        gc.collect()
        while not self.over:
            if not consumer.pending:
                due = [saved + SAVE] * self.uses.changed + [tried + AGAIN] * consumer.lacking
                due += [self._looked + LOOK] * bool(self.held) + [time.monotonic() + KNOCK] * self.errands.unsent
                timeout = max(0.0, min(due) - time.monotonic()) if due else None
                self._wait((consumer,), 1.0 if self._watch is None else timeout)
            if self._changed():
                known, card = self._read()
                senders = _senders(card)
                self.uses.forget(set(known.environments))
                consumer.follow(card.queues)
                tried = time.monotonic()
            elif consumer.lacking and time.monotonic() - tried >= AGAIN:
                consumer.follow(card.queues)
                tried = time.monotonic()
            if self.uses.changed and time.monotonic() - saved >= SAVE:
                self._save()
                saved = time.monotonic()
            for way, name, body, result in self.errands.done(self.verbs):
                if (sender := senders.get(way.exchange)) is not None and name in known.environments:
                    self._reply(consumer, sender, way, body, result)
            consumer.pump()
            while consumer.waiting:
                # Root tells of a program's new image before it starts the program, which may ask at once. So whatever
                # was told before this request came must count for its answer.
                if told.stamp() != self._stamp:
                    known, card = self._read()
                    senders = _senders(card)
                self._answer(consumer, consumer.waiting.popleft(), known, senders)
            if self.held and time.monotonic() - self._looked >= LOOK:
                self._look_again(consumer, known, senders)

    def _wait(self, also: tuple[Consumer, ...], seconds: float | None) -> None:
        """Wait for a signal, a change in the folder, or data on the connection; at most *seconds*."""
        files: list[int | Consumer] = [self._woken, *also]
        if self._watch is not None:
            files.append(self._watch.fileno())
        if also and self.errands.keeper is not None:
            files.append(self.errands.keeper.fileno())
        ready, _, _ = select.select(files, (), (), seconds)
        if self._woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._woken, 4096)

    def _read(self) -> tuple[Told, Card]:
        self._stamp = told.stamp()  # first: if the files are replaced meanwhile, they are read again
        return told.read()

    def _changed(self) -> bool:
        """Return whether a file in the folder may have changed since the last call."""
        return self._watch is None or not self._watch.touched(())

    def _save(self) -> None:
        with contextlib.suppress(OSError):  # a full disk costs the counts, and no answer
            self.uses.save()

    # -- one request -------------------------------------------------------------------
    def _answer(self, consumer: Consumer, delivery: Delivery, known: Told, senders: dict[str, Sender]) -> None:
        sender = senders.get(delivery.exchange)
        own = None if sender is None else known.environments.get(sender.name)
        if sender is None or own is None:  # its right was revoked meanwhile
            consumer.settle(delivery)
            return
        now = time.time()
        exchange, _, key = delivery.text("reply_to").partition("/")
        about = delivery.text("correlation_id") or delivery.text("message_id")
        if exchange != sender.reply_exchange or not 0 < len(key.encode()) <= KEY or len(about.encode()) > KEY:
            # It can't be answered, and as a dead letter it would take the room of others. So it is dropped.
            self.uses.note(sender.name, "no address for the answer", now)
            consumer.settle(delivery)
            return
        way = Way(delivery.exchange, key, about)
        patient = len(self.held) < HELD_ALL and sum(one.name == sender.name for one in self.held) < HELD
        try:
            body, result = self._result(
                Asker(sender.name, own, known, now, patient, self.health), delivery.body, delivery.size
            )
        except Unchanged:
            if not self.held:
                self._looked = time.monotonic()
            # It is acknowledged now, so that the next request of this environment needn't wait for it.
            self.held.append(Held(way, requests.compact(delivery.body), sender.name, time.monotonic() + PATIENCE))
        except Later:
            asked = requests.parse(delivery.body, delivery.size)
            if why := self.errands.begin(way, sender.name, asked):
                self._reply(
                    consumer, sender, way, requests.refusal("not-available", why), f"{asked.verb} not-available"
                )
        else:
            self._reply(consumer, sender, way, body, result)
        consumer.settle(delivery)

    def _reply(self, consumer: Consumer, sender: Sender, way: Way, body: bytes, result: str) -> None:
        self.uses.note(sender.name, result, time.time())
        properties = {
            "content_type": _short(CONTENT_TYPE),
            "delivery_mode": b"\1",
            "correlation_id": _short(way.about),
        }
        consumer.publish(sender.reply_exchange, body, properties, {}, way.key)

    def _look_again(self, consumer: Consumer, known: Told, senders: dict[str, Sender]) -> None:
        """Answer the waiting requests whose answer has changed, or whose waiting time is over."""
        self._looked = time.monotonic()
        for one in tuple(self.held):
            sender, own = senders.get(one.way.exchange), known.environments.get(one.name)
            if sender is None or own is None:  # its right was revoked meanwhile
                self.held.remove(one)
                continue
            asker = Asker(one.name, own, known, time.time(), self._looked < one.until, self.health)
            with contextlib.suppress(Unchanged):
                body, result = self._result(asker, one.body, len(one.body))
                self.held.remove(one)
                self._reply(consumer, sender, one.way, body, result)

    def _result(self, asker: Asker, sent: bytes | bytearray, size: int) -> tuple[bytes, str]:
        """Return the answer to a request, and a short text for the log; the text is one of a small fixed set."""
        verb = "?"
        try:
            request = requests.parse(sent, size)
            verb = request.verb if request.verb in self.verbs else "?"
            return requests.answer(asker, request, self.verbs), verb
        except (Unchanged, Later):
            raise
        except Refused as err:
            return requests.refusal(err.code, str(err)), f"{verb} {err.code}"
        except Exception as err:  # a fault of one verb costs its answer, not the process
            sys.stderr.write(f"netspace peer: {verb}: {type(err).__name__}: {err}\n")
            return requests.refusal("failed", "the host couldn't answer; its log says why"), f"{verb} failed"


def _senders(card: Card) -> dict[str, Sender]:
    """Return the environments that may send requests, by the exchange through which their requests come."""
    return {sender.exchange: sender for sender in card.senders}


def _short(text: str) -> bytes:
    raw = text.encode()
    return bytes([len(raw)]) + raw


def verbs() -> dict[str, ModuleType]:
    """Load the modules of all kinds of requests."""
    return {name: importlib.import_module(f"netspace.host.peer.verbs.{name}") for name in extensions.host_verbs()}


def main(layout: Layout) -> int:
    """Answer requests until SIGTERM or SIGINT; return an exit code."""
    known, marks = verbs(), Marks(layout)  # before the rights are gone: only root may read the library
    os.chdir(host_peer.folder(layout))
    privileges.drop(host_peer.ids(layout))
    Peer(known, marks.of).run()
    return 0
