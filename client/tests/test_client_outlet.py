"""Tests of outlets: errors of messages, repeated messages, and connections that are given up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiormq import spec
from aiormq.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

from netspace_client import BatchFailed, LinkError, MailboxFull, Refused, Revoked, Timeout
from netspace_client.batch import LARGEST, Batch
from netspace_client.card import Broker, Peer
from netspace_client.outlet import Outlet, Parcel
from netspace_client.sending import Content, Sending

BROKER = Broker("127.0.0.1", 1, "v")
OLD, NEW = (Peer("orders", "send", exchange, BROKER) for exchange in ("old", "new"))


class Line:
    """A stand-in for a wire. The test decides the answers of its broker."""

    def __init__(self) -> None:
        self.channel: Any = SimpleNamespace(
            closing=asyncio.get_running_loop().create_future(), connection=object(), close=self._hang_up
        )
        self.closed = False
        self.bodies: list[bytes] = []
        self.flushed: list[int] = []
        self.confirmed: Callable[[int, bool, bool], None] = lambda tag, multiple, taken: None
        self.returned: Callable[[str | None], None] = lambda identity: None

    def publish(self, method: bytes, about: spec.Basic.Properties, body: bytes) -> int:
        self.bodies.append(body)
        return len(self.bodies)

    def flush(self) -> None:
        self.flushed.append(len(self.bodies))

    def shut(self) -> None:
        self.closed = True

    async def _hang_up(self) -> None:
        if not self.channel.closing.done():
            self.channel.closing.set_result(None)

    def end(self, error: Exception) -> None:
        self.closed = True
        self.channel.closing.set_exception(error)


class Broke:
    """A stand-in for a session, whose wires the test controls."""

    connected = True

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.left: list[Any] = []

    async def wire(self) -> Line:
        self.lines.append(Line())
        return self.lines[-1]

    async def leave(self, connection: Any) -> None:
        self.left.append(connection)

    async def line(self, number: int, sent: int = 0) -> Line:
        """Return the wire with this number, once *sent* messages were published on it."""
        while len(self.lines) <= number or len(self.lines[number].bodies) < sent:
            await asyncio.sleep(0)
        return self.lines[number]


def outlet_of(session: Any, exchange: str = "x", confirm: float = 60.0) -> Outlet:
    return Outlet(session, exchange, "the link to orders", lambda: None, confirm)


def begun(outlet: Outlet, *bodies: bytes) -> list[Parcel]:
    parcels = [Parcel(body, spec.Basic.Properties(message_id=body.decode())) for body in bodies]
    for parcel in parcels:
        outlet.begin(parcel)
    return parcels


class Ways(Sending):
    """A stand-in for ``Sending``.

    :param outlets: the outlets, by the name of the exchange.
    :param after: the peer as it is after its link was renamed; None if the link isn't renamed.
    """

    def __init__(self, outlets: dict[str, Outlet], after: Peer | None = None) -> None:
        self.outlets = outlets
        self.after = after

    def narrow(self, peer: Peer, content: Content) -> None:
        if content[0] == b"refused":
            raise Refused("so it is")

    def parcel(self, peer: Peer, content: Content, id: str, urgent: bool, **more: str) -> tuple[Outlet, Parcel]:
        return self.outlets[peer.exchange], Parcel(content[0], spec.Basic.Properties(message_id=id))

    def successor(self, peer: Peer) -> Peer | None:
        return None if peer is self.after else self.after


def batch_of(ways: Ways, *, window: int = 1024, timeout: float = 60.0) -> Batch:
    return Batch(lambda: OLD, lambda: None, ways, window=window, timeout=timeout)


def trial(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def test_a_message_alone_is_written_at_once_and_others_together() -> None:
    async def play() -> None:
        broke = Broke()
        outlet = outlet_of(broke)

        def sent(body: bytes) -> asyncio.Task[None]:
            return asyncio.create_task(outlet.publish(Parcel(body, spec.Basic.Properties()), 60))

        first = sent(b"1")
        line = await broke.line(0, 1)
        line.confirmed(1, False, True)
        await first
        line.flushed.clear()
        alone = sent(b"2")
        await asyncio.sleep(0)
        assert line.flushed == [2]
        more = [sent(b"3"), sent(b"4")]
        await broke.line(0, 4)
        assert line.flushed == [2]
        line.confirmed(4, True, True)
        await asyncio.gather(alone, *more)
        await outlet.close()

    trial(play())


# -- whether a message arrived -----------------------------------------------------------------
@pytest.mark.parametrize(("lost", "error"), [(False, MailboxFull), (True, Timeout)])
def test_message_not_taken_may_have_arrived_if_repeated(lost: bool, error: type[LinkError]) -> None:
    async def play() -> None:
        session = Broke()
        sending = asyncio.create_task(outlet_of(session).publish(Parcel(b"1", spec.Basic.Properties()), 60))
        line = await session.line(0, 1)
        if lost:
            line.end(ConnectionError())
            line = await session.line(1, 1)
        line.confirmed(1, False, False)
        with pytest.raises(error) as caught:
            await sending
        assert caught.value.unknown is lost

    trial(play())


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("lost", [False, True])
def test_refused_message_may_have_arrived_if_a_copy_was_lost(lost: bool, together: bool) -> None:
    async def play() -> None:
        session = Broke()
        (parcel, *others) = begun(outlet_of(session), *((b"1", b"2") if together else (b"1",)))
        line = await session.line(0, 1 + together)
        if lost:  # the broker may have taken the first copy, and takes less since
            line.end(ConnectionError())
            line = await session.line(1, 1 + together)
        line.end(ChannelPreconditionFailed("too large"))
        if together:  # which of them it refuses is tried out, and leaves no doubt by itself
            (await session.line(1 + lost, 1)).end(ChannelPreconditionFailed("too large"))
        while not parcel.settled:
            await asyncio.sleep(0)
        assert isinstance(parcel.error, Refused)
        assert parcel.error.unknown is lost
        assert not any(other.settled for other in others)

    trial(play())


@pytest.mark.parametrize("lost", [False, True])
def test_revoked_link_tells_which_messages_may_have_arrived(lost: bool) -> None:
    async def play() -> None:
        session = Broke()
        parcels = begun(outlet_of(session), b"1", b"2", b"3")
        line = await session.line(0, 3)
        if lost:
            line.end(ConnectionError())
            line = await session.line(1, 3)
        line.confirmed(1, False, True)
        line.end(ChannelNotFoundEntity("no exchange"))
        while not parcels[2].settled:
            await asyncio.sleep(0)
        assert parcels[0].error is None
        errors = [parcel.error for parcel in parcels[1:]]
        assert [type(error) for error in errors] == [Revoked, Revoked]
        # The broker has refused the last one, or one before it.
        assert [isinstance(error, LinkError) and error.unknown for error in errors] == [True, lost]

    trial(play())


def test_batch_of_a_renamed_link_names_what_may_come_twice() -> None:
    async def play() -> None:
        old, new = Broke(), Broke()
        batch = batch_of(Ways({"old": outlet_of(old), "new": outlet_of(new)}, NEW))
        with pytest.raises(BatchFailed) as caught:
            async with batch:
                for name in "123":
                    await batch.send(name, id=name)
                (await old.line(0, 3)).end(ChannelNotFoundEntity("no exchange"))
                line = await new.line(0, 3)
                line.confirmed(1, False, True)
                line.confirmed(3, True, False)
        assert batch.repeated == {"1", "2"}
        assert {id: type(error) for id, error in caught.value.failed.items()} == {"2": Timeout, "3": MailboxFull}

    trial(play())


# -- how a batch ends --------------------------------------------------------------------------
def _source(error: Exception | None) -> Iterator[str]:
    yield "1"
    if error is not None:
        raise error


@pytest.mark.parametrize("source", ["refused", "source", "within"])
def test_error_in_a_batch_has_its_failures_as_context(source: str) -> None:
    async def pour(batch: Batch) -> None:
        try:
            async with batch:
                for body in _source(KeyError("the source's own") if source == "source" else None):
                    await batch.send(body, id=body)
                if source == "refused":
                    await batch.send("refused")
                raise KeyError("the block's own") from None
        finally:
            assert batch.unconfirmed == 0

    async def play() -> None:
        session = Broke()
        pouring = asyncio.create_task(pour(batch_of(Ways({"old": outlet_of(session)}))))
        line = await session.line(0, 1)
        line.confirmed(1, False, False)
        with pytest.raises(Refused if source == "refused" else KeyError) as caught:
            await pouring
        failed = caught.value.__context__
        assert isinstance(failed, BatchFailed) and list(failed.failed) == ["1"]
        assert not caught.value.__suppress_context__
        assert failed.__context__ is not caught.value

    trial(play())


@pytest.mark.parametrize("amid", ["block", "end"])
def test_cancelled_batch_sends_nothing_again(amid: str) -> None:
    async def pour(batch: Batch) -> None:
        async with batch:
            await batch.send("1")
            await batch.send("2")
            if amid == "block":
                await asyncio.Event().wait()

    async def play() -> None:
        session = Broke()
        outlet = outlet_of(session)
        batch = batch_of(Ways({"old": outlet}))
        pouring = asyncio.create_task(pour(batch))
        line = await session.line(0, 2)
        await asyncio.sleep(0)
        pouring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pouring
        assert outlet.idle and batch.unconfirmed == 0
        line.end(ConnectionError())
        begun(outlet, b"another")
        assert (await session.line(1, 1)).bodies == [b"another"]

    trial(play())


# -- a message that the broker refuses ---------------------------------------------------------
def test_after_a_refused_message_the_others_go_at_once() -> None:
    async def play() -> None:
        session = Broke()
        parcels = begun(outlet_of(session), b"1", b"2", b"3", b"4", b"5")
        (await session.line(0, 5)).end(ChannelPreconditionFailed("too large"))
        line = await session.line(1, 1)
        assert line.bodies == [b"1"], "one by one, to find the one that is refused"
        line.confirmed(1, False, True)
        assert line.bodies == [b"1", b"2"]
        line.end(ChannelPreconditionFailed("too large"))
        assert (await session.line(2, 3)).bodies == [b"3", b"4", b"5"]
        assert [type(parcel.error) for parcel in parcels if parcel.settled] == [type(None), Refused]

    trial(play())


def test_after_the_last_suspect_all_others_go_at_once() -> None:
    async def play() -> None:
        session = Broke()
        outlet = outlet_of(session)
        parcels = begun(outlet, b"1", b"2")
        line = await session.line(0, 2)
        line.end(ChannelPreconditionFailed("too large"))
        line = await session.line(1, 1)
        begun(outlet, b"3", b"4")
        outlet.forget(parcels[1])  # it was the one that is refused, and is too late by now
        line.confirmed(1, False, True)
        assert line.bodies == [b"1", b"3", b"4"]

    trial(play())


@pytest.mark.parametrize("window", [0, LARGEST + 1])
def test_window_beyond_what_a_receiver_knows_is_refused(window: int) -> None:
    with pytest.raises(ValueError, match=rf"window {window} is out of 1\.\.4096"):
        batch_of(Ways({}), window=window)
    batch_of(Ways({}), window=LARGEST)


# -- a connection without confirmations --------------------------------------------------------
def test_connection_is_kept_while_confirmations_come() -> None:
    async def play() -> None:
        session = Broke()
        outlet = outlet_of(session)
        parcels = begun(outlet, b"1", b"2", b"3")
        line = await session.line(0, 3)
        line.confirmed(1, False, True)
        for parcel in parcels:
            parcel.at -= 1000.0  # they wait for that long
        outlet._overdue()
        await asyncio.sleep(0)
        assert session.left == [] and not line.closed
        outlet._heard -= 1000.0
        outlet._overdue()
        assert (await session.line(1, 2)).bodies == [b"2", b"3"]
        assert session.left == [line.channel.connection] and line.closed
        await outlet.close()

    trial(play())
