"""Response times reveal nothing to an environment about the names of other environments' objects.

The attacker sends requests for several names in turn, in random order. Of each pair of answers, it assumes that the
slower one is for the existing name. If times reveal nothing, this is right in half of the pairs; other load on the
machine affects all names alike. By chance, it is right more than 168 times of 256, or less than 88 times, only once in
two million tests.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import statistics
import time
from collections.abc import Callable, Iterator, Mapping

import pytest
from pika.exceptions import ChannelClosedByBroker
from support.links.link_world import World
from support.sampling import todays

from netspace.spec.types import Link

pytestmark = pytest.mark.root

TIMES = 256
MOST = 168
ASK = Link(source="web", target="orders", pattern="request")
OTHERS = Link(source="orders", target="audit", pattern="request")


@pytest.fixture(scope="module")
def host(standing) -> World:
    standing.environment("web", "orders", "audit")
    standing.apply(ASK, OTHERS)
    return standing


# -- what an attacker can ask ------------------------------------------------------------
# By the name of another's queue or exchange; ``n`` gives whole names of his own.
QUEUES: dict[str, Callable] = {
    "is there a queue": lambda channel, n, name: channel.queue_declare(name, passive=True),
    "declare a queue": lambda channel, n, name: channel.queue_declare(name, durable=True),
    "get": lambda channel, n, name: channel.basic_get(name),
    "consume": lambda channel, n, name: channel.basic_consume(name, print),
    "purge": lambda channel, n, name: channel.queue_purge(name),
    "delete a queue": lambda channel, n, name: channel.queue_delete(name),
    "bind a queue": lambda channel, n, name: channel.queue_bind(name, n("reply.orders"), "key"),
    "unbind a queue": lambda channel, n, name: channel.queue_unbind(name, n("reply.orders"), "key"),
    "send to a queue": lambda channel, n, name: send(channel, "", name),
}
EXCHANGES: dict[str, Callable] = {
    "is there an exchange": lambda channel, n, name: channel.exchange_declare(name, passive=True),
    "declare an exchange": lambda channel, n, name: channel.exchange_declare(name, "fanout", durable=True),
    "send": lambda channel, n, name: send(channel, name, ""),
    "bind to an exchange": lambda channel, n, name: channel.queue_bind(n("replies.web"), name, "key"),
    "bind an exchange": lambda channel, n, name: channel.exchange_bind(name, n("reply.orders"), "key"),
    "delete an exchange": lambda channel, n, name: channel.exchange_delete(name),
}
# These need no right, and say the truth: whoever had a whole name would be told.
TRUTHFUL = {"is there a queue", "is there an exchange"}
ALL = QUEUES | EXCHANGES


def send(channel, exchange: str, key: str) -> None:
    channel.basic_publish(exchange, key, b"x")
    channel.basic_qos(prefetch_count=1)  # sending itself waits for no answer


class Attacker:
    """A connection of web, with time measurements."""

    def __init__(self, connection, n: Callable[[str], str]) -> None:
        self.connection, self.n = connection, n

    def ask(self, what: str, name: str) -> tuple[str, float]:
        """Send a request on a new channel; return the broker's refusal, and the seconds until the refusal came."""
        channel = self.connection.channel()
        begun = time.perf_counter()
        try:
            ALL[what](channel, self.n, name)
        except ChannelClosedByBroker as err:
            taken = time.perf_counter() - begun
            return f"{err.reply_code} {err.reply_text}".replace(name, "what was asked for"), taken
        raise AssertionError(f"{what} {name}: that was not refused")

    def slower(self, what: str, kinds: Mapping[str, Callable[[], str]]) -> dict[str, int]:
        """Count how often each kind of name took longer than a nonexistent name; all answers must be equal."""
        dice = random.Random(1)
        found = dict.fromkeys(kinds, 0)
        for _ in range(TIMES):
            answers = {kind: self.ask(what, kinds[kind]()) for kind in dice.sample(sorted(kinds), len(kinds))}
            assert len({answer for answer, _ in answers.values()}) == 1, answers
            for kind, (_, taken) in answers.items():
                found[kind] += taken > answers["nobody's"][1]
        del found["nobody's"]
        return found


@pytest.fixture
def attacker(host) -> Iterator[Attacker]:
    with contextlib.closing(host.connect("web")) as connection:
        yield Attacker(connection, host.n)


def tagged(plain: str) -> str:
    """Return a name of the broker's form, with a tag that the attacker invented."""
    return f"{plain}.{secrets.token_hex(16)}"


@pytest.mark.parametrize("what", todays(sorted(ALL), 3))
def test_times_do_not_tell_what_there_is(host, attacker, record_property, what):
    """Requests for an existing name with a wrong tag take as long as for a nonexistent name.

    The attacker can't guess the tag. If the request needs a permission, the test also tries the existing name with its
    right tag.
    """
    known, nobody = ("mailbox.audit", "mailbox.nobod") if what in QUEUES else ("reply.audit", "reply.nobod")
    kinds = {"guessed": lambda: tagged(known), "nobody's": lambda: tagged(nobody)}
    if what not in TRUTHFUL:
        kinds["whole"] = lambda: host.n(known)
    found = attacker.slower(what, kinds)
    record_property(f"of {TIMES} slower than nobody's", str(found))
    assert all(TIMES - MOST <= slower <= MOST for slower in found.values()), found


def test_an_answer_that_took_twice_as_long_would_tell(host, attacker, monkeypatch):
    """A check of the measurement: an answer that takes twice as long is detected, under the machine's present load."""
    kinds = {"guessed": lambda: tagged("mailbox.audit"), "nobody's": lambda: tagged("mailbox.nobod")}

    def would_tell() -> bool:
        usual = statistics.median(attacker.ask("get", tagged("mailbox.audit"))[1] for _ in range(50))

        def late(channel, n, name):
            if "audit" in name:
                time.sleep(usual)
            channel.basic_get(name)

        monkeypatch.setitem(ALL, "get late", late)
        return attacker.slower("get late", kinds)["guessed"] > MOST

    assert any(would_tell() for _ in range(4))
