"""Names of the broker's objects, which nobody can guess. Pure, but for reading and writing the keys.

RabbitMQ tells any account whether a name exists, and how many messages and consumers a queue
has: declaring it passively needs no right. So each name ends in a keyed hash of itself, and
an environment knows those that its ``environment.json`` tells it, and no other::

    mailbox.<e>.<tag>   lane.<a>.<b>.<tag>   link.<a>.<b>.<tag>   replies.<a>.<tag>   reply.<b>.<tag>   dead.<tag>
    notices.<a>.<tag>   watch.<a>.<b>.<tag>   outbox.<a>.<b>.<tag>

Where <a> or <b> is on another host, it is ``<environment>@<host>`` there. ``@<host>`` alone is that host's broker.

Names that only this host uses follow from a key of its own. Names that another host uses as well follow from a key
that these two have and no third one (``pairs``): whoever takes over a host can find out the objects between it and
another, and no others there. On a broker that hosts share, all names follow from one key (``broker:names_key``).
Keys are in ``<records>/link/names.json``, never on the broker, in a card, or in what Salt returns.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netspace import files
from netspace.errors import StateError
from netspace.layout import Layout
from netspace.link import pairs
from netspace.link.pairs import Pair
from netspace.spec.types import END, Broker, ClusterBroker, Link, LocalBroker, host_of

DEAD, LATE = "dead", "dead-late"
AGAIN = "dead-again"  # where an older version had letters while it sent them again
_ONE, _TWO = ("reply", "mailbox", "replies", "notices", "env"), ("link", "lane", "watch", "outbox")
_ENDS = {**dict.fromkeys(_ONE, 1), **dict.fromkeys(_TWO, 2), DEAD: 0, LATE: 0, AGAIN: 0}
_TAG = re.compile(r"[0-9a-f]{32}")
TAG_PATTERN = r"[0-9a-f]{32}"
MAIL = ("mailbox", "lane", "outbox")
"""The kinds of queues that hold mail: they are deleted with mail in them only where an operator says so."""
_SHOWN = re.compile(r"\.[0-9a-f]{32}(?![0-9a-f])")


@functools.lru_cache(maxsize=65536)  # a plan names each object several times
def _tag(key: bytes, text: str) -> str:
    return hmac.digest(key, text.encode(), "sha256").hex()[:32]


@dataclass(frozen=True)
class Names:
    """The names that follow from a *key*; without one, those of netspace's first versions, which can be guessed.

    :param apart: hosts that don't know this key use the same virtual host: objects that they share have plain names.
    :param fleet: hosts share the virtual host: an environment is named there without the host that it is on.
    :param pairs: by other host, the key of objects between this host and that one. Where a host has none, *key* is
        used, and nobody there knows the names.
    """

    key: bytes = field(default=b"", repr=False)
    apart: bool = False
    fleet: bool = False
    pairs: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def fingerprints(self, links: Iterable[Link]) -> dict[str, str]:
        """Return digests that tell keys apart and reveal none: this host's own by ``""``, those of *links* by host."""
        hosts = {host for link in links for host in (link.from_host, link.to_host) if host is not None}
        found = {"": self.key, **({} if self.fleet else {host: self._key(host) for host in sorted(hosts)})}
        return {
            host: hashlib.sha256(b"netspace names" + key).hexdigest()[:16] if key else "" for host, key in found.items()
        }

    def over(self, host: str, here: str) -> Names:
        """Return the names on *host*'s broker of objects between it and this host, which other hosts call *here*."""
        return Names(pairs={here: self._key(host)})

    def _key(self, host: str | None) -> bytes:
        return self.key if host is None or self.fleet else self.pairs.get(host, self.key)

    def of(self, plain: str, more: str = "", host: str | None = None) -> str:
        """Return the whole name, *plain* with its tag.

        :param more: changes the tag alone: names that read alike then differ.
        :param host: the other host that uses the name as well; None: there is none.
        """
        key = self._key(host)
        return f"{plain}.{_tag(key, f'{plain} {more}')}" if key else plain

    def _ends(self, *ends: str) -> str:
        return ".".join(end.partition("@")[0] for end in ends) if self.fleet else ".".join(ends)

    def mailbox(self, environment: str) -> str:
        return self.of(f"mailbox.{self._ends(environment)}")

    def exchange(self, link: Link) -> str:
        return self.of(f"link.{self._ends(link.source, link.target)}", host=link.from_host)

    def replies(self, environment: str) -> str:
        return self.of(f"replies.{self._ends(environment)}", host=host_of(environment))

    def reply(self, environment: str, host: str | None = None) -> str:
        """Return the exchange that *environment* answers through; askers of another *host* have one of their own."""
        return self.of(f"reply.{self._ends(environment)}", host=host)

    def notices(self, environment: str) -> str:
        return self.of(f"notices.{self._ends(environment)}", host=host_of(environment))

    def watch(self, link: Link) -> str:
        return self.of(f"watch.{self._ends(link.source, link.target)}")

    def watched(self, link: Link) -> str:
        """Return the queue whose readers the sender is told of: the mailbox; for a sender on another host its lane."""
        return self.queue(link) if self.has_lane(link) and link.from_host else self.mailbox(link.target)

    def has_lane(self, link: Link) -> bool:
        """Whether a link's mail waits in a queue of its own: it has bounds, or its sender watches from another host."""
        return bool(link.bounds) or (link.monitor and link.from_host is not None and not self.fleet)

    def queue(self, link: Link) -> str:
        """Return the queue where a link's mail waits: the mailbox, or a lane of its own.

        A queue's arguments can't be changed: with other bounds the link gets another lane.
        """
        if not self.has_lane(link):
            return self.mailbox(link.target)
        plain, bounds = f"lane.{self._ends(link.source, link.target)}", repr(sorted(link.bounds.items()))
        return self.of(plain, bounds, link.from_host if link.monitor else None)

    def outbox(self, link: Link) -> str:
        """Return the queue where the mail of a buffered link waits until the receiver's host has taken it."""
        return self.of(f"outbox.{link.name}")

    @property
    def dead(self) -> str:
        return DEAD if self.apart else self.of(DEAD)

    @property
    def late(self) -> str:
        """The exchange and the queue of letters that waited too long, or made way."""
        return LATE if self.apart else self.of(LATE)

    @property
    def again(self) -> str:
        return AGAIN if self.apart else self.of(AGAIN)


