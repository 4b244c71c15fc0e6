"""Learn a policy that also accepts given boots: by rules if the logs allow them, otherwise by plain PCR values.

The log of a golden host names the UEFI programs that ran, Secure Boot and its revocation lists, the signers of booted
programs, the kernel, the initrd, other loaded files and the command line. A group of rules is kept only if the rules
accept all of the boots, and if every PCR that the rules rest on is judged. So the policy enforces all rules that it
has. A note names each omitted group. Names in a log serve only to distinguish a kernel from an initrd. The policy
identifies all files by digest.

An existing policy keeps its form: its groups get more digests, and its PCRs get more values. Each existing digest,
value or pattern keeps its effect, at least for a time. A new ``dbx`` has only the entries that all of the boots have;
an existing ``dbx`` is not changed. Entries that no boot shows can get an end (``until``). For files that IMA measures,
only the old digests of changed files get an end.

Pure: this module returns a policy in its written form, and does not put it in force.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from netspace.attestation.evidence import Evidence
from netspace.attestation.learning import boot as boot_learning
from netspace.attestation.learning import ima as ima_learning
from netspace.attestation.learning.boot import Told
from netspace.attestation.logs import events
from netspace.attestation.policy import policy
from netspace.attestation.refusals import Refused
from netspace.attestation.verifier import appraisal, extensions, tcb_rules

# Groups in the order in which they are tried, because later groups rest on earlier ones. The last group replaces the
# third for boots whose logs do not show the command line as text: then its digest is listed among ``files``.
GROUPS = (
    ("applications", "started_by"),
    ("secure_boot", "dbx", "signers", "sbat", "mok"),
    ("kernels", "initrds", "files", "grub_commands", "command_lines"),
    ("kernels", "initrds", "files"),
)
# The rule that must follow from the logs of a boot for a group, by the group's first rule.
_HEADS = {"applications": "applications", "secure_boot": "signers", "kernels": "kernels"}
# The consequence of leaving out a group, by the group's first rule.
_WITHOUT = {
    "applications": "the policy has only values for PCR 4, so the next update of boot loader or kernel ends L4",
    "secure_boot": "the policy has only values for PCR 7, so a new key, revocation list or level of shim ends L4",
    "kernels": "the policy has only values for loaded files (PCRs 8 to 12), so the next changed file ends L4, "
    "and L5 rests on all of these values",
    "command_lines": "the policy has only the command line's digest, or its PCR's value",
}
# Rules that are extended together with another rule.
_WITH = {
    "applications": ("started_by",),
    "kernels": ("initrds", "files"),
    "signers": ("mok",),
    "command_lines": ("grub_commands",),
}


@dataclass(frozen=True)
class Learned:
    """A policy that accepts more boots than its predecessor.

    :param before: the policy in force; None if no policy is in force.
    :param notes: rules that could not be learned, and why; hosts that the new policy still does not accept.
    """

    before: dict[str, Any] | None
    after: dict[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Wish:
    """Options of :func:`learn`.

    :param now: the time in seconds since the epoch. Parts of a policy whose ``until`` is this time or earlier are
        dropped.
    :param ima: also learn which files may run; needs the whole measurement list of each host.
    :param keys: certificates or public keys (PEM) that may have signed files.
    :param until: the end of entries that no given boot shows; empty: such entries get no end.
    """

    now: float = 0.0
    ima: bool = False
    keys: Sequence[str] = ()
    until: str = ""


_NOTHING = Wish()


def learn(before: Mapping[str, Any] | None, boots: Mapping[str, Evidence], wish: Wish = _NOTHING) -> Learned:
    """Return a policy that accepts *boots* (genuine evidence by host).

    The policy's version is the next number, or the same number if there is nothing to add.

    :param before: the policy that is extended; None: the group has none yet.
    """
    old: dict[str, Any] | None = None if before is None else policy.plain(before)
    after = copy.deepcopy(old or {"version": 0})
    kept = {moment: one for moment, one in after.pop("until", {}).items() if policy.when(moment) > wish.now}
    boot = after.setdefault("boot", {})
    notes: list[str] = []
    told = {host: found for host, one in sorted(boots.items()) if (found := _told(host, one, notes)) is not None}
    if old is None:
        for group in GROUPS if len(told) == len(boots) else ():
            _begin(boot, group, told, notes)
    else:
        held = [key for group in GROUPS[:-1] for key in group if key in boot]
        _add(boot, [*held, *(more for key in held for more in _WITH.get(key, ()) if more not in held)], told.values())
    tcb = after.get("tcb")
    if tcb and "network_boot" in tcb:
        _platform(tcb, told, notes)
    _rest(boot, told.values(), notes, tcb)
    rules = _boot(boot, tcb)
    ruled = rules.judged | rules.unchecked
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
        notes.append("some boot logs could not be read; entries that may be in these logs stay valid")
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
        worth = appraisal.appraise(evidence, tried, None)
        if worth.level < limit:
            notes.append(f"{host}: L{worth.level + 1} is not reached: {worth.reason}")
    if old is not None and {**after, "version": 0} == {**old, "boot": old.get("boot") or {}, "version": 0}:
        return Learned(old, old, tuple(notes))
    after["version"] += 1
    return Learned(old, after, tuple(notes))


def _retired(boot: dict[str, Any], told: Iterable[Told], boots: Iterable[Evidence]) -> dict[str, Any]:
    """Remove from *boot* the entries that no boot shows, and return the removed entries. No list is emptied."""
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
    """Split *known* into entries to keep (patterns, and entries in *shown*) and all other entries."""
    good = [one for one in known if one in shown or "*" in one]
    return (good, [one for one in known if one not in good]) if good else (known, [])


def _replaced(rules: dict[str, Any], seen: Mapping[str, list[str]]) -> dict[str, Any]:
    """Remove the old digests of changed files from a policy's IMA rules, and return the removed digests."""
    gone = {}
    for path, digests in seen.items():
        known = rules["files"][path]
        old = [one for one in known if one not in digests]
        if old:
            rules["files"][path] = [one for one in known if one in digests]
            gone[path] = old
    return {"files": gone} if gone else {}


