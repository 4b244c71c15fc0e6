"""Rules for what lies below the kernel: the terms of a policy's section ``tcb``.

The labels in a log don't count, only the sequence of digests that the TPM quoted:

- ``network_boot`` (PCR 1): each digest is a constant, is listed in ``platform``, or has a known preimage that is a boot
  order or a boot entry to a file on a local disk. A digest has only one preimage, so an entry that leads to a network
  can't be presented as another entry. ``never`` also demands a boot order before the firmware's separator. After the
  separator anybody can extend the PCR, so an attacker could add an order on a machine whose firmware measures none.
  ``no-entry`` demands no order: it relies on the firmware, which PCR 0 identifies, to measure its entries before or
  after the separator.
- ``firmware`` (PCR 0): the digest of a listed version comes before the separator.
- ``dma_protection`` (PCR 7): the firmware did not measure that the protection is off. Nobody can remove such a digest.
- ``lockdown``, ``usb``: the command line has the setting, and a PCR proves the line and the kernel that reads it. But
  root can extend a PCR by a good line after the boot, and no boot log shows that. So these terms also need L5:
  the boot aggregate of IMA's list has the PCRs' values at the kernel's start (:func:`check_spoken`).
- All other terms: nothing proves them (:func:`told`).

Pure: called by :mod:`netspace.attestation.verifier.boot_rules`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from netspace.attestation.logs import boot_entries, events, measured
from netspace.attestation.logs.boot_entries import Entry, Kind
from netspace.attestation.logs.eventlog import Event
from netspace.attestation.policy.boot import Boot
from netspace.attestation.policy.tcb import SPOKEN, TOLD, Tcb
from netspace.attestation.refusals import DmaUnprotected, NetworkBoot, OldFirmware, ToldOnly, UnknownPlatform
from netspace.attestation.verifier.extensions import Extension


def check(extended: Mapping[int, Sequence[Extension]], tcb: Tcb) -> None:
    """Judge PCRs 0, 1 and 7 by ``dma_protection``, ``firmware`` and ``network_boot``.

    :raises Refused: for the first term that is not satisfied.
    """
    if tcb.dma_protection and any(one.digest in measured.DMA_UNPROTECTED for one in extended[7]):
        raise DmaUnprotected("PCR 7: the firmware says that its protection against DMA is switched off")
    if tcb.firmware:
        _firmware(extended[0], tcb.firmware)
    if tcb.network_boot:
        _network_boot(extended[1], tcb)


def check_told(policy: Boot, proved: Collection[int]) -> None:
    """Refuse L4 if the policy has a term for which there is no proof.

    :param proved: the PCRs that prove the kernel's command line.
    :raises ToldOnly: when there is such a term.
    """
    found = told(policy, proved)
    if found:
        raise ToldOnly(f"only the host's own claim supports these terms: {', '.join(found)}")


def check_spoken(policy: Boot) -> None:
    """Refuse L4 without L5 if the policy has a term on the kernel's command line.

    :raises ToldOnly: when there is such a term.
    """
    found = policy.tcb.given(SPOKEN) if policy.tcb is not None else ()
    if found:
        raise ToldOnly(f"without an IMA list, root may have added the command line after the boot: {', '.join(found)}")


def told(policy: Boot, proved: Collection[int] | None = None) -> list[str]:
    """Return the terms of a policy that no measurement proves, only the host's own claim.

    A term on the command line is proved only if the policy judges the kernel, too, and if each allowed line has the
    term and no ``*``, which could match text that cancels the term.

    :param proved: the PCRs that prove the kernel's command line; None if no boot is judged yet.
    """
    tcb, lines = policy.tcb, policy.command_lines
    if tcb is None:
        return []
    found = list(tcb.given(TOLD))
    sure = policy.kernels is not None and bool(lines) and (proved is None or bool(proved))
    for term in tcb.given(SPOKEN):
        if not (sure and all(one.exact and tcb.said_by(term, one.text) for one in lines or ())):
            found.append(term)
    return found


def before_separator(extended: Sequence[Extension]) -> Iterator[Extension]:
    """Yield the extensions that the firmware made before it started other programs."""
    for one in extended:
        if one.digest in measured.SEPARATORS:
            return
        yield one


def _firmware(extended: Sequence[Extension], versions: Sequence[str]) -> None:
    forms = {form for version in versions for form in measured.version_forms(version)}
    if not any(one.digest in forms for one in before_separator(extended)):
        claimed = next((one.claimed for one in extended if one.kind == events.CRTM_VERSION), "no version")
        raise OldFirmware(f"PCR 0: the firmware measured none of the listed versions (the log names {claimed})")


def _network_boot(extended: Sequence[Extension], tcb: Tcb) -> None:
    ordered, separated = False, False
    for one in extended:
        if one.digest in measured.SEPARATORS:
            separated = True
            continue
        found = entry(one)
        if found is not None and found.kind is Kind.NETWORK:
            raise NetworkBoot(f"PCR 1: the firmware has a boot entry that leads to a network: {found.path[-160:]}")
        if found is not None and found.kind is Kind.ORDER:
            ordered |= not separated
        elif not (
            (found is not None and found.kind is Kind.LOCAL)
            or one.digest in tcb.platform
            or one.digest in measured.WORDS[1]
        ):
            raise UnknownPlatform(
                f"PCR 1: {one.digest.hex()}, which the log calls {one.claimed}, is neither listed under tcb:platform "
                "nor a boot entry that leads to a file on a local disk"
            )
    if not separated:
        raise NetworkBoot("PCR 1: the firmware measured no separator, so all of it may have been added after the boot")
    if not ordered and tcb.network_boot == "never":
        raise NetworkBoot(
            "PCR 1: the firmware measured no boot order before the separator, so its boot entries are not proved; "
            "no-entry demands no order"
        )


def entry(one: Extension) -> Entry | None:
    """Return the boot order or boot entry that was measured; None for anything else, or if its data is not known."""
    for data in _preimages(one):
        found = boot_entries.read(data)
        if found is not None:
            return found
    return None


def _preimages(one: Extension) -> Iterator[bytes]:
    """Yield the data that may have been measured: the event's data, or the content of the variable in it."""
    yield from one.preimages()
    if isinstance(one.source, Event):
        content = events.variable(one.source.data)
        if content is not None and measured.digest(content.data) == one.digest:
            yield content.data


def unlisted(extended: Sequence[Extension]) -> dict[bytes, Entry | None]:
    """Return the digests of PCR 1 that only ``platform`` can allow.

    The value of a digest is its boot entry; None if no boot entry is known for it. Entries that lead to a network are
    left out, since nothing allows them.
    """
    found: dict[bytes, Entry | None] = {}
    for one in extended:
        read = entry(one)
        known = one.digest in measured.SEPARATORS or one.digest in measured.WORDS[1]
        if not known and (read is None or read.kind is Kind.OTHER):
            found[one.digest] = read
    return found
