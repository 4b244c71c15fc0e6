"""Links between hosts: names, objects, certificates, direct and buffered transport. No broker, no network."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jsonschema
import msgspec
import pytest
from cryptography import x509

from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link.broker import access
from netspace.link.broker.management import TooLargeError
from netspace.link.card import card
from netspace.link.forwarder import process
from netspace.link.forwarder.process import Wanted
from netspace.link.pki import authority, certificates
from netspace.link.pki.authority import Issuer
from netspace.link.pki.root import Root, adopt, request
from netspace.link.topology import objects as model
from netspace.link.topology import peers, policies
from netspace.link.topology.names import Names
from netspace.spec.types import Link, LocalBroker, RemoteHost, Size

NOW = 1_764_000_000.0
OWNER = (os.getuid(), os.getgid())
CALLED = Names(b"k" * 32, pairs={"h2": b"12" * 16, "h3": b"13" * 16})
AT_H2 = Names(b"2" * 32, pairs={"h1": b"12" * 16, "h3": b"23" * 16})
LARGE = Size(32 * 1024**2)
H1 = LocalBroker(
    host="h1",
    listen="198.51.100.1:5671",
    trust_domain="h1.example.org",
    hosts={
        "h2": RemoteHost(trust_domain="h2.example.org", address="198.51.100.2:5671", vhost="shop", message_size=LARGE),
        "h3": RemoteHost(trust_domain="h3.example.org", address="[2001:db8::3]:5671"),
    },
)
ASK = Link(source="web", target="orders@h2", pattern="request", monitor=True)
CARRY = Link(source="web", target="log@h2", via="buffered")
ASKED = Link(source="web@h1", target="orders", pattern="request", ttl=5)
CARRIED = Link(source="web@h1", target="log", via="buffered")


def objects(*links: Link) -> model.Objects:
    """Return the desired objects on h1's broker."""
    outboxes = {CALLED.outbox(link): link for link in links if model.carried(link)}
    shovels = peers.shovels(H1, outboxes, CALLED, "netspace", Path("/tls/ca.pem"), Path("/tls/client.pem"))
    return model.objects(links, CALLED, shovels)


def there(*links: Link) -> model.Objects:
    """Return the desired objects on h2's broker."""
    return model.objects(links, AT_H2)


def may(made: model.Objects, account: str, right: str, name: str) -> bool:
    return bool(re.fullmatch(made["permission", f"env.{account}"][right], name))


# -- what is made where ------------------------------------------------------------------------
def test_a_direct_link_is_nothing_on_its_senders_broker():
    made = objects(ASK)
    assert {key for key in made if key[0] in ("exchange", "queue", "shovel")} - set(model.shared(CALLED)) == {
        ("queue", CALLED.mailbox("web"))
    }
    assert model.of_link(ASK, CALLED) == []


def test_who_comes_from_elsewhere_has_an_account_for_its_links_and_no_mailbox():
    made = there(ASKED, Link(source="orders", target="audit"))
    assert ("queue", AT_H2.mailbox("web@h1")) not in made
    sender = "web@h1"
    assert may(made, sender, "write", AT_H2.exchange(ASKED))
    assert may(made, sender, "read", AT_H2.replies(sender)) and may(made, sender, "read", AT_H2.reply("orders", "h1"))
    for name in (AT_H2.mailbox("orders"), AT_H2.mailbox(sender), AT_H2.queue(ASKED), AT_H2.dead):
        assert not may(made, sender, "read", name)
    assert may(made, "orders", "write", AT_H2.reply("orders", "h1"))
    for name in ("", AT_H2.reply("orders", "h1"), AT_H2.exchange(Link(source="web", target="audit"))):
        assert not may(made, sender, "write", name)
    assert made["permission", "env.web@h1"]["configure"] == "^$"
    assert may(made, "orders", "read", AT_H2.queue(ASKED))  # its lane


def test_a_buffered_link_ends_in_an_outbox_that_a_shovel_empties_for_the_other_host():
    made = objects(CARRY)
    outbox = CALLED.outbox(CARRY)
    assert made["binding", CALLED.exchange(CARRY), "queue", outbox, ""]
    value = made["shovel", outbox]["value"]
    assert (value["src-queue"], value["ack-mode"]) == (outbox, "on-confirm")
    # The other host has the exchange by the same name, for it names the link's ends as we do from there.
    assert value["dest-exchange"] == AT_H2.exchange(CARRIED) in {key[1] for key in there(CARRIED)}
    where = urlsplit(value["dest-uri"])
    asked = parse_qs(where.query)
    assert (where.scheme, where.netloc, where.path) == ("amqps", "198.51.100.2:5671", "/shop")
    assert (asked["verify"], asked["server_name_indication"]) == (["verify_peer"], ["h2.example.org"])
    # A sender's user id would be refused there, and end the shovel: the facts' trap.
    assert value["dest-publish-properties"] == {"user_id": "spiffe://h1.example.org/host/h1/broker"}
    assert may(made, "web", "write", CALLED.exchange(CARRY)) and not may(made, "web", "read", outbox)
    assert {("queue", outbox), ("shovel", outbox)} <= set(model.of_link(CARRY, CALLED))


