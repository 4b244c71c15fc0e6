"""One connection to a broker, reopened whenever it is lost, after a growing pause. Declares nothing.

A port may accept connections while the broker behind it is down, so only a completed handshake counts as connected.
Credentials are read again at each connect, because they may have been renewed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar
from urllib.parse import quote

import aiormq
import pamqp.exceptions
from aiormq import Channel
from aiormq.abc import AbstractConnection

from netspace_client import wire
from netspace_client.card import Broker
from netspace_client.errors import CardError, Closed, NotAdmitted, Unreachable
from netspace_client.wire import Delivery, Receiver, Wire

T = TypeVar("T")

log = logging.getLogger("netspace_client")

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 5.0
HEARTBEAT = 20
PATIENCE = 15.0
"""Seconds to wait for a handshake, and for each answer to a method."""

FAILURES = (
    aiormq.AMQPError,
    aiormq.exceptions.ChannelInvalidStateError,
    pamqp.exceptions.PAMQPException,
    OSError,
    asyncio.TimeoutError,
    RuntimeError,
)
"""Exceptions of an operation on a connection that is ending, besides aiormq's ``CancelledError``.

aiormq raises pamqp's exceptions if a slow broker sends a heartbeat before the answer for which aiormq waits.
"""


async def answer(work: Coroutine[Any, Any, T], seconds: float = PATIENCE) -> T:
    """Await an operation of aiormq, for *seconds* at most, and return its result.

    When a connection ends, aiormq cancels pending operations. This function raises an error instead, so that the
    calling task doesn't appear to be cancelled.

    :raises ConnectionError: the connection ended.
    :raises asyncio.TimeoutError: *seconds* have passed.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        over = task.done()
        task.cancel()
    if not over:
        raise asyncio.TimeoutError
    if task.cancelled():
        raise ConnectionError("the connection was lost")
    return task.result()


async def hang_up(channel: Channel) -> None:
    """Close a channel; ignore failures."""
    with contextlib.suppress(*FAILURES):
        await answer(channel.close(), 5.0)


Place = tuple[str, int, str, str]
"""A broker's address: host, port, vhost and server name. The server name counts: one port leads to several brokers."""


