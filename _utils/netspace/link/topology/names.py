"""Unguessable names of the broker's objects. Pure, except for reading and writing the keys.

RabbitMQ tells any account whether a name exists, and how many messages and consumers a queue has: a passive declare
needs no permission. So each name ends in a tag, a keyed hash (HMAC) of the name. An environment knows only the names in
its ``environment.json``::

    mailbox.<e>.<tag>   lane.<a>.<b>.<tag>   link.<a>.<b>.<tag>   replies.<a>.<tag>   reply.<b>.<tag>   dead.<tag>
    notices.<a>.<tag>   watch.<a>.<b>.<tag>   outbox.<a>.<b>.<tag>

If <a> or <b> is on another host, it is written ``<environment>@<host>``. ``@<host>`` alone is that host's broker.

Tags of objects that only this host uses derive from this host's own key. Tags of objects that another host uses, too,
derive from a key that only these two hosts have (``pair_keys``). An attacker who takes over a host can compute the
names of the objects that it shares with another host, but no other names on that host. On a broker that hosts share,
all tags derive from one key (``broker:names_key``).

Keys are in ``<records>/link/names.json``, never on the broker, in a card, or in Salt's returns.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from netspace import files
from netspace.errors import StateError
from netspace.layout import Layout
from netspace.link.topology import pair_keys
from netspace.link.topology.pair_keys import PairKey
from netspace.spec.types import END, Broker, ClusterBroker, Link, LocalBroker, host_of

DEAD, LATE = "dead", "dead-late"
AGAIN = "dead-again"  # an older version kept dead letters here while it sent them again
_ONE, _TWO = ("reply", "mailbox", "replies", "notices", "env"), ("link", "lane", "watch", "outbox")
_ENDS = {**dict.fromkeys(_ONE, 1), **dict.fromkeys(_TWO, 2), DEAD: 0, LATE: 0, AGAIN: 0}
_TAG = re.compile(r"[0-9a-f]{32}")
TAG_PATTERN = r"[0-9a-f]{32}"
MAIL = ("mailbox", "lane", "outbox")
"""The kinds of queues that hold mail. If they are not empty, they are deleted only on an operator's request."""
_SHOWN = re.compile(r"\.[0-9a-f]{32}(?![0-9a-f])")


@functools.lru_cache(maxsize=65536)  # a plan computes each name several times
def _tag(key: bytes, text: str) -> str:
    return hmac.digest(key, text.encode(), "sha256").hex()[:32]


