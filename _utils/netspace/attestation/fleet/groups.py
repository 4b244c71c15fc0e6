"""Groups of hosts, and their policies in force. The verifier signs each policy, and accepts no lower version.

The minion's id alone selects its group. A grain is the host's claim about itself, so it must not select the policy that
judges the host. :class:`Policies` keeps these files in the registrar's folder::

    policies/<group>.jws      the policy in force, signed by the verifier
    policies/versions.json    the highest version so far, by group

A policy is refused if the verifier did not sign it, if a higher version was in force, or if its file is gone. Then no
host of the group is judged, so its hosts become stale.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netspace import files
from netspace.attestation import ear
from netspace.attestation.ear import Signer
from netspace.attestation.policy import policy
from netspace.attestation.policy.policy import Policy
from netspace.attestation.refusals import PolicyDowngraded, PolicyForged, Refused
from netspace.errors import NetspaceError

DEFAULT = "default"
MAX_POLICY = 512 * 1024 * 1024
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_LEVEL = re.compile(r"L([1-5])")


@dataclass(frozen=True)
class Group:
    """A group of hosts that one policy judges.

    :param match: terms that match minions' ids: patterns (``*``, ``?``, ``[]``), and Salt's ``E@<regular expression>``
        and ``L@<id>,<id>``. No term matches a host's claims about itself.
    :param minimum: the lowest level of a *trusted* host; a host below it is *degraded*.
    :param deadline: seconds for which a result counts, here and at the host.
    """

    name: str = DEFAULT
    match: tuple[str, ...] = ("*",)
    minimum: int = 2
    pcrs: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    deadline: float = 7200.0


def parse(
    data: Any, nodegroups: Mapping[str, Any] | None = None, deadline: float = Group.deadline
) -> tuple[Group, ...]:
    """Return the groups in the master's configuration, in order: a minion belongs to the first that matches its id.

    The group ``default`` is last and matches every minion. It may be configured, too, to change its values.

    :param nodegroups: the master's nodegroups. A term ``N@<name>`` is replaced by the terms of that nodegroup.
    :param deadline: seconds for which a result counts in groups that configure no deadline.
    :raises NetspaceError: for unknown keys and wrong values.
    """
    at = "master configuration: netspace.attestation:groups"
    if not isinstance(data, list):
        raise NetspaceError(f"{at}: expected a list")
    found: dict[str, Group] = {}
    for number, one in enumerate(data):
        group = _group(one, f"{at}:{number}", nodegroups or {}, deadline)
        if group.name in found:
            raise NetspaceError(f"{at}:{number}: {group.name} is there already")
        found[group.name] = group
    last = found.pop(DEFAULT, Group(deadline=deadline))
    return (*found.values(), last)


def _group(data: Any, at: str, nodegroups: Mapping[str, Any], default: float) -> Group:
    known = tuple(Group.__dataclass_fields__)
    if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
        raise NetspaceError(f"{at}: expected a mapping with a name")
    for key in data:
        if key not in known:
            raise NetspaceError(f"{at}:{key!s:.40}: unknown; there are {', '.join(known)}")
    name = data["name"]
    if not _NAME.fullmatch(name):
        raise NetspaceError(f"{at}:name: {name!r:.80}: expected a-z, 0-9, _ and -, at most 63")
    match = data.get("match", ["*"] if name == DEFAULT else None)
    if not isinstance(match, list) or not match or any(not isinstance(one, str) or not one for one in match):
        raise NetspaceError(f"{at}:match: expected a list of patterns of minions' ids")
    if name == DEFAULT and match != ["*"]:
        raise NetspaceError(f"{at}:match: the group {DEFAULT} is for all that no other group has")
    match = [term for one in match for term in _terms(one, f"{at}:match", nodegroups)]
    level = _LEVEL.fullmatch(str(data.get("minimum", "L2")))
    if level is None:
        raise NetspaceError(f"{at}:minimum: {data['minimum']!r:.40}: expected L1 to L5")
    pcrs = data.get("pcrs", list(Group.pcrs))
    if not isinstance(pcrs, list) or not pcrs or any(type(one) is not int or not 0 <= one <= 23 for one in pcrs):
        raise NetspaceError(f"{at}:pcrs: expected a list of PCRs, 0 to 23")
    deadline = data.get("deadline", default)
    if type(deadline) not in (int, float) or not 60 <= deadline <= 30 * 86400:
        raise NetspaceError(f"{at}:deadline: {deadline!r:.40}: expected 60 seconds to 30 days")
    return Group(name, tuple(match), int(level[1]), tuple(sorted(set(pcrs))), float(deadline))


def of(groups: Sequence[Group], minion: str) -> Group:
    """Return the group of *minion*: the first that matches its id."""
    return next(one for one in groups if any(_matches(minion, term) for term in one.match))


def _matches(minion: str, term: str) -> bool:
    kind, at, rest = term[:1], term[1:2], term[2:]
    if at != "@":
        return fnmatch.fnmatchcase(minion, term)
    return minion in rest.split(",") if kind == "L" else re.match(rest, minion) is not None


def _terms(one: str, at: str, nodegroups: Mapping[str, Any], depth: int = 0) -> list[str]:
    """Return *one* as a list of terms: itself, or the terms of the nodegroup that it names.

    :raises NetspaceError: for a term that matches by grains, pillar or addresses, since a host may influence these.
    """
    if one[1:2] != "@":
        return [one]
    kind, rest = one[0], one[2:]
    if kind == "N":
        found = nodegroups.get(rest)
        words = found.split() if isinstance(found, str) else found
        if not isinstance(words, list) or not words or depth > 8 or any(not isinstance(word, str) for word in words):
            raise NetspaceError(f"{at}: {one!r:.80}: not one of the master's nodegroups, or one that names itself")
        joined = [word for word in words if word != "or"]
        if any(word in ("and", "not", "(", ")") for word in joined):
            raise NetspaceError(f"{at}: {one!r:.80}: a nodegroup of more than ids joined by 'or'")
        return [term for word in joined for term in _terms(word, at, nodegroups, depth + 1)]
    if kind not in ("E", "L"):
        raise NetspaceError(
            f"{at}: {one!r:.80}: a host may say what it likes of itself: match by its id (glob, E@, L@, N@)"
        )
    if kind == "E":
        try:
            re.compile(rest)
        except re.error as err:
            raise NetspaceError(f"{at}: {one!r:.80}: {err}") from err
    return [one]


class Policies:
    """The policies in force; see the module's docstring."""

    def __init__(self, folder: Path, signer: Signer, clock: Callable[[], float] = time.time) -> None:
        """Keep the policies in a registrar's *folder*.

        :param clock: returns the time, by which parts of a policy expire.
        """
        self._folder = folder / "policies"
        self._signer = signer
        self._clock = clock
        self._parsed: dict[str, Policy | None] = {}

    def data(self, group: str) -> dict[str, Any] | None:
        """Return the policy in force in its written form; None if there never was one.

        :raises PolicyForged: when the verifier did not sign it.
        :raises PolicyDowngraded: when a higher version was in force.
        """
        path = self._path(group)
        floor = self._floor(group)
        try:
            with path.open("rb") as stream:
                raw = stream.read(MAX_POLICY + 1)
        except FileNotFoundError as err:
            if floor:
                raise PolicyDowngraded(f"{path} is gone; version {floor} was in force") from err
            return None
        try:
            payload = ear.opened(raw.decode("ascii", "replace"), ear.POLICY, [self._signer.jwk], MAX_POLICY)
        except Refused as err:
            raise PolicyForged(f"{path}: {err.args[0]}") from err
        if payload.get("group") != group or not isinstance(payload.get("policy"), dict):
            raise PolicyForged(f"{path}: signed for another group")
        found: dict[str, Any] = payload["policy"]
        if type(found.get("version")) is not int or found["version"] < floor:
            raise PolicyDowngraded(f"{path}: version {found.get('version')!r:.20}; version {floor} was in force")
        return found

    def get(self, group: str) -> Policy | None:
        """Return the policy in force without its expired parts. Raise as :meth:`data`.

        The parsed policy is cached until one of its parts expires.
        """
        now = self._clock()
        known = self._parsed.get(group)
        if group not in self._parsed or (known is not None and known.changes is not None and now >= known.changes):
            data = self.data(group)
            self._parsed[group] = None if data is None else policy.parse(data, now)
        return self._parsed[group]

    def put(self, group: str, data: Any, quoted: Collection[int] | None = None) -> Policy:
        """Sign a policy and put it in force.

        :param quoted: PCRs that the group's hosts quote; None if they are not known.
        :raises PolicyDowngraded: when its version is not higher than the last one's.
        :raises PolicyError: when it can't be read, or a rule of it rests on an unjudged PCR (:func:`policy.accepted`).
        """
        found = policy.accepted(data, self._clock(), quoted)
        with files.locked(self._folder / "lock"):
            floor = self._floor(group)
            if found.version <= floor:
                raise PolicyDowngraded(f"version {found.version}: expected {floor + 1} or higher")
            token = self._signer.sign(ear.POLICY, {"group": group, "policy": policy.plain(data)})
            files.write(self._path(group), token.encode())
            # The version is saved after the policy: after a crash in between, the new policy is in force and accepted.
            versions = files.read_json(self._folder / "versions.json", files.KEPT) or {}
            files.write_json(self._folder / "versions.json", {**versions, group: found.version})
        self._parsed[group] = found
        return found

    def _path(self, group: str) -> Path:
        return self._folder / f"{group}.jws"

    def _floor(self, group: str) -> int:
        floor = (files.read_json(self._folder / "versions.json", files.KEPT) or {}).get(group, 0)
        if type(floor) is not int:
            raise NetspaceError(f"{self._folder / 'versions.json'}: {group}: not a version")
        return floor


