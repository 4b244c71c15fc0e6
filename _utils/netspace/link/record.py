"""Record of the links that were applied last: ``<records>/link/applied.json``. The broker isn't accessed.

Each run records new links before it changes the broker, and removes revoked links from the record afterwards. So if a
run is killed, the next run finishes its work.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from netspace import files
from netspace.errors import StateError
from netspace.layout import Layout
from netspace.link.topology import draining
from netspace.link.topology.draining import DrainingQueue
from netspace.spec.types import Broker, Link


class Record(msgspec.Struct, frozen=True):
    """The broker and the links that were applied last.

    :param broker: the declared broker; None: nothing was ever applied.
    :param links: the links, by name.
    :param parked: owners of the queues that hold mail and have no link: environments (mailboxes) and links (dedicated
        queues and outboxes), or ``dead``.
    :param named: fingerprints of the name keys in use (``Names.fingerprints``). If it has only the fingerprint of this
        host's own key, all names derive from that key. If it is empty, the names are those of netspace's first
        versions.
    :param former: the draining queues, which are read until they are empty.
    :param passed: the exchanges of renamed senders, whose messages may wait in queues that stay, each with its link.
    """

    broker: Broker | None = None
    links: Mapping[str, Link] = msgspec.field(default_factory=dict)
    parked: tuple[str, ...] = ()
    named: Mapping[str, str] = msgspec.field(default_factory=dict)
    former: tuple[DrainingQueue, ...] = ()
    passed: Mapping[str, str] = msgspec.field(default_factory=dict)


def _path(layout: Layout) -> Path:
    return layout.records("link") / "applied.json"


def read(layout: Layout) -> Record:
    """Return the record; an empty one if nothing was applied."""
    from netspace.errors import SpecError
    from netspace.spec import parse

    path = _path(layout)
    value = files.read_json(path)
    if value is None:
        return Record()
    try:
        links = parse.convert(value["links"], tuple[Link, ...], "links")
        broker = parse.convert(value["broker"], Broker, "broker")
        named = value.get("named", "")
        return Record(
            broker,
            {link.name: link for link in links},
            tuple(value.get("parked", ())),
            {"": named} if isinstance(named, str) else {str(key): str(one) for key, one in named.items()},
            tuple(draining.decode(one) for one in value.get("former", ())),
            {str(exchange): str(link) for exchange, link in value.get("passed", {}).items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError, SpecError) as err:
        raise StateError(f"{path}: {err}; remove the file and apply again to rebuild it") from err


def write(layout: Layout, record: Record) -> None:
    """Write the record."""
    from netspace.spec import parse

    links = [plain(link) or {} for _, link in sorted(record.links.items())]
    value = {
        "version": 1,
        "broker": parse.encode(record.broker),
        "links": links,
        "since": _dates(_path(layout), links),
        "parked": list(record.parked),
        "named": dict(record.named),
        "former": [draining.encode(one) for one in record.former],
        **({"passed": dict(sorted(record.passed.items()))} if record.passed else {}),
    }
    files.write_json(_path(layout), value)


def since(layout: Layout) -> dict[str, float]:
    """Return when each link was made, by its name, in seconds since 1970. Links of earlier versions are left out."""
    return {name: one for name, one in _noted(_path(layout))[1].items() if type(one) in (int, float)}


def _dates(path: Path, links: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return when each link of a new record was made: the recorded time if the link existed already, else now.

    A link with another limit, such as another rate, is the same link; one with another pattern isn't.
    """
    before, noted = _noted(path)
    now, found = int(time.time()), dict[str, Any]()
    for link in links:
        name = f"{link['from']}.{link['to']}"
        if name not in before or before[name] != _right(link):
            found[name] = now
        elif name in noted:
            found[name] = noted[name]
    return found


def _noted(path: Path) -> tuple[dict[str, tuple[Any, ...]], Mapping[str, Any]]:
    """Return the rights of the recorded links, and the times at which they were made, both by the links' names."""
    try:
        value = files.read_json(path) or {}
        return {f"{one['from']}.{one['to']}": _right(one) for one in value["links"]}, dict(value.get("since", {}))
    except (StateError, AttributeError, KeyError, TypeError, ValueError):  # nothing was applied, or it is damaged
        return {}, {}


def _right(link: Mapping[str, Any]) -> tuple[Any, ...]:
    return (link["pattern"], link.get("as"))


def forget(layout: Layout) -> None:
    """Remove the record, after everything was revoked."""
    path = _path(layout)
    files.remove(path)
    try:
        path.parent.rmdir()
    except OSError:  # it holds other records, such as the management account's
        return


def plain(link: Link | None) -> dict[str, Any] | None:
    """Return a link as a mapping, in the form that the record stores and operators see."""
    if link is None:
        return None
    rights: dict[str, Any] = {**({"seal": True} if link.seal else {}), **({"monitor": True} if link.monitor else {})}
    if link.via != "direct":
        rights["via"] = link.via
    if link.attested is not None:
        rights["attested"] = link.attested
    if link.formerly is not None:
        former = {"from": link.formerly.source, "to": link.formerly.target}
        rights["formerly"] = {key: name for key, name in former.items() if name is not None}
    ends = {"from": link.source, "to": link.target, **({} if link.local is None else {"as": link.local})}
    return {**ends, "pattern": link.pattern, **link.bounds, **link.narrowed, **rights}
