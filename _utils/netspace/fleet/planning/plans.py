"""Plans of hosts, and the plan of a fleet that they add up to. Pure.

A host's plan is the dry run of its states: the steps that an apply of its declaration would take. Its digest covers the
minion's id, the declaration, the steps and the refusals, so equal digests mean equal plans. A fleet's plan is *folded*:
equal steps of many hosts are one entry. The id of a fleet's plan is a hash of all hosts' digests.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NamedTuple

import msgspec

from netspace.errors import NetspaceError
from netspace.fleet.planning import renames
from netspace.plan import RENAME, Plan, Result, Step, renamed

ID = re.compile(r"p[0-9a-f]{15}")
"""A plan's id. It begins with a letter, so that a command line doesn't read it as a number."""
MAX_STEPS = 50_000
MAX_ANSWER = 512 * 1024
"""The most bytes of a plan that is sent whole over Salt's bus. A longer one is sent without its steps' changes."""
MAX_BRIEF = 16 * 1024 * 1024

_Word = Annotated[str, msgspec.Meta(max_length=4096)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class Change(msgspec.Struct, frozen=True):
    """One step of a host's plan; see :class:`netspace.plan.Step`."""

    kind: _Word
    name: _Word
    action: _Word
    changes: dict[str, Any] = msgspec.field(default_factory=dict)
    reason: _Word = ""


class Withheld(msgspec.Struct, frozen=True):
    """A declared thing that a host's plan omits on purpose; see :class:`netspace.plan.Refusal`."""

    kind: _Word
    name: _Word
    message: _Word


class HostPlan(msgspec.Struct, frozen=True):
    """The plan of one host, as its minion sends it.

    :param digest: covers the minion's id, the declaration, the steps and the withheld things.
    :param declared: the digest of the declaration that the plan is for.
    :param brief: whether the steps come without their changes, which were too long to send.
    :param messages: the number of messages that wait for each environment that is renamed. It isn't in the digest.
    """

    digest: _Digest
    declared: _Digest
    steps: Annotated[tuple[Change, ...], msgspec.Meta(max_length=MAX_STEPS)] = ()
    withheld: Annotated[tuple[Withheld, ...], msgspec.Meta(max_length=MAX_STEPS)] = ()
    brief: bool = False
    messages: Annotated[dict[_Word, _Count], msgspec.Meta(max_length=MAX_STEPS)] = {}


class Places(NamedTuple):
    """A group of places: each thing in *names*, on each host in *hosts*."""

    names: tuple[str, ...]
    hosts: tuple[str, ...]


class Entry(NamedTuple):
    """One change, with all things and hosts whose plans contain it.

    :param places: the names of the things, and the hosts. No pair of name and host is in two places.
    """

    kind: str
    action: str
    changes: Mapping[str, Any]
    reason: str
    places: tuple[Places, ...]

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(sorted({host for place in self.places for host in place.hosts}))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted({name for place in self.places for name in place.names}))


def encoded(value: Any) -> bytes:
    """Return a value's canonical JSON: keys and sets are sorted."""
    return msgspec.json.encode(value, enc_hook=str, order="deterministic")


def host_plan(minion: str, declared: Any, plan: Plan, messages: Mapping[str, int] | None = None) -> HostPlan:
    """Return the plan of this host, in the form in which the minion sends it to the master.

    :param declared: the declaration, as in the pillar.
    :param messages: the number of messages that wait for each environment that is renamed.
    """

    def changes(steps: Iterable[Step]) -> list[Change]:
        return [Change(one.kind, one.name, one.action, _plain(one.changes), one.reason) for one in steps]

    steps = changes(plan.steps)
    withheld = tuple(Withheld(one.kind, one.name, one.message[:4096]) for one in plan.refusals)
    cut = tuple(msgspec.structs.replace(one, name=one.name[:4096], reason=one.reason[:4096]) for one in steps)
    hashed = hashlib.sha256(encoded(_lasting(declared))).hexdigest()
    digest = hashlib.sha256(encoded((minion, hashed, cut, withheld))).hexdigest()
    shown = tuple(changes(renames.told(plan.steps))) if renamed(plan.steps) else cut
    found = HostPlan(digest, hashed, shown, withheld, messages=dict(messages or {}))
    if len(msgspec.json.encode(found)) <= MAX_ANSWER:
        return found
    brief = tuple(msgspec.structs.replace(one, changes={}) for one in shown)
    return HostPlan(digest, hashed, brief, withheld, True, found.messages)


