"""What a policy becomes that also takes these boots: rules where the logs allow them, else plain PCR values.

A golden host's log is read for what a good boot is: Secure Boot and its revocation list, who signed what was
booted, which UEFI programs ran, kernel, initrd, whatever else was loaded, the command line. Each group of rules is
kept only if the judge finds by it that all of the boots are good: so what is learned is what is enforced.
Names in a log tell a kernel from an initrd here, and nothing else: all of them are known by digest.

A policy that is there keeps its form. A group that it has gets more digests; a PCR that it knows by value gets more
values; nothing that was good ceases to be at once. ``dbx`` alone is what all of the boots have, and is never
lowered here. What was good and none of these hosts shows may be given an end (``until``): of files that IMA measures,
the former digests of those that have another now. Pure: a policy comes out as it would be written, and nothing is put
in force.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from netspace.attestation import eventlog, events, ima_learning, judge, policy
from netspace.attestation.eventlog import NO_ACTION, Event
from netspace.attestation.evidence import BANK, Evidence
from netspace.attestation.refusals import Refused

# The groups, in the order in which they are tried; "command_lines" needs "kernels" for all of its PCRs.
GROUPS = (("secure_boot", "dbx", "signers"), ("applications",), ("kernels", "initrds", "files"), ("command_lines",))
_LISTS = ("dbx", "signers", "applications", "kernels", "initrds", "files", "command_lines")
# Of Linux's EFI stub (drivers/firmware/efi/libstub): the initrd that it was given.
_TAG_INITRD = 0x8F3B22EC


@dataclass(frozen=True)
class Learned:
    """A policy that takes more boots than before.

    :param before: the policy in force; None for none.
    :param notes: what could not be learned as a rule, and why; which hosts it still does not take.
    """

    before: dict[str, Any] | None
    after: dict[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Wish:
    """What else is learned.

    :param now: parts of a policy that ended before are left out.
    :param ima: which files may run; each host brought its whole measurement list.
    :param keys: certificates or public keys (PEM) that may have signed files.
    :param until: the end of what was good and these hosts don't show; empty for none.
    """

    now: float = 0.0
    ima: bool = False
    keys: Sequence[str] = ()
    until: str = ""


_NOTHING = Wish()


def learn(before: Mapping[str, Any] | None, boots: Mapping[str, Evidence], wish: Wish = _NOTHING) -> Learned:
    """Return a policy for *boots* (genuine evidence by host), with the next version; the same if nothing is new."""
    old: dict[str, Any] | None = None if before is None else policy.plain(before)
    after = copy.deepcopy(old or {"version": 0})
    kept = {moment: one for moment, one in after.pop("until", {}).items() if policy.when(moment) > wish.now}
    boot = after.setdefault("boot", {})
    notes: list[str] = []
    told = {host: found for host, one in sorted(boots.items()) if (found := _told(host, one, notes)) is not None}
    for group in GROUPS:
        if old is None:
            if len(told) == len(boots):
                _begin(boot, group, told, notes)
        elif any(key in old.get("boot", {}) for key in group):
            _add(boot, [key for key in group if key in old["boot"] or key in ("initrds", "files")], told.values())
    rules = _boot(boot)
    ruled = judge.judged_pcrs(rules) | rules.unchecked
    by_value = (old or {}).get("boot", {}).get("pcrs", {})
    values = boot.setdefault("pcrs", {})
    for _, evidence in sorted(boots.items()):
        for pcr, value in sorted(evidence.pcrs.items()):
            known = values.get(str(pcr), [])
            if (pcr not in ruled or str(pcr) in by_value) and value.hex() not in known:
                values[str(pcr)] = [*known, value.hex()]
    if not values and "pcrs" not in (old or {}).get("boot", {}):
        del boot["pcrs"]
    run = ima_learning.Seen()
    if wish.ima:
        run = ima_learning.seen(after.get("ima", {}), boots, wish.keys)
        notes += run.notes
        if run.files or run.entries or run.keys:
            ima_learning.add(after.setdefault("ima", {}), run)
    if wish.until and len(told) < len(boots):
        notes.append("not every boot log could be read: what they don't show keeps counting")
    elif wish.until:
        passing = {
            "boot": _retired(boot, told.values(), boots.values()),
            "ima": _replaced(after.get("ima", {}), run.files),
        }
        passing = {key: one for key, one in passing.items() if one}
        if passing:
            kept[wish.until] = _both(kept.get(wish.until, {}), passing)
    if kept:
        after["until"] = kept
    if old is None and not boot:
        del after["boot"]
    tried = policy.parse({**after, "version": 1})
    limit = 5 if wish.ima else 4
    for host, evidence in sorted(boots.items()):
        worth = judge.appraise(evidence, tried, None)
        if worth.level < limit:
            notes.append(f"{host}: L{worth.level + 1} would not be reached: {worth.reason}")
    if old is not None and {**after, "version": 0} == {**old, "boot": old.get("boot") or {}, "version": 0}:
        return Learned(old, old, tuple(notes))
    after["version"] += 1
    return Learned(old, after, tuple(notes))


def _retired(boot: dict[str, Any], told: Iterable[_Boot], boots: Iterable[Evidence]) -> dict[str, Any]:
    """Take out of *boot* what none of the boots shows, and return it. A list that would be empty is left."""
    gone: dict[str, Any] = {}
    for key in policy.PASSING_BOOT:
        if key == "pcrs":
            shown = {str(pcr): {one.pcrs[pcr].hex() for one in boots if pcr in one.pcrs} for pcr in range(24)}
            parts = {pcr: _split(known, shown.get(pcr, set())) for pcr, known in boot.get("pcrs", {}).items()}
            over = {pcr: old for pcr, (_, old) in parts.items() if old}
            if over:
                boot["pcrs"] = {pcr: good for pcr, (good, _) in parts.items()}
                gone["pcrs"] = over
        elif key in boot:
            good, old = _split(boot[key], {value for one in told for value in one.rules.get(key) or ()})
            if old:
                boot[key], gone[key] = good, old
    return gone


def _split(known: list[str], shown: set[str]) -> tuple[list[str], list[str]]:
    """What is to stay, and what is not; patterns stay."""
    good = [one for one in known if one in shown or "*" in one]
    return (good, [one for one in known if one not in good]) if good else (known, [])


def _replaced(rules: dict[str, Any], seen: Mapping[str, list[str]]) -> dict[str, Any]:
    """Take out of a policy's IMA rules the former digests of files that were seen with others, and return them."""
    gone = {}
    for path, digests in seen.items():
        known = rules["files"][path]
        old = [one for one in known if one not in digests]
        if old:
            rules["files"][path] = [one for one in known if one in digests]
            gone[path] = old
    return {"files": gone} if gone else {}


