"""Weaknesses of the processor, as the kernel reports them. Pure.

Sources: the kernel's ABI/testing/sysfs-devices-system-cpu and admin-guide/hw-vuln.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from netspace.host.weaknesses.readings import Reading
from netspace.host.weaknesses.row import Outcome, Row, number, row, said

_FOLDER = "/sys/devices/system/cpu/vulnerabilities"
# The prefix of the kernel's report on threads of one core.
_THREADS = "SMT "
_GOOD = ("Not affected", "Mitigation:", "KVM: Mitigation:")


def weaknesses(known: Mapping[str, Reading]) -> Iterator[Row]:
    """Yield a row for each weakness that the kernel knows."""
    for name, reading in sorted(known.items()) or [("weaknesses", Reading(error=f"nothing is in {_FOLDER}"))]:
        yield row(
            f"cpu {name}",
            _outcome(reading),
            said(reading),
            expected="Not affected, or a Mitigation",
            matters="environments",
            why="By timing alone, a program can learn data of the kernel or of another environment. "
            "No filter of system calls refuses that.",
            remedy="install the processor's microcode (Debian: intel-microcode, amd64-microcode) and the newest "
            "kernel, remove `mitigations=off` and similar parameters from the kernel's command line, and reboot; for a "
            "virtual machine, do the same on its host",
            unseen=f"read {_FOLDER} as root, and this weakness's page in the kernel's admin-guide/hw-vuln",
        )


def threads(active: Reading, known: Mapping[str, Reading]) -> Row:
    """Return the row on hardware threads. Two programs that share a core at the same time may spy on each other."""
    parts = {name: _parts(reading) for name, reading in sorted(known.items())}
    by_it = [name for name, words in parts.items() if f"{_THREADS}vulnerable" in words]
    hidden = any(f"{_THREADS}Host state unknown" in words for words in parts.values())
    value = number(active)
    outcome: Outcome = "unknown"
    if value == 1 and by_it:
        outcome = "weak"
    elif value in (0, 1) and not hidden and (value == 0 or _all_said(known)):
        outcome = "good"
    found = [{0: "off", 1: "on"}.get(-1 if value is None else value, said(active))]
    found += [f"weaknesses because of threads: {', '.join(by_it)}"] if by_it else []
    found += ["nothing is known of this virtual machine's host"] if hidden else []
    return row(
        "cpu threads",
        outcome,
        "; ".join(found),
        expected="off, or no weakness with `SMT vulnerable`",
        matters="environments",
        why="Two environments run on the two threads of one core at the same time, and share its internal state.",
        remedy="boot with `nosmt`, or `echo off >/sys/devices/system/cpu/smt/control`",
        unseen="read /sys/devices/system/cpu/smt/active; in a virtual machine, ask whoever runs its host",
    )


def _all_said(known: Mapping[str, Reading]) -> bool:
    """Return whether the kernel lists at least one weakness, and has a report on each listed one."""
    return bool(known) and all(reading.text and not reading.error for reading in known.values())


def _parts(reading: Reading) -> list[str]:
    return [part.strip() for part in re.split("[;,]", reading.text)]


def _outcome(reading: Reading) -> Outcome:
    """Return the outcome of one weakness, without regard to hardware threads.

    A text such as "Mitigation: PTI; SMT vulnerable" names a mitigation, and parts that are still vulnerable.
    """
    if any("vulnerable" in part.lower() for part in _parts(reading) if not part.startswith(_THREADS)):
        return "weak"
    return "good" if reading.text.startswith(_GOOD) else "unknown"
