"""Sealed links between hosts: endorsers, accepted and refused bundles, and cards."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from hypothesis import given, settings
from hypothesis import strategies as st

from netspace import jose, x509_helpers
from netspace.errors import NetspaceError, StateError
from netspace.layout import Layout
from netspace.link import plan as planning
from netspace.link.pki import authority, root
from netspace.link.pki.authority import Authority, Issuer
from netspace.link.pki.root import Root, adopt, request
from netspace.link.plan import DesiredLinks, Observed
from netspace.link.record import Record
from netspace.link.seal import bundle as bundles
from netspace.link.seal import endorser, exchange, path_validation, peers
from netspace.link.seal import keys as seals
from netspace.link.seal.path_validation import Untrusted
from netspace.link.seal.peers import PeerKeys
from netspace.spec.types import Link, LocalBroker, RemoteHost
from netspace_client import card, seal
from netspace_client.keys import ring

NOW = 1_800_000_000.0
DAY = 86400
IDS = {name: f"spiffe://{name}.example.org/host/{name}" for name in ("h1", "h2", "h3")}
ASK = Link(source="web@h1", target="vault@h2", pattern="request", seal=True)
TELL = Link(source="shop@h1", target="log@h2", seal=True)
SCHEMA = json.loads((Path(__file__).parents[3] / "docs/environment.schema.json").read_text())


class Fleet:
    """Hosts below one root, each with a folder for its files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        Root(folder / "root").make("root")
        self.layouts = {name: Layout(root=folder / name) for name in IDS}
        self.known = {name: self.certified(name) for name in IDS}
        self.own = {name: endorser.ensure(self.layouts[name], self.known[name], NOW) for name in IDS}

    def broker(self, name: str) -> LocalBroker:
        return LocalBroker(
            host=name,
            listen="198.51.100.1:5671",
            trust_domain=f"{name}.example.org",
            authority=str(self.folder / "authorities" / name),
            names_key="/k",
            hosts={other: RemoteHost(f"{other}.example.org", "198.51.100.2:1") for other in IDS if other != name},
        )

    def certified(self, name: str) -> Authority:
        """Certify the host's CA (again), and adopt it."""
        place = self.folder / "authorities" / name
        adopt(place, Root(self.folder / "root").certify(request(place), f"{name}.example.org"))
        return authority.ensure(self.layouts[name], self.broker(name), NOW, replace=True)

    def bundle(self, by: str = "h2", to: str = "h1", knows: str = "", at: float = NOW, **keys: Any) -> str:
        return bundles.make(self.own[by], IDS[to], knows, keys, at)

    def opened(self, text: Any, at: str = "h1", now: float = NOW) -> tuple[str, bundles.Bundle]:
        return bundles.opened(text, self.broker(at), self.known[at], now)

    def adopt(self, text: str, at: str = "h1", wanted: tuple[str, ...] = ("h1", "h2")) -> tuple[str, bool]:
        return bundles.adopt(self.layouts[at], self.broker(at), wanted, self.known[at], text, NOW)

    def others(self, at: str) -> PeerKeys:
        hosts = {name: whose for name, whose in IDS.items() if name != at}
        return PeerKeys(self.own[at], self.known[at], hosts, bundles.read_all(self.layouts[at]))


@pytest.fixture(scope="module", autouse=True)
def one_time() -> Iterator[None]:
    """Set the root's clock to the time of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(root, "time", SimpleNamespace(time=lambda: NOW))
        yield


@pytest.fixture
def fleet(tmp_path) -> Fleet:
    return Fleet(tmp_path)


@pytest.fixture(scope="module")
def steady(tmp_path_factory, one_time) -> Fleet:
    """Return a fleet for tests that don't change it."""
    return Fleet(tmp_path_factory.mktemp("fleet"))


def enc(now: float = NOW) -> list[dict[str, Any]]:
    """Return an environment's public keys in the form in which its host gives them to other hosts."""
    return seals.promised(seals.renewed((), now), now)


# -- the endorser --------------------------------------------------------------------------------
def test_the_endorsers_key_stays_when_the_authority_is_replaced(fleet):
    before = fleet.own["h1"]
    assert endorser.ensure(fleet.layouts["h1"], fleet.known["h1"], NOW) == before
    assert (fleet.layouts["h1"].records("endorser") / "own.json").stat().st_mode & 0o777 == 0o600
    replaced = fleet.certified("h1")
    assert endorser.lacking(before, replaced) == "of another authority"
    after = endorser.ensure(fleet.layouts["h1"], replaced, NOW)
    assert (after.kid, after.by) == (before.kid, replaced.name)
    assert after.chain != before.chain
    endorser.remove(fleet.layouts["h1"])
    assert endorser.read(fleet.layouts["h1"]) is None
    assert endorser.ensure(fleet.layouts["h1"], replaced, NOW).kid != before.kid
    assert before.pem not in repr(before)
    with pytest.raises(NetspaceError, match="no certificate authority for its links yet"):
        endorser.ensure(Layout(root=fleet.folder / "none"), None, NOW)


