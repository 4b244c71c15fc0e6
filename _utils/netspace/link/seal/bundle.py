"""Bundles, in which a host publishes its keys for sealed links to one other host: made, checked and stored here.

A bundle of this host for another host (:func:`make`) holds the certificate chain of this host's endorser, and a JWT
that the endorser signed. The JWT holds the public encryption keys of those environments for which the other host seals.
It also holds the thumbprint of the other host's endorser key, if that is known. A bundle holds no secret. Its carrier
(Salt's master, or a person) can only withhold it.

A received bundle is accepted (:func:`opened`) if

1. it has exactly the members that :func:`make` writes, within their sizes;
2. its certificates prove that a key is the endorser of a declared host (:mod:`netspace.link.seal.path_validation`);
3. that key signed it, its audience is this host, and its time isn't in the future;
4. each key is on P-256, its ``kid`` is its thumbprint, its use is encryption, and its lifetime isn't too long.

An accepted bundle is stored (:func:`adopt`) in ``<records>/bundles/<host>.json``, if it isn't older than the stored
one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from netspace import files, jose
from netspace.errors import NetspaceError, StateError
from netspace.layout import Layout
from netspace.link.pki.authority import Authority
from netspace.link.seal import path_validation
from netspace.link.seal.endorser import PROMISE, Endorser
from netspace.link.topology import peers
from netspace.spec.types import NAME, LocalBroker
from netspace.x509_helpers import SKEW

KIND = "netspace-bundle+jwt"
MAX = 1024 * 1024
MAX_KEYS = 8
MAX_ENVIRONMENTS = 1000

Time = Annotated[float, msgspec.Meta(ge=0, le=1e11)]
Thumbprint = Annotated[str, msgspec.Meta(min_length=43, max_length=43)]
Id = Annotated[str, msgspec.Meta(max_length=300)]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of structures whose decoder refuses unknown members."""


class _Form(_Strict, frozen=True):
    version: Literal[1]
    chain: Annotated[str, msgspec.Meta(max_length=32768)]
    token: str


class _Key(_Strict, frozen=True):
    kty: Literal["EC"]
    crv: Literal["P-256"]
    x: Thumbprint
    y: Thumbprint
    kid: Thumbprint
    use: Literal["enc"]
    nbf: Time
    exp: Time


class _Claims(_Strict, frozen=True):
    iss: Id
    aud: Id
    iat: Time
    knows: Annotated[str, msgspec.Meta(max_length=43)]
    keys: dict[str, Annotated[tuple[_Key, ...], msgspec.Meta(max_length=MAX_KEYS)]]


class Bundle(_Strict, frozen=True):
    """The content of another host's bundle, after its check.

    :param host: the SPIFFE ID of that host.
    :param at: the time at which it made the bundle, in seconds since 1970.
    :param ends: when its endorser's certificate expires, in seconds since 1970.
    :param anchor: the trusted root (PEM) of the endorser's certificates.
    :param endorser: its endorser's public key (JWK), with its ``kid``.
    :param knows: the ``kid`` by which the other host knows this host's endorser; empty: the endorser is unknown there.
    :param keys: public encryption keys of its environments, each with its expiry ``exp``.
    """

    host: str
    at: float
    ends: float
    anchor: str
    endorser: dict[str, str]
    knows: str
    keys: dict[str, tuple[dict[str, Any], ...]]


def make(own: Endorser, to: str, knows: str, keys: Mapping[str, Sequence[Mapping[str, Any]]], now: float) -> str:
    """Return this host's bundle for another host, as text.

    :param own: this host's endorser, which signs the bundle.
    :param to: the other host's SPIFFE ID.
    :param knows: the ``kid`` of the other host's endorser; empty: it isn't known.
    :param keys: public encryption keys of environments of this host, by environment.
    """
    claims = {"iss": own.host, "aud": to, "iat": round(now, 3), "knows": knows, "keys": keys}
    return files.encode({"version": 1, "chain": own.chain, "token": own.sign(KIND, claims)}).decode()


