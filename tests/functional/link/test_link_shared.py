"""Links between hosts over a shared cluster of three real nodes: the promises of ``docs/links.md``."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.links.link_world import World
from support.links.nodes import HOSTS, NODES, Cluster, Network
from support.links.programs import Program, tell
from support.links.streams import Stream
from support.waiting import until

from netspace.spec.types import Link
from netspace_client import LinkError, MailboxFull, Revoked

pytestmark = pytest.mark.root

ASK = Link(source="web@h1", target="orders@h2", pattern="request")
NARROW = Link(source="web@h1", target="audit@h2", length=5000)
LINKS = (ASK, NARROW)
NAMES = {"web": "h1", "orders": "h2", "audit": "h2"}
COUNT = 10_000
# What may come twice whenever a connection is lost: what its sender had in flight, and what its receiver had in hand.
AT_ONCE = 256 + 200


@dataclass
class Fleet:
    cluster: Cluster
    worlds: dict[str, World]
    folder: Path
    programs: list[Program] = field(default_factory=list)

    def declare(self, *links: Link) -> None:
        """Declare these links on all hosts, and give all environments their new cards."""
        for world in self.worlds.values():
            world.declare(*links)
        for name, host in NAMES.items():
            tell(self.worlds[host], name, self.folder / name)

    def program(self, name: str, **options) -> Program:
        self.programs.append(Program(self.worlds[NAMES[name]], name, self.folder / name, **options))
        return self.programs[-1]

    def node(self, name: str, by: str = "n2") -> str:
        """Return the node to which an environment's program is connected, according to the node *by*."""
        found: list[str] = []

        def told() -> bool:
            listed = self.cluster.control(by, "list_connections", "user", "pid")
            found[:] = re.findall(rf"^env\.{name}\t<rabbit@(n\d)\.", listed, re.M)
            return len(found) == 1

        until(told, f"{name} is on one node", pause=0.2)
        return found[0]

    def settled(self) -> bool:
        """Return whether all nodes run, and have all queues."""
        with self.worlds["h1"].here(), self.cluster.api("n2") as api:
            nodes, queues = api.get("nodes") or [], api.get("queues", "fleet") or []
        running = sum(bool(node.get("running")) for node in nodes) == len(NODES)
        return running and all(len(queue.get("online", NODES)) == len(NODES) for queue in queues)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Iterator[Fleet]:
    folder = Path("/run/nodes")
    folder.mkdir(mode=0o755)
    try:
        with Network({**NODES, **HOSTS}, folder) as network, Cluster(network, folder) as cluster:
            worlds = {name: World(f"fleet{name}", name, cluster.broker(name)) for name in HOSTS}
            try:
                for name, host in NAMES.items():
                    worlds[host].environment(name)
                yield Fleet(cluster, worlds, tmp_path_factory.mktemp("cards"))
            finally:
                for world in worlds.values():
                    world.remove()
                    for path in (world.layout.state, world.layout.run, world.layout.logs):
                        shutil.rmtree(path, ignore_errors=True)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def fleet(made) -> Iterator[Fleet]:
    whole(made)
    made.declare(*LINKS)
    whole(made)
    with contextlib.ExitStack() as after:  # of all these, each is done, even if another can't be
        after.callback(purge, made)
        after.callback(whole, made)
        yield made
        after.callback(made.programs.clear)
        for program in made.programs:
            after.callback(program.leave)


def whole(made: Fleet) -> None:
    until(made.settled, "the cluster is whole", patience=300, pause=0.5)


def purge(made: Fleet) -> None:
    with made.worlds["h1"].here(), made.cluster.api() as api:
        for queue in api.get("queues", "fleet", query="columns=name") or []:
            api.delete("queues", "fleet", queue["name"], "contents")


def test_each_host_makes_its_own_and_both_ends_are_told_who_the_other_is(fleet):
    for world in fleet.worlds.values():
        assert not world.plan(*world.local(*LINKS)).steps, "the other's objects are none of its business"
    web, orders = fleet.program("web"), fleet.program("orders")

    async def answer(message):
        return f"{message.sender}: {message.text}"

    serving = orders.start(orders.mailbox.serve(answer))
    assert web.run(web.mailbox.call("orders@h2", "how much?", timeout=30)).text == "web@h1: how much?"
    serving.cancel()
    # The receiver's host takes the right away, and all else goes on.
    fleet.worlds["h2"].declare(NARROW)
    until(lambda: came_of(web, "more") is Revoked)
    web.send("audit@h2", "sold")
    assert not fleet.worlds["h1"].plan(*fleet.worlds["h1"].local(*LINKS)).steps
    fleet.worlds["h2"].declare(*LINKS)
    until(lambda: came_of(web, "again") is None)


