"""Evidence of environments with a host appraisal (the verifier's signed statement on the host), genuine or forged.

:data:`FORGERIES` is the table of forgeries, each with the code of its refusal. :data:`FORMS` are claims with values of
a wrong type or form, in evidence that the host itself signed. The library refuses such evidence. The example checker
(``client/examples``) ignores these claims, or returns them unchecked.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from netspace import jose
from netspace.attestation import environment_token as tokens
from netspace.attestation import host_appraisal
from netspace.attestation.ear import Signer
from netspace.attestation.environment_token import Expected
from netspace.host.peer import signing

NOW, NONCE, THUMBPRINT = 1_800_000_000.0, "b3duLXF1ZXN0aW9uLTE", "A" * 43
IMAGE, CONFIGURATION = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"
ABOUT = {
    "sub": "web",
    "netspace_host": "h1",
    "netspace_boot": "boot-1",
    "netspace_image": IMAGE,
    "netspace_configuration": CONFIGURATION,
    "netspace_started": 1_799_999_000.25,
}
VERIFIER, STRANGER = (Signer(ec.generate_private_key(ec.SECP256R1())) for _ in range(2))
TOKEN, OTHER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
FAR = int(NOW) + 10 * 24 * 3600


@dataclasses.dataclass(frozen=True)
class Asked:
    """The demands of a checker of evidence: L3 of the host ``web1``."""

    expected: Expected = dataclasses.field(default_factory=lambda: Expected(NONCE, "web", image=IMAGE))
    minion: str | None = "web1"
    level: int = 3


@dataclasses.dataclass
class Forge:
    """Evidence of the environment ``web`` on the host ``web1``; in what follows, the *word* is the host appraisal.

    :param claims: changed claims of the token; None leaves a claim out.
    :param word: changed claims of the word, in the same way.
    :param header: changed members of the token's header.
    :param word_header: changed members of the word's header.
    :param key: signs the token.
    :param named: the key that the word names.
    :param verifier: signs the word.
    :param later: claims of the word that are changed after it was signed.
    :param later_claims: claims of the token that are changed after it was signed.
    :param collection: changed members of the collection.
    :param cut: changes the complete text.
    """

    claims: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    word: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    header: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    word_header: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    key: ec.EllipticCurvePrivateKey = TOKEN
    named: ec.EllipticCurvePrivateKey = TOKEN
    verifier: Signer = VERIFIER
    later: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    later_claims: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kind: str = host_appraisal.TYP
    collection: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cut: Callable[[str], str] = str

    def made(self) -> str:
        statement = tokens.statement("h1", "boot-1", jose.jwk(TOKEN.public_key()), NOW)
        host_key = tokens.vouched("software", statement, b"", bytes(64), {})
        text = tokens.collected(self.token(), host_key, self.signed_word())
        return self.cut(_changed(text.encode(), self.collection).decode())

    def token(self) -> str:
        kid = jose.thumbprint(jose.jwk(self.key.public_key()))
        unsigned = tokens.unsigned(kid, _changed(tokens.claims(ABOUT, NONCE, NOW, None), self.claims))
        if self.header:
            head = _changed(jose.octets(unsigned.split(b".")[0].decode(), ""), self.header)
            unsigned = jose.text(head).encode() + b"." + unsigned.split(b".")[1]
        return _later(f"{unsigned.decode()}.{jose.text(es256(self.key, unsigned))}", self.later_claims)

    def signed_word(self) -> str:
        key, policy = jose.jwk(self.named.public_key()), ("web", 4)
        honest = host_appraisal.make(self.verifier, "web1", 3, "boot-1", key, policy, NOW - 60, NOW + 3600)
        told = {**jose.unchecked(honest)[1], **self.word}
        head = json.loads(_changed(json.dumps(jose.unchecked(honest)[0]).encode(), self.word_header))
        payload = tokens._json({name: value for name, value in told.items() if value is not None})
        unsigned = f"{jose.text(tokens._json({**head, 'typ': self.kind}))}.{jose.text(payload)}"
        return _later(f"{unsigned}.{jose.text(es256(self.verifier.key, unsigned.encode()))}", self.later)


def es256(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    return signing.es256(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()), message)


def _changed(raw: bytes, more: Mapping[str, Any]) -> bytes:
    """Return a JSON object with the members of *more* changed; a member that is None in *more* is left out."""
    found = {**json.loads(raw), **more}
    return tokens._json({name: value for name, value in found.items() if value is not None})


def _later(token: str, more: Mapping[str, Any]) -> str:
    """Return a signed token with changed claims and the old signature."""
    head, body, signature = token.split(".")
    return f"{head}.{jose.text(_changed(jose.octets(body, ''), more))}.{signature}" if more else token


JWK = jose.jwk(TOKEN.public_key())
WORD = ["application/vnd.netspace.host-appraisal+jwt", "", 8]

ASKED = Asked()
# What it is -> who makes it, the code of its refusal, and the checker's question.
FORGERIES: dict[str, tuple[Forge, str, Asked]] = {
    # Other keys
    "by a key that root made and nobody certified": (Forge(key=OTHER), "token-key", ASKED),
    "by another host's key": (Forge(key=OTHER, claims={"netspace_host": "h2"}), "token-key", ASKED),
    "by the key of an earlier boot": (Forge(key=OTHER, claims={"netspace_boot": "boot-0"}), "token-key", ASKED),
    "by a clone of the disk": (Forge(key=OTHER, claims={"netspace_boot": "boot-of-clone"}), "token-key", ASKED),
    "with the word on another host's key": (Forge(named=OTHER), "token-key", ASKED),
    "naming the right key, signed by another": (
        Forge(key=OTHER, header={"kid": jose.thumbprint(JWK)}),
        "token-signature",
        ASKED,
    ),
    "naming no key": (Forge(header={"kid": None}), "token-key", ASKED),
    "naming a number for a key": (Forge(header={"kid": 7}), "token-key", ASKED),
    # Other boots, hosts and levels
    "of an earlier boot with a kept key": (Forge(claims={"netspace_boot": "boot-0"}), "token-boot", ASKED),
    "of a later boot with a kept key": (Forge(claims={"netspace_boot": "boot-2"}), "token-boot", ASKED),
    "with the word on an earlier boot": (Forge(word={"netspace_boot": "boot-0"}), "token-boot", ASKED),
    "with the word on a host without boot": (Forge(word={"netspace_boot": None}), "malformed", ASKED),
    "of another host of the fleet": (Forge(word={"sub": "web2"}, named=OTHER, key=OTHER), "appraisal-host", ASKED),
    "of a host with a similar name": (Forge(word={"sub": "web1."}), "appraisal-host", ASKED),
    "of a host without a name": (Forge(word={"sub": ""}), "appraisal-host", ASKED),
    "of a host that lost its level": (Forge(word={"netspace_level": 2}), "appraisal-level", ASKED),
    "of a host with a software key": (Forge(word={"netspace_level": 1}), "appraisal-level", ASKED),
    "of a host below a higher demand": (Forge(), "appraisal-level", Asked(level=4)),
    "of a host that was refused": (Forge(word={"netspace_level": 0}), "malformed", Asked(level=0)),
    "of a host with a level beyond the last": (Forge(word={"netspace_level": 6}), "malformed", ASKED),
    "of a host with a truth for a level": (Forge(word={"netspace_level": True}), "malformed", Asked(level=1)),
    "of a host with half a level": (Forge(word={"netspace_level": 3.5}), "malformed", ASKED),
    "of a host with a text for a level": (Forge(word={"netspace_level": "L3"}), "malformed", ASKED),
    "of a host without a level": (Forge(word={"netspace_level": None}), "malformed", ASKED),
    # Words that the verifier never said
    "relabelled: a higher level": (
        Forge(word={"netspace_level": 1}, later={"netspace_level": 5}),
        "appraisal-signature",
        ASKED,
    ),
    "relabelled: another host": (Forge(word={"sub": "web2"}, later={"sub": "web1"}), "appraisal-signature", ASKED),
    "relabelled: another key": (
        Forge(key=OTHER, later={"cnf": {"jwk": jose.jwk(OTHER.public_key())}}),
        "appraisal-signature",
        ASKED,
    ),
    "relabelled: another boot": (
        Forge(claims={"netspace_boot": "boot-0"}, later={"netspace_boot": "boot-0"}),
        "appraisal-signature",
        ASKED,
    ),
    "relabelled: valid for longer": (Forge(later={"exp": FAR}), "appraisal-signature", ASKED),
    "by another fleet's verifier": (Forge(verifier=STRANGER), "appraisal-signature", ASKED),
    "by a stranger in the verifier's name": (
        Forge(verifier=STRANGER, word_header={"kid": jose.thumbprint(VERIFIER.jwk)}),
        "appraisal-signature",
        ASKED,
    ),
    "by the host's own key of tokens": (Forge(verifier=Signer(TOKEN)), "appraisal-signature", ASKED),
    "a word without an algorithm": (Forge(word_header={"alg": "none"}), "appraisal-signature", ASKED),
    "a word by HMAC with the public key": (Forge(word_header={"alg": "HS256"}), "appraisal-signature", ASKED),
    "a word with a key of its own": (Forge(word_header={"jwk": JWK}), "appraisal-signature", ASKED),
    "a word with a critical member": (Forge(word_header={"crit": ["exp"]}), "appraisal-signature", ASKED),
    "the verifier's result for the host": (Forge(kind="JWT"), "appraisal-signature", ASKED),
    "the verifier's record of a host": (Forge(kind="netspace-state"), "appraisal-signature", ASKED),
    "a policy of the verifier": (Forge(kind="netspace-policy"), "appraisal-signature", ASKED),
    "a token in place of the word": (Forge(kind="eat+jwt"), "appraisal-signature", ASKED),
    # Times of the word
    "with a word that has expired": (
        Forge(word={"iat": int(NOW) - 7300, "exp": int(NOW) - 100}),
        "appraisal-expired",
        ASKED,
    ),
    "with a word from the future": (Forge(word={"iat": FAR, "exp": FAR + 60}), "appraisal-expired", ASKED),
    "with a word for ever": (Forge(word={"exp": FAR}), "malformed", ASKED),
    "with a word that ends before it begins": (Forge(word={"exp": int(NOW) - 61}), "malformed", ASKED),
    "with half a second in the word": (Forge(word={"iat": NOW - 60.5}), "malformed", ASKED),
    "with a word without a time": (Forge(word={"exp": None}), "malformed", ASKED),
    "with a truth for a time in the word": (Forge(word={"iat": True}), "malformed", ASKED),
    # Forms of the word
    "with a further claim in the word": (Forge(word={"admin": True}), "malformed", ASKED),
    "with a word of another profile": (
        Forge(word={"eat_profile": "tag:netspace.invalid,2026:host-appraisal#2"}),
        "malformed",
        ASKED,
    ),
    "with a word without a key": (Forge(word={"cnf": None}), "malformed", ASKED),
    "with a word on a thumbprint": (Forge(word={"cnf": {"jkt": jose.thumbprint(JWK)}}), "malformed", ASKED),
    "with a word on two keys": (
        Forge(word={"cnf": {"jwk": JWK, "jkt": jose.thumbprint(JWK)}}),
        "malformed",
        ASKED,
    ),
    "with a word on a text": (Forge(word={"cnf": "jwk"}), "malformed", ASKED),
    "with a word on a key of another curve": (
        Forge(word={"cnf": {"jwk": {**JWK, "crv": "P-384"}}}),
        "malformed",
        ASKED,
    ),
    "with a word on a point that is on no curve": (
        Forge(word={"cnf": {"jwk": {**JWK, "x": "A" * 43}}}),
        "malformed",
        ASKED,
    ),
    "with a word on a number": (Forge(word={"sub": 7}), "malformed", Asked(minion=None)),
    # The token itself
    "an answer to another question": (Forge(claims={"eat_nonce": "b3RoZXItcXVlc3Rpb24"}), "token-nonce", ASKED),
    "an answer to a question in capitals": (Forge(claims={"eat_nonce": NONCE.upper()}), "token-nonce", ASKED),
    "another environment's": (Forge(claims={"sub": "till"}), "token-subject", ASKED),
    "a child's for its parent": (Forge(claims={"sub": "web-worker-1"}), "token-subject", ASKED),
    "a parent's for its child": (
        Forge(),
        "token-subject",
        Asked(Expected(NONCE, "web-worker-1"), "web1"),
    ),
    "of a swapped image": (Forge(claims={"netspace_image": f"sha256:{'3' * 64}"}), "token-subject", ASKED),
    "of another configuration": (
        Forge(),
        "token-subject",
        Asked(Expected(NONCE, "web", configuration=IMAGE), "web1"),
    ),
    "of a host that calls itself otherwise": (
        Forge(claims={"netspace_host": "h2"}),
        "token-subject",
        Asked(Expected(NONCE, "web", "h1"), "web1"),
    ),
    "for the key of another program": (
        Forge(claims={"cnf": {"jkt": "B" * 43}}),
        "token-subject",
        Asked(Expected(NONCE, "web", key=THUMBPRINT), "web1"),
    ),
    "that names no key of the program": (
        Forge(),
        "token-subject",
        Asked(Expected(NONCE, "web", key=THUMBPRINT), "web1"),
    ),
    "relabelled: another environment": (
        Forge(claims={"sub": "till"}, later_claims={"sub": "web"}),
        "token-signature",
        ASKED,
    ),
    "relabelled: another image": (
        Forge(claims={"netspace_image": f"sha256:{'3' * 64}"}, later_claims={"netspace_image": IMAGE}),
        "token-signature",
        ASKED,
    ),
    "relabelled: another question": (
        Forge(claims={"eat_nonce": "b3RoZXItcXVlc3Rpb24"}, later_claims={"eat_nonce": NONCE}),
        "token-signature",
        ASKED,
    ),
    "relabelled: a later end": (Forge(later_claims={"exp": int(NOW) + 299}), "token-signature", ASKED),
    "expired": (Forge(claims={"iat": int(NOW) - 400, "exp": int(NOW) - 100}), "token-expired", ASKED),
    "of the future": (Forge(claims={"iat": FAR, "exp": FAR + 300}), "token-expired", ASKED),
    "valid for too long": (Forge(claims={"exp": FAR}), "malformed", ASKED),
    "ending before it begins": (Forge(claims={"exp": int(NOW) - 1}), "malformed", ASKED),
    "with a half second": (Forge(claims={"iat": NOW + 0.5}), "malformed", ASKED),
    "without a time": (Forge(claims={"exp": None}), "malformed", ASKED),
    "with a further claim": (Forge(claims={"netspace_level": 5}), "malformed", ASKED),
    "without an image": (Forge(claims={"netspace_image": None}), "malformed", Asked(Expected(NONCE, "web"))),
    "of another profile": (
        Forge(claims={"eat_profile": "tag:netspace.invalid,2026:environment#2"}),
        "malformed",
        ASKED,
    ),
    "a token without an algorithm": (Forge(header={"alg": "none"}), "token-signature", ASKED),
    "a token by HMAC with the public key": (Forge(header={"alg": "HS256"}), "token-signature", ASKED),
    "a token of another type": (Forge(header={"typ": "JWT"}), "token-signature", ASKED),
    "a token with a critical member": (Forge(header={"crit": ["exp"]}), "token-signature", ASKED),
    "a token with a key of its own": (Forge(header={"jwk": JWK}), "token-signature", ASKED),
    # The collection
    "without the verifier's word": (
        Forge(collection={"__cmwc_t": tokens.COLLECTION, "appraisal": None}),
        "appraisal-none",
        ASKED,
    ),
    "with an empty word": (Forge(collection={"appraisal": WORD}), "appraisal-none", ASKED),
    "with a word of one part": (
        Forge(collection={"appraisal": [WORD[0], jose.text(b"x"), 8]}),
        "malformed",
        ASKED,
    ),
    "with a word that is no text": (
        Forge(collection={"appraisal": [WORD[0], jose.text(b"\xff.."), 8]}),
        "malformed",
        ASKED,
    ),
    "with a word as evidence": (Forge(collection={"appraisal": [WORD[0], "e30", 4]}), "malformed", ASKED),
    "with a word of another type": (Forge(collection={"appraisal": ["application/jwt", "e30", 8]}), "malformed", ASKED),
    "with a list that is too short": (Forge(collection={"appraisal": WORD[:2]}), "malformed", ASKED),
    "with two words": (Forge(collection={"appraisal2": WORD}), "malformed", ASKED),
    "without a token": (Forge(collection={"token": None}), "malformed", ASKED),
    "with a token that is none": (Forge(collection={"token": ["application/eat+jwt", "e30", 4]}), "malformed", ASKED),
    "with a number for a token": (Forge(collection={"token": ["application/eat+jwt", 7, 4]}), "malformed", ASKED),
    "of another collection": (Forge(collection={"__cmwc_t": "tag:example.org,2026:x"}), "malformed", ASKED),
    "with a token of another media type": (
        Forge(cut=lambda text: text.replace("application/eat+jwt", "application/jwt")),
        "malformed",
        ASKED,
    ),
    "cut off": (Forge(cut=lambda text: text[:-9]), "malformed", ASKED),
    "too long": (Forge(cut=lambda text: text + " " * tokens.MOST), "malformed", ASKED),
    "with a name given twice": (Forge(cut=lambda text: text[:-1] + ',"__cmwc_t":"x"}'), "malformed", ASKED),
    "nested without end": (Forge(cut=lambda _: "[" * 30000), "malformed", ASKED),
    "no JSON": (Forge(cut=lambda _: "\0"), "malformed", ASKED),
}

_ANY = Asked(Expected(NONCE, "web"))
FORMS: dict[str, tuple[Forge, str, Asked]] = {
    f"with {name} {value!r}": (Forge(claims={name: value}), "malformed", _ANY)
    for name, value in (
        ("netspace_host", 7),
        ("netspace_image", "latest"),
        ("netspace_configuration", 7),
        ("netspace_started", "x"),
        ("netspace_started", True),
        ("cnf", "x"),
        ("cnf", {"jkt": 7}),
        ("cnf", {"jkt": "x"}),
        ("cnf", {"jkt": THUMBPRINT, "kid": "x"}),
    )
}
FORMS["with a question that is too short"] = (
    Forge(claims={"eat_nonce": "short"}),
    "malformed",
    Asked(Expected("short", "web")),
)
