"""Secrets in a host's slice: the master reads each secret from its source, and encrypts it to the host.

The slices on the master's disk have only the names of sources. Whenever a minion gets its pillar, the master replaces
each source by a ciphertext. So neither a file of the master nor a cache of pillars has a secret. A host gets a
ciphertext only if it reaches the trust level that the secret demands, by the master's own last attestation result.
The host's claims about itself don't count.

Secrets are encrypted to a public key that the host sent when it joined. For secrets that demand ``L2`` or more, it must
be a key of the TPM that the master enrolled for this minion.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from netspace.attestation import sealed_value
from netspace.attestation.sealed_value import Place
from netspace.attestation.tpm import structures
from netspace.errors import NetspaceError

Read = Callable[[str], object]
"""A function that reads a secret from its source (a URI). The text of its errors may contain the secret."""
MOST = 16 * 1024
_TPM = 2
"""A secret that demands this trust level or a higher one must be encrypted to a TPM."""


class Standing(NamedTuple):
    """The master's own records of a host.

    :param level: the host's trust level (0 to 5) by the master's last valid result; 0 without one.
    :param keys: fingerprints of the endorsement keys that the master enrolled for the host.
    """

    level: int
    keys: Collection[str]


class _UnreadError(NetspaceError):
    """Error: the source of a secret can't be read."""


class Filled(NamedTuple):
    """A slice with ciphertexts in place of sources.

    :param problems: why a secret is left out, by the names of environment and secret. This is only for the master's
        log; the minion must not get it.
    """

    section: dict[str, Any]
    problems: dict[tuple[str, str], str]


def filled(section: Mapping[str, Any], minion: str, key: str, standing: Standing, read: Read) -> Filled:
    """Return the slice without sources, and with a ciphertext of each secret that the host may have.

    :param section: the slice, as it stands under ``netspace``.
    :param minion: the minion's id, which Salt has authenticated.
    :param key: the public key for secrets that the host sent when it joined; empty if it sent none.
    :param standing: the master's records of this host.
    :param read: reads a secret from its source.
    """
    problems: dict[tuple[str, str], str] = {}
    known: dict[str, bytes] = {}
    environments = {}
    for environment, spec in section.get("environments", {}).items():
        environments[environment] = spec
        if not spec.get("secrets"):
            continue
        secrets: dict[str, dict[str, Any]] = {}
        for name, given in spec["secrets"].items():
            one = {"source": given} if isinstance(given, str) else given
            minimum = str(one.get("minimum", "L1"))
            secrets[name] = {"minimum": minimum}
            try:
                to = _recipient(minimum, key, standing)
                plain = _plain(str(one.get("source")), read, known)
                place = Place(minion, environment, name, minimum)
                secrets[name]["sealed"] = sealed_value.seal(to, place, plain)
            except NetspaceError as err:
                problems[environment, name] = str(err)
                if isinstance(err, _UnreadError):
                    secrets[name]["unread"] = True
        environments[environment] = {**spec, "secrets": secrets}
    return Filled({**section, "environments": environments}, problems)


def _recipient(minimum: str, key: str, standing: Standing) -> sealed_value.Recipient:
    """Return the key to which a secret for this host is encrypted.

    :raises NetspaceError: the host may not have the secret.
    """
    least = int(minimum[1:])
    if least < 1 or standing.level < least:
        raise NetspaceError(f"needs trust level {minimum}; by the master's last result the host has L{standing.level}")
    if not key:
        raise NetspaceError("the host gave no key for secrets when it joined; salt-run netspace_fleet.join it again")
    to = sealed_value.recipient(key)
    if to.kind == "software":
        if least >= _TPM:
            raise NetspaceError(f"demands {minimum}, and the host's key for secrets is in a file; join it with its TPM")
    elif structures.public(sealed_value.decoded(to.endorsement)).fingerprint not in standing.keys:
        raise NetspaceError("the host's key for secrets is of a TPM that the master didn't enrol for it; join it again")
    return to


def _plain(uri: str, read: Read, known: dict[str, bytes]) -> bytes:
    """Return the secret at a source. No error message contains text from the source, which could be the secret."""
    if uri in known:
        return known[uri]
    try:
        found = read(uri)
    except Exception as err:  # the plugin that reads the source may raise anything
        raise _UnreadError(f"its source can't be read ({type(err).__name__}); see: salt-run sdb.get {uri}") from None
    plain = found.encode() if isinstance(found, str) else found
    if not isinstance(plain, bytes) or found == uri or not 0 < len(plain) <= MOST:
        raise _UnreadError(f"its source has no text of 1 to {MOST} bytes; see: salt-run sdb.get {uri}")
    known[uri] = plain
    return plain
