"""Keys for sealed links: their creation, renewal and end, and the cards that list them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netspace.errors import StateError
from netspace.layout import Layout
from netspace.link import plan as planning
from netspace.link.plan import DesiredLinks, Observed
from netspace.link.record import Record
from netspace.link.seal import keys as seals
from netspace.spec import parse
from netspace.spec.types import Link, LocalBroker
from netspace_client import seal
from netspace_client.keys import ring

SEALED = Link(source="web", target="vault", pattern="request", seal=True)
OPEN = Link(source="web", target="audit")
NOW = 1_800_000_000.0


def test_the_first_keys_are_used_at_once_and_later_ones_after_all_have_heard_of_them():
    first = seals.renewed((), NOW)
    assert {(key["use"], key["nbf"]) for key in first} == {("sig", NOW), ("enc", NOW)}
    second = seals.renewed(first, NOW + 100)
    assert {key["nbf"] for key in second} == {NOW, NOW + 100 + seals.LEAD}
    assert len({key["kid"] for key in second}) == 4


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(1, 40 * 86400), max_size=6))
def test_a_key_is_there_for_as_long_as_anything_sealed_for_it_may_be(pauses):
    """A key still exists a week after a sender last sealed for it, whenever keys are renewed."""
    now, keys, used = NOW, [], []
    for pause in pauses:
        if seals.due(keys, now):
            keys = seals.renewed(seals.kept(keys, now), now)
        held = ring(keys, "keys", private=True)
        used.append((now, held.current("enc", now).kid))
        now += pause
        keys = seals.kept(keys, now)
        for when, kid in used:
            assert now - when > seal.LIFE or kid in {key["kid"] for key in keys}
    assert len(keys) <= 2 * (len(pauses) + 1)
    assert not seals.due(seals.renewed(seals.kept(keys, now), now), now)


def test_the_outlived_go():
    first = seals.renewed((), NOW)
    both = seals.renewed(first, NOW + 10)
    change = NOW + 10 + seals.LEAD
    assert not seals.due(both, change + seals.KEEP)
    assert seals.due(both, change + seals.KEEP + 1) == "some are no longer needed"
    assert {key["nbf"] for key in seals.kept(both, change + seals.KEEP + 1)} == {change}
    assert seals.due(first, NOW + seals.RENEW) == "30 days old"


def test_a_card_tells_the_others_public_keys_and_nothing_private():
    keys = {name: seals.renewed((), NOW) for name in ("web", "vault")}
    card = {
        "name": "web",
        "peers": [{"to": "vault", "exchange": "x"}, {"to": "audit", "exchange": "y"}],
        "senders": [{"from": "audit", "exchange": "z"}],
    }
    told = seals.told(card, [SEALED, OPEN], keys)
    assert told["seal"] == {"keys_file": "/run/netspace/seal.json"}
    assert told["peers"][0]["seal"]["link"] == "web.vault"
    assert [key["kid"] for key in told["peers"][0]["seal"]["keys"]] == [key["kid"] for key in keys["vault"]]
    assert "seal" not in told["peers"][1]
    assert "seal" not in told["senders"][0]
    text = json.dumps(told)
    assert not any(key["d"] in text for each in keys.values() for key in each)
    assert seals.told(card, [OPEN], keys) is card
    handed = seals.handed("web", [SEALED], keys)
    assert json.loads(handed["seal.json"])["keys"] == keys["web"]
    assert seals.handed("web", [OPEN], keys) == {}


def test_what_the_host_makes_the_client_understands():
    keys = {name: seals.renewed((), NOW) for name in ("web", "vault")}
    mine = {name: ring(each, "keys", private=True) for name, each in keys.items()}
    public = {name: ring([{m: k[m] for m in seals.PUBLIC} for k in each], "keys") for name, each in keys.items()}
    envelope = seal.Envelope("web.vault", "web", "vault", "message", "1")
    raw = seal.seal(b"x", "t", envelope, mine["web"], public["vault"], NOW)
    assert seal.open_sealed(raw, envelope, mine["vault"], public["web"], NOW).body == b"x"


def test_files_are_roots_alone_and_go_with_their_link(tmp_path):
    layout = Layout(root=tmp_path)
    seals.ensure(layout, ["web", "vault"], NOW, {})
    files = sorted((tmp_path / "var/lib/netspace/seals").iterdir())
    assert [(path.name, path.stat().st_mode & 0o777) for path in files] == [("vault.json", 0o600), ("web.json", 0o600)]
    before = [path.read_bytes() for path in files]
    seals.ensure(layout, ["web", "vault"], NOW + 1, {})
    assert [path.read_bytes() for path in files] == before
    assert seals.renew(layout, ["web", "nobody"], NOW + 1) == ["web"]
    assert len(seals.read_all(layout)["web"]) == 4
    files[0].write_text('{"keys": [{}]}')
    with pytest.raises(StateError, match="holds no keys"):
        seals.read_all(layout)
    seals.remove(layout, ["web", "vault"])
    assert not (tmp_path / "var/lib/netspace/seals").exists()


def test_a_plan_names_whose_keys_change_and_shows_none():
    layout = Layout()
    made = {name: seals.renewed((), NOW) for name in ("web", "vault")}

    def changes(before, after, keys, now=NOW):
        record = Record(LocalBroker(), {link.name: link for link in before})
        observed = Observed(record, keys=keys, now=now)
        gone = [link.name for link in before if link not in after]
        plan = planning.plan(layout, DesiredLinks(LocalBroker(), tuple(after)), observed, gone)
        assert not any(key["d"] in repr(plan) for each in keys.values() for key in each)
        return {step.name: step.changes for step in plan.steps}.get("seals")

    assert changes([], [SEALED], {}) == {name: {"old": None, "new": "keys"} for name in ("vault", "web")}
    assert changes([SEALED], [SEALED], made) is None
    assert changes([SEALED], [SEALED], {**made, "web": ()}) == {"web": {"old": None, "new": "keys"}}
    later = changes([SEALED], [SEALED], made, NOW + seals.RENEW)
    assert later == {name: {"old": "30 days old", "new": "keys"} for name in ("vault", "web")}
    assert changes([SEALED], [OPEN], made) == {name: {"old": "keys", "new": None} for name in ("vault", "web")}
    assert changes([OPEN], [OPEN], {}) is None


def test_the_declaration_says_it_by_a_word_and_is_checked():
    images = {"image": "dir:/srv/x"}
    link = {"from": "web", "to": "vault", "seal": True}
    declared = parse.declaration({"environments": {"web": images, "vault": images}, "links": [link]})
    assert declared.links[0].seal is True
    with pytest.raises(Exception, match="seal"):
        parse.declaration({"environments": {"web": images, "vault": images}, "links": [{**link, "seal": "yes"}]})
