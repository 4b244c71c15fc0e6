"""Changes of mailboxes and of draining queues, in the form in which a step of a plan shows them. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from netspace.link.topology import objects as model
from netspace.link.topology import renaming
from netspace.link.topology.draining import DrainingQueue
from netspace.link.topology.names import shown
from netspace.spec.types import Link


def former_changes(formers: Collection[DrainingQueue], known: Collection[DrainingQueue]) -> dict[str, dict[str, Any]]:
    """Return the queues that become draining queues or cease to be, as changes of a step."""
    old, new = {one.queue for one in known}, {one.queue for one in formers}
    read = "read until it is empty"
    return {
        f"former queue:{shown(queue)}": {"old": read if queue in old else None, "new": read if queue in new else None}
        for queue in sorted(old ^ new)
    }


def members_changes(
    before: Mapping[str, Link], after: Mapping[str, Link], unread: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Return the environments that get a mailbox and an account, lose them, or are renamed, as changes of a step.

    :param unread: the result of :func:`draining.unread`.
    """
    renamed = renaming.pairs(before, after)[1]
    old, new = model.members(before.values()) - renamed.keys(), model.members(after.values()) - {*renamed.values()}
    has = "mailbox, account"
    found = {
        f"environments:{name}": {"old": None, "new": f"{has}, {unread[name]}" if name in unread else has}
        for name in sorted(new - old)
    }
    found |= {f"environments:{name}": {"old": has, "new": None} for name in sorted(old - new)}
    more = {one: f"{has}; it reads the mailbox of {was} until it is empty" for was, one in sorted(renamed.items())}
    return found | {f"environments:{one}": {"old": was, "new": more[one]} for was, one in sorted(renamed.items())}
