"""The process that answers as the host: its work on a request, and its behaviour while the broker is down."""

from __future__ import annotations

import collections
import contextlib
import json
import pickle
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from netspace import files
from netspace.host.peer import process, told
from netspace.host.peer.told import Known, Offering, Reached, Sender, Told, Trust
from netspace.link.broker.consumer import Consumer, Delivery

WEB = Known(("whoami",), "", "", "/nowhere/web")
TOLD = Told(told.VERSION, "h1", Trust(), {"web": WEB})
SENDERS = {"asks.web": Sender("web", "asks.web", "replies.web")}


class Broker(Consumer):
    """A connection that records what the peer does with its messages."""

    def __init__(self) -> None:
        self.waiting = collections.deque()
        self.done: list[tuple[str, str]] = []
        self.bodies: list[bytes] = []

    def _send(self, channel: int, method: tuple[int, int], arguments: bytes) -> None:
        assert method == (60, 80), f"no acknowledgement: {method}"
        self.done.append(("acknowledged", ""))

    def publish(
        self, exchange: str, body: bytes, properties: Mapping[str, bytes], headers: Mapping[str, bytes], key: str = ""
    ) -> str:
        self.done.append(("answered", f"{exchange}/{key}"))
        self.bodies.append(body)
        return ""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> process.Peer:
    monkeypatch.chdir(tmp_path)
    return process.Peer(process.verbs())


def request(exchange: str, reply_to: str) -> Delivery:
    """Return a request without other AMQP properties than *reply_to* (AMQP 0-9-1, section 4.2.6.1)."""
    raw = reply_to.encode()
    body = bytearray(b'{"v": 1, "verb": "whoami"}')
    return Delivery(3, 1, exchange, b"\x02\x00" + bytes([len(raw)]) + raw, body, len(body), len(body))


def test_request_with_an_address_is_answered(asked: process.Peer) -> None:
    broker = Broker()
    asked._answer(broker, request("asks.web", "replies.web/key"), TOLD, SENDERS)
    assert broker.done == [("answered", "replies.web/key"), ("acknowledged", "")]


