"""The rules of a policy for the boot, and the PCRs that prove them.

A rule is worth only as much as the PCRs that prove it. The firmware measures programs into PCR 4 and drivers into PCR
2. These programs measure the files that they load into PCRs 8 to 13. PCRs 8 to 13 are trustworthy only if the programs
are, so rules for loaded files also rest on PCR 4. Root can extend PCRs after the boot, but can't remove a digest. So a
rule has to judge **every** digest of every PCR that could hold the measurement. Otherwise, an attacker would measure
into a PCR that is not quoted, or that may have any value.

The function :func:`gaps` returns the PCRs that a policy leaves unjudged. Both :func:`policy.accepted`, before a policy
comes into force, and the verifier, at each appraisal, refuse a policy with gaps. Pure: no file is read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from netspace.attestation.logs import measured
from netspace.attestation.policy.tcb import Tcb
from netspace.attestation.policy_reading import (
    MAX_ITEMS,
    Pattern,
    PolicyError,
    digests,
    flag,
    items,
    mapping,
    octets,
    patterns,
    pcr,
)

# PCRs that boot loaders and kernels measure loaded files into: GRUB and Linux (9), systemd's stub (11, 12). The stub
# measures system extensions into PCR 13. PCR 13 need not be quoted, because systemd verifies their signatures.
_LOADED = (9, 11, 12)
LOADED = (*_LOADED, 13)
# PCRs that prove IMA's list: programs, the files that they loaded, and PCRs 0 to 9, which the list's first line covers.
_MEASURER = (*range(10), 11, 12)
# The firmware in ``started_by``: it starts the first program of a boot entry.
FIRMWARE = b""
# PCRs that every user of the TPM may reset (TCG PC Client Platform TPM Profile 1.05, 4.6.1).
_RESETTABLE = frozenset((16, 23))
# PCRs that the programs of PCR 4 measure into. PCR 14 is not among them: shim may be known by its signer.
_BY_PROGRAMS = frozenset((8, 9, 11, 12, 13, 15))
_IMA_OPTION = re.compile(r'ima_policy=(?:"([a-z_| ]+)"|([a-z_|]+))')
_REMEDIES = {
    0: "its values under pcrs",
    1: "tcb:platform in place of unchecked",
    2: "its values under pcrs (programs that are loaded as drivers are measured there)",
    4: "applications, or its values under pcrs",
    7: "secure_boot and signers together, or its values under pcrs",
    8: "grub_commands, or its values under pcrs",
    14: "mok, its values under pcrs, or applications",
}


@dataclass(frozen=True)
class Boot:
    """A policy's rules for the boot. A field is None if the policy has no such rule.

    :param tcb: the policy's section ``tcb``, whose terms rest on the same PCRs.
    """

    secure_boot: bool = False
    dbx: frozenset[bytes] = frozenset()
    signers: frozenset[bytes] | None = None
    sbat: Mapping[str, int] = field(default_factory=dict)
    mok: frozenset[bytes] | None = None
    applications: frozenset[bytes] | None = None
    started_by: Mapping[bytes, frozenset[bytes]] = field(default_factory=dict)
    kernels: frozenset[bytes] | None = None
    initrds: frozenset[bytes] = frozenset()
    files: frozenset[bytes] = frozenset()
    grub_commands: frozenset[bytes] | None = None
    command_lines: tuple[Pattern, ...] | None = None
    pcrs: Mapping[int, frozenset[bytes]] = field(default_factory=dict)
    unchecked: frozenset[int] = frozenset()
    tcb: Tcb | None = None

    @cached_property
    def judged(self) -> frozenset[int]:
        """The PCRs for which the rules judge every digest."""
        found: set[int] = set()
        if self.secure_boot and self.signers is not None:
            found.add(7)
        if self.applications is not None:
            found.add(4)
        if self.mok is not None or (14 in self.needs and 14 not in self.pcrs):
            found.add(14)
        if self.kernels is not None:
            found.update(pcr for pcr in LOADED if pcr != 13 or pcr not in self.unchecked)
        if self.command_lines is not None and (self.grub_commands is not None or 8 not in self.pcrs):
            found.add(8)
        if self.tcb is not None and self.tcb.network_boot:
            found.add(1)
        return frozenset(found)

    @cached_property
    def needs(self) -> Mapping[int, str]:
        """The PCRs that prove the policy's rules, each with the name of one rule that it proves.

        A policy with ``signers`` and without ``applications`` trusts shim to verify the programs that shim starts. PCR
        14 shows whether shim verified them, and with which keys. An old shim measures nothing about itself, so only its
        digest in PCR 4 identifies it. Therefore ``sbat`` also rests on PCR 4.

        The terms of ``tcb`` hold only if the firmware measures honestly, so they rest on PCR 0, which identifies the
        firmware. ``network_boot`` also rests on PCR 2, because drivers run before the firmware's separators. It also
        rests on PCR 4: the firmware doesn't measure a boot entry that is used only once (``BootNext``), but PCR 4 shows
        which programs were started.
        """
        found: dict[int, str] = {}
        tcb = self.tcb or Tcb()
        for rule, there, where in (
            ("secure_boot", self.secure_boot, (7,)),
            ("dbx", bool(self.dbx), (7,)),
            ("signers", self.signers is not None, (7,) if self.applications is not None else (7, 14)),
            ("mok", self.mok is not None, (14,)),
            ("applications", self.applications is not None, (2, 4)),
            ("kernels", self.kernels is not None, (2, 4, *_LOADED)),
            ("command_lines", self.command_lines is not None, (2, 4, 8, *_LOADED)),
            ("sbat", bool(self.sbat), (2, 4, 7)),
            ("pcrs", bool(_BY_PROGRAMS & self.pcrs.keys()), (4,)),
            ("tcb:network_boot", bool(tcb.network_boot), (0, 1, 2, 4)),
            ("tcb:firmware", bool(tcb.firmware), (0,)),
            ("tcb:dma_protection", bool(tcb.dma_protection), (0, 7)),
        ):
            if there:
                for number in where:
                    found.setdefault(number, rule)
        return found

    @cached_property
    def unordered(self) -> frozenset[bytes]:
        """The programs in ``applications`` without an entry in ``started_by``."""
        return (self.applications or frozenset()) - self.started_by.keys()

    @cached_property
    def allowed(self) -> Mapping[int, frozenset[bytes]]:
        """The digests that are allowed at any point of a boot, as a set for each of PCRs 8, 9 and 11 to 13.

        For PCR 8, these are the digests of GRUB's commands; for the other PCRs, of kernels, initrds and files. Each set
        also has the digests of whole command lines (:attr:`lines`).
        """
        listed = dict.fromkeys(LOADED, (self.kernels or frozenset()) | self.initrds | self.files)
        listed[8] = self.grub_commands or frozenset()
        return {number: found | self.lines[number] for number, found in listed.items()}

    @cached_property
    def lines(self) -> Mapping[int, frozenset[bytes]]:
        """The digests of whole command lines (patterns without ``*``), by the PCR into which they are measured."""
        exact = [one.text for one in self.command_lines or () if one.exact]
        return {
            number: frozenset(form for line in exact for form in measured.line_forms(number, line))
            for number in (8, *LOADED)
        }

    def allows_line(self, line: str) -> bool:
        """Return whether a pattern allows the command line *line*."""
        return any(
            one.matches(line) and (one.exact or measured.plain_line(line, one.text)) for one in self.command_lines or ()
        )


def gaps(boot: Boot, quoted: Collection[int] | None = None, values: Collection[int] = ()) -> list[str]:
    """Return the gaps in the proofs of rules, each as a sentence with a remedy.

    Most gaps are PCRs that a rule rests on, but that no rule or value judges.

    :param quoted: the quoted PCRs; None if they are not known yet.
    :param values: the PCRs for which references give values.
    """
    found: list[str] = []
    for number, rule in sorted(boot.needs.items()):
        if number in boot.unchecked:
            found.append(f"{rule}: only PCR {number} proves it, and that PCR is unchecked; give {_remedy(number)}")
        elif number not in boot.judged and number not in boot.pcrs and number not in values:
            found.append(f"{rule}: only PCR {number} proves it, and no rule judges that PCR; give {_remedy(number)}")
        elif quoted is not None and number not in quoted:
            found.append(f"{rule}: only PCR {number} proves it, and hosts don't quote that PCR; quote it")
    loading = "kernels" if boot.kernels is not None else "command_lines" if boot.command_lines is not None else ""
    if not loading and _BY_PROGRAMS & boot.pcrs.keys():
        loading = "pcrs"  # without a boot loader these PCRs stay empty, and root can extend them to the given values
    if loading and boot.unordered and 4 not in boot.pcrs and 4 not in values:
        found.append(
            f"{loading}: a kernel that the firmware or shim starts may not measure its command line; give "
            f"started_by for {min(boot.unordered).hex()} and all of applications, or PCR 4's values under pcrs"
        )
    for number in sorted(_RESETTABLE & boot.pcrs.keys()):
        found.append(
            f"pcrs: PCR {number} may be reset by whoever uses the TPM, so its value proves nothing; leave it out"
        )
    return found


def valued_lines(boot: Boot, values: Collection[int] = ()) -> bool:
    """Return whether references give values for all PCRs that hold a command line.

    If they do, the command line needs no other proof.

    :param values: the PCRs for which references give values.
    """
    return boot.pcrs.keys() | frozenset(values) >= {8, *_LOADED}


def ima_gaps(boot: Boot | None, quoted: Collection[int] | None = None, values: Collection[int] = ()) -> list[str]:
    """Return the gaps in the proof of an IMA list, each as a sentence with a remedy.

    The list is trustworthy only if the kernel that wrote it is, and if the command line made the kernel measure files.
    So rules or values have to judge boot programs, the files that they loaded, and the command line. Each pattern of
    ``command_lines`` has to turn IMA's measurements on, and must not have a ``*``, whose text could turn IMA off. The
    host must quote PCRs 0 to 9: the list's first line shows whether somebody extended them after the boot.
    """
    rules = Boot() if boot is None else boot
    known = rules.judged | rules.pcrs.keys() | frozenset(values)
    found = [
        f"PCR {number} is not judged, but has measurements of kernel and command line; give {_remedy(number)}"
        for number in (2, 4, 8, *_LOADED)
        if number not in known
    ]
    if quoted is not None:
        found += [
            f"PCR {number} is not quoted; quote PCRs 0 to 9, 11 and 12" for number in _MEASURER if number not in quoted
        ]
    for pattern in rules.command_lines or ():
        if not _measures(pattern.text):
            found.append(f"command_lines: {pattern.text!r:.80} does not demand ima_policy=tcb; add it to the pattern")
        elif not pattern.exact:
            found.append(
                f"command_lines: {pattern.text!r:.80}: * may match text that turns IMA off; give the whole line"
            )
    return found


def _measures(line: str) -> bool:
    """Return whether a command line makes IMA measure programs.

    ``ima_policy=`` has one or several names (kernel-parameters).
    """
    words = measured.line_words(line)
    found = [option for option in map(_IMA_OPTION.fullmatch, words) if option is not None]
    return any("tcb" in (option[1] or option[2]).replace("|", " ").split() for option in found)


def _remedy(number: int) -> str:
    return _REMEDIES.get(number, "kernels, or its values under pcrs")


def read(data: Any, tcb: Tcb | None = None) -> Boot:
    """Return the rules in the section ``boot`` of a policy.

    :param tcb: the policy's section ``tcb``.
    :raises PolicyError: for unknown keys, wrong types and sizes out of bounds.
    """
    at = "policy:boot"
    found = mapping(data, at, tuple(name for name in Boot.__dataclass_fields__ if name != "tcb"))
    secure_boot = flag(found, "secure_boot", at, False)
    sets = {
        key: digests(found[key], f"{at}:{key}")
        for key in ("dbx", "signers", "mok", "applications", "kernels", "initrds", "files", "grub_commands")
        if key in found
    }
    if sets.keys() & {"initrds", "files"} and "kernels" not in sets:
        raise PolicyError(f"{at}: kernels is missing; initrds and files are judged only together with it")
    if "started_by" in found and "applications" not in sets:
        raise PolicyError(f"{at}: applications is missing; started_by is judged only together with it")
    if "grub_commands" in sets and "command_lines" not in found:
        raise PolicyError(f"{at}: command_lines is missing; grub_commands are judged only together with it")
    lines = patterns(found["command_lines"], f"{at}:command_lines") if "command_lines" in found else None
    values = found.get("pcrs", {})
    if not isinstance(values, Mapping):
        raise PolicyError(f"{at}:pcrs: expected a mapping of PCRs to lists of values")
    pcrs = {pcr(number, f"{at}:pcrs"): digests(one, f"{at}:pcrs:{number}") for number, one in values.items()}
    if len(pcrs) != len(values):
        raise PolicyError(f"{at}:pcrs: a PCR is given twice")
    unchecked = frozenset(
        pcr(number, f"{at}:unchecked") for number in items(found.get("unchecked", []), f"{at}:unchecked")
    )
    return Boot(
        secure_boot=secure_boot,
        sbat=_generations(found.get("sbat", {}), f"{at}:sbat"),
        started_by=_starters(found.get("started_by", {}), f"{at}:started_by"),
        command_lines=lines,
        pcrs=pcrs,
        unchecked=unchecked,
        tcb=tcb,
        **sets,
    )


def _starters(data: Any, at: str) -> dict[bytes, frozenset[bytes]]:
    if not isinstance(data, Mapping) or len(data) > MAX_ITEMS:
        raise PolicyError(f"{at}: expected a mapping of programs to lists of the programs that may start them")
    return {
        octets(program, 32, at): frozenset(
            FIRMWARE if one == "firmware" else octets(one, 32, f"{at}:{program}")
            for one in items(starters, f"{at}:{program}")
        )
        for program, starters in data.items()
    }


def _generations(data: Any, at: str) -> dict[str, int]:
    if not isinstance(data, Mapping) or len(data) > 256:
        raise PolicyError(f"{at}: expected a mapping of components to generations")
    for name, number in data.items():
        if not isinstance(name, str) or not 0 < len(name) <= 64:
            raise PolicyError(f"{at}: {name!r:.40}: expected a component's name")
        if type(number) is not int or not 0 < number < 2**31:
            raise PolicyError(f"{at}:{name}: {number!r:.40}: expected a whole number from 1 on")
    return dict(data)
