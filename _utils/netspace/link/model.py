"""Broker objects of a set of links. Pure: no broker, no disk, no secret.

One vhost; an environment with at least one link has an account and a mailbox, each
link an exchange of its own (``names`` makes the names, which nobody can guess):

===========  ==================  ===================================================
account      ``env.<e>``         no tags, few connections and channels, no configure
mailbox      ``mailbox.<e>``     quorum queue, bounded by a policy; only <e> reads it
link         ``link.<a>.<b>``    fanout exchange bound to ``mailbox.<b>``; only <a>
                                 writes, so the exchange of a delivery is its sender
lane         ``lane.<a>.<b>``    quorum queue in place of the mailbox for a link with
                                 bounds of its own, or from another host that watches
                                 its readers; only <b> reads it
replies      ``replies.<a>``     queue for answers, where <a> has a request link
answers      ``reply.<b>``       direct exchange that <b> answers through; each asker
                                 binds its replies queue to it under a random key
notices      ``notices.<a>``     queue for news of those whom <a> may monitor
watch        ``watch.<a>.<b>``   headers exchange that lets through to it what the broker
                                 tells of the consumers of ``mailbox.<b>`` (or the lane), and no more
dead         ``dead``            exchange and queue for mail that its reader refused or was given in vain
late         ``dead-late``       headers exchange and queue for mail that waited too long or made way; all other
                                 dead letters come through it, too, and go on to ``dead``
outbox       ``outbox.<a>.<b>``  quorum queue in place of a mailbox for a buffered link to another host
carrier      ``outbox.<a>.<b>``  shovel that takes what is in it to the other host's broker
===========  ==================  ===================================================

A link from another host (``<a>`` is then ``<environment>@<host>``) is made like any other, and its sender has an
account and no mailbox; of a buffered one the other host's broker is the sender, and only it has an account. A
direct link to another host is made there and not here. On a broker that hosts share (``Names.fleet``) a link's
objects are made by the receiver's host, its sender's account and replies by the sender's: each looks after
what belongs to environments of its own, the last in a name, and leaves all else alone.

A mailbox's limits are policies and not arguments, because arguments can't be changed later;
a lane with other limits is another lane, and the former one is read until it is empty.
Links have exchanges of their own because a keyed exchange shared by several would
let a CC header reach undeclared receivers. Names of environments have no dot, so these can't clash.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from netspace.link.names import AGAIN, DEAD, LATE, MAIL, TAG_PATTERN, Names, account, carrier, environments_of
from netspace.spec.types import Link, host_of

Key = tuple[str, ...]
"""Kind and name of a broker object: ``("queue", "mailbox.web")``, ``("binding", source, type, target, key)``."""

Objects = dict[Key, dict[str, Any]]
"""Broker objects in the form of RabbitMQ's definitions, without vhost and secrets."""

ANSWERS = 1000
"""Answers that an asker may wait for at a time: bindings of its replies queue."""

CONNECTIONS = 8
CHANNELS = 64
_DAY = 24 * 3600 * 1000

_MAILBOX: dict[str, Any] = {
    "max-length": 10_000,
    "max-length-bytes": 64 * 1024 * 1024,
    "overflow": "reject-publish",
    "message-ttl": 30 * _DAY,
    "delivery-limit": 20,
    # As long a message may be in hand. Then its reader's channel is closed, which counts as a delivery: so one that
    # hangs has no more than ten days, for which what came after stays on the disk beside the message. With the
    # broker's own 30 minutes, what a program holds (a selective receive) or works on for ten hours would be dead.
    "consumer-timeout": _DAY // 2,
}
_LANE = {key: value for key, value in _MAILBOX.items() if key != "overflow"}  # a policy's would hide its own
# What the other side doesn't take now comes back, however often: nothing may be lost for that.
_OUTBOX = {**_MAILBOX, "delivery-limit": 1_000_000_000}
_REPLIES: dict[str, Any] = {
    "max-length": 10_000,
    "max-length-bytes": 16 * 1024 * 1024,
    "overflow": "reject-publish",
    "message-ttl": 3600 * 1000,
}
_NOTICES: dict[str, Any] = {
    "max-length": 1000,
    "overflow": "drop-head",  # whoever comes and goes all the time hides no more than what came before
    "message-ttl": 3600 * 1000,
}
_DEAD: dict[str, Any] = {
    "max-length": 10_000,
    "max-length-bytes": 64 * 1024 * 1024,
    # Nobody pushes another's letters out: what finds no room stays where it died, and counts there.
    "overflow": "reject-publish",
    "message-ttl": 30 * _DAY,
    # Looking into it counts as a delivery; and without any limit, what was looked at goes behind the others.
    "delivery-limit": 1_000_000_000,
}
POLICIES = (
    "netspace.mailbox",
    "netspace.lane",
    "netspace.outbox",
    "netspace.replies",
    "netspace.notices",
    "netspace.dead",
    "netspace.dead-late",
    "netspace.dead-again",
)
EVENTS = "amq.rabbitmq.event"
"""RabbitMQ's own exchange for events of the broker; only RabbitMQ publishes into it."""