PLAIN = Names()


def account(environment: str) -> str:
    """The name of an environment's account; no account can find out about another."""
    return f"env.{environment}"


def environments_of(name: str, *kinds: str) -> tuple[str, ...] | None:
    """Return the environments in a name of one of our *kinds* of objects; None: it is no such name."""
    kind, *ends = name.split(".")
    if kind not in kinds:
        return None
    if len(ends) == _ENDS[kind] + 1 and kind != "env" and _TAG.fullmatch(ends[-1]):
        del ends[-1]
    if len(ends) != _ENDS[kind] or not all(END.fullmatch(end) or (kind == "env" and _is_broker(end)) for end in ends):
        return None
    return tuple(ends)


def carrier(host: str) -> str:
    """Return the name of another host's broker in the place of an environment's: it brings the mail of that host."""
    return f"@{host}"


def _is_broker(end: str) -> bool:
    return end.startswith("@") and END.fullmatch(f"x{end}") is not None


def is_dead(name: str) -> bool:
    """Whether it is an exchange or queue of dead letters."""
    return environments_of(name, DEAD, LATE, AGAIN) is not None


def owner(queue: str) -> str:
    """Return the owner of the mail in a queue of ours: an environment, a link (of a lane or an outbox), or ``dead``."""
    return ".".join(environments_of(queue, *MAIL) or (DEAD,))


