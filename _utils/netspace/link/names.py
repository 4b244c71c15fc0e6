"""What the broker's objects are called, so that none can be guessed. Pure, but for reading the key.

RabbitMQ tells any account whether a name exists, and how many messages and consumers a queue
has: declaring it passively needs no right. So each name ends in a keyed hash of itself, and
an environment knows those that its ``environment.json`` tells it, and no other::

    mailbox.<e>.<tag>   lane.<a>.<b>.<tag>   link.<a>.<b>.<tag>   replies.<a>.<tag>   reply.<b>.<tag>   dead.<tag>
    notices.<a>.<tag>   watch.<a>.<b>.<tag>   outbox.<a>.<b>.<tag>

Where <a> or <b> is on another host, it is ``<environment>@<host>`` there. ``@<host>`` alone is that host's broker.

The key is the host's own (``<records>/link/names.json``), or that of a file which hosts share
(``broker:names_key``). It is never on the broker, in a card, or in what Salt returns.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from netspace import files
from netspace.errors import NetspaceError, StateError
from netspace.layout import Layout
from netspace.spec.types import END, Broker, ClusterBroker, Link

DEAD, AGAIN = "dead", "dead-again"
LEAST = 32  # characters of a key that is given
_ONE, _TWO = ("reply", "mailbox", "replies", "notices", "env"), ("link", "lane", "watch", "outbox")
_ENDS = {**dict.fromkeys(_ONE, 1), **dict.fromkeys(_TWO, 2), DEAD: 0, AGAIN: 0}
_TAG = re.compile(r"[0-9a-f]{32}")
TAG_PATTERN = r"[0-9a-f]{32}"
MAIL = ("mailbox", "lane", "outbox")
"""The kinds of queues that hold mail: they are never deleted while there is some in them, unless told."""
_SHOWN = re.compile(r"\.[0-9a-f]{32}(?![0-9a-f])")


@functools.lru_cache(maxsize=65536)  # a plan names each object several times
def _tag(key: bytes, text: str) -> str:
    return hmac.digest(key, text.encode(), "sha256").hex()[:32]


@dataclass(frozen=True)
class Names:
    """The names that follow from a *key*; without one, those of netspace's first versions, which can be guessed.

    :param apart: hosts that don't know this key use the same virtual host: what they share can't bear it.
    :param fleet: hosts share the virtual host: an environment is named there without the host that it is on.
    """

    key: bytes = field(default=b"", repr=False)
    apart: bool = False
    fleet: bool = False

    @property
    def fingerprint(self) -> str:
        """Tells keys apart, and nothing of them; empty without one."""
        return hashlib.sha256(b"netspace names" + self.key).hexdigest()[:16] if self.key else ""

    def of(self, plain: str, more: str = "") -> str:
        """The whole name; *more* makes it another one though it reads alike."""
        if not self.key:
            return plain
        return f"{plain}.{_tag(self.key, f'{plain} {more}')}"

    def _ends(self, *ends: str) -> str:
        return ".".join(end.partition("@")[0] for end in ends) if self.fleet else ".".join(ends)

    def mailbox(self, environment: str) -> str:
        return self.of(f"mailbox.{self._ends(environment)}")

    def exchange(self, link: Link) -> str:
        return self.of(f"link.{self._ends(link.source, link.target)}")

    def replies(self, environment: str) -> str:
        return self.of(f"replies.{self._ends(environment)}")

    def reply(self, environment: str) -> str:
        return self.of(f"reply.{self._ends(environment)}")

    def notices(self, environment: str) -> str:
        return self.of(f"notices.{self._ends(environment)}")

    def watch(self, link: Link) -> str:
        return self.of(f"watch.{self._ends(link.source, link.target)}")

    def queue(self, link: Link) -> str:
        """Where a link's mail waits: in the mailbox, or in a lane of its own where it has bounds of its own.

        A queue's arguments can't be changed: other bounds are another lane.
        """
        if not link.bounds:
            return self.mailbox(link.target)
        return self.of(f"lane.{self._ends(link.source, link.target)}", repr(sorted(link.bounds.items())))

    def outbox(self, link: Link) -> str:
        """Where the mail of a buffered link waits until the receiver's host has taken it."""
        return self.of(f"outbox.{link.name}")

    @property
    def dead(self) -> str:
        return DEAD if self.apart else self.of(DEAD)

    @property
    def again(self) -> str:
        """Where dead letters are while the host sends them again."""
        return AGAIN if self.apart else self.of(AGAIN)


