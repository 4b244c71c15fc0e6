"""Renamed environments in a host's plan: hides the steps that follow from the new name alone. Pure.

A new name changes the environment, its interface, its links, its account and its keys. An operator who reads a plan
should see one change for all of them, and apart from it only other changes. The digest of a plan covers all steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from netspace.plan import NAME, RENAME, Step, renamed

_ENDS = ("from", "to", "formerly")


def told(steps: Sequence[Step]) -> list[Step]:
    """Return the steps of a plan without those that follow from a new name alone."""
    former = renamed(steps)
    return [step for step in steps if not (former and _follows(step, former))]


def _follows(step: Step, former: Mapping[str, str]) -> bool:
    if step.kind == "interface":
        return step.action == RENAME and step.name in former and step.changes.keys() <= {NAME}
    if step.kind != "link":
        return False
    if step.name == "broker":
        return all(_of_mailbox(key, former) for key in step.changes)
    if step.name == "seals":
        return all(name in former for name in step.changes)
    if step.name == "forwarder":
        ends = step.changes.get("environments", {})
        old, new = set(ends.get("old") or ()), set(ends.get("new") or ())
        return step.changes.keys() == {"environments"} and new <= former.keys() and old <= {*former.values()}
    return step.action == RENAME and all(
        key.partition(":")[0] in _ENDS and (key not in ("from", "to") or former.get(change["new"]) == change["old"])
        for key, change in step.changes.items()
    )


def _of_mailbox(key: str, former: Mapping[str, str]) -> bool:
    """Return whether a change of the broker concerns the mailbox or the queues of a renamed environment."""
    kind, _, name = key.partition(":")
    if kind == "environments":
        return name in former
    return kind == "former queue" and not set(name.split(".")).isdisjoint(former.values())