def test_an_authority_on_another_curve_has_an_endorser_on_p_256(fleet):
    place = fleet.folder / "authorities" / "h3"
    (place / "authority.key").write_text(x509_helpers.private(ec.generate_private_key(ec.SECP384R1())))
    (fleet.folder / "root" / "certified.json").write_text("{}")
    known = fleet.certified("h3")
    made = endorser.ensure(fleet.layouts["h3"], known, NOW)
    text = bundles.make(made, IDS["h1"], "", {}, NOW)
    assert fleet.opened(text)[0] == "h3"


def test_an_endorsement_is_renewed_while_a_seal_under_way_needs_it(fleet):
    key = next(one for one in seals.renewed((), NOW) if one["use"] == "sig")
    own = fleet.own["h1"]
    assert not own.endorsed(key, "web", NOW)
    key = {**key, "endorsement": own.endorse(key, "web", NOW)}
    assert own.endorsed(key, "web", NOW + endorser.LIFE - endorser.LEFT - 2)
    assert not own.endorsed(key, "web", NOW + endorser.LIFE - endorser.LEFT + 2)
    assert endorser.LEFT > seal.LIFE  # a host that is renewed each hour seals for as long as a message may wait
    assert not own.endorsed(key, "shop", NOW)
    assert not dataclasses.replace(own, kid="x").endorsed(key, "web", NOW)
    assert not dataclasses.replace(own, host=IDS["h2"]).endorsed(key, "web", NOW)
    assert "d" not in jose.unchecked(key["endorsement"])[1]["cnf"]["jwk"]


# -- certificates ------------------------------------------------------------------------------------
def checked(fleet: Fleet, pem: str, now: float = NOW) -> path_validation.ValidatedEndorser:
    return path_validation.checked(pem, {"h2": IDS["h2"], "h3": IDS["h3"]}, fleet.known["h1"].trusted, now)


def keyed(known: Authority) -> Any:
    return load_pem_private_key(known.pem.encode(), None)


def issued(known: Authority, host: str = IDS["h2"], **odd: Any) -> str:
    """Return an endorser's certificate that *known* issued, followed by the certificates above it.

    *odd* replaces parts of the endorser's certificate.
    """
    key = odd.get("key") or ec.generate_private_key(ec.SECP256R1())
    above = x509.load_pem_x509_certificates(known.pem.encode())
    names = [x509.UniformResourceIdentifier(name) for name in odd.get("names", [f"{host}/seals"])]
    extensions = [
        (x509.BasicConstraints(odd.get("ca", False), None), True),
        (odd.get("usage") or x509_helpers.usage(digital_signature=True), True),
        (x509.ExtendedKeyUsage([x509.ObjectIdentifier(use) for use in odd.get("uses", [authority.ENDORSES])]), False),
        (x509.SubjectAlternativeName(names), False),
        *odd.get("more", []),
    ]
    begins, ends = odd.get("begins", NOW), odd.get("ends", NOW + DAY)
    own = x509_helpers.make(
        x509_helpers.named("x"), key.public_key(), above[0].subject, keyed(known), begins, ends, extensions
    )
    return "".join(map(x509_helpers.text, (own, *above)))


def test_an_endorsers_certificate_says_whose_it_is(steady):
    found = checked(steady, steady.own["h2"].chain)
    assert (found.name, jose.thumbprint(found.key)) == ("h2", steady.own["h2"].kid)
    assert found.anchor == steady.known["h1"].anchor
    assert found.ends == pytest.approx(steady.known["h2"].ends, abs=2)
    assert checked(steady, issued(steady.known["h2"])).name == "h2"


CLIENT, SERVER = "1.3.6.1.5.5.7.3.2", "1.3.6.1.5.5.7.3.1"
UNKNOWN = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True)


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        ({"host": IDS["h1"]}, "belongs to no host of broker:hosts"),  # this host itself
        ({"host": "spiffe://h9.example.org/host/h9"}, "belongs to no host of broker:hosts"),
        ({"host": "spiffe://h2.example.org/host/other"}, "belongs to no host of broker:hosts"),
        ({"host": IDS["h3"]}, "don't permit h3.example.org"),  # another host, by h2's authority
        ({"names": [f"{IDS['h2']}/env/web"]}, "belongs to no host of broker:hosts"),
        ({"names": [f"{IDS['h2']}/broker"]}, "belongs to no host of broker:hosts"),
        ({"names": [f"{IDS['h2']}/seals", f"{IDS['h2']}/broker"]}, "belongs to no host of broker:hosts"),
        ({"names": []}, "belongs to no host of broker:hosts"),
        ({"uses": [CLIENT]}, "isn't an endorser's"),
        ({"uses": [authority.ENDORSES, SERVER]}, "isn't an endorser's"),
        ({"ca": True}, "isn't an endorser's"),
        ({"usage": x509_helpers.usage(digital_signature=True, key_cert_sign=True)}, "isn't an endorser's"),
        ({"key": ec.generate_private_key(ec.SECP384R1())}, "isn't on P-256"),
        ({"begins": NOW + DAY, "ends": NOW + 2 * DAY}, "is valid from"),
        ({"begins": NOW - 2 * DAY, "ends": NOW - DAY}, "is valid from"),
        ({"more": [UNKNOWN]}, "1.2.3.4, a critical extension, is not supported"),
    ],
)
def test_no_other_certificate_makes_an_endorser(steady, odd, why):
    with pytest.raises(Untrusted, match=why):
        checked(steady, issued(steady.known["h2"], **odd))