def policies(names: Names) -> dict[str, dict[str, Any]]:
    """The limits of all queues, by the policy's name."""
    # A queue that drops its oldest hands over without a confirmation, whatever is said here.
    letters = {"dead-letter-exchange": names.late, "dead-letter-strategy": "at-least-once"}
    return {
        "netspace.mailbox": _policy(r"^mailbox\.", "quorum_queues", {**_MAILBOX, **letters}),
        "netspace.lane": _policy(r"^lane\.", "quorum_queues", {**_LANE, **letters}),
        "netspace.outbox": _policy(r"^outbox\.", "quorum_queues", {**_OUTBOX, **letters}),
        "netspace.replies": _policy(r"^replies\.", "classic_queues", _REPLIES),
        "netspace.notices": _policy(r"^notices\.", "classic_queues", _NOTICES),
        "netspace.dead": _policy(rf"^dead(-again)?(\.{TAG_PATTERN})?$", "quorum_queues", _DEAD),
        # Any sender can have its own mail die so, as much as it likes.
        "netspace.dead-late": _policy(
            rf"^dead-late(\.{TAG_PATTERN})?$", "quorum_queues", {**_DEAD, "overflow": "drop-head"}
        ),
    }


def _policy(pattern: str, kind: str, definition: dict[str, Any]) -> dict[str, Any]:
    return {"pattern": pattern, "apply-to": kind, "priority": 10, "definition": dict(definition)}


def members(links: Iterable[Link]) -> set[str]:
    """The environments of this host that have an account and a mailbox: those with at least one link."""
    return {end for link in links for end in link.here}


def writer(link: Link) -> str:
    """Return the publisher into a link's exchange, on the broker that has it.

    It is the sender; of a buffered link from another host it is that host's broker.
    """
    if link.via == "buffered" and link.from_host is not None:
        return carrier(link.from_host)
    return link.source


def accounts(links: Collection[Link], names: Names) -> set[str]:
    """Return all that this host makes accounts for: its environments, and the publishers of links from other hosts.

    On a broker that hosts share, each makes the accounts of its own environments alone.
    """
    others = () if names.fleet else (writer(link) for link in links if link.from_host is not None)
    return members(links).union(others)


def elsewhere(link: Link) -> bool:
    """Whether a link is made by another host: its sender goes to the receiver's broker by itself."""
    return link.to_host is not None and link.via == "direct"


def carried(link: Link) -> bool:
    """Whether a link's mail waits on this host's broker until it is carried over to another host's."""
    return link.to_host is not None and link.via == "buffered"