class Session:
    """A connection that is reopened whenever it is lost, until ``close``.

    :param broker: returns the broker's address and log-in; called for each connect.
    """

    def __init__(self, place: Place, broker: Callable[[], Broker]) -> None:
        self.place = place
        self._broker = broker
        self._up = asyncio.Event()
        self._connection: AbstractConnection | None = None
        self._receiver: Receiver | None = None
        self._closed = False
        self._task = asyncio.create_task(self._run())
        self._problem: tuple[type[Unreachable], str] = (Unreachable, "not connected yet")

    async def connection(self) -> AbstractConnection:
        """Wait until there is a connection, and return it."""
        while True:
            await self._up.wait()
            if self._closed:
                raise Closed("this mailbox was closed")
            connection = self._connection
            if connection is not None and not connection.is_closed:
                return connection
            self._up.clear()

    async def channel(self) -> Channel:
        """Wait until there is a connection, and return a new channel with publisher confirms.

        :raises ConnectionError: the connection ended before the channel was open; try again.
        """
        connection = await self.connection()
        try:
            channel = await answer(connection.channel())
        except asyncio.TimeoutError as err:
            await self._drop(connection)
            raise ConnectionError("the broker didn't answer") from err
        except FAILURES as err:
            raise ConnectionError(f"no channel: {err}") from err
        assert isinstance(channel, Channel)
        return channel

    async def wire(self, delivered: Callable[[Delivery], None] | None = None) -> Wire:
        """Wait until there is a connection, and return a :class:`Wire` on a new channel.

        :param delivered: called with each delivery on the channel.
        :raises ConnectionError: the connection ended before the channel was open; try again.
        """
        channel = await self.channel()
        if self._receiver is None or channel.connection is not self._connection:
            raise ConnectionError("the connection was lost")
        return Wire(channel, self._receiver, delivered)

    async def leave(self, connection: AbstractConnection) -> None:
        """Close *connection* if it is the connection in use, so that a new one is opened."""
        if connection is self._connection:
            self._connection = None
            self._up.clear()
            await self._drop(connection)

    @property
    def connected(self) -> bool:
        return self._connection is not None and not self._connection.is_closed

    def unreached(self, what: str, seconds: float) -> Unreachable:
        """Return the error for a caller that waited *seconds* for a connection.

        :param what: the first words of the error, which name the purpose.
        """
        kind, why = self._problem
        return kind(f"{what}: the broker wasn't reached within {seconds:g} s ({why})")

    async def close(self) -> None:
        self._closed = True
        self._up.set()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._receiver is not None:
            self._receiver.flush()
        if self._connection is not None:
            await self._drop(self._connection)

    async def _run(self) -> None:
        pause = FIRST_PAUSE
        clock = asyncio.get_running_loop().time
        while True:
            begun = clock()
            try:
                connection, receiver = await answer(_connect(self._broker()))
            except CardError as err:
                self._say(Unreachable, str(err))
            except FAILURES as err:
                self._say(*_told(err))
            else:
                self._connection, self._receiver = connection, receiver
                self._up.set()
                await asyncio.wait({connection.closing})
                self._up.clear()
                self._say(Unreachable, "the connection was lost")
                if clock() - begun > LONGEST_PAUSE:
                    pause = FIRST_PAUSE
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (only spreads reconnects; no secret)
            pause = min(pause * 2, LONGEST_PAUSE)

    def _say(self, kind: type[Unreachable], problem: str) -> None:
        if (kind, problem) != self._problem:
            log.info("broker: %s; trying again", problem)
        self._problem = (kind, problem)

    @staticmethod
    async def _drop(connection: AbstractConnection) -> None:
        with contextlib.suppress(*FAILURES):
            await answer(connection.close(), 2.0)


async def _connect(broker: Broker) -> tuple[AbstractConnection, Receiver]:
    where = f"{quote(broker.host)}:{broker.port}/{quote(broker.vhost, safe='')}?heartbeat={HEARTBEAT}"
    if broker.certificate is None:
        login = f"{quote(broker.username, safe='')}:{quote(_secret(broker), safe='')}@"
    else:
        login, where = "", f"{where}&auth=external"
    if broker.certificate is None and broker.authority is None:
        return await wire.connect(f"amqp://{login}{where}")
    name = broker.server_name or broker.host
    return await wire.connect(f"amqps://{login}{where}", context=_context(broker), server_hostname=name)


def _context(broker: Broker) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=broker.authority)
        if broker.certificate is not None:
            context.load_cert_chain(broker.certificate, broker.key)
    except OSError as err:  # includes ssl.SSLError
        raise CardError(f"{broker.certificate}, {broker.key}, {broker.authority}: {err}") from err
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _secret(broker: Broker) -> str:
    if broker.password_file is None or not broker.username:
        raise CardError("the broker has neither a password file and a username, nor a certificate")
    try:
        return broker.password_file.read_text().strip()
    except (OSError, ValueError) as err:
        raise CardError(f"{broker.password_file}: {err}") from err


def _told(err: BaseException) -> tuple[type[Unreachable], str]:
    """Return the error's type and text for a failure to connect. The text gives the cause and, if known, the remedy."""
    cause = err.__cause__ or err
    said = f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
    if isinstance(err, aiormq.exceptions.AuthenticationError | aiormq.exceptions.ProbableAuthenticationError):
        return NotAdmitted, f"the broker refuses our log-in; its host has to declare the link and apply: {err}"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return Unreachable, f"the server's certificate isn't that of the broker that the card names: {said}"
    if isinstance(cause, ssl.SSLError) and "alert" in str(cause).lower():
        return NotAdmitted, f"the broker refuses our certificate; its host has to know our authority: {said}"
    if isinstance(cause, ConnectionResetError):
        return Unreachable, f"it is down, its host can't be reached, or its host has no link with ours: {said}"
    return Unreachable, said
