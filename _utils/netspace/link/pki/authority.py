"""Certificate authority of one host's links: issues the certificates by which environments and broker log in.

Its key and certificate are made once, or come from the operator (``broker: {authority: FOLDER}``: an intermediate below
a fleet's root). It issues short-lived certificates on P-256:

- to an environment, for client authentication only. The SPIFFE ID ``spiffe://<trust domain>/host/<host>/env/<name>`` is
  its only name, and the name of its account on the broker;
- to the broker, for server authentication only, with the names that clients in environments connect to;
- to the broker, for client authentication only, to log in at the brokers of other hosts.

If links to other hosts are sealed, the authority also issues a long-lived certificate to this host's ``endorser``, for
signing documents only.

The authority's key never leaves ``<records>/link/authority.json``, which only root can read. This module doesn't
connect to any broker. A certificate is due for renewal when less than a third of its lifetime is left, or when another
authority issued it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netspace import files, x509_helpers
from netspace.errors import NetspaceError, StateError, unreadable
from netspace.layout import Layout
from netspace.link.topology.spiffe import domain_of, endorser_id, host_id, spiffe_id
from netspace.spec.types import LocalBroker
from netspace.x509_helpers import SKEW, private, text, usage, when

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.x509 import Certificate, SubjectAlternativeName

HOUR = 3600.0
LIFE = 24 * HOUR
SERVER_LIFE = 30 * 24 * HOUR
OWN_LIFE = 10 * 365 * 24 * HOUR
MAX_FILE = 65536
HEADER = 700

# Clients in environments connect to this address. It is a DNS name too: librabbitmq compares only DNS names.
SERVER_NAMES = ("localhost", "127.0.0.1")
SERVER_ADDRESSES = ("127.0.0.1",)

ENDORSES = "1.3.6.1.5.5.7.3.36"
"""The only extended key usage of an endorser's certificate: to sign documents (RFC 9336). It is useless in TLS."""

_HEADER = re.compile(r"# netspace: (\S+) from (\d+) to (\d+) by ([0-9a-f]{16})(?: as (\S+))?\n")
_LABEL = re.compile(r"[^a-z0-9._-]+")


@dataclass(frozen=True)
class Issued:
    """The first line of an issued file. The rest of the file is the key, its certificate and the intermediates.

    :param id: SPIFFE ID of the owner.
    :param begins: start of validity, in seconds since 1970.
    :param ends: end of validity, in seconds since 1970.
    :param by: the issuing authority's ``name``.
    :param serves: the server name by which other hosts reach the owner; empty: none.
    """

    id: str
    begins: float
    ends: float
    by: str
    serves: str = ""

    def due(self, now: float, by: str) -> bool:
        """Return whether the certificate must be renewed.

        It must be renewed if less than a third of its lifetime is left, if it begins in the future, or if its issuer
        isn't *by*.
        """
        third = (self.ends - self.begins) / 3
        return self.by != by or now > self.ends - third or now + SKEW < self.begins


def issued(pem: bytes) -> Issued | None:
    """Parse the first line of an issued file, and no certificate; return None if the file has no such line.

    :param pem: the first ``HEADER`` bytes of the file, or more.
    """
    match = _HEADER.match(pem[:HEADER].decode("ascii", "replace"))
    return None if match is None else Issued(match[1], float(match[2]), float(match[3]), match[4], match[5] or "")


@dataclass(frozen=True)
class Authority:
    """The recorded authority.

    :param host: the SPIFFE ID of this host, the prefix of all SPIFFE IDs that the authority issues.
    :param pem: its key, then its certificate chain up to and including *anchor*.
    :param anchor: the trusted certificate (PEM): the operator's root, or the authority's own certificate.
    :param name: its identifier: the first 16 hex digits of its certificate's SHA-256.
    :param begins: start of validity, in seconds since 1970.
    :param ends: the earliest end of validity in the chain, in seconds since 1970.
    :param source: a digest of the operator's file from which it was read (``_source``); empty: it was made on this
        host.
    :param former: trusted certificates of previous authorities, each with the time until which it is trusted.
    """

    host: str
    pem: str = field(repr=False)
    anchor: str
    name: str
    begins: float
    ends: float
    source: str = ""
    former: tuple[tuple[str, float], ...] = ()

    @property
    def trusted(self) -> tuple[str, ...]:
        """The certificates (PEM) that clients and the broker trust."""
        return (self.anchor, *(pem for pem, _ in self.former))

    @property
    def anchors(self) -> bytes:
        """The trusted certificates as the content of one PEM file."""
        return "".join(self.trusted).encode()

    def id(self, environment: str | None) -> str:
        """Return the SPIFFE ID of an environment of this host; with None, the SPIFFE ID of the broker."""
        return spiffe_id(self.host, environment)


