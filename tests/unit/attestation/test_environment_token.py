"""Tokens of environments: genuine ones and forgeries, checked by the library and by the example checker."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import struct
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from support import checkout

from netspace import jose
from netspace.attestation import environment_token as tokens
from netspace.attestation.environment_token import Expected
from netspace.attestation.refusals import Refused
from netspace.host.peer import signing

NOW, NONCE, THUMBPRINT = 1_800_000_000.0, "b3duLXF1ZXN0aW9uLTE", "A" * 43
IMAGE, CONFIGURATION = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"
PCRS = {0: bytes(32), 7: b"\7" * 32}
ASKED = Expected(NONCE, "web")
SOFTWARE, TPM = Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())
TOKEN, OTHER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
ABOUT = {
    "sub": "web",
    "netspace_host": "h1",
    "netspace_boot": "boot-1",
    "netspace_image": IMAGE,
    "netspace_configuration": CONFIGURATION,
    "netspace_started": 1_799_999_000.25,
}


def pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def quote(extra: bytes, pcrs: Mapping[int, bytes], **changed: Any) -> bytes:
    """Return TPMS_ATTEST of a quote (Part 2, 10.12.8)."""
    digest = hashlib.sha256(b"".join(value for _, value in sorted(pcrs.items()))).digest()
    bits = sum(1 << pcr for pcr in changed.get("selected", pcrs)).to_bytes(3, "little")
    head = changed.get("magic", 0xFF544347).to_bytes(4, "big") + changed.get("type", 0x8018).to_bytes(2, "big")
    name = b"\0\x22" + b"\0\x0b" + bytes(32)
    clock = struct.pack(">QIIBQ", 1, 2, 3, 1, 4)
    selection = b"\0\0\0\1" + changed.get("bank", b"\0\x0b") + b"\3" + bits
    return head + name + struct.pack(">H", len(extra)) + extra + clock + selection + b"\0\x20" + digest


def tpm_signature(key: ec.EllipticCurvePrivateKey, message: bytes, algorithm: bytes = b"\0\x0b") -> bytes:
    digest = hashes.SHA256() if algorithm == b"\0\x0b" else hashes.SHA1()
    numbers = decode_dss_signature(key.sign(message, ec.ECDSA(digest)))
    return b"\0\x18" + algorithm + b"".join(b"\0\x20" + one.to_bytes(32, "big") for one in numbers)


@dataclasses.dataclass
class Forge:
    """A maker of evidence. By default the evidence is honest and made with the host's keys; a test may change it."""

    kind: str = "tpm"
    statement: dict[str, Any] = dataclasses.field(default_factory=dict)
    claims: dict[str, Any] = dataclasses.field(default_factory=dict)
    header: dict[str, Any] = dataclasses.field(default_factory=dict)
    quoted: dict[str, Any] = dataclasses.field(default_factory=dict)
    pcrs: Mapping[int, bytes] = dataclasses.field(default_factory=lambda: PCRS)
    vouching: Any = None
    signing: ec.EllipticCurvePrivateKey = TOKEN
    key: dict[str, Any] = dataclasses.field(default_factory=dict)
    collection: dict[str, Any] = dataclasses.field(default_factory=dict)
    algorithm: bytes = b"\0\x0b"
    extra: bytes | None = None
    cut: Callable[[str], str] = str

    def made(self) -> str:
        said = tokens.statement("h1", "boot-1", jose.jwk(TOKEN.public_key()), NOW - 60)
        said = _changed(said, self.statement)
        message = json.loads(self.message(said))
        key = _changed(json.dumps(message).encode(), self.key).decode()
        claims = _changed(tokens.claims(ABOUT, NONCE, NOW, None), self.claims)
        kid = jose.thumbprint(jose.jwk(TOKEN.public_key()))
        unsigned = tokens.unsigned(kid, claims)
        if self.header:
            head = _changed(jose.octets(unsigned.split(b".")[0].decode(), ""), self.header)
            unsigned = jose.text(head).encode() + b"." + unsigned.split(b".")[1]
        token = f"{unsigned.decode()}.{jose.text(signing.es256(private(self.signing), unsigned))}"
        return self.cut(_changed(tokens.collected(token, key).encode(), self.collection).decode())

    def message(self, said: bytes) -> str:
        if self.kind == "software":
            key = self.vouching or SOFTWARE
            return tokens.vouched("software", said, b"", key.sign(tokens.PREFIX + said), {})
        extra = tokens.qualifying(said) if self.extra is None else self.extra
        attest = quote(extra, self.pcrs, **self.quoted)
        signature = tpm_signature(self.vouching or TPM, attest, self.algorithm)
        return tokens.vouched("tpm", said, attest, signature, self.pcrs)