def test_what_an_environment_or_a_broker_logs_in_by_makes_no_endorser(steady):
    issuer = Issuer(steady.known["h2"])
    for pem in (issuer.environment("web", NOW), issuer.server(NOW), issuer.client(NOW)):
        with pytest.raises(Untrusted):
            checked(steady, pem.decode() + steady.known["h2"].anchor)


def test_a_root_of_somebody_elses_counts_for_nothing(steady, tmp_path):
    """A foreign root, a root of the same name, and another host's CA in place of a root are refused."""
    other = Fleet(tmp_path)
    with pytest.raises(Untrusted, match="a root that the links of this host don't trust"):
        checked(steady, other.own["h2"].chain)
    certs = steady.own["h2"].chain.split("-----BEGIN")[1:]
    own, between_, root = (f"-----BEGIN{one}" for one in certs)
    for pem in (own + root, own + between_, between_ + root, own, root * 3, own + root + between_, "", "x"):
        with pytest.raises(Untrusted):
            checked(steady, pem)
    foreign = [f"-----BEGIN{one}" for one in other.own["h2"].chain.split("-----BEGIN")[1:]]
    for pem in (foreign[0] + between_ + root, foreign[0] + foreign[1] + root, own * 5 + between_ + root):
        with pytest.raises(Untrusted):
            checked(steady, pem)


def below(known: Authority, domain: str, path: int | None = None, **more: Any) -> Authority:
    """Return a CA that *known* issued below itself, even if it has no right to do so."""
    key = ec.generate_private_key(ec.SECP256R1())
    above = x509.load_pem_x509_certificates(known.pem.encode())
    names: list[Any] = [x509.UniformResourceIdentifier(domain)]
    names += [x509.DNSName(name) for name in more.get("dns", (domain, *authority.SERVER_NAMES))]
    extensions = [
        (x509.BasicConstraints(more.get("ca", True), path), True),
        (more.get("usage") or x509_helpers.usage(key_cert_sign=True), True),
        *([(x509.NameConstraints(names, None), True)] if more.get("bounded", True) else []),
    ]
    made = x509_helpers.make(
        x509_helpers.named("below"), key.public_key(), above[0].subject, keyed(known), NOW, NOW + DAY, extensions
    )
    pem = x509_helpers.private(key) + "".join(map(x509_helpers.text, (made, *above)))
    return dataclasses.replace(known, pem=pem)


def test_who_is_below_a_hosts_authority_speaks_for_nobody(steady):
    with pytest.raises(Untrusted, match="may not certify another authority"):
        checked(steady, issued(below(steady.known["h2"], "h2.example.org")))
    with pytest.raises(Untrusted, match="may not certify another authority"):
        checked(steady, issued(below(steady.known["h2"], "h3.example.org"), host=IDS["h3"]))


def fleet_root(steady: Fleet) -> Authority:
    """Return the fleet's root CA as an Authority, so that tests can sign certificates with it."""
    pem = (steady.folder / "root" / "root.pem").read_text()
    return dataclasses.replace(steady.known["h1"], pem=pem)


def between_root(steady: Fleet, uris: list[str], excluded: list[str] | None = None) -> Authority:
    """Return an operator's intermediate CA between root and hosts, for some names."""
    known = fleet_root(steady)
    key = ec.generate_private_key(ec.SECP256R1())
    root = x509.load_pem_x509_certificate(known.pem.encode())
    listed = [[x509.UniformResourceIdentifier(one) for one in names] or None for names in (uris, excluded or [])]
    extensions = [
        (x509.BasicConstraints(True, 1), True),
        (x509_helpers.usage(key_cert_sign=True), True),
        (x509.NameConstraints(*listed), True),
    ]
    made = x509_helpers.make(
        x509_helpers.named("between"), key.public_key(), root.subject, keyed(known), NOW, NOW + DAY, extensions
    )
    pem = x509_helpers.private(key) + x509_helpers.text(made) + x509_helpers.text(root)
    return dataclasses.replace(known, pem=pem)