def _path(layout: Layout) -> Path:
    return layout.records("link") / "authority.json"


def read(layout: Layout) -> Authority | None:
    """Return the recorded authority; None if there is none yet."""
    record = files.read_json(_path(layout))
    if record is None:
        return None
    try:
        former = tuple((str(pem), float(until)) for pem, until in record["former"])
        texts = {key: str(record[key]) for key in ("host", "pem", "anchor", "name", "source")}
        return Authority(**texts, begins=float(record["begins"]), ends=float(record["ends"]), former=former)
    except (KeyError, TypeError, ValueError) as err:
        raise StateError(f"{_path(layout)}: {err!r}; {files.REBUILT}") from err


def _write(layout: Layout, authority: Authority) -> None:
    files.write_json(_path(layout), {"version": 1, **dataclasses.asdict(authority)})


def remove(layout: Layout) -> None:
    files.remove(_path(layout))


def wanting(layout: Layout, spec: LocalBroker, known: Authority | None, now: float) -> str:
    """Return a text on how the authority differs from the declaration *spec*; empty if it doesn't.

    If an operator's file is declared, it is read.

    :param now: seconds since 1970.
    """
    if known is None:
        return "absent"
    if domain_of(known.host) != domain(layout, spec):
        return "another trust domain"
    if spec.host is not None and known.host != host_id(domain(layout, spec), spec.host):
        return "another host's"
    try:
        source = _source(spec, _given(spec)) if spec.authority else ""
    except NetspaceError as err:
        return str(err)  # the recorded authority stays in use; ``ensure`` raises this error
    if known.source != source:
        return "another authority"
    if now > known.ends - (known.ends - known.begins) / 3 and not known.source:
        return "running out"
    if now > known.ends:
        return "run out"
    return "trusts an earlier authority for too long" if any(until < now for _, until in known.former) else ""


def ensure(
    layout: Layout, spec: LocalBroker, now: float, *, replace: bool = False, distrust: bool = False
) -> Authority:
    """Return the authority that *spec* declares; make it, read the operator's file, or replace it, if needed.

    :param replace: whether to replace the recorded authority even if it is as declared.
    :param distrust: whether to trust only the returned authority from now on. Otherwise the previous authority stays
        trusted for ``LIFE``, the lifetime of an environment's certificate.
    :raises NetspaceError: the operator's authority can't be used.
    """
    known = read(layout)
    why = wanting(layout, spec, known, now)
    if not why and not replace and not (distrust and known and known.former):
        return known  # type: ignore[return-value]
    former = () if known is None or distrust else tuple(one for one in known.former if one[1] >= now)
    if known is None or replace or why not in ("", "trusts an earlier authority for too long"):
        label = spec.host or (known.host.rpartition("/")[2] if known else _label(socket.gethostname()))
        host = host_id(domain(layout, spec), label)
        made = _adopt(spec, host, now) if spec.authority else _make(host, now)
        if known is not None and not distrust and known.anchor != made.anchor:
            former = ((known.anchor, now + LIFE), *former)
    else:
        assert known is not None
        made = known
    made = dataclasses.replace(made, former=former)
    _write(layout, made)
    return made


def domain(layout: Layout, spec: LocalBroker) -> str:
    """Return the trust domain: the declared one, or else the instance's name."""
    return spec.trust_domain or layout.instance


def _label(hostname: str) -> str:
    """Return a host name in the form of a segment of a SPIFFE ID's path: other characters become ``-``."""
    return _LABEL.sub("-", hostname.lower()).strip("-.") or "localhost"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# -- its own certificate ----------------------------------------------------------------