def came_of(web: Program, text: str) -> type[LinkError] | None:
    """Send to orders; return the error's class, or None.

    None: sent. The node of web may learn of a change with a delay.
    """
    try:
        web.send("orders@h2", text)
    except LinkError as err:
        return type(err)
    return None


def test_an_environment_without_links_is_cut_off_by_its_own_host(fleet):
    web = fleet.program("web")
    web.send("audit@h2", "sold")
    fleet.worlds["h1"].declare()
    with fleet.worlds["h2"].here(), fleet.cluster.api() as api:
        users = {user["name"] for user in api.get("users")}
        exchanges = {one["name"].rpartition(".")[0] for one in api.get("exchanges", "fleet")}
    assert "env.web" not in users and "env.orders" in users
    assert "link.web.orders" in exchanges, "it is the other host's"
    until(lambda: not any(session.connected for session in web.mailbox._lines.sessions.values()))


def apart(fleet: Fleet) -> tuple[Program, Program, str]:
    """Return a sender and a receiver on different nodes, and the sender's node."""
    web = fleet.program("web", confirm=5.0)
    web.send("orders@h2", "first")
    node = fleet.node("web")
    while True:
        orders = fleet.program("orders")
        assert orders.receive() == "first"
        if fleet.node("orders") != node:
            return web, orders, node
        orders.leave()
        web.send("orders@h2", "first")


def check(fleet: Fleet, stream: Stream) -> None:
    """Check that the receiver got each message once and in order, and dropped few duplicates."""
    assert stream.failed() == []
    assert stream.got() == list(range(COUNT))
    assert stream.receiver.mailbox.duplicates <= 4 * AT_ONCE


def test_a_node_that_is_killed_loses_nothing(fleet):
    web, orders, node = apart(fleet)
    stream = Stream(web, orders, "orders@h2", "web@h1", COUNT)
    stream.until(2000)
    fleet.cluster.kill(node)
    check(fleet, stream)
    fleet.cluster.start(node)
    fleet.cluster.wait(node)


def test_a_cut_of_fifteen_seconds_loses_nothing(fleet):
    web, orders, _ = apart(fleet)
    stream = Stream(web, orders, "orders@h2", "web@h1", COUNT)
    stream.until(2000)
    fleet.cluster.network.cable("h1", plugged=False)
    time.sleep(15)
    fleet.cluster.network.cable("h1", plugged=True)
    check(fleet, stream)


def test_a_sender_on_a_node_without_the_majority_goes_on_by_another(fleet):
    """The sender's node is cut off from the other two: the sender changes to another node, and all messages arrive."""
    web, orders, node = apart(fleet)
    stream = Stream(web, orders, "orders@h2", "web@h1", COUNT)
    stream.until(2000)
    others = sorted(NODES.keys() - {node})
    fleet.cluster.network.part(node, others, parted=True)
    try:
        check(fleet, stream)
        assert fleet.node("web", others[0]) != node
    finally:
        fleet.cluster.network.part(node, others, parted=False)


def test_a_full_mailbox_is_told_and_what_is_sent_again_arrives_once(fleet):
    """The mailbox is full, and refused messages are sent again: each arrives once.

    Their order may change: of two sends at the same time, only the later one may find room.
    """
    web = fleet.program("web")
    full = []

    async def persist(number: int) -> None:
        while True:
            try:
                await web.mailbox.send("audit@h2", str(number), id=f"m{number}", timeout=300)
                return
            except MailboxFull:
                full.append(number)
                await asyncio.sleep(1.0)

    async def pour() -> None:
        await asyncio.gather(*(persist(number) for number in range(COUNT)))

    pouring = web.start(pour())
    until(lambda: full, "the mailbox is full", patience=150)
    audit = fleet.program("audit")
    got: list[int] = []

    async def collect() -> None:
        async for message in audit.mailbox.messages("web@h1"):
            async with message:
                got.append(int(message.text))

    collecting = audit.start(collect())
    pouring.result(300)
    until(lambda: len(got) >= COUNT, f"{len(got)} of {COUNT}", patience=150)
    collecting.cancel()
    assert sorted(got) == list(range(COUNT))