def diff(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> list[str]:
    """Return the changes between two policies, as a unified diff. IMA's files, which may be many, have a line each."""
    old, new = _lines(before), _lines(after)
    found = list(difflib.unified_diff(old, new, "in force", "proposed", lineterm="", n=2))
    was, will = set(_files(before or {})), set(_files(after))
    return found + [f"-{one}" for one in sorted(was - will)] + [f"+{one}" for one in sorted(will - was)]


def _lines(data: Mapping[str, Any] | None) -> list[str]:
    """Return a policy line by line, without IMA's files."""
    if data is None:
        return []
    shown = policy.plain(data)
    for section in (shown, *(shown.get("until") or {}).values()):
        if "files" in (section.get("ima") or {}):
            section["ima"] = {key: value for key, value in section["ima"].items() if key != "files"}
    return json.dumps(shown, indent=1, sort_keys=True).splitlines()


def _files(data: Mapping[str, Any]) -> Iterator[str]:
    sections = {"": data, **{f"until:{moment}:": one for moment, one in (data.get("until") or {}).items()}}
    for name, section in sections.items():
        for path, digests in ((section.get("ima") or {}).get("files") or {}).items():
            shown = str(path).encode("utf-8", "backslashreplace").decode()
            yield from (f"{name}ima:files:{shown}: {one}" for one in digests)