def _make(host: str, now: float) -> Authority:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509_helpers.named(f"netspace links of {host.rpartition('/')[2]}"[:64])
    # RFC 5280 identifies authorities by name. A unique name lets the broker trust two authorities at once.
    name = x509.Name([*name, x509.NameAttribute(x509.NameOID.SERIAL_NUMBER, f"{x509.random_serial_number():x}"[:16])])
    extensions = [
        (x509.BasicConstraints(True, 0), True),
        (usage(key_cert_sign=True, crl_sign=True), True),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.SubjectAlternativeName([x509.UniformResourceIdentifier(_root(host))]), False),
    ]
    own = x509_helpers.make(name, key.public_key(), name, key, now, now + OWN_LIFE, extensions)
    return _authority(host, key, [own], now)


def _root(host: str) -> str:
    """Return the SPIFFE ID of the authority itself: the ID of its trust domain (SPIFFE X.509-SVID, section 2)."""
    return f"spiffe://{domain_of(host)}"


def _given(spec: LocalBroker) -> bytes:
    path = Path(str(spec.authority)) / "authority.pem"
    try:
        info = path.stat()
        if info.st_uid != 0 or info.st_mode & 0o077:
            raise NetspaceError(
                f"broker:authority: {path}: users other than root can read the key; chown root, chmod go="
            )
        with path.open("rb") as stream:
            return stream.read(MAX_FILE)
    except OSError as err:
        raise NetspaceError(f"broker:authority: {err}") from err