def opened(text: Any, broker: LocalBroker, known: Authority, now: float) -> tuple[str, Bundle]:
    """Check a bundle; return the declared name of the host that made it, and its content.

    :param known: this host's authority, with this host's SPIFFE ID and the trusted roots.
    :raises NetspaceError: a check failed.
    """
    if not isinstance(text, str) or len(text) > MAX:
        raise NetspaceError(f"not a bundle of at most {MAX} bytes")
    try:
        form = msgspec.json.decode(text, type=_Form)
    except (msgspec.MsgspecError, ValueError, RecursionError) as err:
        raise NetspaceError(f"not a bundle: {err}"[:300]) from err
    hosts = peers.identities(broker)
    vouched = path_validation.checked(form.chain, hosts, known.trusted, now)
    where = f"the bundle of {vouched.name}"
    try:
        claims = msgspec.convert(jose.opened(form.token, KIND, [vouched.key], MAX), _Claims)
        if len(claims.keys) > MAX_ENVIRONMENTS:
            raise NetspaceError(f"more than {MAX_ENVIRONMENTS} environments")
        _believable(claims, hosts[vouched.name], known.host, now)
    except (msgspec.ValidationError, NetspaceError) as err:
        raise NetspaceError(f"{where}: {err}"[:500]) from err
    keys = {name: tuple(map(msgspec.structs.asdict, each)) for name, each in claims.keys.items()}
    named = {**vouched.key, "kid": jose.thumbprint(vouched.key)}
    return vouched.name, Bundle(claims.iss, claims.iat, vouched.ends, vouched.anchor, named, claims.knows, keys)


def _believable(claims: _Claims, host: str, own: str, now: float) -> None:
    if claims.iss != host:
        raise NetspaceError(f"claims to come from {claims.iss!r}")
    if claims.aud != own:
        raise NetspaceError(f"is for {claims.aud!r}, not for {own}")
    if claims.iat > now + SKEW:
        raise NetspaceError("is dated in the future: compare the clocks of both hosts")
    for environment, keys in claims.keys.items():
        if not NAME.fullmatch(environment):
            raise NetspaceError(f"{environment[:60]!r} is not an environment's name")
        for key in keys:
            if jose.thumbprint(jose.parse_jwk(msgspec.structs.asdict(key))) != key.kid:
                raise NetspaceError(f"a key of {environment} has the name (kid) of another key")
            if not key.nbf < key.exp <= key.nbf + PROMISE + 1:
                raise NetspaceError(f"a key of {environment} has a wrong lifetime: from {key.nbf:.0f} to {key.exp:.0f}")


# -- on disk -----------------------------------------------------------------------------------------
def adopt(
    layout: Layout, broker: LocalBroker, wanted: Collection[str], known: Authority, text: Any, now: float
) -> tuple[str, bool]:
    """Check and store a bundle; return the name of its host, and whether its content differs from the stored one.

    :param wanted: the hosts whose bundles are accepted.
    :raises NetspaceError: a check failed, the bundle is older than the stored one, or its host isn't *wanted*.
    """
    name, found = opened(text, broker, known, now)
    if name not in wanted:
        raise NetspaceError(f"no sealed link leads to {name} or comes from there")
    before = read_all(layout).get(name)
    if before is not None and found.at <= before.at and found != before:
        path = _path(layout, name)
        raise NetspaceError(
            f"the bundle of {name} is not newer than the stored one; if the clock of {name} was wrong, remove {path}"
        )
    files.write_json(_path(layout, name), msgspec.structs.asdict(found))
    return name, before is None or msgspec.structs.replace(found, at=before.at) != before


def read_all(layout: Layout) -> dict[str, Bundle]:
    """Return the stored bundles, by the names of their hosts."""
    found = {}
    for name, record in files.read_records(layout.records("bundles")).items():
        try:
            found[name] = msgspec.convert(record, Bundle)
        except msgspec.ValidationError as err:
            raise StateError(f"{_path(layout, name)}: {err}; remove the file, and exchange the keys again") from err
    return found


def keep(layout: Layout, hosts: Collection[str]) -> None:
    """Delete the bundles of all hosts but *hosts*."""
    folder = layout.records("bundles")
    if not folder.is_dir():
        return
    for name in files.record_names(folder) - set(hosts):
        files.remove(_path(layout, name))
    with contextlib.suppress(OSError):  # the folder isn't empty
        folder.rmdir()


def _path(layout: Layout, host: str) -> Path:
    return layout.records("bundles") / f"{host}.json"
