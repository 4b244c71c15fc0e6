"""Keeper of children: a service with root's rights that starts and ends children (``python -m netspace keeper``).

The keeper makes and ends delegations, too, and uses the keys of programs (``program_keys``). It runs only while some
environment may spawn, delegate, or use such keys. Requests come from the host's peer, through a socket file that only
the peer's user may open. An attacker may control the peer. So the keeper parses requests strictly, and decides by the
records (``children``, ``delegations``, and the record of the environment that asks). A false name of the asking
environment gives the attacker only rights that some environment has.

Environments take turns: none waits for more than one request of another one. One that has the keeper work all the time
waits (``pace``), since an apply waits for the keeper's work. While a request waits for another run of netspace, such as
an apply, the keeper goes on ending delegations at the broker, which needs no lock.

The keeper ends a child when the parent's or the child's program ends, when the child's lifetime is over, or when an
apply has removed the template. It ends a delegation when the holder's program ends, when the delegation's time is over,
or when the holder may not delegate any more. It sleeps until one of these events.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Literal

import msgspec

from netspace.errors import NetspaceError
from netspace.host import child_records as record
from netspace.host import delegation_records
from netspace.host.child_records import Run
from netspace.host.children import Refused, run_that_asked
from netspace.host.delegation_records import Delegation
from netspace.host.delegations import Limits
from netspace.host.pace import BURST, Pace
from netspace.host.peer.verbs import children, delegate, delegations, end, revoke, seal, sign, spawn, unseal
from netspace.layout import Layout
from netspace.link import host_peer
from netspace.spec import peer
from netspace.threads import BackgroundTask

if TYPE_CHECKING:
    from netspace.environment.record import Record
    from netspace.host.host import Host

Verb = Literal["spawn", "end", "children", "delegate", "revoke", "delegations", "seal", "unseal", "sign"]
MOST, ALL = 32 * 1024, 1024
"""The most bytes of a request from the peer; and the most requests that wait in the keeper."""
AGAIN, TICK = 2.0, 30.0
"""Seconds until a child that couldn't be ended is tried again; and the longest sleep while children run."""
PATIENCE, GLANCE = 20.0, 0.02
"""Seconds that a request waits at most for another run of netspace; and between two calls of ``_attend`` meanwhile."""


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request that the peer passes to the keeper.

    :param id: the number by which the peer knows it.
    :param asker: the environment that asks, as the broker authenticated it.
    :param at: when the peer got the request, in seconds since the boot.
    """

    id: int
    asker: spawn.Name
    verb: Verb
    at: float
    arguments: msgspec.Raw


class Told(msgspec.Struct, frozen=True):
    """The keeper's answer: either ``answer``, or ``code`` and ``text`` of a refusal."""

    id: int
    answer: msgspec.Raw
    code: str = "failed"
    text: str = ""


_UCRED = struct.Struct("3i")  # unix(7): process, user, group
_NONE = msgspec.Raw(b"null")
_MODULES = {
    "spawn": spawn,
    "end": end,
    "children": children,
    "delegate": delegate,
    "revoke": revoke,
    "delegations": delegations,
    "seal": seal,
    "unseal": unseal,
    "sign": sign,
}


