"""Replacing: another machine takes the place of a host, under the host's name.

The old machine is cut out first, and its trust domain is released, so that the new machine can join. The authority's
key tells the machines apart: a machine whose key the master has certified is the machine that joined, even if its keys
come from a backup. So replacing a host again changes nothing, and an interrupted call can be repeated. A machine that
doesn't answer counts as gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from netspace.errors import NetspaceError, unreadable
from netspace.fleet import hosts as fleet_hosts
from netspace.fleet import join_hosts, leaving
from netspace.fleet.declaration import REGISTER, FleetDeclaration
from netspace.fleet.join_hosts import Ask
from netspace.fleet.joining import Minion
from netspace.fleet.types import AUTHORITY
from netspace.link.pki.root import Root

EMPTY = "the new machine has no volumes and mail of the old one: restore the backups before it applies"


def replace(
    declaration: FleetDeclaration,
    name: object,
    root: Root,
    minion: Callable[[str], Minion],
    release: Callable[[str], None],
    ask: Ask,
) -> dict[str, Any]:
    """Let another machine take the place of a host; return the changes, and what is still missing.

    :param name: the host's name, or the id of its minion.
    :param minion: returns the calls to a minion, by its id.
    :param release: makes the verifier forget a minion's TPM, if it knows one.
    :param ask: calls a function on minions, and returns their answers.
    :raises NetspaceError: the declaration has problems, the name belongs to no host, or the old machine can't be cut
        out.
    """
    compiled, fleet = fleet_hosts.compiled(declaration, but=REGISTER)
    (host,) = fleet_hosts.named(fleet, [name])
    found: dict[str, Any] = {}
    settings, domain = compiled.slices[fleet.minion(host)]["netspace"], fleet.trust_domain(host)
    certified, present, silent = root.given().get(domain), None, ""
    if certified is not None:
        try:
            folder = str(settings.get("broker", {}).get("authority", AUTHORITY))
            asked = minion(fleet.minion(host)).call("netspace_link.authority_request", folder=folder)
            present = _key(asked)
        except NetspaceError as err:  # the machine is down, or its key isn't accepted yet: it hasn't the certified key
            present, silent = "", str(err)
    known = declaration.register.path(fleet.minion(host)).exists()
    left = present != certified or (certified is None and known)  # an earlier call was killed after the release
    if left:
        if settings.get("attestation", {}).get("verifier") == "master":
            release(fleet.minion(host))
        gone = leaving.leave(declaration, [host], root if certified is not None else None)[host]
        if "error" in gone:
            raise NetspaceError(f"{host}: {gone['error']}")
        found |= gone
    joined = {"error": silent} if silent else join_hosts.join(declaration, [host], root, minion, ask)[host]
    found |= joined
    if "error" in joined:
        found["error"] = f"the new machine can't join yet: {joined['error']}; then replace {host} again"
    elif left:
        found["missing"] = [EMPTY, *found["missing"]]
    return {host: found}


def _key(request: object) -> str:
    """Return the digest of the key in a certificate request, in the form in which a root lists certified keys.

    :raises NetspaceError: *request* is not a certificate request.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        key = x509.load_pem_x509_csr(str(request)[:16384].encode()).public_key()
        return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
    except unreadable() as err:
        raise NetspaceError(
            f"the answer to netspace_link.authority_request is not a certificate request: {err}"
        ) from err