@pytest.mark.parametrize("address", ["", "replies.web/", "replies.other/key", "replies.web/" + "k" * 201])
def test_request_without_an_address_is_dropped(
    asked: process.Peer, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    broker = Broker()
    asked._answer(broker, request("asks.web", address), TOLD, SENDERS)
    assert broker.done == [("acknowledged", "")]
    assert asked.uses.counts["web"]["no address for the answer"].times == 1
    assert "netspace peer: web: no address for the answer" in capsys.readouterr().err


def who(number: int = 0, **more: str) -> Delivery:
    body = bytearray(json.dumps({"v": 1, "verb": "who", "arguments": {"service": "sales", **more}}).encode())
    found = request("asks.web", f"replies.web/{number}")
    return msgspec.structs.replace(found, body=body, size=len(body), received=len(body))


def state(broker: Broker) -> str:
    """Return the state in the last answer."""
    return str(json.loads(broker.bodies[-1])["answer"]["state"])


def test_answer_waits_for_a_change(asked: process.Peer) -> None:
    own = Known(("who",), "", "", "/nowhere/web", {}, (Reached("till", "shop", "send"),))
    known, broker = Told(told.VERSION, None, Trust(), {"web": own}), Broker()
    offering = {"till": Offering(("sales",), "/nowhere/till")}
    asked._answer(broker, who(), known, SENDERS)
    before, broker.done = state(broker), []
    for number in range(process.HELD):
        asked._answer(broker, who(number, unless=before), known, SENDERS)
    assert broker.done == [("acknowledged", "")] * process.HELD
    asked._answer(broker, who(99, unless=before), known, SENDERS)
    assert broker.done[-2:] == [("answered", "replies.web/99"), ("acknowledged", "")], "one more isn't kept waiting"
    asked._look_again(broker, known, SENDERS)
    assert len(asked.held) == process.HELD
    broker.done = []
    changed = msgspec.structs.replace(known, offering=offering)
    asked._look_again(broker, changed, SENDERS)
    assert broker.done == [("answered", f"replies.web/{number}") for number in range(process.HELD)]
    assert not asked.held and state(broker) != before
    asked._answer(broker, who(unless=before), changed, SENDERS)
    assert broker.done[-2:] == [("answered", "replies.web/0"), ("acknowledged", "")], "it has changed already"


def test_held_requests_take_little_memory(asked: process.Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    own = msgspec.structs.replace(WEB, verbs=("who",))
    senders = {f"asks.{number}": Sender(f"{number}", f"asks.{number}", "replies.web") for number in range(3)}
    known = msgspec.structs.replace(TOLD, environments={one.name: own for one in senders.values()})
    broker, most = Broker(), 2
    monkeypatch.setattr(process, "HELD_ALL", most)
    asked._answer(broker, msgspec.structs.replace(who(), exchange="asks.0"), known, senders)
    before, broker.done = state(broker), []
    for number, exchange in enumerate(senders):
        found = who(number, unless=before)
        padded = bytearray(found.body.replace(b"{", b"{" + b" " * 5000, 2))
        large = {"body": padded, "size": len(padded), "properties": found.properties + bytes(100_000)}
        asked._answer(broker, msgspec.structs.replace(found, exchange=exchange, **large), known, senders)
    answered = [way for what, way in broker.done if what == "answered"]
    assert answered == [f"replies.web/{most}"], "one more of all environments is answered at once"
    assert len(asked.held) == most
    assert all(len(pickle.dumps(one)) < 1000 for one in asked.held)
    for one in asked.held:
        one.until = 0.0
    asked._look_again(broker, known, senders)
    assert [way for _, way in broker.done[-most:]] == ["replies.web/0", "replies.web/1"] and state(broker) == before


def test_held_request_ends_with_its_time_or_right(asked: process.Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    own = msgspec.structs.replace(WEB, verbs=("who",))
    known, broker = msgspec.structs.replace(TOLD, environments={"web": own}), Broker()
    asked._answer(broker, who(), known, SENDERS)
    for number in (1, 2):
        asked._answer(broker, who(number, unless=state(broker)), known, SENDERS)
    broker.done, asked.held[0].until = [], 0.0
    asked._look_again(broker, known, SENDERS)
    assert broker.done == [("answered", "replies.web/1")] and len(asked.held) == 1
    asked._look_again(broker, msgspec.structs.replace(known, environments={}), SENDERS)
    assert len(broker.done) == 1 and not asked.held


def test_request_is_answered_with_what_was_told_before_it(asked: process.Peer, tmp_path: Path) -> None:
    def tell(image: str) -> tuple[Told, told.Card]:
        known = msgspec.structs.replace(TOLD, environments={"web": msgspec.structs.replace(WEB, image=image)})
        card = told.Card((), tuple(SENDERS.values()), told.Broker("", told.Tls("")))
        for name, content in ((told.FILE, known), (told.CARD, card)):
            files.write(tmp_path / name, msgspec.json.encode(content))
        return known, card

    class Started(Broker):
        """A connection with a request of a program that was started while the peer read from the connection."""

        pending, lacking = True, 0

        def follow(self, queues: Collection[str]) -> None:
            assert not queues

        def pump(self) -> None:
            tell("new")
            self.waiting.append(request("asks.web", "replies.web/key"))
            asked.over = True

    tell("old")
    known, card = asked._read()
    broker = Started()
    asked._serve(broker, known, card)
    assert json.loads(broker.bodies[-1])["answer"]["image"] == "new"


def test_request_after_revocation_is_dropped(asked: process.Peer) -> None:
    broker = Broker()
    asked._answer(broker, request("asks.other", "replies.other/key"), TOLD, SENDERS)
    asked._answer(broker, request("asks.web", "replies.web/key"), Told(told.VERSION, None, Trust(), {}), SENDERS)
    assert broker.done == [("acknowledged", "")] * 2


@pytest.mark.parametrize("error", [KeyError("x"), IndexError("x"), struct.error("x")])
def test_senseless_frame_costs_the_connection_alone(
    asked: process.Peer, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def end(also: tuple[Consumer, ...], seconds: float | None) -> None:
        asked.over = True

    def read() -> tuple[Told, told.Card]:
        raise error

    monkeypatch.setattr(asked, "_wait", end)
    monkeypatch.setattr(told, "read", read)
    with signals_kept():
        asked.run()


def test_process_loads_nothing_large_that_it_can_do_without() -> None:
    script = """
import sys
sys.path.insert(0, sys.argv[1])
from netspace.host.peer import process
process.verbs()
print(*sorted(sys.modules.keys() & {"asyncio", "bz2", "cryptography", "joserfc", "random", "shutil", "subprocess"}))
"""
    command = [sys.executable, "-I", "-c", script, str(Path(process.__file__).parents[3])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # Python 3.10's uuid, which msgspec loads, loads it.
    assert done.stdout.split() == (["subprocess"] if sys.version_info < (3, 11) else [])


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """Restore the signal handlers that the peer changes."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    waking = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(waking)
        for number, handler in before.items():
            signal.signal(number, handler)


def test_pause_is_kept_after_a_file_has_changed(
    asked: process.Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float | None] = []

    def wait(also: tuple[Consumer, ...], seconds: float | None) -> None:
        assert asked._watch is not None and not also
        assert select.select([asked._watch.fileno()], (), (), 0)[0] == [], "the pause ends at once"
        pauses.append(seconds)
        (tmp_path / told.FILE).write_text(f"{len(pauses)}")
        asked.over = len(pauses) == 3

    monkeypatch.setattr(asked, "_wait", wait)
    (tmp_path / told.FILE).touch()
    with signals_kept():
        asked.run()
    assert pauses == [process.FIRST_PAUSE, 2 * process.FIRST_PAUSE, 4 * process.FIRST_PAUSE]