class Keeper:
    """The keeper. Its constructor begins to listen.

    :param user: the user whose connection is accepted: the peer's.
    """

    def __init__(self, layout: Layout, user: int) -> None:
        self.layout = layout
        self.over = False
        self._user = user
        self._watched: dict[Run, int] = {}
        self._over_already: set[Run] = set()
        self._way: socket.socket | None = None
        self._waiting: dict[str, deque[Ask]] = {}  # by asker; the first one is served next
        self._begun: dict[int, str] = {}  # revocations of which the broker knows already
        self._pace = Pace()
        self._using: BackgroundTask[msgspec.Struct] | None = None  # the last use of a key
        self._waited = 0.0  # seconds for which the present request has waited for another run of netspace
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        place = host_peer.folder(layout) / host_peer.KEEPER
        place.unlink(missing_ok=True)
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._door.bind(str(place))  # umask 077: nobody else may connect meanwhile
        os.chown(place, user, 0)
        self._door.listen(4)

    def run(self) -> None:
        """Work until SIGTERM or SIGINT. A change that has begun is finished first."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        while not self.over:
            due = self.settle()
            if not self._watch():
                continue
            pause = self._pause()
            if pause == 0:
                self._serve()
                continue
            poll = select.poll()
            for fd in (self._woken, self._door.fileno(), *([] if self._way is None else [self._way.fileno()])):
                poll.register(fd, select.POLLIN)
            for run, fd in self._watched.items():
                if run not in self._over_already:  # what couldn't be ended is tried again later
                    poll.register(fd, select.POLLIN)
            sleeps = [one for one in (pause, None if due is None else due - record.now()) if one is not None]
            poll.poll(1000 * max(0.0, min(sleeps)) + 1 if sleeps else None)
            self._serve()

    def _end(self, *_: object) -> None:
        self.over = True

    def _serve(self) -> None:
        """Accept a new connection, which replaces the previous one, and answer one request.

        Nothing here waits for the peer. A peer that doesn't read its answers loses the connection.
        """
        with contextlib.suppress(BlockingIOError):
            new, _ = self._door.accept()
            _, user, _ = _UCRED.unpack(new.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            if user == self._user:
                self._leave()
                new.setblocking(False)
                self._way = new
            else:
                new.close()
        self._receive()
        ask, way = self._next(), self._way
        if ask is None or way is None:
            return
        began, self._waited = time.monotonic(), 0.0
        try:
            told = self._answered(ask)
            self._pace.spend(ask.asker, time.monotonic() - began - self._waited, record.now())
            if self._way is way:  # not if a new peer has connected, which knows nothing of this request
                way.send(told)
        except OSError as err:
            self._say(f"closing the connection of the host's peer: {err}")
            self._leave()

    def _pause(self) -> float | None:
        """Return the seconds until the keeper may work for one of the waiting requests; None if none waits."""
        now = record.now()
        waits = (self._pace.wait(ask.asker, now, _least(ask)) for turns in self._waiting.values() for ask in turns)
        return min(waits, default=None)

    def _next(self) -> Ask | None:
        """Remove the next request from the queue, and return it; None if the keeper may work for none now."""
        now = record.now()
        for asker, turns in self._waiting.items():
            for ask in turns:
                if not self._pace.wait(asker, now, _least(ask)):
                    turns.remove(ask)
                    del self._waiting[asker]
                    if turns:
                        self._waiting[asker] = turns  # behind the others
                    return ask
        return None

    def _receive(self) -> None:
        """Read the requests that the peer has sent, and queue them by asker."""
        while self._way is not None and sum(map(len, self._waiting.values())) < ALL:
            try:
                request = self._way.recv(MOST)
            except BlockingIOError:
                return
            except OSError:
                request = b""
            if not request:
                self._leave()
                return
            try:
                ask = msgspec.json.decode(request, type=Ask)
            except (ValueError, RecursionError) as err:
                self._say(f"closing the connection of the host's peer: {err}")
                self._leave()
                return
            self._waiting.setdefault(ask.asker, deque()).append(ask)

    def _leave(self) -> None:
        self._waiting.clear()
        self._begun.clear()
        if self._way is not None:
            self._way.close()
            self._way = None

    def _attend(self, severed: set[str]) -> None:
        """Take new requests, and end delegations at the broker, while a request waits for another run of netspace.

        :param severed: the names of links that were ended there so far. This method adds to them.
        """
        self._receive()
        for ask in [ask for turns in self._waiting.values() for ask in turns]:
            if ask.verb != "revoke" or ask.id in self._begun:
                continue
            host = self._host()
            with contextlib.suppress(msgspec.MsgspecError, RecursionError, NetspaceError, OSError):  # it is told later
                self._permitted(host, ask)
                wanted = msgspec.json.decode(ask.arguments, type=revoke.Arguments)
                self._begun[ask.id] = host.begin_revocation(ask.asker, wanted.link, wanted.to)
                severed.add(self._begun[ask.id])
        if delegation_records.names(self.layout):
            with contextlib.suppress(NetspaceError, OSError):
                severed |= self._host().sever_due(severed)

    def settle(self, late: float | None = None) -> float | None:
        """End the delegations and the children that are due.

        :param late: the time (``time.monotonic``) until which it waits for another run of netspace; None: 20 s from
            now.
        :return: the time of the next look, in seconds since the boot; None: there is nothing to end.
        """
        self._over_already.clear()
        looks = [self._settle_delegations(late), self._settle_children(late)]
        return min((look for look in looks if look is not None), default=None)

    def _settle_delegations(self, late: float | None) -> float | None:
        names = delegation_records.names(self.layout)
        if not names:
            return None
        ended, errors = self._host(late).settle_delegations() if delegation_records.due(self.layout) else ({}, {})
        for name, why in ended.items():
            self._say(f"{name}: can't be ended: {errors[name]}; tried again" if name in errors else f"{name}: {why}")
        there = {name: delegation_records.read(self.layout, name) for name in names - (ended.keys() - errors.keys())}
        for name in errors:
            one = there.get(name)
            self._over_already |= set() if one is None else one.runs
        lives = [one.ends for name, one in there.items() if one is not None and name not in errors]
        return min([record.now() + (AGAIN if errors else TICK), *lives])

    def _settle_children(self, late: float | None) -> float | None:
        places = record.places(self.layout)
        if not places:
            return None
        due = {place for place in places if record.due(self.layout, place)}
        lives = [child.ends for place in places - due if (child := record.read(self.layout, place)) is not None]
        next_look = min([record.now() + TICK, *lives])
        if not due:
            return next_look
        try:
            ended, errors = self._host(late).finish(due)
        except (NetspaceError, OSError) as err:
            ended, errors = {}, dict.fromkeys(due, str(err))
        for place, why in ended.items():
            if place not in errors:
                self._say(f"{place}: ended: {why}")
        for place, error in errors.items():
            self._say(f"{place}: can't be ended: {error}; tried again")
            next_look = min(next_look, record.now() + AGAIN)
            self._over_already |= self._runs(place)
        return next_look

    def _say(self, text: str) -> None:
        sys.stderr.write(f"netspace keeper: {text}\n")
        sys.stderr.flush()

    def answer(self, request: bytes) -> bytes:
        """Return the encoded answer to an encoded request.

        :raises ValueError: the request isn't one that a peer makes.
        """
        return self._answered(msgspec.json.decode(request, type=Ask))

    def _answered(self, asked: Ask) -> bytes:
        try:
            arguments = msgspec.json.decode(asked.arguments, type=_MODULES[asked.verb].Arguments)
            return _encoded(Told(asked.id, msgspec.Raw(msgspec.json.encode(self._do(asked, arguments)))))
        except Refused as err:
            return _encoded(Told(asked.id, _NONE, err.code, str(err)))
        except (msgspec.MsgspecError, RecursionError) as err:
            return _encoded(Told(asked.id, _NONE, "arguments-invalid", str(err)[:200]))
        except NetspaceError as err:
            self._say(f"{asked.asker}: {asked.verb}: {err}")  # it may name paths of the host
            return _encoded(Told(asked.id, _NONE, "not-available", "the host can't do that now; its log says why"))
        except Exception as err:  # a fault costs an answer, not the process
            self._say(f"{asked.asker}: {asked.verb}: {type(err).__name__}: {err}")
            return _encoded(Told(asked.id, _NONE, "failed", "the host couldn't answer; its log says why"))

    def _do(self, asked: Ask, arguments: msgspec.Struct) -> msgspec.Struct:
        late = time.monotonic() + PATIENCE  # for all waits of this request together
        host = self._host(late)
        known = self._permitted(host, asked)
        if asked.verb in peer.KEYED:
            run_that_asked(self.layout, asked.asker, asked.at)  # after the record: an earlier run had another image
            return self._by_key(asked.asker, known.image.digest, arguments)
        if isinstance(arguments, delegate.Arguments):
            limits = Limits(arguments.rate, arguments.size, arguments.until)
            made = host.delegate(asked.asker, arguments.link, arguments.to, limits, asked.at)
            self._say(f"{made.name}: delegated by {made.holder}")
            return _right((arguments.link, arguments.to), made)
        if isinstance(arguments, revoke.Arguments):
            begun = self._begun.pop(asked.id, None)
            host.end_revocation(begun or host.begin_revocation(asked.asker, arguments.link, arguments.to))
            return revoke.Answer(arguments.link, arguments.to)
        if asked.verb == "delegations":
            return delegations.Answer(tuple(_right(*one) for one in sorted(host.delegated(asked.asker).items())))
        if not isinstance(arguments, children.Arguments):
            self.settle(late)  # a place may have become free meanwhile
        if isinstance(arguments, spawn.Arguments):
            place, child = host.spawn(asked.asker, arguments.template, arguments.name, arguments.values, asked.at)
            return spawn.Answer(child.name, place, child.until)
        if isinstance(arguments, end.Arguments):
            host.end(asked.asker, arguments.name)
            return end.Answer(arguments.name)
        rows = [
            children.Child(child.name, place, child.template, child.until)
            for place, child in host.children(asked.asker).items()
        ]
        return children.Answer(tuple(sorted(rows, key=lambda row: row.name)))

    def _by_key(self, asker: str, image: str, arguments: msgspec.Struct) -> msgspec.Struct:
        """Return the answer to a request that needs a key. A TPM may be in use: meanwhile delegations end as usual.

        :raises NetspaceError: the key can't be used, or not in time.
        """
        from netspace.host import program_keys

        if self._using is not None and not self._using.end(0):
            raise NetspaceError("the holder of the keys has not answered an earlier request yet")
        task = self._using = BackgroundTask(lambda: program_keys.answer(self.layout, asker, image, arguments))
        task.begin(daemon=True)
        severed, until = set[str](), time.monotonic() + PATIENCE
        while not task.end(GLANCE):  # a token may never answer, and children end meanwhile, too
            if self.over or time.monotonic() > until:
                raise NetspaceError("the holder of the keys doesn't answer")
            self._attend(severed)
        return task.result()

    def _permitted(self, host: Host, asked: Ask) -> Record:
        """Return the record of the asking environment.

        :raises Refused: its declaration doesn't permit the verb.
        """
        known = host.environments.recorded([asked.asker]).get(asked.asker)
        if known is None or asked.verb not in known.spec.host:
            raise Refused(
                "verb-not-permitted", f"{asked.asker}: the key host of its declaration doesn't list {asked.verb}"
            )
        return known

    def _host(self, late: float | None = None) -> Host:
        from netspace.host.host import Host

        host = Host(self.layout)
        until = time.monotonic() + PATIENCE if late is None else late
        severed, again, before = set[str](), 0.0, time.monotonic()

        def give_up() -> bool:
            nonlocal again, before
            self._waited += min(5 * GLANCE, time.monotonic() - before)  # not its work in between
            before = time.monotonic()
            if time.monotonic() > again:
                self._attend(severed)
                again = time.monotonic() + GLANCE
            return self.over or time.monotonic() > until

        host.give_up = give_up
        return host

    def _runs(self, place: str) -> set[Run]:
        """Return the runs of programs with which the child at a place ends."""
        child = record.read(self.layout, place)
        if child is None:
            return set()
        return {child.within} | ({child.begun} if child.begun is not None else set())

    def _watch(self) -> bool:
        """Keep a pidfd (pidfd_open(2)) for each program with which a child ends; return whether all of them still run.

        If a process ended before its pidfd was opened, another process may have its number.
        """
        runs = {run for place in record.places(self.layout) for run in self._runs(place)}
        for name in delegation_records.names(self.layout):
            one = delegation_records.read(self.layout, name)
            runs |= set() if one is None else one.runs
        for run in self._watched.keys() - runs:
            os.close(self._watched.pop(run))
        lasts = True
        for run in runs - self._watched.keys() - self._over_already:
            with contextlib.suppress(OSError):  # settle() looks again, at the latest after TICK
                self._watched[run] = os.pidfd_open(run.pid)
            lasts = run.lasts() and lasts
        return lasts


def _least(ask: Ask) -> float:
    """Return the time budget that an environment must have left for a request. A revocation may exceed the budget."""
    return -BURST if ask.verb == "revoke" else 0.0


def _right(called: tuple[str, str], one: Delegation) -> delegate.Answer:
    """Return the answer about a delegation. Link and peer are *called* so by its holder."""
    return delegate.Answer(*called, one.to, one.rate, one.size, one.until)


def _encoded(told: Told) -> bytes:
    return msgspec.json.encode(told)


def main(layout: Layout) -> int:
    """Run the keeper of children until SIGTERM or SIGINT; return an exit code."""
    import netspace.host.host  # so that the first spawn needn't wait for it

    assert netspace.host.host
    os.umask(0o077)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65536)), hard))
    Keeper(layout, host_peer.ids(layout)).run()
    return 0
