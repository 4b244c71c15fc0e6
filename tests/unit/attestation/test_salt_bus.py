"""Salt's bus: which events are answers, and which minions receive a message. Salt's client is a stand-in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import salt.config
import salt.utils.minions

from netspace.attestation.fleet.bus import SaltBus, Unreachable, hosts
from netspace.attestation.fleet.calls import Reply, Sent


class Events:
    def __init__(self) -> None:
        self.coming: list[dict[str, Any] | None] = []
        self.asked: list[dict[str, Any]] = []
        self.connected = True

    def connect_pub(self, timeout: float) -> bool:
        return self.connected

    def get_event(self, **given: Any) -> dict[str, Any] | None:
        self.asked.append(given)
        return self.coming.pop(0) if self.coming else None


class Client:
    """The parts of ``salt.client.LocalClient`` that the library uses."""

    def __init__(self, **opts: Any) -> None:
        self.opts = opts
        self.error: Exception | None = None
        self.event = Events()
        self.sent: list[tuple[Any, ...]] = []
        self.made: Any = {"jid": "20300101000000000001", "minions": ["web1", "web2"]}

    def run_job(self, tgt: Any, fun: str, *, kwarg: Any, tgt_type: str, timeout: int, listen: bool) -> Any:
        if self.error is not None:
            raise self.error
        self.sent.append((tgt, fun, kwarg, tgt_type, timeout, listen))
        return self.made


JOB = "20300101000000000001"


def event(minion: str = "web1", job: str = JOB, kind: str = "ret", **data: Any) -> dict[str, Any]:
    return {"tag": f"salt/job/{job}/{kind}/{minion}", "data": {"id": minion, "return": 1, "retcode": 0, **data}}


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def bus(client: Client) -> SaltBus:
    made = SaltBus(client, "netspace_attestation", 60, OSError)
    assert made.send(["web1", "web2"], "answer", {"challenges": {}}) == Sent(JOB)
    return made


def test_a_message_goes_to_those_who_are_named(client: Client, bus: SaltBus) -> None:
    """A message goes to exactly the named minion, even if its id looks like a pattern."""
    assert client.sent == [(["web1", "web2"], "netspace_attestation.answer", {"challenges": {}}, "list", 60, False)]


def test_whose_key_is_not_accepted_is_told_at_once(client: Client, bus: SaltBus) -> None:
    assert bus.send(["web1", "gone"], "answer", {}) == Sent(JOB, frozenset({"gone"}))
    client.made = {}  # that is what Salt says where none of them has one
    assert bus.send(["gone"], "answer", {}) == Sent("", frozenset({"gone"}))


def test_below_a_master_of_masters_all_may_answer(client: Client, bus: SaltBus) -> None:
    client.opts["order_masters"] = True
    assert bus.send(["web1", "below"], "answer", {}) == Sent(JOB)


def test_answers_come_in_the_order_of_events(client: Client, bus: SaltBus) -> None:
    client.event.coming = [event("web2", **{"return": {"boot": "b"}}), event("web1")]
    assert bus.receive(1) == Reply(JOB, "web2", {"boot": "b"})
    assert bus.receive(1) == Reply(JOB, "web1", 1)
    assert bus.receive(0) is None
    assert all(given["wait"] > 0 for given in client.event.asked), "0 is for ever"


@pytest.mark.parametrize(
    "other",
    [
        event(job="20300101000000000002"),
        event(kind="new"),
        event(id="web2"),
        {"tag": f"salt/job/{JOB}/ret/web1", "data": {"id": "web1"}},
        {"tag": f"salt/job/{JOB}/ret/web1", "data": "noise"},
        {"tag": f"salt/job/{JOB}/ret/web1"},
        {"tag": f"salt/job/{JOB}", "data": {"minions": ["web1"]}},
        {"tag": "salt/job/", "data": {"return": 1}},
    ],
)
def test_an_event_that_is_no_answer_is_passed_over(client: Client, bus: SaltBus, other: dict[str, Any]) -> None:
    client.event.coming = [other, event("web2")]
    assert bus.receive(1) == Reply(JOB, "web2", 1)


def test_a_minions_error_is_shortened_and_moves_no_cursor(client: Client, bus: SaltBus) -> None:
    client.event.coming = [event(retcode=1, **{"return": "\x1b[2J" + "x" * 5000}), event(retcode=1, **{"return": ""})]
    reply = bus.receive(1)
    assert reply is not None and len(reply.problem) == 1000 and reply.value is None
    assert reply.problem.startswith("\N{REPLACEMENT CHARACTER}[2J")
    reply = bus.receive(1)
    assert reply is not None and reply.problem


def test_an_interrupt_ends_the_wait(client: Client, bus: SaltBus) -> None:
    client.event.coming = [{"tag": "salt/event/exit", "data": {}}]
    with pytest.raises(KeyboardInterrupt):
        bus.receive(1)


def test_a_master_that_is_down_is_an_error(client: Client, bus: SaltBus) -> None:
    client.error = OSError("timed out")
    with pytest.raises(Unreachable, match="can't be reached: timed out"):
        bus.send(["web1"], "answer", {})
    client.event.connected = False
    with pytest.raises(Unreachable, match="event bus"):
        bus.send(["web1"], "answer", {})


def test_what_a_minion_says_that_it_manages_is_no_host(tmp_path: Path) -> None:
    """Only accepted keys count as hosts, not the resources that a minion claims to manage."""
    opts = salt.config.master_config(None)
    paths = {"root_dir": str(tmp_path), "pki_dir": str(tmp_path / "pki"), "cachedir": str(tmp_path / "cache")}
    opts = {**opts, **paths, "__role": "master", "resource_index_primary_capacity": 1024}
    for name in ("h1", "h2"):
        path = tmp_path / "pki/minions" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("key")
    known = salt.utils.minions.CkMinions(opts)
    if hasattr(salt.utils.minions, "update_resource_index"):  # Salt 3008
        salt.utils.minions.update_resource_index(opts, "h1", {"netspace": ["h1-web", "h3"]})
        assert {"h1-web", "h3"} <= set(known.check_minions("*", "glob")["minions"])
        assert known.check_minions("h1-web,h3", "list")["minions"]
    assert sorted(hosts(known, "*", "glob")) == ["h1", "h2"]
    assert hosts(known, "h1,h1-web,h3", "list") == ["h1"]
    assert hosts(known, "T@netspace:h1-web", "compound") == []
