"""Selection of netspace's objects among all objects of a broker, from its definitions and its bindings. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from netspace.link.topology.names import AGAIN, DEAD, LATE, MAIL, account, environments_of
from netspace.link.topology.objects import ANSWERS, Key, Objects
from netspace.link.topology.policies import POLICIES


@dataclass(frozen=True)
class Found:
    """netspace's objects on a broker, taken from its definitions.

    :param objects: the objects, in the form that :func:`netspace.link.topology.objects.objects` returns.
    :param hashes: for each account, its password hash (``base64(salt || sha256(salt || password))``).
    :param vhost: whether our vhost exists.
    :param whole: whether this host alone uses the vhost.
    """

    objects: Objects = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict, repr=False)
    vhost: bool = False
    whole: bool = True


def found(definitions: Mapping[str, Any], vhost: str, known: Collection[str], *, whole: bool) -> Found:
    """Select netspace's objects from a broker's *definitions* (``GET /api/definitions``).

    An object in our *vhost* belongs to netspace if it has a name of netspace's form. Accounts have no vhost:
    ``env.<e>`` belongs to netspace if it has permissions in our vhost, or if <e> is *known*.

    :param known: environments that have or had links, or are about to get some.
    :param whole: whether this host alone uses the vhost. If not, only objects of *known* environments are selected: a
        link belongs to its receiver, a binding to answers belongs to the environment that sends the requests.
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
        if not source:  # a binding to the default exchange, which every queue has
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
    """Return netspace's queues and exchanges to which environments have bound more answers than a request needs.

    To receive answers, an environment binds its replies queue to a peer's exchange ``reply.<b>``. For that it needs the
    right to read this exchange. The right also permits it to bind any object that it may write to, any number of times,
    with arguments of any size. The broker stores all of these bindings and lists them in its definitions. If such an
    object is deleted and recreated, its bindings are gone. An environment can make no other bindings, because it may
    read no other exchange.

    :param bindings: the bindings in our vhost, with source, destination_type, destination and properties_key
        (``<routing key>~<hash>`` if there are arguments, ``~`` for an empty key without arguments).
    :param known: as for :func:`found`.
    :param whole: as for :func:`found`.
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
