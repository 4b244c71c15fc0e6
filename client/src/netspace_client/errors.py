"""Errors of this library, one type each; all are subclasses of :class:`LinkError`."""

from __future__ import annotations

from collections.abc import Mapping


class LinkError(Exception):
    """Base class of all errors of this library.

    :ivar unknown: True: the message may have arrived. False: it didn't arrive.
    """

    unknown = False


class NoSecret(LinkError):
    """This environment has no secret of this name: it isn't declared, or the host withholds it."""


class CardError(LinkError):
    """A file of the host in ``/run/netspace`` is missing or invalid."""


class NotDeclared(LinkError):
    """The link, or the requested use of it, is not declared."""


class Revoked(LinkError):
    """The link was revoked: the broker refuses the message.

    A message that was being sent when the link was revoked may have arrived; ``unknown`` is then true.
    """


class MailboxFull(LinkError):
    """The receiver's mailbox is full; the message was not accepted."""


class Unreachable(LinkError):
    """The broker, or the peer's mailbox on it, could not be reached in time; whether a message arrived is unknown."""

    unknown = True


class NotAdmitted(Unreachable):
    """The broker answers but refuses our log-in: the broker's host declares no link with this environment (yet)."""


class Timeout(LinkError, TimeoutError):
    """The confirmation or the answer didn't come in time; whether a message arrived is unknown."""

    unknown = True


class Refused(LinkError):
    """This message is refused, for example because it is too large; sending it again won't help.

    ``unknown`` is true if an earlier copy of the message may have arrived: the connection was lost during the first
    attempt, and the broker's limit was lower at the second.
    """


class TooFast(LinkError):
    """The message was not sent, because it would exceed the link's declared rate."""


class BatchFailed(LinkError):
    """Some messages of a batch failed; all others are confirmed.

    :ivar failed: the error of each failed message by the message's id, in the order of the failures.
    :ivar unknown: whether at least one of the failed messages may have arrived.
    """

    def __init__(self, count: int, failed: Mapping[str, LinkError]) -> None:
        first = next(iter(failed.values()))
        super().__init__(f"{len(failed)} of {count} messages failed, the first: {first}")
        self.failed = dict(failed)
        self.unknown = any(error.unknown for error in failed.values())


class HostRefused(LinkError):
    """The host refuses a request, and did nothing.

    :ivar code: the reason, as a word that never changes, for example ``verb-not-permitted``.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class InboxFull(LinkError):
    """The inbox is full of messages that this ``receive`` call doesn't match; receive some of these messages first."""


class Closed(LinkError):
    """This program has closed the mailbox, or not opened it yet."""


class SealError(LinkError):
    """A message can't be sealed, or its seal is not from its sender or not for this receiver."""


class UnknownKey(SealError):
    """A message is signed by, or encrypted for, an unknown key. The key may be too new or too old."""