def _both(known: Any, more: Any) -> Any:
    """Join rules: mappings by key, lists without repeating."""
    if isinstance(more, Mapping):
        return {**known, **{key: _both(known[key], one) if key in known else one for key, one in more.items()}}
    return list(dict.fromkeys((*known, *more)))


@dataclass(frozen=True)
class _Boot:
    """What one boot's log tells."""

    evidence: Evidence
    rules: Mapping[str, Any]


def _told(host: str, evidence: Evidence, notes: list[str]) -> _Boot | None:
    if evidence.boot_log is None:
        notes.append(f"{host}: the firmware gives no boot log: plain values alone")
        return None
    try:
        log = eventlog.parse(evidence.boot_log)
        # Whatever comes later: a log that is not of these values teaches nothing.
        judge.judged_boot(evidence, policy.Boot(unchecked=frozenset(evidence.pcrs)), None)
    except Refused as err:
        notes.append(f"{host}: {err}: plain values alone")
        return None
    told = [event for event in log.events if event.type != NO_ACTION and event.pcr in evidence.pcrs]
    return _Boot(evidence, {**_platform(told), **_loaded(told)})


def _begin(boot: dict[str, Any], group: Sequence[str], told: Mapping[str, _Boot], notes: list[str]) -> None:
    """Add a group of rules to a new policy, if every boot has it and is good by it."""
    rules: dict[str, Any] = {}
    missing = [host for host, one in told.items() if not any(one.rules.get(key) for key in group)]
    if "command_lines" in group and "kernels" not in boot:
        return  # what was loaded is known by values: so is the command line
    if not told or missing:
        if missing:
            notes.append(f"{', '.join(missing)}: nothing in the log for {', '.join(group)}: plain values for them")
        return
    for key in group:
        _merge(rules, key, [one.rules.get(key) for one in told.values()])
    tried = {**boot, **rules}
    for host, one in told.items():
        problem = _problem(one.evidence, _boot({**tried, "unchecked": sorted(one.evidence.pcrs)}))
        if problem:
            notes.append(f"{host}: no rules for {', '.join(group)}: {problem}")
            return
    boot.update(rules)


