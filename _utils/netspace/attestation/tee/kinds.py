"""The kinds of TEE, by the provider's name in the kernel (configfs-tsm).

The name comes from the sender and only picks the parser: a parser finds a report of another kind malformed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from netspace.attestation.refusals import UnknownTee
from netspace.attestation.tee import snp, tdx
from netspace.attestation.tee.report import Genuine
from netspace.attestation.tee.x509 import Trust

# Report, certificates of the host, the operator's trust, now.
Verify = Callable[[bytes, bytes, Trust, float], Genuine]


def _tdx(report: bytes, certificates: bytes, trust: Trust, now: float) -> Genuine:
    """Verify a TDX quote, which brings its own certificates."""
    return tdx.genuine(report, trust, now)


PROVIDERS: Mapping[str, Verify] = {"sev_guest": snp.genuine, "tdx_guest": _tdx}


def genuine(provider: str, report: bytes, certificates: bytes, trust: Trust, now: float) -> Genuine:
    """Verify a report by the parser of *provider*.

    :raises UnknownTee: when *provider* has no parser.
    :raises Refused: when the report is not genuine.
    """
    verify = PROVIDERS.get(provider)
    if verify is None:
        raise UnknownTee(f"no parser for reports of {provider!r:.40}; there are {', '.join(PROVIDERS)}")
    return verify(report, certificates, trust, now)
