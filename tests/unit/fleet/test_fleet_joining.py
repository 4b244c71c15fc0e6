"""Joining a fleet: its steps, their repetition, and refused answers of a host."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from support.fleet.fleets import published

from netspace.attestation.fleet import own_answers
from netspace.attestation.sealed_value import Recipient
from netspace.errors import NetspaceError
from netspace.fleet import joining, parse
from netspace.fleet.joining import Joined
from netspace.fleet.published import Register
from netspace.link.pki import root as roots
from netspace.link.pki.root import Root
from netspace.link.topology import pair_keys

FLEET = parse.fleet(
    {"fleet.yaml": {"hosts": {"h1": {"minion": "h1.example.org"}, "h2": None}, "trusted_grains": ["role"]}}
)
MASTER = {"attestation": {"verifier": "master"}}


class Minion:
    """A stand-in for a minion. It runs the library's real functions on its own folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: dict[str, Any] = {"grains.get": "web"}
        self.level: str | None = None

    def call(self, function: str, **arguments: Any) -> Any:
        assert function in own_answers.SIGNED, "a real minion refuses it"
        if function in self.said:
            found = self.said[function]
            if isinstance(found, Exception):
                raise found
            return found
        assert arguments.pop("folder") == "/etc/netspace/authority"
        return {
            "netspace_link.authority_request": lambda: roots.request(self.folder),
            "netspace_link.authority_adopt": lambda: roots.adopt(self.folder, arguments["chain"]),
            "netspace_link.public_key": lambda: pair_keys.public(self.folder),
        }[function]()

    def attest(self) -> str:
        if self.level is None:
            raise NetspaceError("no TPM")
        return self.level


class Place:
    def __init__(self, folder: Path) -> None:
        self.register, self.root, self.minion = Register(folder / "hosts"), Root(folder / "root"), Minion(folder / "h1")

    def join(self, **settings: Any) -> Joined:
        return joining.join(FLEET, "h1", settings, self.register, self.root, self.minion)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_host_that_joins_is_certified_and_known(place: Place) -> None:
    joined = place.join()
    assert joined.changes.keys() == {"authority", "public_key"} and joined.missing == []
    facts = place.register.read("h1.example.org")
    assert facts is not None and facts.grains == {"role": "web"} and facts.level is None
    assert facts.public_key == pair_keys.public(place.minion.folder)
    assert place.root.given().keys() == {"h1.netspace.internal"}
    assert facts.chain in (place.minion.folder / roots.BUNDLE).read_text()


def test_a_host_that_joins_again_changes_nothing(place: Place) -> None:
    place.join()
    path = place.register.path("h1.example.org")
    before = path.read_bytes(), (place.minion.folder / roots.BUNDLE).read_bytes()
    assert place.join() == ({}, [])
    assert (path.read_bytes(), (place.minion.folder / roots.BUNDLE).read_bytes()) == before


def test_a_lost_certificate_is_the_same_again(place: Place) -> None:
    place.join()
    bundle = place.minion.folder / roots.BUNDLE
    before = bundle.read_bytes()
    bundle.unlink()
    assert place.join().changes.keys() == {"authority"}
    assert bundle.read_bytes() == before


