"""Table of a host's trusted computing base below its kernel: measured parts, the host's claims, the policy's terms.

A measured row comes from a boot log that leads to the quoted PCRs, and only digests with a known meaning count (as in
``verifier.tcb_rules``). A told row comes from the grain ``netspace_tcb``, which the host sent and which isn't trusted:
a value of an unexpected form is shown as ``unreadable``. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from netspace.attestation.evidence import BANK, Evidence
from netspace.attestation.logs import boot_entries, events, measured
from netspace.attestation.logs.boot_entries import Kind
from netspace.attestation.policy.tcb import Tcb
from netspace.attestation.refusals import Refused
from netspace.attestation.verifier import extensions, platform_rules, tcb_rules
from netspace.attestation.verifier.extensions import Extension
from netspace.text import printable

TOLD = "told by the host"
MAX_VALUE = 200
MAX_ROWS = 16
# PCRs with measurements for this table. PCRs 1 and 7 count only if PCR 0 shows a known firmware: what-you-trust.md.
_MEASURED = (0, 1, 7)


class Row(NamedTuple):
    """A row of the table: one part of the host's trusted computing base.

    :param source: :data:`TOLD`, or ``measured in PCR n``.
    :param term: the policy's term for this part, such as ``bmc: absent``; empty if there is none.
    :param holds: whether the term holds by this source; None if there is no term, or if the value is not known.
    """

    part: str
    value: str
    source: str
    term: str = ""
    holds: bool | None = None


def rows(told: object, evidence: Evidence | None, terms: Tcb | None) -> list[Row]:
    """Return the rows of one host: first the measured parts, then the parts that only the host claims.

    :param told: the host's grain ``netspace_tcb``, untrusted; None if there is none.
    :param evidence: the host's last genuine evidence.
    :param terms: the terms of its policy.
    """
    wanted = terms or Tcb()
    return [*(() if evidence is None else _proved(evidence, wanted)), *_told(told, wanted)]


# -- what is measured -------------------------------------------------------------
def _proved(evidence: Evidence, terms: Tcb) -> list[Row]:
    try:
        logs = extensions.read(evidence)
        replayed = logs.replayed()
    except Refused as err:
        return [Row("boot log", f"can't be read: {err}", "measured in PCRs 0, 1 and 7")]
    led = [pcr for pcr in _MEASURED if pcr in evidence.pcrs and replayed.get(pcr) == evidence.pcrs[pcr]]
    extended = logs.of(led)
    readers: Mapping[int, Callable[[Sequence[Extension], Tcb], list[Row]]] = {0: _firmware, 1: _entries, 7: _platform}
    found: list[Row] = []
    for pcr in _MEASURED:
        if pcr in extended:
            found += readers[pcr](extended[pcr], terms)
        else:
            why = f"the log does not lead to its value ({BANK})" if pcr in evidence.pcrs else "it is not quoted"
            found.append(Row(f"PCR {pcr}", why, f"measured in PCR {pcr}"))
    return found


def _firmware(extended: Sequence[Extension], terms: Tcb) -> list[Row]:
    """Return the row of the firmware's version.

    It comes from the version events before the separator, if their data is text.
    """
    versions = [
        text
        for one in tcb_rules.before_separator(extended)
        if one.kind == events.CRTM_VERSION and (data := one.preimage()) is not None and (text := events.text(data))
    ]
    term = f"firmware: {', '.join(terms.firmware)}" if terms.firmware else ""
    shown = ", ".join(versions) or "measured, but the version is not a text"
    holds: bool | None = None
    if terms.firmware:
        try:
            tcb_rules.check({0: extended}, Tcb(firmware=terms.firmware))
            holds = True
        except Refused:
            holds = False
    return [_row("firmware version", shown, 0, term, holds)]


def _entries(extended: Sequence[Extension], terms: Tcb) -> list[Row]:
    told = [entry for one in extended if (entry := tcb_rules.entry(one)) is not None]
    early = [entry for one in tcb_rules.before_separator(extended) if (entry := tcb_rules.entry(one)) is not None]
    term = f"network_boot: {terms.network_boot}" if terms.network_boot else ""
    ordered = any(one.kind is Kind.ORDER for one in early)
    open_digests = [one for one in tcb_rules.unlisted(extended) if one not in terms.platform]
    holds: bool | None = None
    if term:
        try:
            tcb_rules.check({1: extended}, Tcb(network_boot=terms.network_boot, platform=terms.platform))
            holds = True
        except Refused:
            holds = False
    network = [one for one in told if one.kind is Kind.NETWORK]
    unclear = [one for one in told if one.kind is Kind.OTHER]
    order = "known" if ordered else "not measured before the separator"
    return [
        _row("boot order", order, 1, "", None),
        _row("network boot entries", _named(network), 1, term, holds),
        _row("unclear boot entries", _named(unclear), 1, "", None),
        _row("unlisted in PCR 1", _digests(len(open_digests)), 1, "", None),
    ]


def _digests(count: int) -> str:
    return "1 digest" if count == 1 else f"{count} digests"


def _named(entries: Sequence[boot_entries.Entry]) -> str:
    names = ", ".join(one.text or one.path for one in entries[:MAX_ROWS])
    return f"{len(entries)}: {names}" if entries else "none"


def _platform(extended: Sequence[Extension], terms: Tcb) -> list[Row]:
    off = any(one.digest in measured.DMA_UNPROTECTED for one in extended)
    dma = _row(
        "protection against DMA",
        "off, as the firmware reports" if off else "not reported as off",
        7,
        f"dma_protection: {terms.dma_protection}" if terms.dma_protection else "",
        not off if terms.dma_protection else None,
    )
    try:
        found = platform_rules.read([one for one in extended if one.digest not in measured.DMA_UNPROTECTED])
    except Refused as err:
        return [_row("Secure Boot", f"not clear: {err}", 7, "", None), dma]
    states = {b"\0": "off", b"\1": "on"}
    return [
        _row("Secure Boot", states.get(found.settings.get("SecureBoot", b""), "not measured"), 7, "", None),
        _row("dbx", _digests(len(found.revoked)), 7, "", None),
        dma,
    ]


def _row(part: str, value: str, pcr: int, term: str, holds: bool | None) -> Row:
    return Row(part, printable(value[:MAX_VALUE])[:MAX_VALUE], f"measured in PCR {pcr}", term, holds)


# -- what the host tells ------------------------------------------------------------
class _Grain:
    """The host's grain. Its methods return a value only if the value has the expected type."""

    def __init__(self, told: object) -> None:
        self._told = told

    def at(self, *path: str) -> object:
        found = self._told
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    def word(self, *path: str) -> str | None:
        found = self.at(*path)
        return printable(found[:MAX_VALUE])[:MAX_VALUE] if isinstance(found, str) else None

    def flag(self, *path: str) -> bool | None:
        found = self.at(*path)
        return found if isinstance(found, bool) else None

    def listed(self, *path: str) -> list[object]:
        found = self.at(*path)
        return found[:MAX_ROWS] if isinstance(found, list) else []