class Names(msgspec.Struct, frozen=True):
    """Names with tags derived from a *key*; without a key, the guessable names of netspace's first versions.

    :param apart: whether hosts without this key use the same virtual host. If so, objects that all hosts share have no
        tag.
    :param fleet: whether hosts share the virtual host. If so, names contain environments without ``@<host>``.
    :param pairs: for each other host, the key of the objects that this host shares with it. For a missing host, *key*
        is used, and that host doesn't know the names.
    """

    key: bytes = b""
    apart: bool = False
    fleet: bool = False
    pairs: Mapping[str, bytes] = msgspec.field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Names(apart={self.apart}, fleet={self.fleet})"

    def fingerprints(self, links: Iterable[Link]) -> dict[str, str]:
        """Return digests of the keys by host, which reveal a change of a key, but not the key.

        The digest of this host's own key is under ``""``. For each other host in *links*, the digest is that of the key
        shared with it.
        """
        hosts = {host for link in links for host in (link.from_host, link.to_host) if host is not None}
        found = {"": self.key, **({} if self.fleet else {host: self._key(host) for host in sorted(hosts)})}
        return {
            host: hashlib.sha256(b"netspace names" + key).hexdigest()[:16] if key else "" for host, key in found.items()
        }

    def over(self, host: str, here: str) -> Names:
        """Return the names of the objects that this host shares with *host*, as they are on *host*'s broker.

        :param here: the name of this host in the declarations of other hosts.
        """
        return Names(pairs={here: self._key(host)})

    def _key(self, host: str | None) -> bytes:
        return self.key if host is None or self.fleet else self.pairs.get(host, self.key)

    def of(self, plain: str, more: str = "", host: str | None = None) -> str:
        """Return the full name: *plain* with its tag.

        :param more: a text that changes only the tag, so that names that are otherwise equal differ.
        :param host: the other host that also uses the object; None: there is none.
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
        """Return the exchange to which *environment* publishes answers.

        :param host: the other host whose environments get these answers; each other host has its own exchange. None:
            environments of this host get them.
        """
        return self.of(f"reply.{self._ends(environment)}", host=host)

    def notices(self, environment: str) -> str:
        return self.of(f"notices.{self._ends(environment)}", host=host_of(environment))

    def watch(self, link: Link) -> str:
        return self.of(f"watch.{self._ends(link.source, link.target)}")

    def watched(self, link: Link) -> str:
        """Return the queue whose consumers the sender monitors.

        For a local sender this is the mailbox, even if the link has a dedicated queue because of its bounds. For a
        remote sender it is the dedicated queue.
        """
        return self.queue(link) if self.has_lane(link) and link.from_host else self.mailbox(link.target)

    def has_lane(self, link: Link) -> bool:
        """Return whether a link has its own queue: it has bounds, or its sender monitors it from another host."""
        return bool(link.bounds) or (link.monitor and link.from_host is not None and not self.fleet)

    def queue(self, link: Link) -> str:
        """Return the queue to which a link delivers: the mailbox, or the link's dedicated queue.

        A queue's arguments can't be changed, so the name of a dedicated queue depends on the bounds of its link.
        """
        if not self.has_lane(link):
            return self.mailbox(link.target)
        plain, bounds = f"lane.{self._ends(link.source, link.target)}", repr(sorted(link.bounds.items()))
        return self.of(plain, bounds, link.from_host if link.monitor else None)

    def outbox(self, link: Link) -> str:
        """Return the queue that holds the mail of a buffered link until the receiver's host has taken it."""
        return self.of(f"outbox.{link.name}")

    @property
    def dead(self) -> str:
        return DEAD if self.apart else self.of(DEAD)

    @property
    def late(self) -> str:
        """The exchange and the queue of dead letters that expired or were dropped from a full queue."""
        return LATE if self.apart else self.of(LATE)

    @property
    def again(self) -> str:
        return AGAIN if self.apart else self.of(AGAIN)


PLAIN = Names()


def account(environment: str) -> str:
    """Return the name of an environment's account. The name has no tag: no account can learn whether another exists."""
    return f"env.{environment}"


def environments_of(name: str, *kinds: str) -> tuple[str, ...] | None:
    """Return the environments in the name of a broker's object.

    Return None if the object is of none of *kinds*, or if the name doesn't have the form of its kind.
    """
    kind, *ends = name.split(".")
    if kind not in kinds:
        return None
    if len(ends) == _ENDS[kind] + 1 and kind != "env" and _TAG.fullmatch(ends[-1]):
        del ends[-1]
    if len(ends) != _ENDS[kind] or not all(END.fullmatch(end) or (kind == "env" and _is_broker(end)) for end in ends):
        return None
    return tuple(ends)


def carrier(host: str) -> str:
    """Return the text that names the broker of another *host* as sender, in names of buffered links: ``@<host>``."""
    return f"@{host}"


def _is_broker(end: str) -> bool:
    return end.startswith("@") and END.fullmatch(f"x{end}") is not None


def is_dead(name: str) -> bool:
    """Return whether *name* is an exchange or queue of dead letters."""
    return environments_of(name, DEAD, LATE, AGAIN) is not None


def owner(queue: str) -> str:
    """Return the owner of the mail in one of our queues.

    The owner is an environment for a mailbox, a link for a dedicated queue or an outbox, and ``dead`` for dead letters.
    """
    return ".".join(environments_of(queue, *MAIL) or (DEAD,))