def _both(known: Any, more: Any) -> Any:
    """Return the union of two rules. Mappings are merged by key; lists are joined without duplicates."""
    if isinstance(more, Mapping):
        return {**known, **{key: _both(known[key], one) if key in known else one for key, one in more.items()}}
    return list(dict.fromkeys((*known, *more)))


def _platform(tcb: dict[str, Any], told: Mapping[str, Told], notes: list[str]) -> None:
    """Add what the firmware measures into PCR 1 to ``platform``.

    A boot entry whose form doesn't show where it leads is left to the operator, since it may lead to a network.
    """
    known = dict.fromkeys(tcb.get("platform", ()))
    for host, one in told.items():
        measured = extensions.read(one.evidence).of((1,))[1]
        hidden = {found.digest for found in measured if found.kind in (events.VARIABLE_BOOT, events.VARIABLE_BOOT2)}
        for digest, entry in tcb_rules.unlisted(measured).items():
            if entry is None and digest in hidden and digest.hex() not in known:
                notes.append(
                    f"{host}: PCR 1 has {digest.hex()}: the log calls it a boot entry, without its content; if it "
                    "leads to no network, list it under tcb:platform"
                )
            elif entry is None:
                known[digest.hex()] = None
            elif digest.hex() not in known:
                notes.append(
                    f"{host}: boot entry {entry.text[:60]!r} ({entry.path[-80:]}): its form does not show where it "
                    f"leads; if that is not a network, list {digest.hex()} under tcb:platform"
                )
    if known:
        tcb["platform"] = list(known)


def _rest(boot: dict[str, Any], told: Iterable[Told], notes: list[str], tcb: Any = None) -> None:
    """Update ``unchecked``: remove the PCRs of rules, and add PCRs whose log does not give the quoted value."""
    needs = _boot(boot, tcb).needs
    before = [int(pcr) for pcr in boot.get("unchecked", [])]
    after = [pcr for pcr in before if pcr not in needs]
    notes += [
        f"PCR {pcr} was removed from 'unchecked', because {needs[pcr]} rests on it" for pcr in before if pcr in needs
    ]
    known = {int(pcr) for pcr in boot.get("pcrs", {})}
    after += sorted(set().union(*(one.unled for one in told)) - known - set(after))
    if after != before:
        boot["unchecked"] = after


def _told(host: str, evidence: Evidence, notes: list[str]) -> Told | None:
    try:
        found = boot_learning.told(evidence)
    except Refused as err:
        notes.append(f"{host}: {err}; the policy gets only plain values, which each update changes")
        return None
    if found.unled:
        notes.append(
            f"{host}: the log does not explain the values of PCRs {', '.join(map(str, sorted(found.unled)))}: "
            "these stay unchecked, so a change of firmware or settings in them goes unnoticed"
        )
    return found