def _add(boot: dict[str, Any], keys: Sequence[str], told: Iterable[_Boot]) -> None:
    """Add to rules that a policy has. What it demands (``secure_boot``, ``dbx``) is left as it is."""
    for key in keys:
        if key not in ("secure_boot", "dbx"):
            _merge(boot, key, [boot.get(key), *(one.rules.get(key) for one in told)])


def _merge(rules: dict[str, Any], key: str, found: Sequence[Any]) -> None:
    if key == "secure_boot":
        if all(found):
            rules[key] = True
        return
    lists: list[list[str]] = [one or [] for one in found]
    if key == "dbx":
        first, *others = lists
        joined = [one for one in first if all(one in other for other in others)]
    else:
        joined = list(dict.fromkeys(one for each in lists for one in each))
    if joined or key == "signers":
        rules[key] = joined


def _boot(data: Mapping[str, Any]) -> policy.Boot:
    found = policy.parse({"version": 1, "boot": data}).boot
    assert found is not None
    return found


def _problem(evidence: Evidence, rules: policy.Boot) -> str:
    try:
        judge.judged_boot(evidence, rules, None)
    except Refused as err:
        return str(err)
    return ""


def _platform(told: Sequence[Event]) -> dict[str, Any]:
    """PCR 7, and which UEFI programs ran."""
    found: dict[str, Any] = {
        "applications": [one.digests[BANK].hex() for one in told if one.pcr == 4 and one.type == events.APPLICATION]
    }
    signers: list[str] = []
    for event in told:
        read = events.variable(event.data, events.SLACK) if event.pcr == 7 else None
        if read is None:
            continue
        if event.type == events.VARIABLE_AUTHORITY and (read.guid, read.name) != (judge.SHIM, "SbatLevel"):
            if len(read.data) != 48:  # else a program's own digest, which is among the applications
                signers.append(hashlib.sha256(events.certificate(read.data)).hexdigest())
        elif (read.guid, read.name) == (events.GLOBAL, "SecureBoot") and read.data == b"\1":
            found["secure_boot"] = True
        elif (read.guid, read.name) == (events.SECURITY, "dbx"):
            found["dbx"] = [one.hex() for one in (events.signatures(read.data) or ([], []))[1]]
    if found.get("secure_boot"):
        found["signers"] = list(dict.fromkeys(signers))
    else:
        found.pop("dbx", None)
    return found


def _loaded(told: Sequence[Event]) -> dict[str, Any]:
    """What boot loader and kernel loaded, and the command line."""
    lines: list[str] = []
    paths: set[str] = set()
    for event in told:
        line = events.command_line(event, BANK)
        if line is not None:
            lines.append(line)
            if event.pcr == 8:  # GRUB puts the kernel's file before it
                paths.add(line.split(" ", 1)[0])
    found: dict[str, list[str]] = {"kernels": [], "initrds": [], "files": [], "command_lines": lines}
    seen: dict[str, str] = {}
    for event in told:
        digest = event.digests[BANK].hex()
        if event.pcr not in (9, 11, 12) or event.type == events.SEPARATOR:
            continue
        if event.pcr == 12 and events.command_line(event, BANK) is not None:
            continue
        if event.pcr == 11 and event.digests[BANK] in judge.SECTION_NAMES:
            continue
        kind = _kind(event, paths)
        if kind != "files" or digest not in seen:
            seen[digest] = kind
    for digest, kind in seen.items():
        found[kind].append(digest)
    return found


def _kind(event: Event, paths: set[str]) -> str:
    """By what the log calls it: all three are known by digest, and a wrong name here mixes up the lists alone."""
    tagged = events.tag(event)
    if tagged is not None:
        return "initrds" if tagged[0] == _TAG_INITRD else "files"
    said = events.text(event.data) or ""
    path = said[said.find(")") + 1 :] if said.startswith("(") else said
    name = path.rpartition("/")[2]
    if said == ".linux" or path in paths or name.startswith(("vmlinuz", "bzImage")):
        return "kernels"
    if said == ".initrd" or name.startswith(("initrd", "initramfs")):
        return "initrds"
    return "files"