def _told(told: object, terms: Tcb) -> list[Row]:
    if not isinstance(told, Mapping):
        return [Row("grain netspace_tcb", "missing: sync the grains, and refresh them", TOLD)]
    grain = _Grain(told)
    firmware = [grain.word("firmware", key) for key in ("vendor", "version", "date")]
    found = [
        Row("firmware", ", ".join(one for one in firmware if one) or "unknown", TOLD),
        _microcode(grain, terms),
        _flagged(grain.flag("uefi", "secure_boot"), "Secure Boot"),
        _flagged(grain.flag("uefi", "setup_mode"), "setup mode"),
        Row("network boot entries", _texts(grain.listed("uefi", "network_entries")) or "none told", TOLD),
        _controller(grain, terms),
        _term("IOMMU", grain.flag("iommu", "on"), "iommu", terms, lambda on: on),
        _thunderbolt(grain, terms),
        _term("USB closed", grain.flag("usb", "closed"), "usb", terms, lambda closed: closed),
        _lockdown(grain, terms),
        Row("fwupd", grain.word("hsi") or "no result", TOLD),
    ]
    for kind, name in (("network", "network card"), ("disks", "disk")):
        found += [_device(name, one) for one in grain.listed(kind)]
    return found


def _flagged(value: bool | None, part: str) -> Row:
    return Row(part, _said(value), TOLD)