def test_every_constraint_above_counts(tmp_path, monkeypatch):
    from netspace.link.pki import root

    real = root._certificate

    def roomy(common: str, whose: Any, issuer: Any, key: Any, days: int, extensions: list[tuple[Any, bool]]) -> Any:
        wide = [(x509.BasicConstraints(True, None), True), *extensions[1:]] if days == root.LIFE else extensions
        return real(common, whose, issuer, key, days, wide)

    monkeypatch.setattr(root, "_certificate", roomy)
    fleet = Fleet(tmp_path)
    for uris, excluded, good in (
        ([".example.org"], [], True),
        (["h2.example.org"], [], True),
        (["example.org"], [], False),
        (["h3.example.org"], [], False),
        ([".xample.org"], [], False),
        ([".example.org"], ["h2.example.org"], False),
        ([".example.org"], [".example.org"], False),
        ([".example.org"], ["h3.example.org"], True),
    ):
        pem = issued(below(between_root(fleet, uris, excluded), "h2.example.org", 0))
        if good:
            assert checked(fleet, pem).name == "h2"
        else:
            with pytest.raises(Untrusted, match=r"don't permit h2\.example\.org"):
                checked(fleet, pem)
    middle = between_root(fleet, [".example.org"])
    for odd, why in (
        ({"bounded": False}, "could certify other hosts"),
        ({"dns": ("h2.example.org", "h3.example.org")}, "must permit these DNS names"),
        ({"usage": x509_helpers.usage(crl_sign=True)}, "may not sign certificates"),
        ({"ca": False}, "isn't an authority"),
    ):
        with pytest.raises(Untrusted, match=why):
            checked(
                fleet, issued(below(middle, "h2.example.org", **({"path": 0} if odd.get("ca", True) else {}), **odd))
            )


def test_a_weak_digest_is_refused(steady, monkeypatch):
    """A certificate with a weak digest is refused: an attacker could make a second one that fits the signature."""
    monkeypatch.setattr(hashes, "SHA256", hashes.SHA224)
    pem = issued(steady.known["h2"])
    monkeypatch.undo()
    with pytest.raises(Untrusted, match="signs with sha224"):
        checked(steady, pem)


# -- bundles -----------------------------------------------------------------------------------------
def test_what_one_host_says_another_believes(steady):
    keys = enc()
    name, found = steady.opened(steady.bundle(knows="k", vault=keys))
    assert (name, found.host, found.knows, found.at) == ("h2", IDS["h2"], "k", pytest.approx(NOW, abs=0.01))
    assert found.keys == {"vault": tuple(keys)}
    assert found.endorser["kid"] == steady.own["h2"].kid
    assert not any("d" in key for key in found.keys["vault"])


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"iss": IDS["h3"]}, "claims to come from"),
        ({"iss": IDS["h1"]}, "claims to come from"),
        ({"aud": IDS["h3"]}, "is for"),
        ({"aud": IDS["h2"]}, "is for"),
        ({"iat": NOW + 3600}, "in the future"),
        ({"iat": -1}, "iat"),
        ({"iat": float("inf")}, "Infinity is not a number"),
        ({"iat": float("nan")}, "NaN is not a number"),
        ({"iat": True}, "iat"),
        ({"iat": "now"}, "iat"),
        ({"knows": "x" * 44}, "knows"),
        ({"keys": []}, "keys"),
        ({"keys": {"a b": []}}, "not an environment's name"),
        ({"keys": {"web@h1": []}}, "not an environment's name"),
        ({"keys": {"../x": []}}, "not an environment's name"),
        ({"keys": {f"e{number}": [] for number in range(bundles.MAX_ENVIRONMENTS + 1)}}, "more than 1000"),
        ({"keys": {"web": enc() * 9}}, "keys"),
        ({"more": 1}, "more"),
        ({"knows": ...}, "knows"),
    ],
)
def test_what_is_said_otherwise_is_not_believed(steady, claims, why):
    said = {"iss": IDS["h2"], "aud": IDS["h1"], "iat": NOW, "knows": "", "keys": {}, **claims}
    said = {name: value for name, value in said.items() if value is not ...}
    with pytest.raises(NetspaceError, match=why):
        steady.opened(spoken(steady, said))


def spoken(fleet: Fleet, said: dict[str, Any], kind: str = bundles.KIND) -> str:
    """Return a bundle with this content, signed by a genuine endorser."""
    own = fleet.own["h2"]
    with pytest.MonkeyPatch.context() as patch:  # which may say what no number is
        patch.setattr(jose, "_json", lambda value: json.dumps(value).encode())
        patch.setattr(jose, "thumbprint", lambda _: own.kid)
        token = own.sign(kind, said)
    return json.dumps({"version": 1, "chain": own.chain, "token": token})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"use": "sig"}, "use"),
        ({"kid": "A" * 43}, r"has the name \(kid\) of another key"),
        ({"kid": "../../etc/passwd"}, "kid"),
        ({"crv": "P-384"}, "crv"),
        ({"x": "A" * 43}, "key"),
        ({"y": "é" * 43}, "key"),
        ({"x": 7}, "x"),
        ({"d": "A" * 43}, "d"),
        ({"exp": NOW - 1}, "has a wrong lifetime"),
        ({"exp": NOW + endorser.PROMISE + DAY}, "has a wrong lifetime"),
        ({"exp": "x"}, "exp"),
    ],
)
def test_a_key_that_is_none_of_theirs_is_not_believed(steady, change, why):
    said = {"iss": IDS["h2"], "aud": IDS["h1"], "iat": NOW, "knows": "", "keys": {"web": [{**enc()[0], **change}]}}
    with pytest.raises(NetspaceError, match=why):
        steady.opened(spoken(steady, said))