def _adopt(spec: LocalBroker, host: str, now: float) -> Authority:
    """Return the operator's authority, read from a file with its key and certificate chain, the root last."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    raw = _given(spec)
    where = f"broker:authority: {spec.authority}/authority.pem"
    try:
        key = load_pem_private_key(raw, None)
        chain = x509.load_pem_x509_certificates(raw)
    except unreadable() as err:  # the error must not contain the key
        raise NetspaceError(
            f"{where}: can't be read ({type(err).__name__}); give in PEM a key, its certificate and the chain above it"
        ) from err
    if not isinstance(key, ec.EllipticCurvePrivateKey) or chain[0].public_key() != key.public_key():
        raise NetspaceError(
            f"{where}: expected a key on an elliptic curve, and the key's certificate before all others"
        )
    for below, above in zip(chain, [*chain[1:], chain[-1]], strict=True):
        try:
            below.verify_directly_issued_by(above)
        except (ValueError, TypeError, InvalidSignature) as err:
            raise NetspaceError(
                f"{where}: {below.subject.rfc4514_string()}: the certificate after it did not issue it"
            ) from err
        basic = below.extensions.get_extension_for_class(x509.BasicConstraints).value
        if not basic.ca or not below.not_valid_before_utc <= when(now) < below.not_valid_after_utc:
            raise NetspaceError(
                f"{where}: {below.subject.rfc4514_string()} is not a CA certificate, or isn't valid now"
            )
    if spec.among_hosts:
        bounded(chain[0], str(spec.trust_domain), where)
    made = _authority(host, key, chain, now)
    return dataclasses.replace(made, source=_source(spec, raw))


def _source(spec: LocalBroker, raw: bytes) -> str:
    """Return a text that identifies the operator's authority: the digest of the file *raw*.

    If the host has links to other hosts, the trust domain is added. So the text changes when the first other host is
    declared, and the file is then checked again for name constraints.
    """
    return _digest(raw) + (f" for {spec.trust_domain} alone" if spec.among_hosts else "")


def bounded(own: Certificate, trust_domain: str, where: str) -> None:
    """Check that the name constraints (RFC 5280, 4.2.1.10) of a host's authority permit only names of that host.

    :param own: the authority's certificate.
    :param where: the prefix of errors.
    :raises NetspaceError: the name constraints permit other names, or lack one of the host's names.
    """
    from cryptography import x509

    try:
        allowed = own.extensions.get_extension_for_class(x509.NameConstraints).value.permitted_subtrees or []
    except x509.ExtensionNotFound:
        allowed = []
    if {one.value for one in allowed if isinstance(one, x509.UniformResourceIdentifier)} != {trust_domain}:
        raise NetspaceError(
            f"{where}: it could certify other hosts: its nameConstraints must permit URIs of {trust_domain} alone"
        )
    if {one.value for one in allowed if isinstance(one, x509.DNSName)} != {trust_domain, *SERVER_NAMES}:
        wanted = ", ".join((trust_domain, *SERVER_NAMES))
        raise NetspaceError(f"{where}: its nameConstraints must permit these DNS names and no other: {wanted}")


def _authority(host: str, key: EllipticCurvePrivateKey, chain: list[Certificate], now: float) -> Authority:
    from cryptography.hazmat.primitives import hashes

    texts = [text(one) for one in chain]
    return Authority(
        host,
        private(key) + "".join(texts),
        texts[-1],
        chain[0].fingerprint(hashes.SHA256()).hex()[:16],
        chain[0].not_valid_before_utc.timestamp(),
        min(one.not_valid_after_utc.timestamp() for one in chain),
    )


# -- certificates that it issues ------------------------------------------------------------------------
class Issuer:
    """An authority with its key loaded, which issues certificates."""

    def __init__(self, authority: Authority) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        self.authority = authority
        raw = authority.pem.encode()
        try:
            self._key: Any = load_pem_private_key(raw, None)
            chain = x509.load_pem_x509_certificates(raw)
        except unreadable() as err:
            raise StateError(f"the authority of links can't be read: {type(err).__name__}; {files.REBUILT}") from err
        self._own, self._chain = chain[0], chain
        authority_key: Any = self._key.public_key()
        self._identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key)

    def environment(self, name: str, now: float, life: float = LIFE) -> bytes:
        """Return a new key and certificate (PEM) by which an environment logs in at the broker."""
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID

        whose = self.authority.id(name)
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(whose)])
        return self._issue(whose, name, names, ExtendedKeyUsageOID.CLIENT_AUTH, now, life)

    def server(self, now: float, life: float = SERVER_LIFE, serves: str = "") -> bytes:
        """Return a new key and server certificate (PEM) of the broker.

        :param serves: the server name by which other hosts reach it; empty: none.
        """
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID

        whose = self.authority.id(None)
        names = x509.SubjectAlternativeName(
            [
                *map(x509.DNSName, (*SERVER_NAMES, serves) if serves else SERVER_NAMES),
                *(x509.IPAddress(ipaddress.ip_address(address)) for address in SERVER_ADDRESSES),
                x509.UniformResourceIdentifier(whose),
            ]
        )
        return self._issue(whose, "broker", names, ExtendedKeyUsageOID.SERVER_AUTH, now, life, serves)

    def client(self, now: float, life: float = SERVER_LIFE) -> bytes:
        """Return a new key and client certificate (PEM) by which the broker logs in at the brokers of other hosts."""
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID

        whose = self.authority.id(None)
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(whose)])
        return self._issue(whose, "broker", names, ExtendedKeyUsageOID.CLIENT_AUTH, now, life)

    def endorser(self, key: EllipticCurvePublicKey, now: float) -> str:
        """Return the certificate chain (PEM) of this host's endorser, the root last.

        The endorser's certificate is valid for as long as the authority.
        """
        from cryptography import x509
        from cryptography.x509 import ObjectIdentifier

        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(endorser_id(self.authority.host))])
        made = self._certificate(key, "seals", names, ObjectIdentifier(ENDORSES), now, self.authority.ends)
        return "".join(map(text, (made, *self._chain)))

    def _issue(
        self,
        whose: str,
        common: str,
        names: SubjectAlternativeName,
        use: Any,
        now: float,
        life: float,
        serves: str = "",
    ) -> bytes:
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        begins = int(now)
        ends = int(min(now + life, self.authority.ends))
        made = self._certificate(key.public_key(), common, names, use, now, ends)
        named_too = f" as {serves}" if serves else ""
        header = f"# netspace: {whose} from {begins} to {ends} by {self.authority.name}{named_too}\n"
        # The file includes the intermediates, which the peer needs to verify the certificate up to the root.
        return (header + private(key) + "".join(map(text, (made, *self._chain[:-1])))).encode()

    def _certificate(
        self, key: EllipticCurvePublicKey, common: str, names: SubjectAlternativeName, use: Any, now: float, ends: float
    ) -> Certificate:
        from cryptography import x509

        extensions = [
            (x509.BasicConstraints(False, None), True),
            (usage(digital_signature=True), True),
            (x509.ExtendedKeyUsage([use]), False),
            (names, False),
            (self._identifier, False),
        ]
        return x509_helpers.make(x509_helpers.named(common), key, self._own.subject, self._key, now, ends, extensions)
