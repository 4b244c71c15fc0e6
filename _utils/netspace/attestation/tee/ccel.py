"""Boot log of a TDX guest (TD): parsed from the area that the ACPI table CCEL describes, and replayed.

The events have the form of a TPM's boot log, but with other register numbers: 0 is MRTD, which no event extends, and
1 to 4 are RTMR 0 to 3 (UEFI 2.10, 38.4.1; Intel TDX Virtual Firmware Design Guide, 8). Digests are SHA-384.
"""

from __future__ import annotations

from collections.abc import Mapping

from netspace.attestation.logs import eventlog
from netspace.attestation.logs.eventlog import NO_ACTION
from netspace.attestation.refusals import Refused, TeeLog

BANK = "sha384"
REGISTERS = 4
# The RTMR that the running system extends, without an entry in this log.
RUNTIME = 3


def registers(area: bytes) -> dict[int, bytes]:
    """Return the value of each RTMR that the log in *area* extends.

    :raises TeeLog: when *area* has no log, or the log has other registers than a TD.
    """
    try:
        log = eventlog.parse(eventlog.unpadded(area))
        wrong = [event.pcr for event in log.events if event.type != NO_ACTION and not 1 <= event.pcr <= REGISTERS]
        if wrong:
            raise TeeLog(f"CCEL: an event extends register {wrong[0]}; a TD has registers 1 to {REGISTERS}")
        return {index - 1: value for index, value in log.replay(BANK).items()}
    except TeeLog:
        raise
    except Refused as err:
        raise TeeLog(f"CCEL: {err.args[0]}") from err


def check(area: bytes, quoted: Mapping[int, bytes]) -> None:
    """Check that replaying the log gives the *quoted* registers.

    RTMR 3 may have any value if the log has no event for it, because the running system extends this register.

    :raises TeeLog: when a register differs; the error names the first such register.
    """
    led = registers(area)
    for number, value in sorted(quoted.items()):
        found = led.get(number, bytes(48))
        if found != value and not (number == RUNTIME and number not in led):
            raise TeeLog(f"CCEL: the log leads to {found.hex()} in RTMR {number}, but the quote has {value.hex()}")