def objects(links: Collection[Link], names: Names, shovels: Mapping[str, Mapping[str, Any]] | None = None) -> Objects:
    """Return all broker objects of *links*, accounts without their passwords.

    :param shovels: the settings of buffered links' shovels, by their outbox (``remote.shovels``).
    """
    made: Objects = {}
    environments = members(links)
    if not environments:
        return made
    here = [link for link in links if not elsewhere(link)]
    answered: dict[str, set[str]] = {}  # asker -> what those answer through whom it may ask
    asked: dict[str, set[str]] = {}  # who is asked -> what it answers through
    sends: set[str] = set()
    watches: set[str] = set()
    brought: dict[str, int] = {}  # another host's broker -> how many links it brings mail of
    # On a shared broker the receiver's host makes the link, and the sender's its account and queue for answers.
    for link in links if names.fleet else here:
        sends.add(writer(link))
        if writer(link) != link.source:
            brought[writer(link)] = brought.get(writer(link), 0) + 1
        if link.monitor:
            watches.add(link.source)
        if link.pattern == "request":
            through = names.reply(link.target, link.from_host)
            answered.setdefault(link.source, set()).add(through)
            asked.setdefault(link.target, set()).add(through)

    made.update(shared(names))
    for environment in environments | accounts(here, names):
        # Each shovel of another host's broker is a connection, and a new one may come before the old one has gone.
        times = 2 * brought.get(environment, 0) / CONNECTIONS + 1
        made["user", account(environment)] = {
            "tags": [],
            "limits": {"max-connections": round(CONNECTIONS * times), "max-channels": round(CHANNELS * times)},
        }
        made["permission", account(environment)] = _permission(
            names,
            environment,
            sends=environment in sends,
            asks=answered.get(environment, set()),
            answers=asked.get(environment, set()),
            watches=environment in watches,
        )
        if environment in environments:
            _queue(made, names.mailbox(environment), "quorum")
        if environment in answered:
            _queue(made, names.replies(environment), "classic")
        for exchange in sorted(asked.get(environment, ())):
            _exchange(made, exchange, "direct")
        if environment in watches:
            _queue(made, names.notices(environment), "classic")
    for link in here:
        queue = way(link, names)
        if link.to_host is not None:
            _queue(made, queue, "quorum")
            made["shovel", queue] = {"value": dict((shovels or {}).get(queue, {}))}
        elif names.has_lane(link):
            _queue(made, queue, "quorum", _bounds(link))
        _exchange(made, names.exchange(link), "fanout")
        _binding(made, names.exchange(link), queue)
        if link.monitor:
            watch = names.watch(link)
            _exchange(made, watch, "headers")
            made["binding", EVENTS, "exchange", watch, "consumer.*"] = {"arguments": {}}
            about = {"x-match": "all", "queue": names.watched(link)}
            made["binding", watch, "queue", names.notices(link.source), ""] = {"arguments": about}
    return made


def way(link: Link, names: Names) -> str:
    """Return the queue on this host's broker that a link leads to; for a link to another host, its outbox."""
    return names.queue(link) if link.to_host is None else names.outbox(link)


def shared(names: Names) -> Objects:
    """Return the objects that all links of a vhost share. No link's end revokes them: other hosts may use them too."""
    made: Objects = {("policy", name): policy for name, policy in policies(names).items()}
    _exchange(made, names.dead, "fanout")
    _queue(made, names.dead, "quorum")
    _binding(made, names.dead, names.dead)
    _exchange(made, names.late, "headers", {"alternate-exchange": names.dead})
    _queue(made, names.late, "quorum")
    for reason in ("expired", "maxlen"):
        wanted = {"x-match": "all-with-x", "x-first-death-reason": reason}
        made["binding", names.late, "queue", names.late, reason] = {"arguments": wanted}
    return made


def of_link(link: Link, names: Names) -> list[Key]:
    """Return the keys of the objects that are this link's alone."""
    if elsewhere(link):
        return []
    name, queue = names.exchange(link), way(link, names)
    lane: list[Key] = [("queue", queue)] if names.has_lane(link) or link.to_host else []
    if link.to_host:
        lane.append(("shovel", queue))
    return [("exchange", name), ("binding", name, "queue", queue, ""), *lane, *_of_watch(link, names)]


def _of_watch(link: Link, names: Names) -> list[Key]:
    if not link.monitor:
        return []
    watch = names.watch(link)
    notices = names.notices(link.source)
    heard: list[Key] = [("binding", EVENTS, "exchange", watch, "consumer.*"), ("binding", watch, "queue", notices, "")]
    return [("exchange", watch), *heard]


