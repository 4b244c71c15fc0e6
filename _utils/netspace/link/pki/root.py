"""Root certificate authority of a fleet's links, and the authorities of single hosts below it.

A host makes a key, which never leaves the host, and a certificate signing request (:func:`request`). The machine with
the root issues the certificate (:meth:`Root.certify`). The host stores it (:func:`adopt`) in the folder that ``broker:
{authority: ...}`` names. Name constraints (RFC 5280, 4.2.1.10) limit each host's authority to names of that host.
Brokers and clients check these constraints, so an attacker who takes over one host can't impersonate another.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
from pathlib import Path
from typing import Any

from netspace import files, x509_helpers
from netspace.errors import NetspaceError, unreadable
from netspace.link.pki.authority import SERVER_NAMES
from netspace.spec.hosts import DOMAIN, within

ROOT = "/var/lib/netspace-master/link-root"
NAME = "netspace links"
KEY, BUNDLE = "authority.key", "authority.pem"
LIFE = 10 * 365  # days, for the root's certificate
HOST_LIFE = 2 * 365
DAY = 24 * 3600
MAX_TEXT = 65536


def configured(given: object) -> Root:
    """Return the root that the master's configuration names.

    :param given: the value of ``netspace.link``; None: the default.
    :raises NetspaceError: the value is malformed.
    """
    settings = given or {}
    if not isinstance(settings, dict) or set(settings) - {"root"} or not isinstance(settings.get("root", ROOT), str):
        raise NetspaceError("master configuration: netspace.link: expected only the key root, with a folder")
    return Root(Path(settings.get("root", ROOT)))


class Root:
    """The root in *folder*, which only root can read: ``root.pem`` holds its key and its certificate.

    Methods raise NetspaceError if ``root.pem`` can't be used.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "root.pem"

    def make(self, name: str) -> str:
        """Make the root, if there is none; return its certificate (PEM)."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._alone():
            self._make(name)
        return x509_helpers.text(self._read()[1])

    def _alone(self) -> contextlib.AbstractContextManager[Any]:
        return files.locked(self.path.parent / ".lock")

    def _make(self, name: str) -> None:
        if not self.path.exists():
            from cryptography import x509
            from cryptography.hazmat.primitives.asymmetric import ec

            if not self._given.exists():  # before the root: given() requires this file once there is a root
                files.write_json(self._given, {})
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = _certificate(
                name,
                key.public_key(),
                x509_helpers.named(name),
                key,
                LIFE,
                [
                    (x509.BasicConstraints(True, 1), True),
                    (x509_helpers.usage(key_cert_sign=True, crl_sign=True), True),
                    (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
                ],
            )
            files.write(self.path, (x509_helpers.private(key) + x509_helpers.text(certificate)).encode())

    def certify(self, request: str, trust_domain: str) -> str:
        """Return a host authority's certificate (PEM) for *trust_domain*, followed by the root's.

        ``certified.json`` beside the root records which key has which trust domain.

        :param request: the certificate signing request that :func:`request` made on that host.
        :raises NetspaceError: the request can't be used; or this trust domain belongs to another key; or a trust domain
            above or below it was issued, so that one host could impersonate the other.
        """
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec

        if not DOMAIN.fullmatch(trust_domain):
            raise NetspaceError(f"{trust_domain!r} is not a trust domain: expected a name such as h1.example.org")
        try:
            asked = x509.load_pem_x509_csr(request[:MAX_TEXT].encode())
            whose = asked.public_key()
            if not asked.is_signature_valid or not isinstance(whose, ec.EllipticCurvePublicKey):
                raise ValueError("expected a request with a key on an elliptic curve, signed with that key")
        except unreadable() as err:
            raise NetspaceError(f"the request can't be used: {err}") from err
        self._grant(trust_domain, whose)
        key, own = self._read()
        names = [x509.UniformResourceIdentifier(trust_domain)]
        names += [x509.DNSName(name) for name in (trust_domain, *SERVER_NAMES)]  # type: ignore[misc]
        certificate = _certificate(
            f"netspace links of {trust_domain}"[:64],
            whose,
            own.subject,
            key,
            HOST_LIFE,
            [
                (x509.BasicConstraints(True, 0), True),
                (x509_helpers.usage(key_cert_sign=True, crl_sign=True), True),
                (x509.NameConstraints(names, None), True),
                (x509.SubjectKeyIdentifier.from_public_key(whose), False),
                # RFC 5280, 4.2.1.1: strict clients (Python's from 3.13 on) require the issuer's key identifier.
                (x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), False),
            ],
        )
        return x509_helpers.text(certificate) + x509_helpers.text(own)

    def _grant(self, trust_domain: str, whose: Any) -> None:
        """Record that a trust domain belongs to a key, until the trust domain is released.

        :raises NetspaceError: it belongs to another key, or overlaps with another trust domain.
        """
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        raw = whose.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        key = hashlib.sha256(raw).hexdigest()
        with self._alone():
            given = self.given()
            for name, other in given.items():
                if name == trust_domain and other != key:
                    raise NetspaceError(
                        f"{trust_domain} was given to another key; if that host has a new one, call "
                        f"`netspace_link.release {trust_domain}` on the master first"
                    )
                if within(name, trust_domain):
                    raise NetspaceError(
                        f"{trust_domain}: overlaps with {name}, which is certified already; choose another"
                    )
            files.write_json(self._given, {**given, trust_domain: key})

    @property
    def _given(self) -> Path:
        return self.path.parent / "certified.json"

    def given(self) -> dict[str, Any]:
        """Return the key of each issued trust domain: the SHA-256 of its SubjectPublicKeyInfo, in hex.

        :raises NetspaceError: the file is missing or damaged. Without it, a trust domain could be issued to a second
            key.
        """
        given = files.read_json(self._given, files.KEPT)
        if given is None and self.path.exists():
            raise NetspaceError(
                f"{self._given}: missing; restore it from a backup; if this root has certified nobody, write {{}} to it"
            )
        return given or {}

    def release(self, trust_domain: str) -> None:
        """Release a trust domain, so that another key can get it.

        **Issued certificates stay valid.**

        :raises NetspaceError: no key has this trust domain.
        """
        with self._alone():
            given = self.given()
            if trust_domain not in given:
                others = ", ".join(sorted(given)) or "none"
                raise NetspaceError(f"trust domain {trust_domain}: it is not certified; certified domains: {others}")
            files.write_json(self._given, {name: key for name, key in given.items() if name != trust_domain})

    def _read(self) -> tuple[Any, Any]:
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            raw = self.path.read_bytes()
            return load_pem_private_key(raw, None), x509.load_pem_x509_certificate(raw)
        except unreadable(OSError) as err:
            raise NetspaceError(
                f"{self.path}: {err.__class__.__name__}: the root's key or certificate can't be used"
            ) from err


def request(folder: Path) -> str:
    """Return a certificate signing request (PEM) for the key in *folder*; make the key if there is none.

    :raises NetspaceError: the file of the key holds no key.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

    path = folder / KEY
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        files.write(path, x509_helpers.private(ec.generate_private_key(ec.SECP256R1())).encode())
    try:
        key: Any = load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as err:
        raise NetspaceError(f"{path}: {type(err).__name__}: it holds no key; remove it to have a new one") from err
    asked = x509.CertificateSigningRequestBuilder().subject_name(x509_helpers.named("netspace links"))
    return asked.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def adopt(folder: Path, chain: str) -> bool:
    """Store a certificate chain from :meth:`Root.certify` beside the key; return whether it is new.

    :raises NetspaceError: the chain is for another key, or it isn't a chain.
    """
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key: Any = load_pem_private_key((folder / KEY).read_bytes(), None)
        found = x509.load_pem_x509_certificates(chain[:MAX_TEXT].encode())
        for below, above in itertools.pairwise(found):
            below.verify_directly_issued_by(above)
    except OSError as err:
        raise NetspaceError(f"{folder}: the key can't be read: {err.strerror or err}") from err
    except unreadable(InvalidSignature) as err:
        remedy = "it has to be the PEM text from `salt-run netspace_link.certify`"
        raise NetspaceError(f"{folder}: the answer can't be used ({type(err).__name__}); {remedy}") from err
    if len(found) < 2 or found[0].public_key() != key.public_key():
        raise NetspaceError(f"{folder}: the answer is for another key, or lacks the root's certificate")
    return files.write(folder / BUNDLE, (x509_helpers.private(key) + "".join(map(x509_helpers.text, found))).encode())


def _certificate(common: str, whose: Any, issuer: Any, key: Any, days: int, extensions: list[tuple[Any, bool]]) -> Any:
    now, name = time.time(), x509_helpers.named(common)
    return x509_helpers.make(name, whose, issuer, key, now, now + days * DAY, extensions)
