"""
What this host can prove
========================

The trust level that the host was found to have, and evidence for a verifier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from salt.exceptions import CommandExecutionError  # noqa: E402

from netspace import declared, files  # noqa: E402
from netspace.attestation import appraisal, software  # noqa: E402
from netspace.attestation.evidence import Context  # noqa: E402
from netspace.attestation.kind import NAME, Attestations  # noqa: E402
from netspace.errors import NetspaceError  # noqa: E402
from netspace.spec import parse  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]
    __pillar__: dict[str, Any]

__virtualname__ = "netspace_attestation"


def __virtual__() -> str:
    return __virtualname__


def status() -> dict[str, Any]:
    """
    Return this host's trust: ``level`` (L0 to L5), ``verifier``, ``reason`` (why not the next
    level), ``remedy`` (what would raise it), ``issued`` and ``expires`` (seconds since the epoch),
    ``fallback`` (a TPM is configured, but could not be used) and ``tpm``.

    Reads the result of the last appraisal and makes none.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_attestation.status
    """
    try:
        return Attestations(declared.layout(__opts__)).status()
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err


def evidence(nonce: str, verifier: str = "", session: str = "") -> dict[str, Any]:
    """
    Make evidence for a verifier: a quote by the TPM that ``pillar:netspace:attestation:tpm``
    names, with the PCR values and the firmware's log; without one, a software key's signature.

    Returns ``{v, kind, key, attest, sig, bank, pcrs, bootlog, systemdlog, ima, env}`` with binary
    fields in base64, and ``host``, the name that the evidence is bound to.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_attestation.evidence 8a1c0d5f3e92b7640f1e2d3c4b5a6978

    nonce
        16 to 64 random bytes, in hex, used once.

    verifier
        Fingerprint of the verifier that asks. Defaults to none.

    session
        The verifier's name for this exchange. Defaults to none.
    """
    try:
        layout = declared.layout(__opts__)
        section = (__pillar__.get("netspace") or {}).get("attestation")
        settings = parse.declaration({} if section is None else {"attestation": section}).attestation
        try:
            raw = bytes.fromhex(nonce)
        except (TypeError, ValueError) as err:
            raise NetspaceError(f"nonce: {nonce!r:.40}: expected 16 to 64 bytes in hex") from err
        host = software.host_id(layout)
        made = appraisal.evidence(layout, appraisal.settings(settings), Context(str(verifier), host, str(session), raw))
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err
    return {**made.wire(), "host": host}


def forget() -> dict[str, Any]:
    """
    Forget the last appraisal, **the pinned TPM** and the software key.

    For a host whose TPM was replaced or cleared on purpose: the next appraisal accepts the TPM
    that it finds. Until then the host has trust level L0. Returns ``{forgotten: whether there was
    anything}``.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_attestation.forget
    """
    try:
        layout = declared.layout(__opts__)
        kind = Attestations(layout)
        with files.locked(layout.lock):
            plan = kind.plan(parse.declaration({}).attestation, kind.observe(), {NAME})
            outcomes = kind.apply(plan.steps)
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err
    errors = [outcome.error for outcome in outcomes if outcome.error]
    if errors:
        raise CommandExecutionError("; ".join(errors))
    return {"forgotten": bool(plan.steps)}