def test_nothing_else_that_an_endorser_signs_is_a_bundle(steady):
    said = {"iss": IDS["h2"], "aud": IDS["h1"], "iat": NOW, "knows": "", "keys": {}}
    assert steady.opened(spoken(steady, said))[0] == "h2"
    for kind in (endorser.KIND, "JWT", "netspace-policy"):
        with pytest.raises(NetspaceError, match="its header is not one"):
            steady.opened(spoken(steady, said, kind))
    value = json.loads(spoken(steady, said))
    other = steady.own["h3"]
    with pytest.raises(NetspaceError, match="not trusted"):  # signed by another than certified
        steady.opened(json.dumps({**value, "token": other.sign(bundles.KIND, said)}))
    with pytest.raises(NetspaceError, match="claims to come from"):  # one host's, shown as another's
        steady.opened(json.dumps({**value, "chain": other.chain, "token": other.sign(bundles.KIND, said)}))
    for odd in ({"version": 2}, {"more": 1}, {"chain": 7}, {"chain": "x" * 40000}, {"token": None}):
        with pytest.raises(NetspaceError, match="not a bundle"):
            steady.opened(json.dumps({**value, **odd}))
    for text in ("", "[]", "null", "{}", "x" * (bundles.MAX + 1), None, 7, b"{}", "[" * 100_000):
        with pytest.raises(NetspaceError, match="not a bundle"):
            steady.opened(text)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["kty", "web", "kid"]) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=60)
@given(st.sampled_from(["iss", "aud", "iat", "knows", "keys", "vault", "key"]), ANYTHING)
def test_whatever_an_endorser_signs_is_believed_or_refused_and_nothing_else(steady, name, value):
    said: dict[str, Any] = {"iss": IDS["h2"], "aud": IDS["h1"], "iat": NOW, "knows": "", "keys": {"vault": enc()}}
    if name == "vault":
        said["keys"] = {"vault": value}
    elif name == "key":
        said["keys"] = {"vault": [value]}
    else:
        said[name] = value
    with contextlib.suppress(NetspaceError):
        _, found = steady.opened(spoken(steady, said))
        assert found.host == IDS["h2"]
        assert all(jose.thumbprint(key) == key["kid"] for each in found.keys.values() for key in each)


@settings(max_examples=80)
@given(st.data())
def test_no_change_of_a_bundle_is_believed(steady, data):
    text = steady.bundle(vault=KEYS)
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.characters(max_codepoint=300)) + text[at + 1 :]
    with contextlib.suppress(NetspaceError):
        # White space, and the last characters of PEM and base64, may be written in several ways that mean the same.
        assert steady.opened(changed)[1] == steady.opened(text)[1]


KEYS = enc()


def test_certificate_of_an_unknown_version_is_refused(steady):
    """A certificate of an unknown version is refused. ``cryptography`` raises an exception that isn't a ValueError."""
    said = json.loads(steady.bundle(vault=KEYS))
    certificate = x509.load_pem_x509_certificates(said["chain"].encode())[0].public_bytes(Encoding.DER)
    version = b"\xa0\x03\x02\x01"  # RFC 5280 4.1: [0] INTEGER
    assert certificate.count(version + b"\x02") == 1
    strange = base64.encodebytes(certificate.replace(version + b"\x02", version + b"\x06")).decode()
    rest = said["chain"].partition("-----END CERTIFICATE-----")[2]
    said["chain"] = f"-----BEGIN CERTIFICATE-----\n{strange}-----END CERTIFICATE-----{rest}"
    with pytest.raises(NetspaceError, match="not a valid X509 version"):
        steady.opened(json.dumps(said))


