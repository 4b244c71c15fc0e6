"""Certificates, accounts' names and cards, without a broker."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
from pathlib import Path

import jsonschema
import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from netspace.errors import NetspaceError, SpecError, StateError
from netspace.layout import Layout
from netspace.link.card import card
from netspace.link.pki import authority, certificates
from netspace.link.pki.authority import Issued, Issuer, issued
from netspace.link.pki.certificates import STALE, Accounts
from netspace.link.seal import keys as seals
from netspace.link.topology.names import PLAIN, Names
from netspace.spec import parse
from netspace.spec.types import ClusterBroker, Link, LocalBroker

NOW = 1_764_000_000.0
HOUR = 3600.0
SPEC = LocalBroker()
DOCS = Path(__file__).parents[3] / "docs"
OWNER = (os.getuid(), os.getgid())


@pytest.fixture
def layout(tmp_path) -> Layout:
    return Layout(root=tmp_path)


# -- the authority ------------------------------------------------------------------------
def test_it_is_made_once_and_its_key_is_roots_alone(layout):
    made = authority.ensure(layout, SPEC, NOW)
    assert authority.ensure(layout, SPEC, NOW + 1000 * HOUR) == made == authority.read(layout)
    assert not authority.wanting(layout, SPEC, made, NOW)
    path = layout.records("link") / "authority.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "PRIVATE" not in repr(made)
    path.write_text('{"host": "x"}')
    with pytest.raises(StateError, match="remove the file"):
        authority.read(layout)


def test_what_it_issues_is_for_one_use_by_one_name_and_for_a_day(layout):
    known = authority.ensure(layout, SPEC, NOW)
    (own,) = x509.load_pem_x509_certificates(known.anchors)
    client, server = (
        x509.load_pem_x509_certificate(pem)
        for pem in (Issuer(known).environment("web", NOW), Issuer(known).server(NOW))
    )
    for one, use in ((client, "clientAuth"), (server, "serverAuth")):
        one.verify_directly_issued_by(own)
        uses = one.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert [usage._name for usage in uses] == [use]
        assert not one.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = client.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [known.id("web")]
    assert (client.not_valid_after_utc - client.not_valid_before_utc).total_seconds() < 25 * HOUR


def test_a_new_authority_is_trusted_beside_the_former_for_a_day_unless_that_is_distrusted(layout):
    first = authority.ensure(layout, SPEC, NOW)
    second = authority.ensure(layout, SPEC, NOW + 1, replace=True)
    assert second.name != first.name
    assert second.host == first.host
    assert second.anchors.decode() == second.anchor + first.anchor
    later = authority.ensure(layout, SPEC, NOW + 26 * HOUR)
    assert later.anchors.decode() == second.anchor
    third = authority.ensure(layout, SPEC, NOW + 27 * HOUR, replace=True, distrust=True)
    assert third.anchors.decode() == third.anchor


def test_it_is_replaced_before_it_runs_out_and_for_another_trust_domain(layout):
    first = authority.ensure(layout, SPEC, NOW)
    assert first.host.startswith("spiffe://netspace/host/")
    assert authority.wanting(layout, SPEC, first, NOW + 0.7 * authority.OWN_LIFE) == "running out"
    other = authority.ensure(layout, LocalBroker(trust_domain="example.org"), NOW)
    assert other.host == first.host.replace("netspace", "example.org", 1)
    assert other.name != first.name


@pytest.mark.parametrize("content", [b"", b"rubbish", b"-----BEGIN PRIVATE KEY-----\nAA"])
def test_an_operators_that_cannot_be_used_is_said_and_what_there_is_stays(layout, tmp_path, content):
    if os.getuid() != 0:
        pytest.skip("such a file is root's")
    first = authority.ensure(layout, SPEC, NOW)
    folder = tmp_path / "given"
    folder.mkdir()
    spec = LocalBroker(authority=str(folder))
    assert "No such file" in authority.wanting(layout, spec, first, NOW)
    (folder / "authority.pem").write_bytes(content)
    (folder / "authority.pem").chmod(0o600)
    with pytest.raises(NetspaceError, match=r"broker:authority.*PEM"):
        authority.ensure(layout, spec, NOW)
    assert authority.read(layout) == first


# -- when something is due ---------------------------------------------------------------------
@pytest.mark.parametrize(
    ("hours", "by", "due"),
    [(0, "a", False), (15.9, "a", False), (16.1, "a", True), (25, "a", True), (-1, "a", True), (0, "b", True)],
)
def test_a_certificate_is_due_when_a_third_of_its_life_is_left(hours, by, due):
    assert Issued("x", NOW, NOW + 24 * HOUR, "a").due(NOW + hours * HOUR, by) is due


@given(st.binary(max_size=500))
def test_no_bytes_are_taken_for_what_was_issued(content):
    assert issued(content) is None


def test_only_what_is_due_is_issued_again(layout):
    names = {"web", "orders"}
    renewed, told = certificates.ensure(layout, SPEC, names, NOW, OWNER)
    assert (renewed, told) == (names, True)
    assert certificates.observe(layout, SPEC, names, NOW).changes(SPEC, names) == {}
    assert certificates.ensure(layout, SPEC, names, NOW + 15 * HOUR, OWNER) == (set(), False)
    certificates.path(layout, "web").write_bytes(b"half a file")
    seen = certificates.observe(layout, SPEC, names, NOW)
    assert list(seen.changes(SPEC, names)) == ["certificates:web"]
    assert certificates.ensure(layout, SPEC, names, NOW, OWNER) == ({"web"}, False)
    assert certificates.ensure(layout, SPEC, names, NOW + 17 * HOUR, OWNER) == (names, False)
    assert stat.S_IMODE(certificates.path(layout, "web").stat().st_mode) == 0o600
    certificates.remove(layout, names)
    assert not layout.identities.exists()


def test_whose_name_is_another_is_issued_again_as_was_planned(layout):
    known = authority.ensure(layout, SPEC, NOW)
    certificates.ensure(layout, SPEC, {"web"}, NOW, OWNER)
    # An operator's authority stays the same one when the trust domain that it issues for is another.
    former = Issuer(dataclasses.replace(known, host="spiffe://former/host/h"))
    certificates.path(layout, "web").write_bytes(former.environment("web", NOW))
    (certificates.server_folder(layout) / "server.pem").write_bytes(former.server(NOW))
    due = ["certificates:of the broker itself", "certificates:web"]
    assert list(certificates.observe(layout, SPEC, {"web"}, NOW).changes(SPEC, {"web"})) == due
    assert certificates.ensure(layout, SPEC, {"web"}, NOW, OWNER) == ({"web"}, True)
    assert certificates.observe(layout, SPEC, {"web"}, NOW).changes(SPEC, {"web"}) == {}
    assert certificates.ensure(layout, SPEC, {"web"}, NOW, OWNER) == (set(), False)


def test_those_with_passwords_and_on_another_broker_get_no_certificate(layout):
    spec = LocalBroker(passwords=("web",))
    assert certificates.ensure(layout, spec, {"web", "orders"}, NOW, OWNER)[0] == {"orders"}
    other = ClusterBroker(url="amqp://x", management="http://x", credentials="/x")
    assert certificates.ensure(layout, other, {"web"}, NOW, OWNER) == (set(), False)
    assert certificates.observe(layout, other, {"web"}, NOW).changes(other, {"web"}) == {}


# -- accounts ----------------------------------------------------------------------------------
NAME = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,10}[a-z0-9])?", fullmatch=True)


@given(NAME, st.sets(NAME))
def test_an_accounts_name_there_is_one_here(name, passwords):
    accounts = Accounts("spiffe://d/host/h", frozenset(passwords))
    there = accounts.there(f"env.{name}")
    assert accounts.here(there) == f"env.{name}"
    assert there == (f"env.{name}" if name in passwords else f"spiffe://d/host/h/env/{name}")


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ("env.web", f"{STALE}env.web"),  # of the version that had passwords
        ("spiffe://old/host/h/env/web", f"{STALE}spiffe://old/host/h/env/web"),
        ("spiffe://d/host/h/env/shell", f"{STALE}spiffe://d/host/h/env/shell"),
        ("spiffe://d/host/another/env/web", f"{STALE}spiffe://d/host/another/env/web"),  # a host that isn't declared
        ("spiffe://x/host/x/env/web", "env.web@x"),
        ("spiffe://x/host/x/broker", "env.@x"),
        ("spiffe://x/host/x/env/web/more", f"{STALE}spiffe://x/host/x/env/web/more"),
        ("env.not a name", "env.not a name"),
        ("guest", "guest"),
    ],
)
def test_an_account_of_ours_that_logs_in_otherwise_is_stale_and_others_are_left_alone(there, here):
    accounts = Accounts("spiffe://d/host/h", frozenset({"shell"}), {"x": "spiffe://x/host/x"})
    assert accounts.here(there) == here
    if "@" in here:
        assert accounts.there(here) == there
    told = accounts.told({"users": [{"name": there}], "permissions": [{"user": there, "vhost": "v"}]})
    assert accounts.stale(told, "v") == ([there] if here.startswith(STALE) else [])
    assert accounts.stale(told, "another") == []


# -- what is declared -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("broker", "path"),
    [
        ({"passwords": ["Web"]}, "broker:passwords:0"),
        ({"trust_domain": "Example"}, "broker:trust_domain"),
        ({"trust_domain": "a/b"}, "broker:trust_domain"),
        ({"authority": "relative"}, "broker:authority"),
    ],
)
def test_mistakes_are_named(broker, path):
    with pytest.raises(SpecError, match=path):
        parse.declaration({"broker": {"kind": "local", **broker}})


# -- the card's schema -------------------------------------------------------------------------------
SCHEMA = json.loads((DOCS / "environment.schema.json").read_text())
LINKS = st.lists(
    st.builds(
        Link,
        source=st.just("a"),
        target=st.sampled_from(["b", "c"]),
        pattern=st.sampled_from(["send", "request"]),
        ttl=st.sampled_from([None, 5.0]),
        seal=st.booleans(),
        monitor=st.booleans(),
        local=st.sampled_from([None, "shop"]),
    ),
    unique_by=lambda link: link.name,
)


@given(LINKS, st.sampled_from("abx"), st.sampled_from([None, "spiffe://d/host/h/env/a"]), st.booleans())
def test_every_card_is_as_the_schema_says(links, name, whose, secret):
    content = card(name, links, "netspace", Names(b"k" * 32) if secret else PLAIN, identity=whose)
    keys = {
        one: [{"kid": "1", "kty": "EC", "crv": "P-256", "x": "y", "y": "z", "use": "sig", "nbf": 1}] for one in "abc"
    }
    content = seals.told(content, [link for link in links if name in (link.source, link.target)], keys)
    jsonschema.validate({**content, "trust": {"level": "L1", "verifier": "self"}}, SCHEMA)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 1},
        {"name": "No name"},
        {"peers": None},
        {"mailbox": "x"},
        {"broker": {"host": "h", "port": 5671, "vhost": "v", "username": "u"}},
        {"peers": [{"to": "b", "pattern": "request", "exchange": "e"}]},
    ],
)
def test_other_cards_are_not(change):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**card("a", [], "netspace", PLAIN), **change}, SCHEMA)
