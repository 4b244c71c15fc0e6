"""Joining of a host: sets up the host for the fleet's links, and records the facts that other hosts need about it.

Each step first checks whether it is already done. So an interrupted join is continued by the next join, and joining a
host again changes nothing.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from netspace.errors import NetspaceError, StateError, unreadable
from netspace.fleet import public_keys
from netspace.fleet.published import MAX_GRAIN, Register
from netspace.fleet.types import AUTHORITY, LEVELS, Fleet, Published
from netspace.link.pki.root import NAME, Root
from netspace.spec.types import LevelName

RENEW = 90 * 24 * 3600
"""A join replaces an authority's certificate if it expires in fewer than this many seconds."""
MAX_REQUEST = 16 * 1024


class Minion(Protocol):
    """Calls of one minion's functions, and of the master's runners for this minion."""

    def call(self, function: str, **arguments: Any) -> Any:
        """Return the result of a minion's function.

        :raises NetspaceError: the function failed, or the minion didn't answer in time.
        """

    def attest(self) -> str:
        """Enrol the minion's TPM and attest the minion; return its trust level.

        :raises NetspaceError: the enrolment or the attestation failed.
        """


class Joined(NamedTuple):
    """The result of joining one host.

    :param changes: the changes made, as ``{"old": ..., "new": ...}`` by subject.
    :param missing: texts about what is still missing, each with the remedy.
    """

    changes: dict[str, dict[str, Any]]
    missing: list[str]


def join(
    fleet: Fleet, host: str, settings: Mapping[str, Any], register: Register, root: Root, minion: Minion
) -> Joined:
    """Bring one host into the fleet.

    :param settings: the host's slice, as it stands under ``netspace`` in the pillar.
    :raises NetspaceError: the minion fails to answer a request, or the root can't certify the host.
    """
    name, domain = fleet.minion(host), fleet.trust_domain(host)
    folder = str(settings.get("broker", {}).get("authority", AUTHORITY))
    try:
        old = register.read(name)
    except StateError:
        old = None  # damaged: replace it
    changes: dict[str, dict[str, Any]] = {}
    missing: list[str] = []

    asked = minion.call("netspace_link.authority_request", folder=folder)
    if not isinstance(asked, str) or len(asked) > MAX_REQUEST:
        raise NetspaceError(f"{name}: the answer to netspace_link.authority_request is not a certificate request")
    chain = _kept(asked, old, domain, root) or _certified(root, asked, domain)
    if minion.call("netspace_link.authority_adopt", chain=chain, folder=folder) is True:
        changes["authority"] = {"old": old.trust_domain if old else None, "new": domain}
    public = _public_key(minion.call("netspace_link.public_key", folder=folder), name, register)
    if old is None or old.public_key != public:
        changes["public_key"] = {"old": old.public_key if old else None, "new": public}
    secret_key = _secret_key(minion, name, settings, missing)
    if secret_key != (old.secret_key if old else ""):
        changes["secret_key"] = {"old": _kind(old.secret_key if old else ""), "new": _kind(secret_key)}
    grains = {grain: _grain(minion.call("grains.get", key=grain)) for grain in fleet.trusted_grains}
    same = old is not None and (old.trust_domain, old.public_key) == (domain, public)
    level: LevelName | None = old.level if old is not None and same else None
    if settings.get("attestation", {}).get("verifier") == "master":
        try:
            level = _level(minion.attest())
        except NetspaceError as err:
            level = None  # the level of an earlier attestation doesn't count any more
            missing.append(f"attestation: {err}; then join again")
    if level != (old.level if old else None):
        changes["level"] = {"old": old.level if old else None, "new": level}
    facts = Published(
        minion=name,
        trust_domain=domain,
        chain=chain,
        public_key=public,
        level=level,
        grains={key: value for key, value in grains.items() if value is not None},
        joined=time.time(),
        secret_key=secret_key,
    )
    if old is not None and old.grains != facts.grains:
        changes["grains"] = {"old": old.grains, "new": facts.grains}
    register.write(facts)
    return Joined(changes, missing)


