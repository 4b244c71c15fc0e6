"""Learn which files may run, from the IMA measurement lists of known good hosts.

Only the lines up to the quoted value of PCR 10 count. Lines in other PCRs have no proof, so this module doesn't learn
them. The learned policy lists a file by its path and digests. It omits files that the policy excludes, and files that
one of the policy's keys signed. A line of an unknown template is listed by the line's digest.

Notes name lines that can't be learned: violations and weak digests. Notes also name files that an exclusion or a key
could cover: paths whose content changed while the host ran, and files that unknown keys signed.

Pure: the module only adds rules, and doesn't put the policy in force. ``netspace.attestation.learning.policy`` calls
it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from netspace.attestation.evidence import Evidence
from netspace.attestation.logs import ima
from netspace.attestation.policy import policy
from netspace.attestation.refusals import ListMalformed, NoList, Refused
from netspace.errors import NetspaceError

# The most names in a note.
_NAMED = 5


@dataclass
class Seen:
    """Files, entries and keys in the hosts' lists, and notes for people."""

    files: dict[str, list[str]] = field(default_factory=dict)
    entries: dict[str, None] = field(default_factory=dict)
    keys: dict[str, None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def seen(rules: Mapping[str, Any], hosts: Mapping[str, Evidence], keys: Sequence[str]) -> Seen:
    """Return the files that *hosts* run, without those that *rules* (a policy's ``ima``) already allow.

    :param keys: more keys (PEM) that may have signed files. The result's ``keys`` has each of these keys that signed a
        file.
    """
    found = Seen()
    old = _parsed({key: rules[key] for key in ("keys", "exclude") if key in rules})
    offered = [(one, _parsed({"keys": [one]})) for one in keys]
    for host, evidence in sorted(hosts.items()):
        _host(found, host, evidence, old, offered)
    return found


def add(rules: dict[str, Any], found: Seen) -> None:
    """Add *found* to the lists of *rules* (a policy's ``ima``), in place.

    :raises NetspaceError: when ``files`` would become longer than a policy allows.
    """
    files = dict(rules.get("files", {}))
    for path, digests in found.files.items():
        files[path] = _joined(files.get(path, []), digests)
    if len(files) > policy.MAX_FILES:
        raise NetspaceError(f"{len(files)} files, at most {policy.MAX_FILES} can be listed: sign them, or exclude some")
    rules["files"] = files
    for key, more in (("entries", found.entries), ("keys", found.keys)):
        if more:
            rules[key] = _joined(rules.get(key, []), more)


def _host(
    found: Seen, host: str, evidence: Evidence, old: policy.Ima, offered: Sequence[tuple[str, policy.Ima]]
) -> None:
    try:
        entries = _entries(evidence)
    except Refused as err:
        found.notes.append(f"{host}: {err}; nothing was learned from this host's measurement list")
        return
    first = ima.boot_aggregate(entries)
    own: dict[bytes, set[bytes]] = {}
    unknown: Counter[str] = Counter()
    weak: set[str] = set()
    violations = elsewhere = 0
    misnamed: Counter[str] = Counter()
    for number, entry in enumerate(entries):
        if entry.violation:
            violations += 1
            continue
        if entry.pcr != ima.PCR:
            elsewhere += 1
            continue
        file = ima.file(entry)
        if file is None:
            found.entries[ima.measured(entry).hex()] = None
            continue
        if file.path == ima.BOOT_AGGREGATE:
            if number:
                misnamed["another kernel was started by kexec" if file.digest == first else "a file has its name"] += 1
            continue
        if old.allows(file):
            continue
        signer = next((pem for pem, rules in offered if rules.keys.signed(file)), None)
        if signer is not None:
            found.keys[signer] = None
            continue
        if file.signature[:2] == b"\3\2":
            unknown[file.signature[3:7].hex()] += 1
        own.setdefault(file.path, set()).add(file.digest)
    for path, digests in own.items():
        name = path.decode("utf-8", "surrogateescape")
        named = [text for one in sorted(digests) if (text := _named(one)) is not None]
        if len(named) < len(digests) or not 0 < len(name) <= policy.MAX_PATH:
            weak.add(name)
        if named and 0 < len(name) <= policy.MAX_PATH:
            found.files[name] = _joined(found.files.get(name, []), named)
    changed = sorted(path.decode("utf-8", "backslashreplace") for path, digests in own.items() if len(digests) > 1)
    if violations:
        found.notes.append(f"{host}: {violations} files were written while they were measured")
    if elsewhere:
        found.notes.append(f"{host}: {elsewhere} lines are in PCRs other than 10, so the quote does not prove them")
    if changed:
        found.notes.append(f"{host}: files changed while the host ran; consider 'exclude' for {_some(changed)}")
    if weak:
        found.notes.append(
            f"{host}: only 'exclude' can allow files without a digest of SHA-256 or better: {_some(sorted(weak))}"
        )
    for why, number in sorted(misnamed.items()):
        found.notes.append(f"{host}: {number} later lines have the name boot_aggregate, which can't be learned: {why}")
    for key, number in sorted(unknown.items()):
        found.notes.append(
            f"{host}: {number} files are signed by the key {key}; if 'keys' lists this key, the files need no digest"
        )


def _entries(evidence: Evidence) -> list[ima.Entry]:
    """Return the lines of a host's list up to the quoted value.

    :raises Refused: when the list is missing, is malformed, does not begin at line 0 or does not match the quote.
    """
    brought = evidence.ima
    if brought is None:
        raise NoList("the kernel gives no measurement list")
    if brought.first:
        raise ListMalformed("the measurement list does not begin at its first line")
    entries = ima.parse(brought.lines)
    return entries[: ima.match(entries, bytes(32), brought.value)]


def _named(digest: bytes) -> str | None:
    """Return a digest in the policy's form; None if policies don't accept its algorithm."""
    algorithm, _, raw = digest.partition(b":\0")
    name = algorithm.decode("ascii", "replace")
    return f"{name}:{raw.hex()}" if policy.DIGESTS.get(name) == len(raw) else None


def _parsed(rules: Mapping[str, Any]) -> policy.Ima:
    found = policy.parse({"version": 1, "ima": rules}).ima
    assert found is not None
    return found


def _joined(known: Iterable[str], more: Iterable[str]) -> list[str]:
    return list(dict.fromkeys((*known, *more)))


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(name[:200].encode("utf-8", "backslashreplace").decode() for name in names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"
