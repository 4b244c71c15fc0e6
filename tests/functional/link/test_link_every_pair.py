"""Messages and answers between every pair of many environments: exactly those pass that ``reach.answer`` predicts.

There are 8 environments, and every fourth day 30, which have 870 pairs. ``NETSPACE_WORLD`` is another number of them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from collections.abc import Callable

import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker
from support.links.link_world import World
from support.sampling import todays
from support.waiting import until

from netspace.link import record
from netspace.link.mail import counts
from netspace.spec import reach
from netspace.spec.types import Link

pytestmark = pytest.mark.root

MANY = int(os.environ.get("NETSPACE_WORLD") or max(todays([8, 8, 30, 8], 4)))
LINKS, SEED = 2 * MANY, 17


class Ends:
    """One connection for each environment, with one channel.

    If the broker closes a channel because of a refusal, a new channel is opened.
    """

    def __init__(self, world: World, names: list[str], after: contextlib.ExitStack) -> None:
        self.without = {name for name in names if "broker" not in world.card(name)}
        assert not any(world.listens(name) for name in self.without)
        self._connections = {name: world.connect(name) for name in names if name not in self.without}
        for one in self._connections.values():
            after.callback(one.close)
        self._channels = {name: self._channel(name) for name in self._connections}

    def may(self, name: str, work: Callable[[BlockingChannel], object]) -> bool:
        """Return whether the broker permits *work* to the environment *name*."""
        if name in self.without:
            return False
        try:
            work(self._channels[name])
        except ChannelClosedByBroker as err:
            assert err.reply_code in (403, 404), err
            self._channels[name] = self._channel(name)
            return False
        return True

    def _channel(self, name: str) -> BlockingChannel:
        channel = self._connections[name].channel()
        channel.confirm_delivery()
        return channel


def refused(world: World) -> dict[str, float]:
    """Return the metric of refused requests, by environment."""
    known = record.read(world.layout)
    (family,) = [
        one
        for one in counts.families(world.layout, known, world.supervisor.observe())
        if one.name == "netspace_link_refused"
    ]
    return {by.split('"')[1]: count for by, count in family.samples}


def test_every_pair_is_answered_as_messages_pass(world: World) -> None:
    names = [f"e{number}" for number in range(MANY)]
    chosen = random.Random(SEED)
    linked = chosen.sample(list(itertools.permutations(names, 2)), LINKS)
    links = [
        Link(source=source, target=target, pattern=chosen.choice(("send", "request"))) for source, target in linked
    ]
    world.environment(*names)
    world.apply(*links)
    applied = reach.World(frozenset(names), links=tuple(record.read(world.layout).links.values()))
    told: dict[tuple[str, str], tuple[bool, bool]] = {}
    found: dict[tuple[str, str], tuple[bool, bool]] = {}
    with contextlib.ExitStack() as after:
        ends = Ends(world, names, after)
        for source, target in itertools.permutations(names, 2):
            edges = reach.answer(applied, source, target).edges
            told[source, target] = any(not one.answers for one in edges), any(one.answers for one in edges)
            link, queue, answers = (
                world.n(text) for text in (f"link.{source}.{target}", f"replies.{target}", f"reply.{source}")
            )
            sends = ends.may(source, lambda channel, to=link: channel.basic_publish(to, "", b"x", mandatory=True))
            replies = ends.may(target, lambda channel, its=queue, of=answers: channel.queue_bind(its, of, "key"))
            if replies:
                replies = ends.may(
                    source, lambda channel, of=answers: channel.basic_publish(of, "key", b"x", mandatory=True)
                )
                ends.may(target, lambda channel, its=queue, of=answers: channel.queue_unbind(its, of, "key"))
            found[source, target] = sends, replies
    assert found == told
    # The guard counts what it refused, and tells the broker of ten accounts in a second.
    asked_in_vain = {source for (source, _), (sends, _) in found.items() if not sends} - ends.without
    until(lambda: asked_in_vain <= {name for name, count in refused(world).items() if count}, "not all are counted")
    assert {(True, False), (False, True), (False, False)} <= set(found.values())
