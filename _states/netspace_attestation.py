"""
Attestation as a state
======================

What a host's TPM (or, without one, a software key) proves decides its trust level,
L0 to L5, and environments and links may demand one.

.. code-block:: yaml

    attestation:
      netspace_attestation.required:
        - policy: prefer
        - minimum: L3
        - tpm: device:/dev/tpmrm0
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from netspace import declared, report  # noqa: E402
from netspace.errors import NetspaceError  # noqa: E402
from netspace.host import Host  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]
    __pillar__: dict[str, Any]

__virtualname__ = "netspace_attestation"


def __virtual__() -> str:
    return __virtualname__


def required(name: str, declaration: dict[str, Any] | None = None, **kwargs: Any) -> dict[str, Any]:
    """
    The host has been appraised for this boot, and has the trust level it must have.

    Appraises only where the last result no longer holds (another boot, other settings,
    expired). On a masterless host the host judges itself, and the result says so
    (``verifier: self``).

    name
        Any text.

    declaration
        The host's declaration. By default, what ``pillar:netspace`` says.

    policy
        ``require``: fail below ``minimum``. ``prefer`` (default): go on, and say so.
        ``off``: don't ask.

    minimum
        ``L0`` to ``L5``. L0 none; L1 software key; L2 TPM known by first use; L3 TPM
        whose maker's certificate chains to your roots; L4 and boot log as expected; L5 and
        every program measured. Defaults to ``L1``.

    on_loss
        Of environments and links that say nothing of it, under ``require``: ``stop`` (default) what runs when the trust
        is lost, ``revoke-links`` (it goes on without them), or ``report``.

    tpm
        TCTI of the TPM, e.g. ``device:/dev/tpmrm0``. **Without it no TPM is used**.

    roots
        Folder of the PEM certificates that a TPM's certificate must chain to for L3.

    references
        File of PCR values that this host's boot must have had for L4.

    pcrs
        PCRs of the SHA-256 bank that the quote covers. Defaults to 0 to 7.

    verifier
        Who judges: ``self`` (default), or ``master``. Of a master, only results that one of
        ``verifier_keys`` signed count, and **without one the host has L0**: see the page on fleets.

    verifier_keys
        Thumbprints of the master's verifier's keys, as ``salt-run netspace_attestation.jwks`` shows them.
    """
    test = bool(__opts__["test"])
    try:
        given = declared.arguments(kwargs)
        wanted = declared.whole({"attestation": given} if given else declaration, __pillar__)
        result = Host(declared.layout(__opts__)).converge_attestation(wanted.attestation, test=test)
    except NetspaceError as err:
        return report.failure(name, err)
    return report.state(name, result, test=test)
