"""Mailboxes and links for programs in netspace environments.

    async with Mailbox() as mailbox:
        await mailbox.send("audit", "sold")
        answer = await mailbox.call("orders", "how much?", timeout=5)
        async for message in mailbox.messages():
            async with message:  # acknowledged at the end
                ...

``card`` reads what the host tells and ``host`` follows it; ``session`` keeps a connection, ``outlet`` sends in order
until it is confirmed, ``ear`` listens, ``lines`` holds these; ``arrivals`` judges what comes, with ``inbox`` (selective
receive) and ``window`` (what comes twice); ``answers`` and ``notices`` have what else is heard; ``letter`` looks at
what is to be sent, ``narrowing`` at what a link may carry; ``seal`` seals and opens (with ``keys``, ``endorsement`` and
``jose``) as ``sealing`` has it do; ``mailbox`` joins them.
"""

from netspace_client.card import Card
from netspace_client.errors import (
    CardError,
    Closed,
    InboxFull,
    LinkError,
    MailboxFull,
    NotAdmitted,
    NotDeclared,
    Refused,
    Revoked,
    SealError,
    Timeout,
    TooFast,
    Unreachable,
)
from netspace_client.mailbox import Link, Mailbox
from netspace_client.message import Message
from netspace_client.monitor import Change, Monitor

__all__ = [
    "Card",
    "CardError",
    "Change",
    "Closed",
    "InboxFull",
    "Link",
    "LinkError",
    "Mailbox",
    "MailboxFull",
    "Message",
    "Monitor",
    "NotAdmitted",
    "NotDeclared",
    "Refused",
    "Revoked",
    "SealError",
    "Timeout",
    "TooFast",
    "Unreachable",
]