def shown(text: str) -> str:
    """Return a text with the tags of names removed, so that a reader doesn't learn them."""
    return _SHOWN.sub("", text)


# -- the keys ----------------------------------------------------------------------
class _Keys(msgspec.Struct, frozen=True):
    """The keys in ``names.json``.

    :param key: the key of this host's own objects.
    :param shared: whether *key* comes from a file that hosts share, and so isn't this host's own.
    :param pairs: for each other host, the pair's key; None: the file was written by an older version of netspace, which
        derived all names from ``broker:names_key``.
    """

    key: bytes
    shared: bool = False
    pairs: Mapping[str, PairKey] | None = msgspec.field(default_factory=dict)

    def __repr__(self) -> str:
        return f"_Keys(shared={self.shared}, pairs={self.pairs})"

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
    """Return the recorded keys, for a backup of objects with these names; empty if there are none."""
    return files.read_json(_path(layout)) or {}


def check(layout: Layout, record: Mapping[str, Any]) -> None:
    """Check that :func:`adopt` can use these keys.

    :raises StateError: they can't be decoded.
    """
    _decoded(layout, record)


def adopt(layout: Layout, record: Mapping[str, Any]) -> None:
    """Record keys that :func:`exported` returned. The next run renames objects that have other names.

    :raises StateError: the keys can't be decoded.
    """
    check(layout, record)
    files.write_json(_path(layout), record)


def _decoded(layout: Layout, record: Mapping[str, Any]) -> _Keys:
    try:
        between = None
        if "pairs" in record:
            between = {
                host: PairKey(bytes.fromhex(one["key"]), str(one["source"])) for host, one in record["pairs"].items()
            }
        return _Keys(bytes.fromhex(record["key"]), bool(record.get("shared")), between)
    except (AttributeError, KeyError, TypeError, ValueError) as err:
        raise StateError(f"{_path(layout)}: {err!r}; remove the file and apply again to rename all objects") from err


def _declared(broker: Broker, recorded: _Keys | None) -> _Keys | None:
    """Return the keys that a broker's declaration requires; None if this host's own key is still to be made."""
    if isinstance(broker, ClusterBroker) and broker.names_key:
        return _Keys(pair_keys.given(broker.names_key), True)
    if recorded is None or recorded.shared:
        return None
    known = recorded.pairs or {}
    return _Keys(recorded.key, False, pair_keys.between(broker, known) if isinstance(broker, LocalBroker) else {})


def used(layout: Layout, broker: Broker) -> Names:
    """Return the recorded names in use on *broker*; if there is no record, the names of netspace's first versions."""
    recorded = _recorded(layout)
    if broker.names_key and (recorded is None or recorded.pairs is None):
        return _Keys(pair_keys.given(broker.names_key)).names(broker)
    return PLAIN if recorded is None else recorded.names(broker)


def declared(layout: Layout, broker: Broker) -> Names | None:
    """Return the desired names on *broker*; None if their key is still to be made.

    :raises NetspaceError: a key from which they derive can't be read.
    """
    keys = _declared(broker, _recorded(layout))
    return None if keys is None else keys.names(broker)


def ensure(layout: Layout, broker: Broker) -> Names:
    """Return the desired names on *broker* and record their keys; make a key where there is none."""
    keys = _declared(broker, _recorded(layout)) or _declared(broker, _Keys(os.urandom(32)))
    assert keys is not None
    between = {host: {"key": one.key.hex(), "source": one.source} for host, one in (keys.pairs or {}).items()}
    files.write_json(_path(layout), {"key": keys.key.hex(), "shared": keys.shared, "pairs": between})
    return keys.names(broker)


def forget(layout: Layout) -> None:
    """Delete the file with the keys of names. Call this after the last object with such a name was deleted."""
    files.remove(_path(layout))