def _begin(boot: dict[str, Any], group: Sequence[str], told: Mapping[str, Told], notes: list[str]) -> None:
    """Add a group of rules to a new policy if all logs contain the rules and the rules accept all boots."""
    if group[0] in boot or not told:
        return
    needed = [_HEADS[group[0]], *(["command_lines"] if "command_lines" in group else [])]
    for host, one in told.items():
        if len(needed) > 1 and not one.rules.get(needed[0]):
            return  # the last group, without command lines, writes the note
        for key in needed:
            if not one.rules.get(key):
                _left_out(host, group, one.problems.get(key, "the log has no measurement for this rule"), notes)
                return
    rules: dict[str, Any] = {}
    for key in group:
        if key == "mok" and "applications" in boot:
            continue  # ``applications`` lists all that shim may start, so PCR 14's quoted value is enough
        _merge(rules, key, [_rule(one, key, "command_lines" not in group) for one in told.values()])
    tried = {**boot, **rules}
    for host, one in told.items():
        problem = _problem(one.evidence, tried)
        if problem:
            _left_out(host, group, problem, notes)
            return
    boot.update(rules)


def _left_out(host: str, group: Sequence[str], why: str, notes: list[str]) -> None:
    kind = "command_lines" if "command_lines" in group else group[0]
    notes.append(f"{host}: no rules for {', '.join(group)}: {why}; {_WITHOUT[kind]}")


def _rule(one: Told, key: str, pinned: bool) -> Any:
    """Return one rule that was learned from a boot.

    :param pinned: whether the rule ``files`` also gets the digests of command lines.
    """
    return [*one.rules[key], *one.rules["pinned"]] if pinned and key == "files" else one.rules.get(key)


def _add(boot: dict[str, Any], keys: Sequence[str], told: Iterable[Told]) -> None:
    """Add entries to a policy's rules. ``secure_boot``, ``dbx`` and ``sbat`` stay unchanged."""
    pinned = "command_lines" not in boot
    for key in keys:
        if key not in ("secure_boot", "dbx", "sbat") and not (key == "mok" and "applications" in boot):
            _merge(boot, key, [boot.get(key), *(_unknown(boot, key, _rule(one, key, pinned)) for one in told)])


def _unknown(boot: Mapping[str, Any], key: str, found: Any) -> Any:
    """Return *found* without command lines that a pattern already allows."""
    if key != "command_lines":
        return found
    rules = _boot({key: boot.get(key, [])})
    return [line for line in found or () if not rules.allows_line(line)]


def _merge(rules: dict[str, Any], key: str, found: Sequence[Any]) -> None:
    if key == "secure_boot":
        if all(found):
            rules[key] = True
        return
    if key == "sbat":
        first, *others = (one or {} for one in found)
        lowest = {name: min(n, *(one[name] for one in others)) if others else n for name, n in first.items()
                  if all(name in one for one in others)}  # fmt: skip
        if lowest:
            rules[key] = lowest
        return
    if key == "started_by":
        joined_by: dict[str, list[str]] = {}
        for one in found:
            joined_by = _both(joined_by, one or {})
        if joined_by:
            rules[key] = joined_by
        return
    lists: list[list[str]] = [one or [] for one in found]
    if key == "dbx":
        head, *rest = lists
        joined = [one for one in head if all(one in other for other in rest)]
    else:
        joined = list(dict.fromkeys(one for each in lists for one in each))
    if joined or key == "signers":
        rules[key] = joined


def _boot(data: Mapping[str, Any], tcb: Any = None) -> policy.Boot:
    found = policy.parse({"version": 1, "boot": data, **({} if tcb is None else {"tcb": tcb})}).boot
    assert found is not None
    return found


def _problem(evidence: Evidence, tried: Mapping[str, Any]) -> str:
    """Return why the rules in *tried* refuse a boot; empty if they accept the boot.

    If rules rest on a PCR without judging it, the PCR must have the boot's own value. Other PCRs are unchecked.
    """
    rules = _boot(tried)
    plain = {str(pcr): [evidence.pcrs[pcr].hex()] for pcr in rules.needs if pcr in evidence.pcrs.keys() - rules.judged}
    free = sorted(evidence.pcrs.keys() - rules.needs.keys() - rules.judged)
    try:
        appraisal.judged_boot(evidence, _boot({**tried, "pcrs": plain, "unchecked": free}), None)
    except Refused as err:
        return str(err)
    return ""