def _bounds(link: Link) -> dict[str, Any]:
    """Return a lane's own limits. The policy's apply as well: of two limits the lower one counts."""
    bounds: dict[str, Any] = {"x-overflow": "drop-head" if link.full == "drop-head" else "reject-publish"}
    if link.length is not None:
        bounds["x-max-length"] = link.length
    if link.ttl is not None:
        bounds["x-message-ttl"] = round(link.ttl * 1000)
    return bounds


def fullness(link: Link, messages: int, size: int) -> float:
    """Return the used part (1 is full) of the queue that *link* leads to here, by messages or bytes, whichever is more.

    A queue that the receiver reads has the link's own bounds; an outbox has a mailbox's.
    """
    return part(messages, size, link.length if link.to_host is None else None)


def part(messages: int, size: int, length: int | None = None) -> float:
    """Return the used part (1 is full) of a queue of mail or dead letters.

    :param length: the most messages that it takes; None: as many as a mailbox.
    """
    return max(messages / (length or int(_MAILBOX["max-length"])), size / int(_MAILBOX["max-length-bytes"]))


def _permission(
    names: Names, environment: str, *, sends: bool, asks: set[str], answers: set[str], watches: bool
) -> dict[str, Any]:
    tag = rf"\.{TAG_PATTERN}" if names.key else ""
    write = []
    if sends:
        sender = f"[a-z0-9_-]+{environment}" if environment.startswith("@") else environment
        write.append(rf"link\.{sender}\.[a-z0-9_@-]+{tag}")
    if asks:  # binding a queue needs write on it, and read on the exchange
        write.append(literal(names.replies(environment)))
    write.extend(literal(exchange) for exchange in sorted(answers))
    # A mailbox or lane with a former name is this environment's as well, until it is empty.
    read = [rf"mailbox\.{environment}(\.{TAG_PATTERN})?", rf"lane\.[a-z0-9_@-]+\.{environment}(\.{TAG_PATTERN})?"]
    if host_of(environment) is not None:  # its mailbox is on its own host
        read = []
    if watches:
        read.append(literal(names.notices(environment)))
    if asks:
        read.append(literal(names.replies(environment)))
        read.extend(literal(exchange) for exchange in sorted(asks))
    return {"configure": "^$", "write": _any_of(write), "read": _any_of(read)}


def literal(name: str) -> str:
    """Return a pattern for a permission that matches the *name* alone."""
    return name.replace(".", r"\.")


def _any_of(patterns: list[str]) -> str:
    return f"^({'|'.join(patterns)})$" if patterns else "^$"


def _exchange(made: Objects, name: str, kind: str, arguments: Mapping[str, Any] | None = None) -> None:
    made["exchange", name] = {
        "type": kind,
        "durable": True,
        "auto_delete": False,
        "internal": False,
        "arguments": dict(arguments or {}),
    }


def _queue(made: Objects, name: str, kind: str, arguments: Mapping[str, Any] | None = None) -> None:
    made["queue", name] = {
        "durable": True,
        "auto_delete": False,
        "arguments": {"x-queue-type": kind, **(arguments or {})},
    }


def _binding(made: Objects, source: str, target: str) -> None:
    made["binding", source, "queue", target, ""] = {"arguments": {}}


@dataclass(frozen=True)
class Found:
    """Our objects on a broker, taken from its definitions.

    :param objects: ours, in the form of :func:`objects`.
    :param hashes: per account, its password hash (``base64(salt || sha256(salt || password))``).
    :param vhost: whether our vhost exists.
    :param whole: whether the vhost is this host's alone.
    """

    objects: Objects = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict, repr=False)
    vhost: bool = False
    whole: bool = True


