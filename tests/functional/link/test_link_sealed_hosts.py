"""Sealed links between two hosts, direct and buffered: only the programs read or make messages (docs/seals.md)."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import pytest
from support.links.linked_hosts import certify, exchange
from support.links.programs import tell
from support.waiting import until

from netspace.errors import NetspaceError
from netspace.link.pki import authority
from netspace.link.pki.authority import Issuer
from netspace.link.seal import bundle, endorser
from netspace.spec.types import Link
from netspace_client import SealError, jose

pytestmark = pytest.mark.root

ASK = Link(source="web@h1", target="vault@h2", pattern="request", seal=True)
CARRY = Link(source="web@h1", target="log@h2", seal=True, via="buffered")
ALSO = Link(source="shop@h1", target="vault@h2", seal=True)
LINKS = (ASK, CARRY, ALSO)
ENVIRONMENTS = {"h1": ("web", "shop"), "h2": ("vault", "log")}
SECRET = b"the plan"


@pytest.fixture
def linked(declared):
    h1, h2, _ = declared
    exchange(h1, h2)
    return declared


def again(program) -> None:
    """Give a program its current card and keys again."""
    tell(program.world, program.name, program.folder)


def waiting(world, queue: str) -> list[dict[str, Any]]:
    """Return the messages in a queue, without removing them."""
    body = {"count": 100, "ackmode": "ack_requeue_true", "encoding": "base64"}
    with world.here(), world.api() as api:
        return api.post("queues", world.layout.instance, queue, "get", body=body) or []


def parts(raw: bytes) -> list[bytes]:
    return [raw, *(base64.urlsafe_b64decode(part + b"===") for part in raw.split(b"."))]


def test_a_question_and_its_answer_are_sealed_from_host_to_host(linked, program):
    h1, h2, _ = linked
    web, vault = program(h1, "web"), program(h2, "vault")

    async def work(message):
        return f"{message.sender}, {message.sealed_at is not None}: {message.text}"

    serving = vault.start(vault.mailbox.serve(work))
    answer = web.run(web.mailbox.call("vault@h2", "the plan", 60))
    assert answer.text == "web@h1, True: the plan"
    assert answer.sealed_at is not None
    serving.cancel()
    assert (web.mailbox.refused, vault.mailbox.refused) == (0, 0)


def test_neither_broker_sees_anything_of_what_it_carries(linked, program):
    """The text of sealed messages is not found in the receiver's mailbox, the sender's outbox, or the answers."""
    h1, h2, cable = linked
    web = program(h1, "web")
    asking = web.start(web.mailbox.call("vault@h2", SECRET, 120, content_type="text/secret"))
    mailbox = h2.n("mailbox.vault")
    until(lambda: waiting(h2, mailbox))
    cable.cut()
    web.send("log@h2", SECRET.decode())
    outbox = h1.links.called.outbox(next(link for link in h1.links.recorded() if link.via == "buffered"))
    until(lambda: waiting(h1, outbox))
    letters = [*waiting(h2, mailbox), *waiting(h1, outbox)]
    cable.mend()
    until(lambda: waiting(h2, h2.n("mailbox.log")), patience=60)
    letters += waiting(h2, h2.n("mailbox.log"))
    vault, log = program(h2, "vault"), program(h2, "log")
    seen: list[bytes] = []
    real = web.mailbox._answers.judge

    def watched(session, delivery):
        seen.append(delivery.body)
        real(session, delivery)

    web.mailbox._answers.judge = watched

    async def answer():
        async with await vault.mailbox.receive(timeout=30) as message:
            await message.reply(SECRET)
            return message.body, message.content_type

    assert vault.run(answer()) == (SECRET, "text/secret")
    assert log.receive("web@h1") == SECRET.decode()
    assert asking.result(120).body == SECRET
    assert (len(letters), len(seen)) == (3, 1)
    seen += [base64.b64decode(letter["payload"]) for letter in letters]
    for part in [part for raw in seen for part in parts(raw)]:
        assert SECRET not in part and b"secret" not in part


def test_what_another_environment_of_the_same_host_seals_is_not_taken_for_it(linked, program):
    """A message that ``shop`` sealed arrives as a message of ``web`` on the same host, and is refused."""
    h1, h2, _ = linked
    web, shop, vault = program(h1, "web"), program(h1, "shop"), program(h2, "vault")
    exchanges = {one["to"]: one["exchange"] for one in h1.card("web")["peers"]}
    shop.send("vault@h2", "of the shop")
    assert vault.receive("shop@h1") == "of the shop"

    async def as_web() -> None:
        peer = shop.mailbox.card.peers["vault@h2"]
        raw, about = shop.mailbox._sealing.prepared((b"forged", "x"), peer.seal, peer.name, "message", "1")
        body = {
            "properties": {"message_id": "1", "content_type": about.content_type},
            "routing_key": "",
            "payload": base64.b64encode(raw).decode(),
            "payload_encoding": "base64",
        }
        with h2.here(), h2.api() as api:  # the receiver's broker, as if it were web's
            assert api.post("exchanges", h2.layout.instance, exchanges["vault@h2"], "publish", body=body)["routed"]

    shop.run(as_web())
    until(lambda: vault.mailbox.refused == 1)
    web.send("vault@h2", "genuine")
    assert vault.receive("web@h1") == "genuine"


def test_before_hosts_know_each_other_nothing_is_sent_and_the_operator_is_told(both, program, linked):
    h1, h2, _ = linked
    web = program(h1, "web")
    bundle.keep(h1.layout, ())
    again(web)
    with pytest.raises(SealError, match="exchange_seals"):
        web.send("vault@h2", "x")
    notes = h1.plan(*h1.local(*LINKS)).notes
    assert "h2: nothing is known of its keys for sealed links; exchange keys" in "".join(notes)
    with h1.here():
        assert any("nothing is known of its keys" in problem for problem in h1.links.health()["problems"])
    # The other one knows us already, so that once is enough; and then all is well.
    assert exchange(h1, h2)["h1"] == ["h2"]
    again(web)
    web.send("vault@h2", "y")
    assert not h1.plan(*h1.local(*LINKS)).notes
    assert exchange(h1, h2) == {}


def test_who_is_not_known_there_yet_sends_nothing_that_would_be_refused(linked, program):
    """A sender with a new endorser fails to send until the other host has confirmed that it knows this endorser."""
    h1, h2, _ = linked
    web, vault = program(h1, "web"), program(h2, "vault")
    with h1.here():
        h1.links.renew(distrust=True)
        h1.links.endorse()
    again(web)
    with pytest.raises(SealError, match="exchange_seals"):
        web.send("vault@h2", "too early")
    assert any("hasn't confirmed that it knows" in note for note in h1.plan(*h1.local(*LINKS)).notes)
    h2.links.adopt_seals(h1.links.seal_bundles()[0]["h2"])
    again(web)
    with pytest.raises(SealError, match="exchange_seals"):
        web.send("vault@h2", "still")
    again(vault)
    h1.links.adopt_seals(h2.links.seal_bundles()[0]["h1"])
    again(web)
    web.send("vault@h2", "now")
    assert vault.receive("web@h1") == "now"
    assert vault.mailbox.refused == 0


def stream(web, vault, to: str):
    """Make *web* send numbers to *to*; return the ids of used keys, and a function that ends and checks the stream."""
    got: list[str] = []
    kids: dict[str, set[str]] = {"enc": set(), "sig": set()}
    enough: list[bool] = []

    async def collect():
        real = vault.mailbox._sealing.opened

        def watched(delivery, *rest):
            kids["enc"].add(jose.decoded(delivery.body.partition(b".")[0])["kid"])
            return real(delivery, *rest)

        vault.mailbox._sealing.opened = watched
        async for message in vault.mailbox.messages():
            async with message:
                got.append(message.text)

    async def pour():
        number = 0
        while not enough:
            kids["sig"].add(web.mailbox._host.keys.current("sig", time.time()).kid)
            await web.mailbox.send(to, str(number))
            number += 1
            await asyncio.sleep(0.01)
        return number

    collecting, pouring = vault.start(collect()), web.start(pour())
    until(lambda: got, patience=60)

    def end() -> None:
        enough.append(True)
        sent = pouring.result(60)
        until(lambda: len(got) >= sent, patience=60)
        collecting.cancel()
        assert got == [str(number) for number in range(sent)]
        assert vault.mailbox.refused == 0

    return kids, end


@pytest.mark.parametrize(("to", "name"), [("vault@h2", "vault"), ("log@h2", "log")])
def test_new_keys_at_both_ends_amid_a_stream_lose_nothing(linked, program, to, name):
    """The keys of both ends are renewed during a stream of messages; none is lost.

    Messages carry the sender's new key. The receiver's new key is used only after the next exchange of seals.
    """
    h1, h2, _ = linked
    web, vault = program(h1, "web"), program(h2, name)
    kids, end = stream(web, vault, to)
    h1.links.renew_keys(["web"], lead=0.5)
    again(web)
    until(lambda: len(kids["sig"]) == 2, patience=60)
    h2.links.renew_keys([name], lead=0.5)
    again(vault)
    time.sleep(1)
    assert len(kids["enc"]) == 1  # nobody has heard of the new one
    exchange(h1, h2)
    again(web)
    until(lambda: len(kids["enc"]) == 2, patience=60)
    end()


def test_a_host_whose_authority_is_replaced_loses_nothing(linked, program, folder):
    h1, h2, _ = linked
    web, vault = program(h1, "web"), program(h2, "vault")
    before = {world: authority.read(world.layout).name for world in (h1, h2)}
    _, end = stream(web, vault, "vault@h2")
    for name, world in (("h1", h1), ("h2", h2)):
        certify(folder, name)
        world.declare(*LINKS)
        assert authority.read(world.layout).name != before[world]
        assert endorser.read(world.layout).by == authority.read(world.layout).name
        again(web)
        again(vault)
        time.sleep(0.5)
    assert set(exchange(h1, h2)) == {"h1", "h2"}
    again(web)
    again(vault)
    time.sleep(0.5)
    end()


# -- bundles --------------------------------------------------------------------------------------
def test_one_host_can_be_no_other_whatever_it_says(linked):
    """An attacker with h2's genuine CA certifies an endorser for h1 and signs a bundle; h2 refuses the bundle."""
    _, h2, _ = linked
    known = authority.read(h2.layout)
    genuine = endorser.read(h2.layout)
    false = authority.dataclasses.replace(known, host="spiffe://h1.example.org/host/h1")
    chain = Issuer(false).endorser(genuine.key().public_key(), time.time())
    forged = endorser.Endorser(false.host, genuine.kid, genuine.by, genuine.ends, genuine.pem, chain)
    text = bundle.make(forged, known.host, genuine.kid, {}, time.time())
    with pytest.raises(NetspaceError, match="the name constraints of"):
        h2.links.adopt_seals(text)