def sealed_peers(settings: Mapping[str, Any]) -> set[str]:
    """Return the other hosts with which a host's slice has sealed links."""
    found = set()
    for link in settings.get("links", ()):
        if link.get("seal"):
            found |= {end.partition("@")[2] for end in (link["from"], link["to"])}
    return found - {""}


def unapplied(answers: Mapping[str, Any], minion: str, host: str, peers: Mapping[str, str]) -> list[str]:
    """Return a text for each minion that didn't answer, or hasn't applied its sealed links and so has no keys yet.

    :param answers: the answers to ``netspace_link.seal_bundles``, by minion; an exception where a minion failed.
    :param minion: the minion of the *host* that joins.
    :param peers: the hosts at the other ends of its sealed links, by their minions.
    """
    found = []
    wanted = {minion: set(peers.values()), **{peer: {host} for peer in peers}}
    for one, others in wanted.items():
        said = answers.get(one)
        given = said.get("bundles") if isinstance(said, dict) else None
        if one not in answers:
            found.append(f"seals: {one} did not answer; join again when it does")
        elif isinstance(given, dict) and not others & set(given):
            found.append(f"seals: {one} has not applied its links: salt {one} state.apply netspace; then join again")
    return found


def _secret_key(minion: Minion, name: str, settings: Mapping[str, Any], missing: list[str]) -> str:
    """Return the host's public key for secrets; empty if it has no secrets, or can't give a key."""
    if not any(spec.get("secrets") for spec in settings.get("environments", {}).values()):
        return ""
    from netspace.attestation import sealed_value

    try:
        found = sealed_value.recipient(minion.call("netspace_attestation.secret_key"))
        if settings.get("attestation", {}).get("tpm") and found.kind != "tpm":
            raise NetspaceError("it doesn't use its TPM yet; salt <minion> saltutil.refresh_pillar")
        return found.text
    except NetspaceError as err:
        missing.append(f"secrets: {name}: {err}; then join again")
        return ""


def _kind(secret_key: str) -> str | None:
    """Return the kind of a key for secrets, for an operator."""
    from netspace.attestation import sealed_value

    return sealed_value.recipient(secret_key).kind if secret_key else None


def _certified(root: Root, request: str, domain: str) -> str:
    root.make(NAME)
    return root.certify(request, domain)


def _kept(request: str, old: Published | None, domain: str, root: Root) -> str | None:
    """Return the host's present certificates if it can keep them; None if it needs new ones.

    It can keep them if they are for its present key, from the present root, and valid for longer than ``RENEW``
    seconds.
    """
    if old is None or old.trust_domain != domain or not old.chain:
        return None
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        asked = x509.load_pem_x509_csr(request.encode())
        own, above = x509.load_pem_x509_certificates(old.chain.encode())
        own.verify_directly_issued_by(above)
        present = x509.load_pem_x509_certificate(root.make(NAME).encode())
    except unreadable(InvalidSignature):
        return None
    same = own.public_key() == asked.public_key() and above == present
    return old.chain if same and own.not_valid_after_utc.timestamp() > time.time() + RENEW else None


def _grain(value: object) -> str | None:
    """Return a grain's value as a text that a pattern can match; None for an empty value or a list."""
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        return None
    return str(value)[:MAX_GRAIN]


def _level(found: str) -> LevelName:
    for level in LEVELS:
        if found == level:
            return level
    raise NetspaceError(f"{found!r:.80} is not a trust level")


def _public_key(said: object, name: str, register: Register) -> str:
    """Return the public key in a minion's answer.

    :raises NetspaceError: the answer is not a key, or is another host's key. Links would fail for every host that uses
        such a key.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    try:
        raw = base64.urlsafe_b64decode(f"{said}=".encode("ascii"))
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(raw))
    except ValueError as err:  # not of 32 bytes, or a point of a small order (RFC 7748, section 6.1)
        raise NetspaceError(f"{name}: netspace_link.public_key: {said!r:.80} is not a key") from err
    if public_keys.canonical(str(said)) != said:
        raise NetspaceError(
            f"{name}: netspace_link.public_key: {said!r:.80} is another spelling of a key; give the exact output"
        )
    if (owner := register.owner(str(said), name)) is not None:
        raise NetspaceError(register.anothers(name, owner))
    return str(said)