def test_a_certificate_near_its_end_is_replaced(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.join()
    monkeypatch.setattr(joining, "RENEW", 3 * 365 * 24 * 3600)
    assert place.join().changes.keys() == {"authority"}


def test_another_machine_does_not_get_the_hosts_name(place: Place, tmp_path: Path) -> None:
    place.join()
    place.minion = Minion(tmp_path / "other")
    with pytest.raises(NetspaceError, match="was given to another key"):
        place.join()


def test_a_damaged_record_is_made_again(place: Place) -> None:
    place.join()
    place.register.path("h1.example.org").write_text("{")
    assert "public_key" in place.join().changes
    assert place.register.read("h1.example.org") is not None


def test_attestation_by_the_master_tells_the_level(place: Place) -> None:
    first = place.join(**MASTER)
    assert first.missing == ["attestation: no TPM; then join again"]
    place.minion.level = "L3"
    assert place.join(**MASTER).changes == {"level": {"old": None, "new": "L3"}}
    place.minion.level = "L7"
    assert "is not a trust level" in place.join(**MASTER).missing[0]
    facts = place.register.read("h1.example.org")
    assert facts is not None and facts.level is None


@pytest.mark.parametrize("key", ["trust_domain", "public_key"])
def test_a_level_is_that_of_one_key_and_name(place: Place, key: str) -> None:
    place.minion.level = "L3"
    place.join(**MASTER)
    facts = place.register.read("h1.example.org")
    assert facts is not None and facts.level == "L3"
    assert place.join().changes == {}  # both are the same
    value = published(["other"])["other"].public_key if key == "public_key" else "old.example.org"
    place.register.write(msgspec.structs.replace(facts, **{key: value}))
    assert place.join().changes["level"] == {"old": "L3", "new": None}


@pytest.mark.parametrize(
    ("function", "said", "reason"),
    [
        ("netspace_link.authority_request", {"a": 1}, "not a certificate request"),
        ("netspace_link.authority_request", "x" * 20_000, "not a certificate request"),
        ("netspace_link.authority_request", "-----BEGIN", "can't be used"),
        ("netspace_link.public_key", None, "is not a key"),
        ("netspace_link.public_key", "A" * 43, "is not a key"),  # the point 0
        ("netspace_link.public_key", "ä" * 43, "is not a key"),
        ("netspace_link.public_key", NetspaceError("no answer"), "no answer"),
    ],
)
def test_what_a_host_must_not_say_is_refused(place: Place, function: str, said: Any, reason: str) -> None:
    place.minion.said[function] = said
    with pytest.raises(NetspaceError, match=reason):
        place.join()
    assert place.register.read_all() == ({}, [])


def test_another_hosts_key_is_refused(place: Place) -> None:
    place.register.write(published(["h2"])["h2"])
    place.minion.said["netspace_link.public_key"] = published(["h2"])["h2"].public_key
    with pytest.raises(NetspaceError, match="the key is h2's"):
        place.join()


@pytest.mark.parametrize("value", [["a", "b"], {"a": 1}, None, True, ""])
def test_a_grain_of_several_words_counts_as_none(place: Place, value: Any) -> None:
    place.minion.said["grains.get"] = value
    place.join()
    facts = place.register.read("h1.example.org")
    assert facts is not None and facts.grains == {}


def test_peers_of_sealed_links_are_named() -> None:
    links = [
        {"from": "web", "to": "db@h2", "seal": True}, {"from": "till@h3", "to": "web", "seal": True},
        {"from": "web", "to": "log@h4"}, {"from": "web", "to": "db", "seal": True},
    ]  # fmt: skip
    assert joining.sealed_peers({"links": links}) == {"h2", "h3"}


def test_hosts_that_have_not_applied_are_named() -> None:
    peers = {"m2": "h2", "m3": "h3", "m4": "h4", "m5": "h5"}
    answers: dict[str, Any] = {
        "m1": {"bundles": {"h2": "x"}}, "m2": {"bundles": {"h1": "x"}}, "m3": {"bundles": {}},
        "m4": NetspaceError("no"),
    }  # fmt: skip
    texts = joining.unapplied(answers, "m1", "h1", peers)
    assert [text.split(";")[0] for text in texts] == [
        "seals: m3 has not applied its links: salt m3 state.apply netspace", "seals: m5 did not answer",
    ]  # fmt: skip
    answers["m1"] = {"bundles": {}}
    assert joining.unapplied(answers, "m1", "h1", peers)[0].startswith("seals: m1 has not applied its links")


SECRETS = {"environments": {"web": {"image": "tar:/a.tar", "secrets": {"db": "sdb://store/db"}}}}


def key_for_secrets(kind: str = "software") -> str:
    key = base64.b64encode(X25519PrivateKey.generate().public_key().public_bytes_raw()).decode()
    return Recipient("software", key=key).text if kind == "software" else Recipient("tpm", key=key).text


def test_host_with_secrets_gives_its_key(place: Place) -> None:
    place.minion.said["netspace_attestation.secret_key"] = key_for_secrets()
    joined = place.join(**SECRETS)
    assert joined.changes["secret_key"] == {"old": None, "new": "software"} and not joined.missing
    facts = place.register.read("h1.example.org")
    assert facts is not None and facts.secret_key == place.minion.said["netspace_attestation.secret_key"]
    assert place.join(**SECRETS) == ({}, [])
    assert "secret_key" in place.join().changes, "without secrets, the key is forgotten"


def test_key_for_secrets_that_can_not_be_used_is_missing(place: Place) -> None:
    for said in (NetspaceError("no TPM"), "", None, 7, "{}", key_for_secrets("tpm"), "x" * 10_000):
        place.minion.said["netspace_attestation.secret_key"] = said
        joined = place.join(**SECRETS)
        assert len(joined.missing) == 1 and joined.missing[0].startswith("secrets: h1.example.org: "), said
        facts = place.register.read("h1.example.org")
        assert facts is not None and facts.secret_key == ""


def test_key_in_a_file_is_not_taken_from_a_host_with_a_tpm(place: Place) -> None:
    place.minion.said["netspace_attestation.secret_key"] = key_for_secrets()
    joined = place.join(**SECRETS, attestation={"tpm": "device:/dev/tpmrm0"})
    assert "it doesn't use its TPM yet" in joined.missing[0]
