"""Requests of a program to its host by ``mailbox.host``, without a broker."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace_client import (
    CardError,
    Child,
    Delegation,
    HostRefused,
    LinkError,
    NotDeclared,
    Offer,
    Sealed,
    Self,
    Signature,
    Trust,
    card,
    host_peer,
)
from netspace_client import Mailbox as RealMailbox
from netspace_client.host_peer import HostPeer

HOST = {
    "to": "host",
    "pattern": "request",
    "exchange": "x",
    "replies": {"queue": "q", "exchange": "r"},
    "verbs": ["whoami"],
    "content_type": host_peer.CONTENT_TYPE,
    "size": 65536,
}
EMPTY = {"version": 2, "name": "web", "peers": [], "senders": []}
BROKER = {"host": "127.0.0.1", "port": 5671, "vhost": "v"}
ANSWER = {
    "name": "web",
    "image": "sha256:1",
    "configuration": "sha256:2",
    "started": 7,
    "host": None,
    "trust": {"level": "L3", "verifier": "master", "told_by": "host"},
}


class Mailbox:
    """A stand-in for a mailbox: its card, and the answer to the next call."""

    def __init__(self, said: object, *peers: dict[str, object]) -> None:
        self.card = card.parse({"version": 2, "name": "web", "peers": list(peers), "senders": [], "broker": BROKER})
        self.said = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.calls: list[tuple[str, dict[str, object], str | None]] = []

    async def call(self, link: str, body: str, timeout: float, *, content_type: str | None = None) -> SimpleNamespace:
        self.calls.append((link, json.loads(body), content_type))
        return SimpleNamespace(body=self.said)


def whoami(said: object, *peers: dict[str, object]) -> Self:
    return asyncio.run(HostPeer(Mailbox(said, *(peers or (HOST,)))).whoami())  # type: ignore[arg-type]


def test_whoami_asks_the_peer_host_and_reads_its_answer() -> None:
    mailbox = Mailbox({"v": 1, "verb": "whoami", "answer": {**ANSWER, "new": 1}}, HOST)
    host = HostPeer(mailbox)  # type: ignore[arg-type]
    assert host.verbs == ("whoami",)
    found = asyncio.run(host.whoami())
    assert found == Self("web", "sha256:1", "sha256:2", 7.0, None, Trust("L3", "master", "host"))
    assert mailbox.calls == [("host", {"v": 1, "verb": "whoami", "arguments": {}}, host_peer.CONTENT_TYPE)]


def test_host_that_may_not_be_asked_is_told_without_a_message() -> None:
    mailbox = Mailbox({}, {"to": "orders", "pattern": "send", "exchange": "x"})
    host = HostPeer(mailbox)  # type: ignore[arg-type]
    assert host.verbs == ()
    with pytest.raises(
        NotDeclared, match="web may not send whoami to its host; list it under host: in its declaration"
    ):
        asyncio.run(host.whoami())
    assert not mailbox.calls


def test_refusal_has_its_code() -> None:
    with pytest.raises(HostRefused) as refused:
        whoami({"v": 1, "error": {"code": "verb-not-permitted", "text": "no"}})
    assert (refused.value.code, refused.value.unknown) == ("verb-not-permitted", False)


@pytest.mark.parametrize(
    "said",
    [b"", b"{", b"[" * 100000, [], {"v": 2, "answer": ANSWER}, {"v": 1}, {"v": 1, "answer": []}, {"v": 1, "answer": {}}]
    + [{"v": 1, "answer": {**ANSWER, key: value}} for key, value in (("started", "7"), ("trust", 1), ("name", None))],
)
def test_answer_that_is_none_is_an_error(said: object) -> None:
    with pytest.raises(LinkError, match="the host's answer"):
        whoami(said)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_an_error(body: bytes) -> None:
    with contextlib.suppress(LinkError):
        assert isinstance(host_peer.parse(body), dict)


def test_values_are_those_of_the_card_and_of_the_answer() -> None:
    values = {"greeting": "hello", "more": {"regions": ["north"]}}
    answer = {"v": 1, "verb": "values", "answer": {"values": values}}
    assert asyncio.run(HostPeer(Mailbox(answer, HOST)).values()) == values  # type: ignore[arg-type]
    assert card.parse({"version": 2, "name": "web", "values": values, "peers": [], "senders": []}).values == values
    with pytest.raises(CardError, match="values: expected a mapping"):
        card.parse({"version": 2, "name": "web", "values": [1], "peers": [], "senders": []})


def test_who_returns_the_peers_that_offer_a_service() -> None:
    answer = {"v": 1, "verb": "who", "answer": {"peers": [{"name": "till", "pattern": "request", "up": True}]}}
    mailbox = Mailbox(answer, HOST)
    assert asyncio.run(HostPeer(mailbox).who("shop")) == [Offer("till", "request", True)]  # type: ignore[arg-type]
    assert mailbox.calls[0][1] == {"v": 1, "verb": "who", "arguments": {"service": "shop"}}
    for wrong in ({}, {"peers": [1]}, {"peers": [{"name": 1, "pattern": "send"}]}):
        with pytest.raises(LinkError, match="the host's answer has no"):
            asyncio.run(HostPeer(Mailbox({**answer, "answer": wrong}, HOST)).who("shop"))  # type: ignore[arg-type]


def test_changes_of_values_are_told_one_by_one(tmp_path: Path) -> None:
    place = tmp_path / "environment.json"

    def write(number: int) -> None:
        (tmp_path / "new").write_text(json.dumps({**EMPTY, "values": {"number": number}}))
        (tmp_path / "new").rename(place)

    async def follow() -> list[int]:
        seen = []
        async with RealMailbox(tmp_path) as mailbox:
            async for values in mailbox.value_changes():
                seen.append(values["number"])
                if len(seen) == 3:
                    return seen
                write(len(seen))
        return seen

    write(0)
    assert asyncio.run(asyncio.wait_for(follow(), 60)) == [0, 1, 2]


def test_verbs_of_a_card_are_texts() -> None:
    with pytest.raises(CardError, match="peers:0: verbs: expected texts"):
        whoami({}, {**HOST, "verbs": [1]})


def test_children_are_spawned_listed_and_ended() -> None:
    row = {"name": "w", "environment": "web-worker-1", "template": "worker", "until": 7}
    mailbox = Mailbox({"v": 1, "verb": "spawn", "answer": row}, HOST)
    child = Child("w", "web-worker-1", 7.0)
    assert asyncio.run(HostPeer(mailbox).spawn("worker", "w", {"a": 1})) == child  # type: ignore[arg-type]
    assert mailbox.calls[0][1]["arguments"] == {"template": "worker", "name": "w", "values": {"a": 1}}
    listed = Mailbox({"v": 1, "verb": "children", "answer": {"children": [row]}}, HOST)
    assert asyncio.run(HostPeer(listed).children()) == [child]  # type: ignore[arg-type]
    ended = Mailbox({"v": 1, "verb": "end", "answer": {"name": "w"}}, HOST)
    asyncio.run(HostPeer(ended).end("w"))  # type: ignore[arg-type]
    assert ended.calls[0][1] == {"v": 1, "verb": "end", "arguments": {"name": "w"}}
    for wrong in ({}, {"children": 1}, {"children": [1]}, {"children": [{**row, "until": None}]}):
        with pytest.raises(LinkError, match="the host's answer has no"):
            asyncio.run(HostPeer(Mailbox({"v": 1, "answer": wrong}, HOST)).children())  # type: ignore[arg-type]


def test_rights_are_delegated_listed_and_revoked() -> None:
    row = {"link": "shop", "to": "till", "environment": "till", "rate": 2, "size": None, "until": 7}
    mailbox = Mailbox({"v": 1, "verb": "delegate", "answer": row}, HOST)
    right = Delegation("shop", "till", "till", 2.0, None, 7.0)
    assert asyncio.run(HostPeer(mailbox).delegate("shop", "till", rate=2)) == right  # type: ignore[arg-type]
    assert mailbox.calls[0][1]["arguments"] == {"link": "shop", "to": "till", "rate": 2}
    listed = Mailbox({"v": 1, "verb": "delegations", "answer": {"delegations": [{**row, "size": 9}]}}, HOST)
    found = asyncio.run(HostPeer(listed).delegations())  # type: ignore[arg-type]
    assert [(one.size, one.until) for one in found] == [(9, 7.0)]
    ended = Mailbox({"v": 1, "verb": "revoke", "answer": {"link": "shop", "to": "till"}}, HOST)
    asyncio.run(HostPeer(ended).revoke("shop", "till"))  # type: ignore[arg-type]
    assert ended.calls[0][1] == {"v": 1, "verb": "revoke", "arguments": {"link": "shop", "to": "till"}}
    for wrong in ({}, {"delegations": 1}, {"delegations": [1]}, {"delegations": [{**row, "until": None}]}):
        with pytest.raises(LinkError, match="the host's answer has no"):
            asyncio.run(HostPeer(Mailbox({"v": 1, "answer": wrong}, HOST)).delegations())  # type: ignore[arg-type]


def test_value_is_sealed_and_opened_by_the_host() -> None:
    answer = {"v": 1, "verb": "seal", "answer": {"sealed": "eHl6", "kept_in": "tpm", "boot": True}}
    mailbox = Mailbox(answer, HOST)
    made = asyncio.run(HostPeer(mailbox).seal(b"\xff\x00", image=False, at_least="tpm"))  # type: ignore[arg-type]
    assert made == Sealed("eHl6", "tpm", True)
    given = {"value": "_wA", "image": False, "boot": True, "at_least": "tpm"}
    assert mailbox.calls[0][1] == {"v": 1, "verb": "seal", "arguments": given}
    mailbox = Mailbox({"v": 1, "verb": "unseal", "answer": {"value": "_wA", "kept_in": "tpm", "boot": True}}, HOST)
    assert asyncio.run(HostPeer(mailbox).unseal(made.text)) == b"\xff\x00"  # type: ignore[arg-type]
    assert mailbox.calls[0][1] == {"v": 1, "verb": "unseal", "arguments": {"sealed": "eHl6"}}
    for wrong in ({}, {"value": 1}, {"value": "%"}, {"value": "A"}):
        with pytest.raises(LinkError, match="the host's answer has no"):
            asyncio.run(HostPeer(Mailbox({"v": 1, "answer": wrong}, HOST)).unseal("eHl6"))  # type: ignore[arg-type]


def test_signature_has_its_key_and_its_holder() -> None:
    key = {"crv": "P-256", "kty": "EC", "x": "AA", "y": "AQ"}
    said = {"signature": "_wA", "key": key, "kept_in": "file", "boot": False}
    mailbox = Mailbox({"v": 1, "verb": "sign", "answer": said}, HOST)
    made = asyncio.run(HostPeer(mailbox).sign(b"text", key="k" * 43))  # type: ignore[arg-type]
    assert made == Signature(b"\xff\x00", key, "file", False)
    digest = "mC2ePrmW9VnmM_TRlN7zdh2Qn1o7ZH0ahR_q1nwyydE"
    given = {"digest": digest, "image": True, "boot": True, "at_least": "file", "key": "k" * 43}
    assert mailbox.calls[0][1] == {"v": 1, "verb": "sign", "arguments": given}
    for wrong in ({**said, "key": {}}, {**said, "key": 1}, {**said, "signature": None}, {**said, "kept_in": 1}):
        with pytest.raises(LinkError, match="the host's answer has no"):
            asyncio.run(HostPeer(Mailbox({"v": 1, "answer": wrong}, HOST)).sign(b"text"))  # type: ignore[arg-type]