def test_an_outbox_is_full_when_it_is_and_not_when_its_receivers_lane_would_be():
    few = msgspec.structs.replace(CARRY, length=5)
    assert policies.fullness(few, 5, 0) < 0.01
    assert policies.fullness(msgspec.structs.replace(ASKED, length=5), 5, 0) == 1.0


def test_what_another_hosts_broker_brings_goes_by_that_hosts_links_alone():
    made = there(CARRIED, Link(source="orders", target="log"), Link(source="web@h3", target="log", via="buffered"))
    assert ("user", "env.web@h1") not in made
    assert may(made, "@h1", "write", AT_H2.exchange(CARRIED))
    assert not may(made, "@h1", "write", AT_H2.exchange(Link(source="web@h3", target="log")))
    assert not may(made, "@h1", "write", AT_H2.exchange(Link(source="orders", target="log")))
    assert made["permission", "env.@h1"]["read"] == "^$"


def test_an_outboxs_letters_may_come_back_as_often_as_they_have_to():
    (limit,) = {
        one["definition"]["delivery-limit"] for name, one in policies.policies(CALLED).items() if "outbox" in name
    }
    assert limit > 10**6


def test_answers_that_are_flooded_are_made_anew_for_each_host_that_asks(layout, monkeypatch):
    """With too many bindings to read, the result names every exchange to which askers may have bound a queue."""

    class Flooded:
        def get(self, *path: str, **_: object) -> object:
            if path[0] == "bindings":
                raise TooLargeError("too large")
            return {}

    monkeypatch.setattr(access.names, "used", lambda *_: AT_H2)
    links = [ASKED, Link(source="web", target="orders", pattern="request"), ASK]
    found = access.flooded(layout, Flooded(), H1, {link.name: link for link in links})
    assert set(found) == {("exchange", AT_H2.reply("orders", "h1")), ("exchange", AT_H2.reply("orders"))}


# -- who is who ------------------------------------------------------------------------------------
def test_accounts_of_other_hosts_are_spiffe_ids_there():
    accounts = certificates.accounts(H1, "spiffe://h1.example.org/host/h1")
    for ours, theirs in {
        "env.web": "spiffe://h1.example.org/host/h1/env/web",
        "env.orders@h2": "spiffe://h2.example.org/host/h2/env/orders",
        "env.@h2": "spiffe://h2.example.org/host/h2/broker",
    }.items():
        assert (accounts.there(ours), accounts.here(theirs)) == (theirs, ours)


@pytest.fixture
def root(tmp_path) -> Root:
    made = Root(tmp_path / "root")
    made.make("a root")
    return made


@pytest.fixture
def layout(tmp_path) -> Layout:
    return Layout(root=tmp_path / "host")


def below(root: Root, folder: Path, trust_domain: str) -> LocalBroker:
    adopt(folder, root.certify(request(folder), trust_domain))
    return msgspec.structs.replace(H1, authority=str(folder))