def _said(value: bool | None) -> str:
    return "unknown" if value is None else "yes" if value else "no"


def _term(part: str, value: bool | None, name: str, terms: Tcb, good: Callable[[bool], bool]) -> Row:
    wanted = getattr(terms, name)
    holds = None if wanted is None or value is None else good(value)
    return Row(part, _said(value), TOLD, f"{name}: {wanted}" if wanted else "", holds)


def _microcode(grain: _Grain, terms: Tcb) -> Row:
    said = grain.word("microcode")
    try:
        revision = int(said, 16) if said and said.startswith("0x") and len(said) <= 18 else None
    except ValueError:
        revision = None
    term = f"microcode: >={terms.microcode:#x}" if terms.microcode is not None else ""
    holds = None if terms.microcode is None or revision is None else revision >= terms.microcode
    return Row("microcode", "unknown" if revision is None else f"{revision:#x}", TOLD, term, holds)


def _controller(grain: _Grain, terms: Tcb) -> Row:
    present = grain.flag("bmc", "present")
    parts = [*(one for one in grain.listed("bmc", "interfaces") if isinstance(one, str)), grain.word("bmc", "version")]
    detail = ", ".join(printable(one[:40])[:40] for one in parts if one)
    value = {None: "unknown", False: "absent", True: f"present ({detail})" if detail else "present"}[present]
    holds = None if terms.bmc is None or present is None else not present
    return Row("management controller", value, TOLD, f"bmc: {terms.bmc}" if terms.bmc else "", holds)


def _thunderbolt(grain: _Grain, terms: Tcb) -> Row:
    present, level = grain.flag("thunderbolt", "present"), grain.word("thunderbolt", "security")
    closed = level in ("user", "secure", "dponly", "usbonly", "nopcie")
    value = {None: "unknown", False: "absent", True: f"security {level or 'unknown'}"}[present]
    holds: bool | None = None
    if terms.thunderbolt is not None and present is not None:
        holds = not present or (terms.thunderbolt == "authorized" and closed)
    return Row("Thunderbolt", value, TOLD, f"thunderbolt: {terms.thunderbolt}" if terms.thunderbolt else "", holds)


def _lockdown(grain: _Grain, terms: Tcb) -> Row:
    mode = grain.word("lockdown")
    good = ("confidentiality",) if terms.lockdown == "confidentiality" else ("integrity", "confidentiality")
    holds = None if terms.lockdown is None or mode is None else mode in good
    return Row("lockdown", mode or "unknown", TOLD, f"lockdown: {terms.lockdown}" if terms.lockdown else "", holds)


def _device(part: str, told: object) -> Row:
    grain = _Grain(told)
    name = grain.word("name") or "unreadable"
    parts = [grain.word("model") or grain.word("driver"), grain.word("pci")]
    firmware = grain.word("firmware")
    parts.append(f"firmware {firmware}" if firmware else "firmware unknown")
    return Row(f"{part} {name}"[:40], ", ".join(one for one in parts if one)[:MAX_VALUE], TOLD)


def _texts(values: Sequence[object]) -> str:
    return ", ".join(printable(one[:80])[:80] if isinstance(one, str) else "unreadable" for one in values)[:MAX_VALUE]


def shown(found: Sequence[Row]) -> list[dict[str, Any]]:
    """Return rows in the form that a runner returns."""
    return [row._asdict() for row in found]
