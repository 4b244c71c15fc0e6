"""Verified TEE report of any kind.

The values of a :class:`Genuine` are signed by a processor whose maker the operator trusts. ``appraisal`` decides
whether the values are good.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

UNKNOWN, REVOKED, OUT_OF_DATE = "Unknown", "Revoked", "OutOfDate"
# Statuses from the best to the worst.
STATUSES = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    OUT_OF_DATE,
    "OutOfDateConfigurationNeeded",
    UNKNOWN,
    REVOKED,
)


@dataclass(frozen=True)
class Genuine:
    """A report that a trusted maker's processor signed.

    :param kind: ``snp`` or ``tdx``.
    :param report_data: the 64 bytes that the guest chose.
    :param measurement: measurement of the guest's initial content: launch digest (SNP), MRTD (TDX); 48 bytes.
    :param debug: name of the setting that lets the host read the guest's memory; empty if the host can't read the
        memory.
    :param tcb: security versions by name (SNP).
    :param status: the maker's status of the TCB, such as ``UpToDate``; :data:`UNKNOWN` if the maker gave no status.
    :param registers: RTMRs by number (TDX).
    :param settings: the launch settings that a policy may judge, by the policy's names.
    :param shown: further values, only for an operator to read; nothing checks them.
    """

    kind: str
    report_data: bytes
    measurement: bytes
    debug: str
    tcb: Mapping[str, int] = field(default_factory=dict)
    status: str = UNKNOWN
    registers: Mapping[int, bytes] = field(default_factory=dict)
    settings: Mapping[str, bytes | int | bool | str] = field(default_factory=dict)
    shown: Mapping[str, Any] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """Return the values for an attestation result, in a form for JSON."""
        found: dict[str, Any] = {"kind": self.kind, "measurement": self.measurement.hex()}
        if self.tcb:
            found["tcb"] = dict(self.tcb)
        if self.kind == "tdx":
            found["status"] = self.status
        return found

    def describe(self) -> dict[str, Any]:
        """Return all values, in a form for people."""
        return {
            **self.told(),
            "report_data": self.report_data.hex(),
            "debug": bool(self.debug),
            "status": self.status,
            "registers": {str(number): value.hex() for number, value in self.registers.items()},
            **{name: value.hex() if isinstance(value, bytes) else value for name, value in self.settings.items()},
            **self.shown,
        }