def test_a_hosts_authority_comes_from_the_root_and_its_key_stays(root, layout, tmp_path):
    folder = tmp_path / "authority"
    spec = below(root, folder, "h1.example.org")
    made = authority.ensure(layout, spec, _now())
    assert made.host == "spiffe://h1.example.org/host/h1"
    assert made.anchor == root.make("whatever: there is one")
    for path in (root.path, folder / "authority.key", folder / "authority.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not adopt(folder, _chain(folder))  # which it has already


def _chain(folder: Path) -> str:
    text = (folder / "authority.pem").read_text()
    return text[text.index("-----BEGIN CERTIFICATE") :]


def _now() -> float:
    import time

    return time.time()


def test_an_authority_is_looked_at_again_when_other_hosts_come_to_know_it(layout, tmp_path):
    folder = tmp_path / "authority"
    folder.mkdir()
    (folder / "authority.pem").write_text(authority.ensure(Layout(root=tmp_path / "other"), LocalBroker(), _now()).pem)
    (folder / "authority.pem").chmod(0o600)
    later = msgspec.structs.replace(H1, authority=str(folder))
    alone = msgspec.structs.replace(later, listen=None, hosts={})
    assert authority.ensure(layout, alone, _now())
    assert authority.wanting(layout, later, authority.read(layout), _now()) == "another authority"
    with pytest.raises(NetspaceError, match="could certify other hosts"):
        authority.ensure(layout, later, _now())


def test_a_name_is_given_to_one_key_and_to_none_above_or_below_it(root, tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    root.certify(request(first), "h1.example.org")
    root.certify(request(first), "h1.example.org")  # for two more years
    for name, why in (
        ("h1.example.org", "given to another key"),
        ("example.org", "overlaps with h1.example.org, which is certified already"),
        ("x.h1.example.org", "overlaps with h1.example.org, which is certified already"),
    ):
        with pytest.raises(NetspaceError, match=why):
            root.certify(request(second), name)
    root.certify(request(second), "h2.example.org")


def test_no_name_is_given_while_it_is_unknown_which_are(root, tmp_path):
    """Without the list of given names, no host is certified: a second key could get a name with a valid certificate."""
    root.certify(request(tmp_path / "a"), "h1.example.org")
    given = root.path.parent / "certified.json"
    for damage in (lambda: given.write_text("{"), given.unlink):
        damage()
        with pytest.raises(NetspaceError, match="restore it from a backup"):
            root.certify(request(tmp_path / "b"), "h1.example.org")
        with pytest.raises(NetspaceError, match="restore it from a backup"):
            root.release("h1.example.org")


def test_released_name_is_given_to_the_next_key_and_to_it_alone(root, tmp_path):
    first, second, third = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    root.certify(request(first), "h1.example.org")
    with pytest.raises(NetspaceError, match=r"call `netspace_link\.release h1\.example\.org`"):
        root.certify(request(second), "h1.example.org")
    before = root.given()["h1.example.org"]
    root.release("h1.example.org")
    assert adopt(second, root.certify(request(second), "h1.example.org"))
    assert root.given()["h1.example.org"] != before
    for folder in (first, third):
        with pytest.raises(NetspaceError, match="given to another key"):
            root.certify(request(folder), "h1.example.org")
    for name in ("h2.example.org", "example.org", "../x"):
        with pytest.raises(NetspaceError, match=r"it is not certified; certified domains: h1\.example\.org"):
            root.release(name)


def test_another_hosts_broker_may_have_a_connection_for_each_link():
    limits = {}
    for count in (1, 30):
        links = [Link(source=f"e{one}@h1", target="log", via="buffered") for one in range(count)]
        limits[count] = objects(*links)["user", "env.@h1"]["limits"]["max-connections"]
    assert limits[1] > 1 and limits[30] >= 60
    assert objects(ASKED)["user", "env.web@h1"]["limits"]["max-connections"] == model.CONNECTIONS


@pytest.mark.parametrize("name", ["h2.example.org", "x.h1.example.org", "example.org"])
def test_an_authority_that_speaks_for_other_names_is_refused(root, layout, tmp_path, name):
    spec = below(root, tmp_path / "authority", name)
    with pytest.raises(NetspaceError, match=r"could certify other hosts|nameConstraints"):
        authority.ensure(layout, spec, _now())


def test_an_authority_without_constraints_serves_a_host_that_is_alone_and_no_other(layout, tmp_path):
    folder = tmp_path / "authority"
    folder.mkdir()
    alone = authority.ensure(Layout(root=tmp_path / "other"), LocalBroker(), _now())
    (folder / "authority.pem").write_text(alone.pem)
    (folder / "authority.pem").chmod(0o600)
    assert authority.ensure(layout, LocalBroker(authority=str(folder)), _now())
    with pytest.raises(NetspaceError, match="could certify other hosts"):
        authority.ensure(layout, msgspec.structs.replace(H1, authority=str(folder)), _now())


def test_what_is_adopted_is_for_the_own_key(root, tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    answer = root.certify(request(first), "h1.example.org")
    request(second)
    for chain in (answer, "", "no certificate", answer[: answer.index("-----END CERTIFICATE-----") + 26]):
        with pytest.raises(NetspaceError):
            adopt(second, chain)
    assert not (second / "authority.pem").exists()
    with pytest.raises(NetspaceError, match="trust domain"):
        root.certify(request(first), "not a domain")
    with pytest.raises(NetspaceError, match="can't be used"):
        root.certify("no request", "h1.example.org")


def test_the_brokers_certificate_bears_the_name_that_others_ask_for_and_another_lets_it_in_there(
    root, layout, tmp_path
):
    spec = below(root, tmp_path / "authority", "h1.example.org")
    assert certificates.ensure(layout, spec, (), _now(), OWNER) == (set(), True)
    served = certificates.server_folder(layout)
    names = x509.load_pem_x509_certificate((served / "server.pem").read_bytes()).extensions
    assert "h1.example.org" in names.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
        x509.DNSName
    )
    client = x509.load_pem_x509_certificate((served / "client.pem").read_bytes()).extensions
    assert client.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
        x509.UniformResourceIdentifier
    ) == ["spiffe://h1.example.org/host/h1/broker"]
    assert certificates.observe(layout, spec, (), _now()).changes(spec, ()) == {}
    # Reached by nobody, it needs neither.
    alone = msgspec.structs.replace(spec, listen=None, hosts={})
    assert certificates.observe(layout, alone, (), _now()).changes(alone, ())
    certificates.ensure(layout, alone, (), _now(), OWNER)
    assert not (served / "client.pem").exists()


def test_a_broker_gets_a_certificate_for_its_new_name(layout):
    spec = LocalBroker(trust_domain="h1.example.org")
    known = authority.ensure(layout, spec, NOW)
    named = authority.issued(Issuer(known).server(NOW, serves="h1.example.org"))
    assert named is not None and named.serves == "h1.example.org"
    plain = authority.issued(Issuer(known).server(NOW))
    assert plain is not None and plain.serves == ""


# -- ways -------------------------------------------------------------------------------------------
def test_only_who_has_a_direct_link_there_is_led_to_another_host():
    links = [ASK, CARRY, Link(source="other", target="web"), Link(source="x@h2", target="web")]
    ways = peers.ways(H1, links)
    assert {name: set(hosts) for name, hosts in ways.items()} == {"web": {"h2"}}
    config = process.render(Layout(), Wanted(H1, {"web": 1, "other": 2}, ways=ways))
    web, other = (config.partition(f"frontend environment:{name}\n")[2] for name in ("web", "other"))
    assert "use_backend to:web:h2 if { req.ssl_sni -m str h2.example.org }" in web
    assert "use_backend" not in other.partition("frontend")[0] and "inspect-delay" not in other.partition("frontend")[0]
    assert "backend to:web:h2\n    server broker 198.51.100.2:5671 " in config
    assert process._ways(config) == {"backend to:web:h2     server broker 198.51.100.2:5671 init-addr last,libc,none"}
    assert "h3" not in config


def test_from_elsewhere_comes_who_asks_for_the_broker_by_its_name():
    config = process.render(Layout(), Wanted(H1, {}))
    entry = config.partition("frontend from-elsewhere\n")[2].partition("frontend")[0]
    assert "bind 198.51.100.1:5671 transparent" in entry
    assert "accept if { req.ssl_sni -m str h1.example.org }" in entry and "reject if" in entry
    assert "from-elsewhere" not in process.render(Layout(), Wanted(LocalBroker(), {}))
    wide = RemoteHost(trust_domain="h3.example.org", address="[2001:db8::3]:5671")
    assert "server broker [2001:db8::3]:5671" in process.render(
        Layout(), Wanted(H1, {"web": 1}, ways={"web": {"h3": wide}})
    )


# -- cards --------------------------------------------------------------------------------------------
SCHEMA = json.loads((Path(__file__).parents[3] / "docs/environment.schema.json").read_text())


def test_a_card_tells_the_way_to_a_peer_on_another_host_and_names_as_they_are_there():
    whose = "spiffe://h1.example.org/host/h1/env/web"
    told = card("web", [ASK, CARRY], "netspace", CALLED, identity=whose, broker=H1)
    jsonschema.validate({**told, "trust": {"level": "L1", "verifier": "self"}}, SCHEMA)
    carried, asked = told["peers"]
    assert asked["broker"]["vhost"] == "shop" and asked["broker"]["tls"]["server_name"] == "h2.example.org"
    assert asked["exchange"] == AT_H2.exchange(ASKED)
    assert asked["replies"] == {"queue": AT_H2.replies("web@h1"), "exchange": AT_H2.reply("orders", "h1")}
    assert asked["monitor"]["notices"] == AT_H2.notices("web@h1")
    watched = msgspec.structs.replace(ASKED, ttl=None, monitor=True)
    assert asked["monitor"]["queue"] == AT_H2.queue(watched) != AT_H2.mailbox("orders")
    assert "broker" not in carried and carried["exchange"] == CALLED.exchange(CARRY)
    assert (carried["message_size"], asked["message_size"]) == (1024**2, 32 * 1024**2)
    assert "notices" not in told
    told = card("orders", [ASKED], "shop", AT_H2, identity="spiffe://x", broker=H1)
    assert told["senders"][0]["from"] == "web@h1" and AT_H2.queue(ASKED) in told["queues"]
    jsonschema.validate({**told, "trust": {"level": "L1", "verifier": "self"}}, SCHEMA)


def test_a_card_names_no_way_to_a_host_that_is_declared_no_more():
    alone = msgspec.structs.replace(H1, hosts={})
    assert card("web", [ASK], "netspace", CALLED, identity="spiffe://x", broker=alone)["peers"] == []
