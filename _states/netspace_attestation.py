"""
Attestation as a state
======================

Each host has a trust level, L0 to L5. The level depends on the proofs of the host's TPM, or of a software key if there
is no TPM. Environments and links may demand a level.

.. code-block:: yaml

    attestation:
      netspace_attestation.required:
        - policy: prefer
        - minimum: L3
        - tpm: device:/dev/tpmrm0
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from netspace.errors import NetspaceError  # noqa: E402
from netspace.host.host import Host  # noqa: E402
from netspace.plugin import apply_progress, arguments, editions, state_return  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]
    __salt__: dict[str, Any]
    __pillar__: dict[str, Any]

__virtualname__ = "netspace_attestation"
__running__: Mapping[str, Mapping[str, Any]] = {}  # while a state runs, Salt sets it: the results of earlier states


def __virtual__() -> str:
    return __virtualname__


def _host() -> Host:
    return Host(arguments.layout(__opts__), **apply_progress.hooks(__opts__, __salt__))


def required(name: str, declaration: dict[str, Any] | None = None, **kwargs: Any) -> dict[str, Any]:
    """Ensure that the host was appraised in this boot, and check its trust
    level.

    The state appraises the host only if the last result is no longer
    valid (another boot, other settings, expired). A masterless host
    judges itself, and the result says so (``verifier: self``).

    name
        Any text.

    declaration
        The host's declaration. Defaults to ``pillar:netspace``.

    policy
        ``require``: fail below ``minimum``. ``prefer`` (default): warn
        and go on. ``off``: demand no level.

    minimum
        ``L0`` to ``L5``. L0: nothing is proved. L1: a software key. L2:
        a TPM that is trusted on first use. L3: a TPM whose certificate
        chains to your roots. L4: L3, and the boot log is as expected.
        L5: L4, and every program is measured and allowed. Defaults to
        ``L1``.

    on_loss
        The action if trust is lost under ``require``, for environments
        and links that declare no ``on_loss``: ``stop`` environments
        (default), ``revoke-links`` (environments go on without links),
        or ``report``.

    tpm
        TCTI of the TPM, e.g. ``device:/dev/tpmrm0``. **Without it no
        TPM is used**.

    roots
        Folder with the root certificates (PEM). For L3, a TPM's
        certificate must chain to one of them.

    references
        File with the PCR values that this host must have for L4.

    pcrs
        Numbers of the PCRs (SHA-256 bank) that the quote covers.
        Defaults to 0 to 7.

    verifier
        The verifier: ``self`` (default) or ``master``. With ``master``,
        the host accepts only results that one of ``verifier_keys``
        signed, and **has L0 without such a result**: see the page on
        fleets.

    verifier_keys
        Thumbprints of the keys of the master's verifier, from
        ``salt-run netspace_attestation.jwks``.

    ledger
        Keep a ledger of runs: the image and the configuration with
        which each environment is started. An NV index of the TPM proves
        it to the master's verifier. Defaults to false.
    """
    test = bool(__opts__["test"])
    try:
        given = arguments.arguments(kwargs)
        if not given and declaration is None:
            editions.check(__opts__, __pillar__, note=not test)
        wanted = arguments.whole({"attestation": given} if given else declaration, __pillar__)
        result = _host().converge_attestation(wanted.attestation, test=test)
    except NetspaceError as err:
        return state_return.failure(name, err, __running__)
    return state_return.state(name, result, test=test)