def test_a_bundle_that_is_changed_older_or_of_nobody_is_refused(linked):
    h1, h2, _ = linked
    text = h1.links.seal_bundles()[0]["h2"]
    value = json.loads(text)
    head, body, signature = value["token"].split(".")
    said = json.loads(base64.urlsafe_b64decode(body + "=="))
    said["keys"]["web"] = []
    changed = base64.urlsafe_b64encode(json.dumps(said).encode()).rstrip(b"=").decode()
    with pytest.raises(NetspaceError, match="did not sign"):
        h2.links.adopt_seals(json.dumps({**value, "token": f"{head}.{changed}.{signature}"}))
    with pytest.raises(NetspaceError, match="belongs to no host of broker:hosts"):
        h1.links.adopt_seals(text)  # its own
    h2.links.adopt_seals(h1.links.seal_bundles()[0]["h2"])
    with pytest.raises(NetspaceError, match="is not newer than the stored one"):
        h2.links.adopt_seals(text)


def test_a_link_that_is_revoked_for_a_while_is_as_it_was(linked, program):
    """A link is revoked and declared again: messages in the outbox can still be opened, and new ones sent."""
    h1, h2, cable = linked
    web = program(h1, "web")
    cable.cut()
    web.send("log@h2", "sealed before")
    with h2.here():
        h2.links.apply(h2.plan(remove=h2.links.names()).steps)  # without a purge
    assert not h2.links.names()
    h2.declare(*LINKS)
    cable.mend()
    log = program(h2, "log")
    assert log.receive("web@h1", 60) == "sealed before"
    web.send("log@h2", "and after")
    assert log.receive("web@h1", 60) == "and after"
    assert exchange(h1, h2) == {}