PLAIN = Names()


def account(environment: str) -> str:
    """The name of an environment's account; no account can find out about another."""
    return f"env.{environment}"


def environments_of(name: str, *kinds: str) -> tuple[str, ...] | None:
    """The environments in the name of an object of ours of one of the *kinds*; None: not such a name."""
    kind, *ends = name.split(".")
    if kind not in kinds:
        return None
    if len(ends) == _ENDS[kind] + 1 and kind != "env" and _TAG.fullmatch(ends[-1]):
        del ends[-1]
    if len(ends) != _ENDS[kind] or not all(END.fullmatch(end) or (kind == "env" and _is_broker(end)) for end in ends):
        return None
    return tuple(ends)


def carrier(host: str) -> str:
    """What the broker of another host is called in place of an environment: it brings what that host's have sent."""
    return f"@{host}"


def _is_broker(end: str) -> bool:
    return end.startswith("@") and END.fullmatch(f"x{end}") is not None


def is_dead(name: str) -> bool:
    """Whether it is an exchange or queue of dead letters."""
    return environments_of(name, DEAD, AGAIN) is not None


def owner(queue: str) -> str:
    """Whose mail is in a queue of ours: an environment, a link (of a lane or an outbox), or ``dead``."""
    return ".".join(environments_of(queue, *MAIL) or (DEAD,))


def shown(text: str) -> str:
    """A name, or several, as people may read them: without what can't be guessed."""
    return _SHOWN.sub("", text)


# -- the key -----------------------------------------------------------------------
def _path(layout: Layout) -> Path:
    return layout.records("link") / "names.json"


def read(layout: Layout, broker: Broker) -> Names | None:
    """The names that are in use on *broker*; None: their key is still to be made."""
    fleet = isinstance(broker, ClusterBroker)
    apart = fleet and not broker.names_key
    if broker.names_key:
        try:
            with open(broker.names_key, "rb") as stream:
                if os.fstat(stream.fileno()).st_mode & 0o077:
                    raise NetspaceError(f"broker:names_key: {broker.names_key}: others can read it: chmod go=")
                given = stream.read(4096).strip()
        except OSError as err:
            raise NetspaceError(f"broker:names_key: {err}") from err
        if len(given) < LEAST:
            raise NetspaceError(f"broker:names_key: {broker.names_key}: expected {LEAST} random characters or more")
        return Names(given, apart, fleet)
    record = files.read_json(_path(layout))
    if record is None:
        return None
    try:
        return Names(bytes.fromhex(record["key"]), apart, fleet)
    except (KeyError, TypeError, ValueError) as err:
        raise StateError(f"{_path(layout)}: {err!r}; remove the file and apply again to name all anew") from err


def used(layout: Layout, broker: Broker) -> Names:
    """The names that are in use on *broker*; before there is a key, those of netspace's first versions."""
    return read(layout, broker) or PLAIN


def ensure(layout: Layout, broker: Broker) -> Names:
    """The names to use on *broker*, with a new key where there is none."""
    found = read(layout, broker)
    if found is None:
        files.write_json(_path(layout), {"key": secrets.token_hex(32)})
        found = read(layout, broker)
        assert found is not None
    return found


def forget(layout: Layout) -> None:
    """Nothing bears a name any more."""
    files.remove(_path(layout))