def found(definitions: Mapping[str, Any], vhost: str, known: Collection[str], *, whole: bool) -> Found:
    """Pick what is ours out of a broker's *definitions* (``GET /api/definitions``).

    Ours is what bears one of our names in our *vhost*. Accounts have no vhost: an
    ``env.<e>`` is ours where it has permissions in our vhost, or <e> is known to us.

    :param known: environments that are, were or are about to be linked.
    :param whole: the vhost is this host's alone. Else (a broker that hosts share) only
        what belongs to *known* environments is ours: a link to its receiver, a binding to answers to the asker.
    """
    names = set(known)

    def here(section: str) -> Iterable[dict[str, Any]]:
        return (entry for entry in definitions.get(section, ()) if entry.get("vhost") == vhost)

    def is_ours(name: str, *kinds: str) -> bool:
        ends = environments_of(name, *kinds)
        return ends is not None and (whole or names.issuperset(ends[-1:]))

    ours: Objects = {}
    hashes: dict[str, str] = {}
    for entry in here("exchanges"):
        if is_ours(entry["name"], "link", "reply", "watch", DEAD, LATE, AGAIN):
            ours["exchange", entry["name"]] = _pick(
                entry, type="", durable=True, auto_delete=False, internal=False, arguments={}
            )
    for entry in here("queues"):
        if is_ours(entry["name"], *MAIL, "replies", "notices", DEAD, LATE, AGAIN):
            ours["queue", entry["name"]] = _pick(entry, durable=True, auto_delete=False, arguments={})
    for entry in here("bindings"):
        source, kind, target = entry["source"], entry["destination_type"], entry["destination"]
        if not source:  # the default exchange's, which every queue has
            continue
        others = not whole and environments_of(source, "link", "watch") is not None
        asking = not whole and environments_of(source, "reply") is not None
        if (("exchange", source) in ours and not asking) or ((kind, target) in ours and not others):
            ours["binding", source, kind, target, entry["routing_key"]] = _pick(entry, arguments={})
    for entry in here("policies"):
        if entry["name"] in POLICIES:
            ours["policy", entry["name"]] = {
                **_pick(entry, pattern="", priority=0, definition={}),
                "apply-to": entry.get("apply-to", "all"),
            }
    for entry in here("parameters"):
        if entry.get("component") == "shovel" and is_ours(entry["name"], "outbox"):
            ours["shovel", entry["name"]] = _pick(entry, value={})
    accounts = {account(environment) for environment in names}
    for entry in here("permissions"):
        if is_ours(entry["user"], "env"):
            ours["permission", entry["user"]] = _pick(entry, configure="", write="", read="")
            accounts.add(entry["user"])
    for entry in definitions.get("users", ()):
        if entry["name"] in accounts:
            tags = entry.get("tags") or []
            ours["user", entry["name"]] = {
                "tags": tags if isinstance(tags, list) else [tag for tag in tags.split(",") if tag],
                "limits": dict(entry.get("limits") or {}),
            }
            hashes[entry["name"]] = entry.get("password_hash", "")
    present = any(entry.get("name") == vhost for entry in definitions.get("vhosts", ()))
    return Found(ours, hashes, present, whole)


def flooded(bindings: Iterable[Mapping[str, Any]], known: Collection[str], *, whole: bool) -> list[Key]:
    """Return the queues and exchanges of ours that environments have bound to answers beyond what asking needs.

    An asker needs read on ``reply.<b>`` to bind its replies queue there, and so may bind whatever it may
    write to, in any number and with arguments of any size; the broker keeps them all, and says them all
    in its definitions. Made anew, these are without any such binding. No other binding can be
    made by an environment, for it may read no other exchange.

    :param bindings: of our vhost, with source, destination_type, destination and properties_key
        (``<routing key>~<hash>`` where there are arguments, ``~`` for an empty key without any).
    :param known: as for :func:`found`; so is *whole*.
    """
    names = set(known)
    counts: dict[Key, int] = {}
    odd: set[Key] = set()
    for entry in bindings:
        if environments_of(entry["source"], "reply") is None:
            continue
        key = (entry["destination_type"], entry["destination"])
        ends = environments_of(key[1], *(("replies",) if key[0] == "queue" else ("link", "reply")))
        if ends is None or not (whole or names.issuperset(ends[-1:])):
            continue
        counts[key] = counts.get(key, 0) + 1
        said = entry["properties_key"]
        if key[0] == "exchange" or ("~" in said and said != "~"):
            odd.add(key)
    return sorted(key for key, count in counts.items() if key in odd or count > ANSWERS)


def _pick(entry: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    return {key: entry.get(key, default) for key, default in defaults.items()}