def _lasting(declared: Any) -> Any:
    """Return a declaration without the parts that the master makes for each pillar: hosts' levels, and ciphertexts.

    Important changes of these parts still appear in a plan: a changed level as a link that is withheld, made or
    revoked, and a changed secret as a changed file.
    """
    declared = _unsealed(declared)
    attestation = declared.get("attestation") if isinstance(declared, Mapping) else None
    if not isinstance(attestation, Mapping) or "appraised" not in attestation:
        return declared
    left = {key: value for key, value in attestation.items() if key != "appraised"}
    rest = {key: value for key, value in declared.items() if key != "attestation"}
    return {**rest, "attestation": left} if left else rest


def _unsealed(declared: Any) -> Any:
    environments = declared.get("environments") if isinstance(declared, Mapping) else None
    if not isinstance(environments, Mapping):
        return declared
    found = {
        name: {**spec, "secrets": {key: _named(one) for key, one in spec["secrets"].items()}}
        for name, spec in environments.items()
        if isinstance(spec, Mapping) and isinstance(spec.get("secrets"), Mapping)
    }
    return {**declared, "environments": {**environments, **found}} if found else declared


def _named(secret: Any) -> Any:
    if not isinstance(secret, Mapping):
        return secret
    return {key: value for key, value in secret.items() if key not in ("sealed", "unread")}


def plain(found: HostPlan) -> dict[str, Any]:
    """Return a host's plan as plain values, which Salt's bus can carry."""
    values: dict[str, Any] = msgspec.to_builtins(found)
    return values


class Applied(msgspec.Struct, frozen=True):
    """The result of an apply on a host, as its minion sends it.

    :param applied: whether every step succeeded.
    :param withheld: the number of declared things that the plan omits on purpose.
    :param steps: the number of steps that succeeded.
    :param reason: the first errors and omissions, as text.
    """

    applied: bool
    withheld: int
    steps: int
    reason: _Word = ""


def outcome(result: Result) -> dict[str, Any]:
    """Return the result of an apply, in the form in which the minion sends it to the master."""
    failed = [f"{one.step}: {one.error}" for one in result.failures]
    omitted = [f"{one.kind} {one.name}: {one.message}" for one in result.plan.refusals]
    reason = "; ".join([*failed[:3], *omitted[:3]])
    done = sum(not one.error for one in result.outcomes)
    found: dict[str, Any] = msgspec.to_builtins(Applied(not failed, len(omitted), done, reason[:4096]))
    return found


def told_outcome(answer: object) -> Applied:
    """Return the result of an apply from a minion's answer, which isn't trusted to be well-formed.

    :raises NetspaceError: the answer isn't the result of an apply.
    """
    try:
        return msgspec.convert(answer, Applied, strict=True)
    except (ValueError, TypeError, RecursionError) as err:
        raise NetspaceError(f"its answer isn't an apply's result: {err}; synchronise it (saltutil.sync_all)") from err


