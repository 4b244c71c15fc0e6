"""Endorser of a host: a key that certifies to other hosts which environment a signing key belongs to.

A message over a sealed link to another host carries an *endorsement* of its signing key. This is a JWT (RFC 7519, RFC
7800), signed by the endorser of the sender's host: "this key belongs to this environment until this time". So receivers
on other hosts need only the endorser's key (``bundle``), which stays when the environments' keys change.

The host's authority certifies the endorser for this purpose only: the only name in its certificate is ``<the host's
SPIFFE ID>/seals``, and the only use is to sign documents (RFC 9336). No broker accepts this certificate, and no
certificate of an environment or a broker is accepted as an endorser's.

The endorser has its own key for three reasons. An authority's key is for certificates only (RFC 5280, 4.2.1.3). The
authority may be on another curve, but the endorser must be on P-256. And the endorser's key stays when the authority is
replaced, so no message is lost then.

The file is ``<records>/endorser/own.json``, readable by root alone, made with the first sealed link to another host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netspace import files, jose
from netspace.errors import NetspaceError, StateError
from netspace.layout import Layout
from netspace.link.pki.authority import Authority, Issuer
from netspace.link.topology.spiffe import spiffe_id
from netspace.x509_helpers import private

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

KIND = "netspace-endorsement+jwt"
DAY = 24 * 3600.0
LIFE = 14 * DAY
"""Seconds for which an endorsement is valid: other hosts accept a stolen signing key for no longer."""
LEFT = 10 * DAY
"""Seconds left of an endorsement when it is renewed. A seal is valid for seven days, but not beyond its endorsement."""
PROMISE = 90 * DAY
"""Seconds from the making of an encryption key for which other hosts may use it."""


@dataclass(frozen=True)
class Endorser:
    """The recorded endorser.

    :param host: the SPIFFE ID of this host.
    :param kid: its key's thumbprint (RFC 7638).
    :param by: the name of the authority that certified it.
    :param ends: when its certificate expires, in seconds since 1970.
    :param pem: its private key.
    :param chain: its certificate chain (PEM), the root last.
    """

    host: str
    kid: str
    by: str
    ends: float
    pem: str = field(repr=False)
    chain: str

    def endorsed(self, key: Mapping[str, Any], environment: str, now: float) -> bool:
        """Return whether *key* has an endorsement by this endorser for *environment* that doesn't expire soon.

        The endorsement must be valid for at least ``LEFT`` seconds more.
        """
        token = key.get("endorsement")
        if not token:
            return False
        header, said = jose.unchecked(token)
        whose = (self.kid, self.host, spiffe_id(self.host, environment))
        return (header.get("kid"), said.get("iss"), said.get("sub")) == whose and said.get("exp", 0) >= now + LEFT

    def key(self) -> EllipticCurvePrivateKey:
        """Return the endorser's private key."""
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            return load_pem_private_key(self.pem.encode(), None)  # type: ignore[return-value]
        except (ValueError, TypeError) as err:
            raise StateError(f"the endorser of seals can't be read: {type(err).__name__}; {files.REBUILT}") from err

    def sign(self, kind: str, claims: Mapping[str, Any]) -> str:
        """Return a JWT of *claims*, signed by this endorser."""
        return jose.sign(self.key(), kind, claims)

    def endorse(self, key: Mapping[str, Any], environment: str, now: float) -> str:
        """Return an endorsement of the signing key of an environment of this host."""
        members = ("kty", "crv", "x", "y", "kid", "use")
        begins = min(now, key["nbf"])
        claims = {
            "iss": self.host,
            "sub": spiffe_id(self.host, environment),
            "nbf": int(begins),
            "exp": int(now + LIFE),
            "cnf": {"jwk": {member: key[member] for member in members}},
        }
        return self.sign(KIND, claims)


def _path(layout: Layout) -> Path:
    return layout.records("endorser") / "own.json"


def read(layout: Layout) -> Endorser | None:
    """Return the recorded endorser; None if there is none."""
    record = files.read_json(_path(layout))
    if record is None:
        return None
    try:
        texts = {name: str(record[name]) for name in ("host", "kid", "by", "pem", "chain")}
        return Endorser(**texts, ends=float(record["ends"]))
    except (KeyError, TypeError, ValueError) as err:
        raise StateError(f"{_path(layout)}: {err!r}; {files.REBUILT}") from err


def lacking(known: Endorser | None, authority: Authority | None) -> str:
    """Return why the endorser must be certified (again); empty if its present certificate is valid."""
    if known is None:
        return "absent"
    if authority is None or known.host != authority.host:
        return "another host's"
    return "" if known.by == authority.name else "of another authority"


def ensure(layout: Layout, authority: Authority | None, now: float) -> Endorser:
    """Return the endorser, certified by *authority*; make it if there is none. An existing endorser keeps its key.

    :raises NetspaceError: there is no authority yet.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    known = read(layout)
    if known is not None and not lacking(known, authority):
        return known
    if authority is None:
        raise NetspaceError(
            "this host has no certificate authority for its links yet, so nobody can certify keys; apply the links"
        )
    key = known.key() if known else ec.generate_private_key(ec.SECP256R1())
    chain = Issuer(authority).endorser(key.public_key(), now)
    kid = jose.thumbprint(jose.jwk(key.public_key()))
    made = Endorser(authority.host, kid, authority.name, authority.ends, private(key), chain)
    files.write_json(_path(layout), {"version": 1, **dataclasses.asdict(made)})
    return made


def remove(layout: Layout) -> None:
    """Delete the endorser; the next one will have another key."""
    folder = layout.records("endorser")
    if folder.is_dir():
        files.remove(_path(layout))
        folder.rmdir()