def _changed(raw: bytes, more: Mapping[str, Any]) -> bytes:
    """Return a JSON object with the members of *more* changed; a member that is None in *more* is left out."""
    found = {**json.loads(raw), **more}
    return tokens._json({name: value for name, value in found.items() if value is not None})


def example() -> ModuleType:
    path = checkout.ROOT / "client/examples/check_evidence.py"
    spec = importlib.util.spec_from_file_location("check_evidence", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert len(path.read_text().splitlines()) <= 200 and "import netspace" not in path.read_text()
    return module


EXAMPLE = example()


def trusted(kind: str) -> bytes:
    return pem(TPM if kind == "tpm" else SOFTWARE)


def by_example(text: str, kind: str, asked: Expected, now: float) -> dict[str, Any]:
    wanted = {name: getattr(asked, name) for name in ("environment", "host", "image", "configuration", "key")}
    found: dict[str, Any] = EXAMPLE.check(text, trusted(kind), asked.nonce, now, **wanted)
    return found


@pytest.mark.parametrize("kind", ["tpm", "software"])
@pytest.mark.parametrize("key", [None, THUMBPRINT])
def test_genuine_evidence_is_accepted_by_both(kind: str, key: str | None) -> None:
    text = Forge(kind, claims={"cnf": {"jkt": key}} if key else {}).made()
    asked = Expected(NONCE, "web", "h1", IMAGE, CONFIGURATION, key, PCRS if kind == "tpm" else {})
    found = tokens.verify(text, trusted(kind), asked, NOW + 1)
    assert (found.environment, found.host, found.level) == ("web", "h1", "L1")
    assert (found.started, found.key, found.pcrs) == (1_799_999_000.25, key, PCRS if kind == "tpm" else {})
    told = by_example(text, kind, asked, NOW + 1)
    assert (found.minion, found.verifier) == (None, None), "no verifier vouches"
    more = ("pcrs", "minion", "verifier")
    assert {name: told[name] for name in dataclasses.asdict(found) if name not in more} == {
        name: value for name, value in dataclasses.asdict(found).items() if name not in more
    }
    assert told["pcrs"] == {pcr: value.hex() for pcr, value in found.pcrs.items()}


FAR = int(NOW) + 10 * 24 * 3600
# What it is -> who makes it, and the code with which it is refused.
FORGERIES: dict[str, tuple[Forge, str]] = {
    "an answer to another question": (Forge(claims={"eat_nonce": "b3RoZXItcXVlc3Rpb24"}), "token-nonce"),
    "another environment's": (Forge(claims={"sub": "till"}), "token-subject"),
    "a child's for its parent": (Forge(claims={"sub": "web-child"}), "token-subject"),
    "another host's token": (Forge(claims={"netspace_host": "h2"}), "token-host"),
    "another boot's token": (Forge(claims={"netspace_boot": "boot-0"}), "token-host"),
    "of another host, vouched for by it": (Forge(vouching=OTHER), "signature"),
    "of a clone of the disk": (Forge("software", vouching=Ed25519PrivateKey.generate()), "signature"),
    "by a key for which nobody vouches": (Forge(signing=OTHER), "token-signature"),
    "vouched for another key": (Forge(statement={"key": jose.jwk(OTHER.public_key())}), "token-signature"),
    "without an algorithm": (Forge(header={"alg": "none"}), "token-signature"),
    "by HMAC with the public key": (Forge(header={"alg": "HS256"}), "token-signature"),
    "of another type": (Forge(header={"typ": "JWT"}), "token-signature"),
    "with a critical member": (Forge(header={"crit": ["exp"]}), "token-signature"),
    "with a key of its own": (Forge(header={"jwk": jose.jwk(OTHER.public_key())}), "token-signature"),
    "naming another key": (Forge(header={"kid": "x"}), "token-signature"),
    "expired": (Forge(claims={"iat": int(NOW) - 400, "exp": int(NOW) - 100}), "token-expired"),
    "of the future": (Forge(claims={"iat": FAR, "exp": FAR + 300}), "token-expired"),
    "valid for too long": (Forge(claims={"exp": FAR}), "malformed"),
    "ending before it begins": (Forge(claims={"exp": int(NOW) - 1}), "malformed"),
    "with a half second": (Forge(claims={"iat": NOW + 0.5}), "malformed"),
    "with a truth for a time": (Forge(claims={"iat": True}), "malformed"),
    "without a time": (Forge(claims={"exp": None}), "malformed"),
    "with a further claim": (Forge(claims={"admin": True}), "malformed"),
    "without an image": (Forge(claims={"netspace_image": None}), "malformed"),
    "of another profile": (Forge(claims={"eat_profile": "tag:netspace.invalid,2026:environment#2"}), "malformed"),
    "with an old statement": (Forge(statement={"issued": 1, "expires": 1 + 3600}), "host-key-expired"),
    "with a statement of the future": (Forge(statement={"issued": FAR, "expires": FAR + 60}), "host-key-expired"),
    "by a stolen key, vouched for for a day": (
        Forge(statement={"issued": int(NOW) - 4 * 3600, "expires": int(NOW) + 20 * 3600}),
        "host-key-expired",
    ),
    "vouched for for ever": (Forge(statement={"expires": FAR}), "host-key-expired"),
    "with a further statement": (Forge(statement={"admin": True}), "malformed"),
    "with a statement without a host": (Forge(statement={"host": None}), "malformed"),
    "with half a second in the statement": (Forge(statement={"issued": NOW - 60.5}), "malformed"),
    "with a number for a host": (Forge(statement={"host": 7}), "malformed"),
    "with a key on another curve": (Forge(statement={"key": {"kty": "EC", "crv": "P-384"}}), "malformed"),
    "with a point that is on no curve": (
        Forge(statement={"key": {**jose.jwk(TOKEN.public_key()), "x": "A" * 43}}),
        "malformed",
    ),
    "changed after the host vouched": (
        Forge(key={"statement": jose.text(tokens.statement("h9", "b", jose.jwk(OTHER.public_key()), NOW))}),
        "qualifying-data",
    ),
    "the same by a software key": (
        Forge("software", key={"statement": jose.text(tokens.statement("h9", "b", jose.jwk(OTHER.public_key()), NOW))}),
        "signature",
    ),
    "by a quote for the fleet's verifier": (Forge(extra=hashlib.sha256(b"another use").digest()), "qualifying-data"),
    "by a quote without a question": (Forge(extra=b""), "qualifying-data"),
    "by no TPM's statement": (Forge(quoted={"magic": 0x11111111}), "magic"),
    "by a certification of a key": (Forge(quoted={"type": 0x8017}), "type"),
    "by another bank of PCRs": (Forge(quoted={"bank": b"\0\x04"}), "pcr-selection"),
    "by a quote of other PCRs": (Forge(quoted={"selected": (0,)}), "pcr-selection"),
    "with values that were not quoted": (Forge(key={"pcrs": {"0": "00" * 32, "7": "08" * 32}}), "pcr-digest"),
    "with fewer values": (Forge(key={"pcrs": {"0": "00" * 32}}), "pcr-selection"),
    "with a relabelled PCR": (Forge(key={"pcrs": {"1": "00" * 32, "7": "07" * 32}}), "pcr-selection"),
    "with a PCR beyond the last": (Forge(key={"pcrs": {"24": "00" * 32}}), "malformed"),
    "with a PCR in two spellings": (Forge(key={"pcrs": {"00": "00" * 32, "7": "07" * 32}}), "malformed"),
    "by a weak hash": (Forge(algorithm=b"\0\x04"), "scheme"),
    "by a software key in place of the TPM": (Forge("software"), "scheme"),
    "of another version": (Forge(key={"v": 2}), "malformed"),
    "with a truth for a version": (Forge(key={"v": True}), "malformed"),
    "with a further member": (Forge(key={"note": ""}), "malformed"),
    "of another kind": (Forge(key={"kind": "tee"}), "malformed"),
    "of another collection": (Forge(collection={"__cmwc_t": "tag:example.org,2026:x"}), "malformed"),
    "with a second token": (Forge(collection={"token2": ["application/eat+jwt", "", 4]}), "malformed"),
    "without the host's key": (Forge(collection={"host-key": None}), "malformed"),
    "with another type of token": (Forge(collection={"token": ["application/eat-ucs+json", "e30", 4]}), "malformed"),
    "with a token that is none": (Forge(collection={"token": ["application/eat+jwt", "e30", 4]}), "malformed"),
    "with a number for a token": (Forge(collection={"token": ["application/eat+jwt", 7, 4]}), "malformed"),
    "without an indicator": (Forge(collection={"token": ["application/eat+jwt", "e30"]}), "malformed"),
    "cut off": (Forge(cut=lambda text: text[:-9]), "malformed"),
    "too long": (Forge(cut=lambda text: text + " " * tokens.MOST), "malformed"),
    "with a name given twice": (Forge(cut=lambda text: text[:-1] + ',"__cmwc_t":"x"}'), "malformed"),
    "nested without end": (Forge(cut=lambda _: "[" * 30000), "malformed"),
    "no JSON": (Forge(cut=lambda _: "\0"), "malformed"),
}
# These are refused for what the asker expects.
UNEXPECTED: dict[str, tuple[Expected, str]] = {
    "a swapped image": (dataclasses.replace(ASKED, image=f"sha256:{'3' * 64}"), "token-subject"),
    "another configuration": (dataclasses.replace(ASKED, configuration=IMAGE), "token-subject"),
    "another host": (dataclasses.replace(ASKED, host="h2"), "token-subject"),
    "a key that it does not name": (dataclasses.replace(ASKED, key=THUMBPRINT), "token-subject"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_evidence_is_refused_by_both(name: str) -> None:
    forge, code = FORGERIES[name]
    # A host's own software key is trusted where it is the clone or the change that is tried, else the TPM's.
    kind = "tpm" if name == "by a software key in place of the TPM" else forge.kind
    text = forge.made()
    with pytest.raises(Refused) as refused:
        tokens.verify(text, trusted(kind), ASKED, NOW + 1)
    assert refused.value.code == code, refused.value
    with pytest.raises(EXAMPLE.Refused):
        by_example(text, kind, ASKED, NOW + 1)


@pytest.mark.parametrize("name", UNEXPECTED)
def test_unexpected_evidence_is_refused_by_both(name: str) -> None:
    asked, code = UNEXPECTED[name]
    with pytest.raises(Refused) as refused:
        tokens.verify(Forge().made(), trusted("tpm"), asked, NOW + 1)
    assert refused.value.code == code
    with pytest.raises(EXAMPLE.Refused):
        by_example(Forge().made(), "tpm", asked, NOW + 1)


def test_other_boot_than_expected_is_refused() -> None:
    for pcrs in ({7: bytes(32)}, {4: bytes(32)}):
        with pytest.raises(Refused) as refused:
            tokens.verify(Forge().made(), trusted("tpm"), dataclasses.replace(ASKED, pcrs=pcrs), NOW)
        assert refused.value.code == "token-subject"


@pytest.mark.parametrize("key", [b"", pem(ec.generate_private_key(ec.SECP384R1()))], ids=["none", "P-384"])
def test_key_of_another_kind_is_not_trusted(key: bytes) -> None:
    with pytest.raises(Refused, match="the trusted key is") as refused:
        tokens.verify(Forge().made(), key, ASKED, NOW)
    assert refused.value.code == "malformed"
    with pytest.raises(EXAMPLE.Refused):
        EXAMPLE.check(Forge().made(), key, NONCE, NOW)


@pytest.mark.parametrize(
    "claims",
    [
        {"netspace_image": "latest"},
        {"netspace_configuration": 7},
        {"netspace_started": "x"},
        {"netspace_started": True},
        {"cnf": "x"},
        {"cnf": {"jkt": 7}},
        {"cnf": {"jkt": "x"}},
        {"cnf": {"jkt": THUMBPRINT, "kid": "x"}},
    ],
)
def test_claim_of_another_form_is_refused_by_the_library(claims: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        tokens.verify(Forge(claims=claims).made(), trusted("tpm"), ASKED, NOW)
    assert refused.value.code == "malformed"


def test_no_changed_byte_of_evidence_is_accepted() -> None:
    text = Forge().made()
    for at in range(0, len(text), 7):
        changed = text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :]
        with pytest.raises(Refused):
            tokens.verify(changed, trusted("tpm"), ASKED, NOW)
        with pytest.raises(EXAMPLE.Refused):
            by_example(changed, "tpm", ASKED, NOW)


def test_signature_of_libcrypto_is_that_of_any_library() -> None:
    for message in (b"", b"x" * 5000, *(bytes([number]) for number in range(50))):
        raw = signing.es256(private(TOKEN), message)
        assert len(raw) == 64
        kid = jose.thumbprint(jose.jwk(TOKEN.public_key()))
        unsigned = tokens.unsigned(kid, b"{}")
        token = f"{unsigned.decode()}.{jose.text(signing.es256(private(TOKEN), unsigned))}"
        assert jose.opened(token, tokens.TYP, [jose.jwk(TOKEN.public_key())], 4096) == {}
    for wrong in (b"", b"\x30\x03\x02\x01\x00", private(TOKEN)[:40]):
        with pytest.raises(signing.SigningError):
            signing.es256(wrong, b"x")
