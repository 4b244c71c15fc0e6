"""Verifiers of the kinds of TEE, by the provider's name in the kernel (configfs-tsm).

The name is only the sender's claim, so it does nothing but select the verifier. A verifier refuses a report of another
kind as malformed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from netspace.attestation.refusals import UnknownTee
from netspace.attestation.tee import snp, tdx
from netspace.attestation.tee.report import Genuine
from netspace.attestation.tee.x509 import Trust

# Verifies a report. Arguments: report, the host's certificates, the operator's trust, now (seconds since the epoch).
Verify = Callable[[bytes, bytes, Trust, float], Genuine]


def _tdx(report: bytes, certificates: bytes, trust: Trust, now: float) -> Genuine:
    """Verify a TDX quote. *certificates* is not used, because a quote has its own."""
    return tdx.genuine(report, trust, now)


PROVIDERS: Mapping[str, Verify] = {"sev_guest": snp.genuine, "tdx_guest": _tdx}


def genuine(provider: str, report: bytes, certificates: bytes, trust: Trust, now: float) -> Genuine:
    """Verify a report with the verifier for *provider*.

    :raises UnknownTee: when there is no verifier for *provider*.
    :raises Refused: when the report is not genuine.
    """
    verify = PROVIDERS.get(provider)
    if verify is None:
        raise UnknownTee(f"no parser for reports of {provider!r:.40}; there are {', '.join(PROVIDERS)}")
    return verify(report, certificates, trust, now)