@settings(max_examples=60)
@given(st.text() | ANYTHING.map(json.dumps) | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_anything_at_all_is_refused_and_nothing_else(steady, text):
    with pytest.raises(NetspaceError):
        steady.opened(text)
    with pytest.raises(NetspaceError):
        steady.opened(json.dumps({"version": 1, "chain": text, "token": text}))


def test_an_older_bundle_never_replaces_a_newer_one(fleet):
    first, second = (fleet.bundle(at=NOW + at, knows="k" * at) for at in (0, 1))
    other = fleet.bundle(at=NOW + 1, knows="x")
    assert fleet.adopt(first) == ("h2", True)
    assert fleet.adopt(first) == ("h2", False)
    assert fleet.adopt(second) == ("h2", True)
    for text in (first, other):
        with pytest.raises(NetspaceError, match="is not newer than the stored one"):
            fleet.adopt(text)
    assert fleet.adopt(fleet.bundle(at=NOW + 2, knows="k")) == ("h2", False)  # no news, but newer
    with pytest.raises(NetspaceError, match="is not newer than the stored one"):
        fleet.adopt(other)
    assert bundles.read_all(fleet.layouts["h1"])["h2"].knows == "k"
    with pytest.raises(NetspaceError, match="no sealed link leads to h2"):
        fleet.adopt(second, wanted=("h3",))
    path = fleet.layouts["h1"].records("bundles") / "h2.json"
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text('{"host": 7}')
    with pytest.raises(StateError, match="exchange the keys again"):
        bundles.read_all(fleet.layouts["h1"])
    bundles.keep(fleet.layouts["h1"], ["h3"])
    assert not path.parent.exists()


# -- what environments are told --------------------------------------------------------------------------
def exchanged(fleet: Fleet, keys: dict[str, seals.Keys]) -> None:
    """Exchange bundles between h1 and h2, with *keys* of h2's and h1's environments."""
    public = {name: seals.promised(each, NOW) for name, each in keys.items()}
    own = {name: one.kid for name, one in fleet.own.items()}
    fleet.adopt(fleet.bundle("h2", "h1", own["h1"], vault=public["vault"], log=public["log"]))
    fleet.adopt(fleet.bundle("h1", "h2", own["h2"], web=public["web"]), "h2")


def promised(fleet: Fleet, host: str, name: str) -> list[Any]:
    return seals.endorsed(seals.renewed((), NOW), NOW, seals.Promise(name, fleet.own[host]))


def told(fleet: Fleet, at: str, name: str, links: list[Link], keys: dict[str, seals.Keys]) -> dict[str, Any]:
    """Return the card of an environment of host *at*, without the broker's part."""
    from netspace.spec import hosts as words

    local = words.local(links, fleet.broker(at))
    content: dict[str, Any] = {
        "version": 2,
        "name": name,
        "mailbox": "m",
        "broker": {"host": "127.0.0.1", "port": 5671, "vhost": "v"},
        "peers": [
            {
                "to": link.target,
                "pattern": link.pattern,
                "exchange": link.name,
                "replies": {"queue": "q", "exchange": "x"},
            }
            for link in local
            if link.source == name
        ],
        "senders": [
            {"from": link.source, "pattern": link.pattern, "exchange": link.name, "reply_exchange": "r"}
            for link in local
            if link.target == name
        ],
    }
    return seals.told(content, local, keys, fleet.others(at))


def test_what_one_host_tells_its_environment_opens_what_the_others_seals(fleet):
    """A request and an answer are sealed and opened with only the cards and files that the two hosts make."""
    keys = {
        "web": promised(fleet, "h1", "web"),
        "vault": promised(fleet, "h2", "vault"),
        "log": promised(fleet, "h2", "log"),
    }
    exchanged(fleet, keys)
    cards = {name: card.parse(told(fleet, at, name, [ASK, TELL], {})) for at, name in (("h1", "web"), ("h2", "vault"))}
    sealed = {"web": cards["web"].peers["vault@h2"].seal, "vault": cards["vault"].senders["web@h1.vault"].seal}
    own = {name: ring(keys[name], "keys", private=True) for name in sealed}
    for by, to, use in (("web", "vault", "message"), ("vault", "web", "answer")):
        names = {"web": "web@h1", "vault": "vault@h2"}
        sent = sealed[by].envelope(by, names[to], use, "1", "2", ours=True)
        raw = seal.seal(b"x", "t", sent, own[by], sealed[by].keys, NOW, afar=True)
        came = sealed[to].envelope(to, names[by], use, "1", "2", ours=False)
        assert came == sent
        opened = seal.open_sealed(raw, came, own[to], sealed[to].keys, NOW, sealed[to].endorser)
        assert opened == seal.Opened(b"x", "t", pytest.approx(NOW, abs=0.01))


def test_a_card_tells_what_the_schema_says_and_nothing_private(fleet):
    keys = {name: promised(fleet, host, name) for host, name in (("h1", "web"), ("h2", "vault"), ("h2", "log"))}
    exchanged(fleet, keys)
    content = told(fleet, "h1", "web", [ASK], {})
    (peer,) = content["peers"]
    assert peer["seal"]["link"] == "web@h1.vault@h2"
    assert (peer["seal"]["own"], peer["seal"]["peer"]) == (f"{IDS['h1']}/env/web", f"{IDS['h2']}/env/vault")
    assert peer["seal"]["endorser"]["id"] == IDS["h2"]
    assert [key["use"] for key in peer["seal"]["keys"]] == ["enc"]
    sealed = {"$ref": "#/$defs/sealed", "$defs": SCHEMA["$defs"]}
    jsonschema.validate(peer["seal"], sealed)
    for lacking in ("own", "peer", "endorser"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({name: value for name, value in peer["seal"].items() if name != lacking}, sealed)
    text = json.dumps(content)
    secrets = [key["d"] for each in keys.values() for key in each]
    assert not any(secret in text for secret in secrets)
    assert "PRIVATE" not in text
    handed = json.loads(seals.handed("web", [msgspec.structs.replace(ASK, source="web")], keys)["seal.json"])
    assert [bool(key.get("endorsement")) for key in handed["keys"]] == [True, False]


def test_no_keys_are_told_of_a_host_before_it_knows_this_one(fleet):
    keys = enc()
    fleet.adopt(fleet.bundle(knows="", vault=keys))
    assert fleet.others("h1").keys("h2", "vault") == ()
    assert told(fleet, "h1", "web", [ASK], {})["peers"][0]["seal"]["keys"] == []
    fleet.adopt(fleet.bundle(knows=fleet.own["h1"].kid, at=NOW + 1, vault=keys))
    assert fleet.others("h1").keys("h2", "vault") == tuple(keys)
    # Another endorser of ours, another root, another name of theirs: what they said then is for nobody now.
    others = fleet.others("h1")
    for change in (
        {"own": dataclasses.replace(fleet.own["h1"], kid="another")},
        {"known": dataclasses.replace(fleet.known["h1"], anchor="another")},
        {"hosts": {**IDS, "h2": "spiffe://h2.example.net/host/h2"}},
        {"own": None},
        {"known": None},
    ):
        assert dataclasses.replace(others, **change).keys("h2", "vault") == ()
    # A former root is trusted for a day.
    former = dataclasses.replace(fleet.known["h1"], anchor="new", former=((fleet.known["h1"].anchor, NOW + DAY),))
    assert dataclasses.replace(others, known=former).keys("h2", "vault") == tuple(keys)


def test_what_lacks_is_told_with_the_remedy(fleet):
    from netspace.spec import hosts as words

    links = words.local([ASK, TELL], fleet.broker("h1"))
    own = fleet.own["h1"].kid
    remedy = "exchange keys: salt-run netspace_link.exchange_seals"

    def lacking(now: float = NOW) -> list[str]:
        return fleet.others("h1").lacking(links, now)

    assert lacking() == [f"h2: nothing is known of its keys for sealed links; {remedy}"]
    fleet.adopt(fleet.bundle(vault=enc(), log=enc()))
    assert lacking()[0].startswith("h2 hasn't confirmed that it knows this host's keys, so nothing is sealed for it")
    fleet.adopt(fleet.bundle(knows=own, at=NOW + 1, vault=enc()))
    assert lacking() == [f"log@h2: the key to seal messages for it is missing; {remedy}"]
    fleet.adopt(fleet.bundle(knows=own, at=NOW + 2, vault=enc(), log=enc()))
    assert lacking() == []
    soon = NOW + endorser.PROMISE - peers.SOON + 60
    assert [text.partition(" expires on")[0] for text in lacking(soon)] == [
        "log@h2: the last key to seal messages for it",
        "vault@h2: the last key to seal messages for it",
    ]
    assert any("its endorser's certificate expires on" in text for text in lacking(fleet.known["h2"].ends - DAY))
    assert PeerKeys().lacking([Link(source="a", target="b", seal=True)], NOW) == []


def test_who_seals_for_whom(fleet):
    from netspace.spec import hosts as words

    plain = Link(source="web@h1", target="open@h2")
    within = Link(source="web@h1", target="shop@h1", seal=True)
    for at, members, readers in (("h1", {"web", "shop"}, {"web"}), ("h2", {"vault", "log"}, {"vault", "log"})):
        links = words.local([ASK, TELL, plain, within], fleet.broker(at))
        other = {"h1": "h2", "h2": "h1"}[at]
        assert peers.hosts(links) == {other}
        assert peers.members(links) == members
        assert peers.readers(links, other) == readers
        assert peers.readers(links, "h3") == set()


# -- keys that other hosts know ----------------------------------------------------------------------------
@settings(max_examples=30)
@given(pauses=st.lists(st.floats(1, 40 * DAY), max_size=8))
def test_a_key_is_kept_for_as_long_as_another_host_may_seal_for_it(pauses):
    """A key is kept until a week after its published end.

    Until that end, another host that has received no newer key may seal for it.
    """
    now, keys = NOW, seals.renewed((), NOW)
    told: dict[str, float] = {}
    for pause in pauses:
        told.update({key["kid"]: key["exp"] for key in seals.promised(keys, now)})
        assert len(seals.promised(keys, now)) <= 2
        now += pause
        keys = seals.kept(keys, now, lasting=True)
        if seals.due(keys, now) and now - max(key["nbf"] for key in keys) >= seals.RENEW:
            keys = seals.renewed(keys, now, lasting=True)
        held = {key["kid"] for key in keys}
        assert all(kid in held for kid, ends in told.items() if now <= ends + seal.LIFE)
    # At least two months lie between what was told last and its end.
    assert not told or max(told.values()) >= NOW + endorser.PROMISE - 0.01


def test_keys_that_other_hosts_know_stay_when_a_link_is_revoked(fleet):
    layout = fleet.layouts["h2"]
    promises = {"vault": seals.Promise("vault", fleet.own["h2"])}
    assert seals.ensure(layout, ["vault", "plain"], NOW, promises) == ["plain", "vault"]
    assert seals.ensure(layout, ["vault", "plain"], NOW, promises) == []
    before = seals.read_all(layout)
    seals.leave(layout, ["vault", "plain"], NOW + endorser.PROMISE)
    assert seals.read_all(layout) == {"vault": before["vault"]}
    seals.leave(layout, ["vault"], NOW + endorser.PROMISE + seals.KEEP + 1)
    assert seals.read_all(layout) == {}


def test_endorsements_are_renewed_and_keys_stay(fleet):
    layout = fleet.layouts["h1"]
    promises = {"web": seals.Promise("web", fleet.own["h1"])}
    seals.ensure(layout, ["web"], NOW, promises)
    first = seals.read_all(layout)["web"]
    assert seals.endorse(layout, NOW + DAY, promises) == []
    assert seals.endorse(layout, NOW + 5 * DAY, promises) == ["web"]
    second = seals.read_all(layout)["web"]
    assert [key["kid"] for key in second] == [key["kid"] for key in first]
    assert jose.unchecked(second[0]["endorsement"])[1]["exp"] == int(NOW + 5 * DAY + endorser.LIFE)
    assert seals.renew(layout, ["web"], NOW + 5 * DAY, 60.0, promises) == ["web"]
    assert all(key.get("endorsement") for key in seals.read_all(layout)["web"] if key["use"] == "sig")


def test_a_plan_names_what_other_hosts_have_to_know(fleet):
    from netspace.spec import hosts as words

    layout, broker = Layout(), fleet.broker("h1")
    links = words.local([ASK], broker)
    made = {"web": promised(fleet, "h1", "web")}

    def planned(before: tuple[Link, ...], after: tuple[Link, ...], **seen: Any) -> tuple[Any, str]:
        record = Record(broker, {link.name: link for link in before})
        observed = Observed(record, now=NOW, **seen)
        gone = [link.name for link in before if link not in after]
        plan = planning.plan(layout, DesiredLinks(broker, after), observed, gone)
        changes = {step.name: step.changes for step in plan.steps}.get("seals")
        return changes, " ".join(plan.notes)

    fresh = planned((), links)
    assert fresh[0] == {"endorser of this host": {"old": None, "new": "certified"}, "web": {"old": None, "new": "keys"}}
    assert "h2: nothing is known of its keys" in fresh[1]
    known = fleet.others("h1")
    assert planned(links, links, keys=made, others=known)[0] is None
    replaced = dataclasses.replace(known, known=dataclasses.replace(fleet.known["h1"], name="another"))
    assert planned(links, links, keys=made, others=replaced)[0] == {
        "endorser of this host": {"old": "of another authority", "new": "certified"}
    }
    plain = [{member: value for member, value in key.items() if member != "endorsement"} for key in made["web"]]
    changed, _ = planned(links, links, keys={"web": plain}, others=known)
    assert changed == {"web": {"old": "not endorsed", "new": "keys"}}
    assert planned(links, (), keys=made, others=known)[0] == {
        "web": {"old": "keys", "new": "kept for messages that other hosts have sealed"}
    }


# -- handing over ----------------------------------------------------------------------------------------
def run(answers: dict[str, Any], refusing: tuple[str, ...] = ()) -> tuple[dict[str, Any], list[tuple[str, list[str]]]]:
    handed: list[tuple[str, list[str]]] = []

    def hand(minion: str, texts: Any) -> Any:
        handed.append((minion, list(texts)))
        if minion in refusing:
            return NetspaceError("refused")
        # Text says of whom it is; the second time there is no news.
        return {text.partition(">")[0]: handed.count((minion, list(texts))) == 1 for text in texts}

    return exchange.exchange(lambda: answers, hand), handed


def said(host: str, *others: str) -> dict[str, Any]:
    return {"host": host, "bundles": {other: f"{host}>{other}" for other in others}}


def test_each_gets_what_is_for_it_and_no_more():
    done, handed = run({"m1": said("h1", "h2", "h3"), "m2": said("h2", "h1"), "m3": said("h3", "h1"), "m4": said("h4")})
    assert done == {"exchanged": {"h1": ["h2", "h3"], "h2": ["h1"], "h3": ["h1"]}, "problems": []}
    assert handed == [("m1", ["h2>h1", "h3>h1"]), ("m2", ["h1>h2"]), ("m3", ["h1>h3"])] * 2


def test_where_nobody_answers_that_is_told():
    assert run({}) == ({"exchanged": {}, "problems": ["no minion answers"]}, [])
    assert run({"m1": {"host": None, "bundles": {}}})[0] == {"exchanged": {}, "problems": []}


def test_what_goes_wrong_is_told_and_the_others_are_served():
    answers = {
        "m1": said("h1", "h2", "h9"),
        "m2": said("h2", "h1"),
        "m3": said("h3", "h1"),
        "m4": said("h3", "h1"),
        "m5": NetspaceError("is broken"),
        "m6": "'netspace_link.seal_bundles' is not available.",
        "m7": {"host": "h7", "bundles": {"h1": 7}},
    }
    done, handed = run(answers, refusing=("m2",))
    assert done["exchanged"] == {"h1": ["h2"]}
    assert handed[:2] == [("m1", ["h2>h1"]), ("m2", ["h1>h2"])]
    assert {minion for minion, _ in handed} == {"m1", "m2"}
    problems = "\n".join(done["problems"])
    for text in (
        "m1: has sealed links with h9",
        "m2: refused",
        "m3, m4: each claims to be the host h3",
        "m5: is broken",
        "m6: 'netspace_link.seal_bundles' is not available",
        "m7: has sealed links with h1",
    ):
        assert text in problems