def shown(text: str) -> str:
    """Return a text with names as people may read them: without their tags, which nobody can guess."""
    return _SHOWN.sub("", text)


# -- the keys ----------------------------------------------------------------------
@dataclass(frozen=True)
class _Keys:
    """The keys in ``names.json``.

    :param shared: the key isn't this host's own, but of a file that hosts share.
    :param pairs: None: a version wrote the file for which ``broker:names_key`` was the key of all names.
    """

    key: bytes = field(repr=False)
    shared: bool = False
    pairs: Mapping[str, Pair] | None = field(default_factory=dict)

    def names(self, broker: Broker) -> Names:
        fleet = isinstance(broker, ClusterBroker)
        return Names(
            self.key, fleet and not broker.names_key, fleet, {host: one.key for host, one in (self.pairs or {}).items()}
        )


def _path(layout: Layout) -> Path:
    return layout.records("link") / "names.json"


def _recorded(layout: Layout) -> _Keys | None:
    record = files.read_json(_path(layout))
    return None if record is None else _decoded(layout, record)


def exported(layout: Layout) -> Mapping[str, Any]:
    """Return the keys as they are recorded, for a backup of what bears these names; empty: there are none."""
    return files.read_json(_path(layout)) or {}


def adopt(layout: Layout, record: Mapping[str, Any]) -> None:
    """Have the keys that :func:`exported` returned once. The next run names anew what bears other names.

    :raises StateError: they can't be read.
    """
    _decoded(layout, record)
    files.write_json(_path(layout), record)


def _decoded(layout: Layout, record: Mapping[str, Any]) -> _Keys:
    try:
        between = None
        if "pairs" in record:
            between = {
                host: Pair(bytes.fromhex(one["key"]), str(one["source"])) for host, one in record["pairs"].items()
            }
        return _Keys(bytes.fromhex(record["key"]), bool(record.get("shared")), between)
    except (AttributeError, KeyError, TypeError, ValueError) as err:
        raise StateError(f"{_path(layout)}: {err!r}; remove the file and apply again to name all anew") from err


def _declared(broker: Broker, recorded: _Keys | None) -> _Keys | None:
    """The keys that a broker's declaration asks for; None: this host's own is still to be made."""
    if isinstance(broker, ClusterBroker) and broker.names_key:
        return _Keys(pairs.given(broker.names_key), True)
    if recorded is None or recorded.shared:
        return None
    known = recorded.pairs or {}
    return _Keys(recorded.key, False, pairs.between(broker, known) if isinstance(broker, LocalBroker) else {})


def used(layout: Layout, broker: Broker) -> Names:
    """The names that are in use on *broker*, by the record alone; before there is one, those of first versions."""
    recorded = _recorded(layout)
    if broker.names_key and (recorded is None or recorded.pairs is None):
        return _Keys(pairs.given(broker.names_key)).names(broker)
    return PLAIN if recorded is None else recorded.names(broker)


def declared(layout: Layout, broker: Broker) -> Names | None:
    """The names that *broker* is to have; None: their key is still to be made.

    :raises NetspaceError: when a key that they follow from can't be read.
    """
    keys = _declared(broker, _recorded(layout))
    return None if keys is None else keys.names(broker)


def ensure(layout: Layout, broker: Broker) -> Names:
    """The names that *broker* is to have, with a new key where there is none; they are the used ones from now on."""
    keys = _declared(broker, _recorded(layout)) or _declared(broker, _Keys(secrets.token_bytes(32)))
    assert keys is not None
    between = {host: {"key": one.key.hex(), "source": one.source} for host, one in (keys.pairs or {}).items()}
    files.write_json(_path(layout), {"key": keys.key.hex(), "shared": keys.shared, "pairs": between})
    return keys.names(broker)


def forget(layout: Layout) -> None:
    """Forget the keys: no object bears a name any more."""
    files.remove(_path(layout))
