"""Replicas of an environment: each message goes to one that works. The mailbox's send is replaced by a stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from netspace_client import Mailbox, MailboxFull, NotDeclared, Refused, Replicas, Revoked, Timeout, Unreachable
from netspace_client import replicas as module
from netspace_client.errors import LinkError
from netspace_client.mailbox import Link
from netspace_client.monitor import Monitor


class Peers(Mailbox):
    """A mailbox with links to two replicas of orders on other hosts, and to other peers; the test sets errors."""

    def __init__(self, folder: Path, *more: str) -> None:
        super().__init__(folder)
        self.peers = ["orders@h2", "orders@h1", "orders2@h1", "audit", *more]
        self.errors: dict[str, LinkError] = {}
        self.tried: list[tuple[str, float]] = []
        self.ids: list[str | None] = []
        self.monitors: dict[str, Monitor] = {}

    def links(self) -> list[Link]:
        return [*(Link("to", peer, "request") for peer in self.peers), Link("from", "orders@h9", "send")]

    async def send(self, link: str, body: bytes | str, *, timeout: float = 60.0, id: str | None = None,
                   content_type: str | None = None, urgent: bool = False) -> str:  # fmt: skip
        self.tried.append((link, timeout))
        self.ids.append(id)
        if link in self.errors:
            raise self.errors[link]
        return id or ""

    async def call(self, link: str, body: bytes | str, timeout: float = 60.0, *,
                   content_type: str | None = None, urgent: bool = False) -> Any:  # fmt: skip
        await self.send(link, body, timeout=timeout)
        return link

    def monitor(self, peer: str) -> Monitor:
        if peer == "orders@h3":
            raise NotDeclared("it lacks monitor: true")
        return self.monitors.setdefault(peer, Monitor(peer))

    def names(self) -> list[str]:
        """Return the replicas that were tried, and forget them."""
        found = [peer for peer, _ in self.tried]
        self.tried.clear()
        return found


def run(folder: Path, work: Callable[[Peers, Replicas], Awaitable[None]], *more: str, pause: float = 3600.0) -> None:
    async def main() -> None:
        peers = Peers(folder, *more)
        await work(peers, Replicas(peers, "orders", pause=pause))

    asyncio.run(main())


def test_it_stays_with_the_replica_that_worked(tmp_path: Path) -> None:
    async def work(peers: Peers, orders: Replicas) -> None:
        assert orders.names() == ["orders", "orders@h1", "orders@h2"], "the own host's comes first"
        peers.errors["orders"] = peers.errors["orders@h1"] = MailboxFull("full")
        assert await orders.call("tea?") == "orders@h2"
        assert peers.names() == ["orders", "orders@h1", "orders@h2"]
        peers.errors.clear()
        assert await orders.call("tea?") == "orders@h2" and peers.names() == ["orders@h2"]

    run(tmp_path, work, "orders")


def test_a_replica_that_failed_is_tried_after_a_pause(tmp_path: Path) -> None:
    async def work(peers: Peers, orders: Replicas) -> None:
        peers.errors["orders@h1"] = Revoked("revoked")
        await orders.send("tea")
        peers.errors = {"orders@h2": Revoked("revoked")}
        await asyncio.sleep(0.02)
        await orders.send("tea")
        assert peers.names() == ["orders@h1", "orders@h2", "orders@h2", "orders@h1"]

    run(tmp_path, work, pause=0.01)


@pytest.mark.parametrize("error", [Timeout("late"), Unreachable("away")])
def test_what_may_have_arrived_is_repeated_on_demand(tmp_path: Path, error: LinkError) -> None:
    async def work(peers: Peers, orders: Replicas) -> None:
        peers.errors["orders@h1"] = error
        with pytest.raises(type(error)):
            await orders.send("tea", timeout=10)
        assert peers.tried == [("orders@h1", pytest.approx(10, abs=5))]
        assert peers.names() and await orders.send("tea") and peers.names() == ["orders@h2"], "the next one goes on"
        peers.errors = {"orders@h2": error}
        peers.ids.clear()
        await orders.send("tea", timeout=1000, repeat=True)
        (first, seconds), (second, _) = peers.tried
        assert (first, second) == ("orders@h2", "orders@h1") and 450 < seconds <= 500, "each has its share of the time"
        assert len(set(peers.ids)) == 1 and peers.ids[0]

    run(tmp_path, work)


@pytest.mark.parametrize("repeat", [True, False])
def test_a_replica_without_time_left_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repeat: bool
) -> None:
    """The first replica uses up the whole timeout; the other replicas weren't tried, and keep their rank."""
    now = [0.0]
    monkeypatch.setattr(module, "_now", lambda: now[0])

    async def work(peers: Peers, orders: Replicas) -> None:
        send = peers.send

        async def slow(link: str, body: bytes | str, *, timeout: float = 60.0, **more: Any) -> str:
            now[0] += 10
            return await send(link, body, timeout=timeout, **more)

        monkeypatch.setattr(peers, "send", slow)
        peers.errors = dict.fromkeys(("orders@h1", "orders@h2"), MailboxFull("full"))
        with pytest.raises(MailboxFull):
            await orders.send("tea", timeout=10, repeat=repeat)
        assert peers.names() == ["orders@h1"] and orders.names() == ["orders@h2", "orders@h1"]
        with pytest.raises(MailboxFull):
            await orders.send("tea", timeout=0)
        assert peers.names() == ["orders@h2"], "one is tried however short the time is"

    run(tmp_path, work)


def test_a_message_that_no_replica_would_take_is_not_passed_on(tmp_path: Path) -> None:
    async def work(peers: Peers, orders: Replicas) -> None:
        peers.errors["orders@h1"] = Refused("too large")
        with pytest.raises(Refused):
            await orders.send("tea", repeat=True)
        assert peers.names() == ["orders@h1"] == orders.names()[:1], "it is as good as before"

    run(tmp_path, work)


def test_if_all_have_failed_all_are_tried_again(tmp_path: Path) -> None:
    async def work(peers: Peers, orders: Replicas) -> None:
        peers.errors = {"orders@h1": MailboxFull("full"), "orders@h2": Revoked("revoked")}
        with pytest.raises(Revoked):
            await orders.send("tea")
        with pytest.raises(Revoked):
            await orders.send("tea")
        assert peers.names() == ["orders@h1", "orders@h2"] * 2
        peers.peers = ["audit"]
        with pytest.raises(NotDeclared, match="reach: each"):
            await orders.send("tea")

    run(tmp_path, work)


def test_a_replica_whose_program_does_not_read_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK", 0.01)

    async def seen(wanted: list[str], orders: Replicas) -> None:
        for _ in range(3000):
            if orders.names() == wanted:
                return
            await asyncio.sleep(0.01)
        assert orders.names() == wanted

    async def work(peers: Peers, orders: Replicas) -> None:
        watching = asyncio.create_task(orders.watch())
        while "orders@h1" not in peers.monitors:
            await asyncio.sleep(0.01)
        peers.monitors["orders@h1"].told(False, "c", float("inf"))
        await seen(["orders@h2", "orders@h3", "orders@h1"], orders)
        await orders.send("tea")
        assert peers.names() == ["orders@h2"]
        peers.monitors["orders@h1"].told(True, "c", float("inf"))
        peers.monitors["orders@h2"].revoked()
        await seen(["orders@h1", "orders@h3", "orders@h2"], orders)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        assert watching.cancelled() and len(asyncio.all_tasks()) == 1

    run(tmp_path, work, "orders@h3")