def _plain(changes: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.json.decode(encoded(dict(changes)))
    return plain


def received(answer: object) -> HostPlan:
    """Return a host's plan from its minion's answer, which isn't trusted to be well-formed.

    :raises NetspaceError: the answer is no plan.
    """
    try:
        if len(encoded(answer)) > 2 * MAX_ANSWER + MAX_BRIEF:
            raise ValueError("it is too long")
        return msgspec.convert(answer, HostPlan, strict=True)
    except (ValueError, TypeError, RecursionError) as err:  # msgspec's errors are ValueErrors
        raise NetspaceError(f"its answer is not a plan: {err}; synchronise it (saltutil.sync_all)") from err


def identity(plans: Mapping[str, HostPlan]) -> str:
    """Return the id of a fleet's plan: a hash of all hosts' plans, by host."""
    pairs = sorted((host, plan.digest) for host, plan in plans.items())
    return f"p{hashlib.sha256(encoded(pairs)).hexdigest()[:15]}"


def fold(plans: Mapping[str, HostPlan]) -> list[Entry]:
    """Return the steps of all plans as entries: equal changes, of any things on any hosts, are one entry."""
    hosts: dict[tuple[bytes, str], list[str]] = {}
    shown: dict[bytes, Change] = {}
    for host, plan in sorted(plans.items()):
        for step in plan.steps:
            key = encoded((step.kind, step.action, step.changes, step.reason))
            shown.setdefault(key, step)
            where = hosts.setdefault((key, step.name), [])
            if not where or where[-1] != host:
                where.append(host)
    names: dict[bytes, dict[tuple[str, ...], list[str]]] = {}
    for (key, name), where in sorted(hosts.items(), key=lambda one: one[0][1]):
        names.setdefault(key, {}).setdefault(tuple(where), []).append(name)
    found = []
    for key, places in names.items():
        step = shown[key]
        whole = tuple(sorted(Places(tuple(some), where) for where, some in places.items()))
        kept = _kept(plans, whole) if step.action == RENAME and step.kind == "environment" else ""
        found.append(Entry(step.kind, step.action, step.changes, step.reason + kept, whole))
    return sorted(found, key=lambda one: (-len(one.hosts), one.kind, one.action, one.names, encoded(one.changes)))


def _kept(plans: Mapping[str, HostPlan], places: tuple[Places, ...]) -> str:
    """Return how many messages are kept for renamed environments, as words; empty if no host reported it."""
    counts = [
        plans[host].messages[name]
        for place in places
        for name in place.names
        for host in place.hosts
        if name in plans[host].messages
    ]
    return f" ({sum(counts)} message{'' if sum(counts) == 1 else 's'})" if counts else ""


def withheld(plans: Mapping[str, HostPlan]) -> list[tuple[Withheld, tuple[str, ...]]]:
    """Return the things that hosts' plans omit on purpose, each with the hosts that omit it, sorted."""
    found: dict[Withheld, list[str]] = {}
    for host, plan in sorted(plans.items()):
        for one in dict.fromkeys(plan.withheld):
            found.setdefault(one, []).append(host)
    return [(one, tuple(hosts)) for one, hosts in found.items()]


def by_reason(reasons: Mapping[str, str]) -> list[tuple[str, tuple[str, ...]]]:
    """Return each reason with its hosts; the most frequent reason comes first."""
    found: dict[str, list[str]] = {}
    for host, reason in sorted(reasons.items()):
        found.setdefault(reason, []).append(host)
    return [(reason, tuple(found[reason])) for reason in sorted(found, key=lambda one: (-len(found[one]), one))]


def told(entry: Entry) -> dict[str, Any]:
    """Return an entry as plain values, for the output of a Salt function."""
    return {
        "kind": entry.kind,
        "action": entry.action,
        "changes": dict(entry.changes),
        "reason": entry.reason,
        "hosts": len(entry.hosts),
        "places": [{"names": list(one.names), "hosts": list(one.hosts)} for one in entry.places],
    }


class Comparison(NamedTuple):
    """The differences between two plans of a fleet.

    :param dropped: the changes on hosts where only the first plan makes them.
    :param added: the changes on hosts where only the second plan makes them.
    :param without: hosts that only the first plan has.
    :param with_plan: hosts that only the second plan has.
    :param redeclared: hosts whose steps are equal in both plans, although their declarations differ.
    """

    dropped: list[Entry]
    added: list[Entry]
    without: tuple[str, ...]
    with_plan: tuple[str, ...]
    redeclared: tuple[str, ...]


def compare(first: Mapping[str, HostPlan], second: Mapping[str, HostPlan]) -> Comparison:
    """Return the differences between two plans of a fleet."""
    both = sorted(first.keys() & second.keys())
    return Comparison(
        fold({host: _less(plan, second.get(host)) for host, plan in first.items()}),
        fold({host: _less(plan, first.get(host)) for host, plan in second.items()}),
        tuple(sorted(first.keys() - second.keys())),
        tuple(sorted(second.keys() - first.keys())),
        tuple(
            host
            for host in both
            if first[host].declared != second[host].declared and _keys(first[host]) == _keys(second[host])
        ),
    )


def _less(plan: HostPlan, other: HostPlan | None) -> HostPlan:
    """Return a plan without the steps that *other* has, too."""
    known = _keys(other) if other is not None else frozenset()
    return msgspec.structs.replace(plan, steps=tuple(one for one in plan.steps if encoded(one) not in known))


def _keys(plan: HostPlan) -> frozenset[bytes]:
    return frozenset(encoded(one) for one in plan.steps)


def words(entry: Entry, value: Callable[[object], str], most: int = 3) -> str:
    """Return an entry in one sentence: ``412 hosts: environment web: restart (image 9f -> 3c)``.

    :param value: a function that returns a value as one line.
    :param most: how many names and how many keys are shown at most; others are only counted.
    """
    hosts, names = entry.hosts, entry.names
    where = f"{len(hosts)} hosts" if len(hosts) > 1 else hosts[0]
    shown = ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
    keys = [f"{key} {value(_side(one, 'old'))} -> {value(_side(one, 'new'))}" for key, one in entry.changes.items()]
    more = [f"{len(keys) - most} more keys"] if len(keys) > most else []
    why = [entry.reason] if entry.reason else []
    detail = "; ".join([*why, *keys[:most], *more])
    plural = "s" if len(names) > 1 else ""
    return f"{where}: {entry.kind}{plural} {shown}: {entry.action}" + (f" ({detail})" if detail else "")


def _side(change: object, side: str) -> object:
    return change.get(side) if isinstance(change, Mapping) else None
