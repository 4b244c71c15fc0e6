"""Errors of this library, each as a type of its own; all are :class:`LinkError`."""

from __future__ import annotations


class LinkError(Exception):
    """Base of all errors of this library."""


class CardError(LinkError):
    """A file of the host in ``/run/netspace`` is missing or can't be understood."""


class NotDeclared(LinkError):
    """There is no such link: nobody declared that this environment may talk to that one, or in this way."""


class Revoked(LinkError):
    """The link was declared once and is no more: the broker refuses what is sent."""


class MailboxFull(LinkError):
    """The receiver's mailbox took no more; the message was not kept."""


class Unreachable(LinkError):
    """The broker, or the peer's mailbox on it, could not be reached in time; whether a message arrived is unknown."""


class NotAdmitted(Unreachable):
    """The broker is there and refuses our log-in: its host declares no link of ours, or not yet."""


class Timeout(LinkError, TimeoutError):
    """The broker didn't confirm, or nobody answered, in time; whether a message arrived is unknown."""


class Refused(LinkError):
    """This very message is refused, and would be again: it is too large, say."""


class TooFast(LinkError):
    """More messages in a second than are declared for the link; this one was not sent."""


class InboxFull(LinkError):
    """As many messages wait as may, and none is what this ``receive`` asked for; receive some of the others."""


class Closed(LinkError):
    """The mailbox was closed by this program."""


class SealError(LinkError):
    """A message on a sealed link that isn't what its sender sealed for this receiver, or that can't be sealed."""


class UnknownKey(SealError):
    """A message that is sealed by, or for, a key that isn't known (yet, or any more)."""
