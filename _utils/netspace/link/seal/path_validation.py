"""Certification path validation (RFC 5280) of another host's endorser, up to a root that this host trusts.

It accepts exactly the chains that :meth:`netspace.link.pki.authority.Issuer.endorser` issues. The checks are written
out here because ``cryptography.x509.verification`` doesn't support name constraints of URIs; signatures, encodings and
names are checked by ``cryptography``. The module fetches nothing, reads no file, and gets the time from its caller. A
chain is accepted if

1. it has 3 to ``MAX`` certificates, and the only name in the first one is the endorser of a declared host;
2. each was issued by the next, with a digest of 256 bits or more, and the last is a trusted root;
3. all but the first are authorities whose path length permits the chain, and all are valid now;
4. every name constraint permits the host's trust domain, and the constraint of the host's own authority permits nothing
  else;
5. the first has a key on P-256 and is for an endorser only, and this module understands all critical extensions.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netspace import jose, x509_helpers
from netspace.errors import NetspaceError, unreadable
from netspace.link.pki import authority
from netspace.link.topology import spiffe

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

MAX = 6
# Key usage, alternative names, basic constraints, name constraints, extended usage; and the key identifiers.
_UNDERSTOOD = {"2.5.29.15", "2.5.29.17", "2.5.29.19", "2.5.29.30", "2.5.29.37", "2.5.29.35", "2.5.29.14"}


class Untrusted(NetspaceError):
    """Error: the certificates don't prove that a key belongs to the endorser of a declared host."""


@dataclass(frozen=True)
class ValidatedEndorser:
    """The endorser of another host, as its certificates prove it.

    :param name: the declared name of the host.
    :param key: the endorser's public key (JWK).
    :param ends: the earliest end of validity in the chain, in seconds since 1970.
    :param anchor: the trusted root of the chain (PEM).
    """

    name: str
    key: Mapping[str, str]
    ends: float
    anchor: str


def checked(pem: str, hosts: Mapping[str, str], roots: Collection[str], now: float) -> ValidatedEndorser:
    """Check an endorser's certificate chain (PEM, the root last), and return the endorser.

    :param hosts: the SPIFFE IDs of the declared hosts, by name.
    :param roots: the trusted roots (PEM, as :func:`netspace.x509_helpers.text` writes them).
    :param now: seconds since 1970.
    :raises Untrusted: the chain is refused; the error gives the reason.
    """
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        chain = x509.load_pem_x509_certificates(pem.encode())
        if not 3 <= len(chain) <= MAX:
            raise Untrusted(f"{len(chain)} certificates: expected an endorser's, its authority's and the root's")
        name = _whose(chain[0], hosts)
        domain = spiffe.domain_of(hosts[name])
        anchor = x509_helpers.text(chain[-1])
        if anchor not in roots:
            raise Untrusted("they lead to a root that the links of this host don't trust")
        for depth, (below, above) in enumerate(itertools.pairwise(chain)):
            below.verify_directly_issued_by(above)
            _issues(below, above, depth, domain)
        for one in chain:
            _valid(one, now)
        authority.bounded(chain[1], domain, "its authority")
        ends = min(one.not_valid_after_utc.timestamp() for one in chain)
        return ValidatedEndorser(name, _endorser(chain[0]), ends, anchor)
    except InvalidSignature as err:
        raise Untrusted("certificates of an endorser: one wasn't issued by the one after it") from err
    except unreadable(NetspaceError, x509.ExtensionNotFound) as err:
        raise Untrusted(f"certificates of an endorser: {err}"[:500]) from err


def _whose(own: Certificate, hosts: Mapping[str, str]) -> str:
    """Return the declared host that the (still unverified) certificate names.

    :raises Untrusted: the certificate names no declared host.
    """
    from cryptography import x509

    names = list(own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    for name, host in hosts.items():
        if names == [x509.UniformResourceIdentifier(spiffe.endorser_id(host))]:
            return name
    named = ", ".join(str(one.value) for one in names)[:300]
    raise Untrusted(f"the first certificate belongs to no host of broker:hosts; it names {named}")


def _issues(below: Certificate, above: Certificate, depth: int, domain: str) -> None:
    """Check that *above* may issue *below*, for a host of the trust domain *domain*.

    :param depth: the number of authorities between *above* and the first certificate.
    """
    from cryptography import x509

    name = above.subject.rfc4514_string()
    basic = above.extensions.get_extension_for_class(x509.BasicConstraints).value
    if not basic.ca or (basic.path_length is not None and depth > basic.path_length):
        raise Untrusted(f"{name} isn't an authority, or may not certify another authority")
    usage = _found(above, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        raise Untrusted(f"{name} may not sign certificates")
    digest = below.signature_hash_algorithm
    if digest is not None and digest.digest_size < 32:
        raise Untrusted(f"{name} signs with {digest.name}")
    names = _found(above, x509.NameConstraints)
    if names is None:
        return
    permitted, excluded = (_domains(each) for each in (names.permitted_subtrees, names.excluded_subtrees))
    if (permitted and not _among(domain, permitted)) or _among(domain, excluded):
        raise Untrusted(f"the name constraints of {name} don't permit {domain}")


def _found(one: Certificate, kind: Any) -> Any:
    from cryptography import x509

    try:
        return one.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _domains(subtrees: Sequence[Any] | None) -> list[str]:
    from cryptography import x509

    return [one.value.lower() for one in subtrees or () if isinstance(one, x509.UniformResourceIdentifier)]


def _among(domain: str, constraints: Sequence[str]) -> bool:
    """Return whether a name constraint covers *domain* (RFC 5280, 4.2.1.10).

    A constraint covers the domain that it names. A constraint with a leading dot covers all domains below that name.
    """
    return any(domain == one or (one.startswith(".") and domain.endswith(one)) for one in constraints)


def _valid(one: Certificate, now: float) -> None:
    name = one.subject.rfc4514_string()
    if not one.not_valid_before_utc <= x509_helpers.when(now) < one.not_valid_after_utc:
        raise Untrusted(f"{name} is valid from {one.not_valid_before_utc} to {one.not_valid_after_utc}")
    for extension in one.extensions:
        if extension.critical and extension.oid.dotted_string not in _UNDERSTOOD:
            raise Untrusted(f"{name}: {extension.oid.dotted_string}, a critical extension, is not supported")


def _endorser(own: Certificate) -> dict[str, str]:
    """Return the public key (JWK) in an endorser's certificate.

    :raises Untrusted: the certificate isn't an endorser's, or its key isn't on P-256.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    extensions = own.extensions
    basic = extensions.get_extension_for_class(x509.BasicConstraints).value
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    uses = [one.dotted_string for one in extensions.get_extension_for_class(x509.ExtendedKeyUsage).value]
    key = own.public_key()
    if basic.ca or usage != x509_helpers.usage(digital_signature=True) or uses != [authority.ENDORSES]:
        raise Untrusted("the first isn't an endorser's")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Untrusted("the endorser's key isn't on P-256")
    return jose.jwk(key)
