"""Mailboxes and links for programs in netspace environments.

    async with Mailbox() as mailbox:
        await mailbox.send("audit", "sold")
        answer = await mailbox.call("orders", "how much?", timeout=5)
        async for message in mailbox.messages():
            async with message:  # acknowledged at the end
                ...

``mailbox`` is the interface, and connects the other modules:

- ``card`` parses ``environment.json``, and ``host`` reads that file again when it changes;
- ``session`` keeps a connection to a broker, ``outlet`` publishes in order with confirmations, ``ear`` consumes a
  queue, and ``lines`` holds the sessions and outlets; ``wire`` and ``codec`` carry the messages of a channel;
- ``sending`` prepares outgoing messages, ``batch`` sends many at once;
- ``arrivals`` checks incoming messages, with ``inbox`` (selective receive) and ``window`` (duplicates);
- ``answers`` receives answers to requests, ``notices`` receives events about monitored peers;
- ``secret`` reads the environment's secrets;
- ``host_peer`` sends requests to the environment's own host;
- ``replicas`` chooses one of several replicas for each message;
- ``letter`` checks outgoing messages, ``narrowing`` checks the limits of a link;
- ``seal`` seals and opens messages (with ``keys``, ``endorsement`` and ``jose``), ``sealing`` applies this to AMQP.
"""

from netspace_client.batch import Batch
from netspace_client.card import Card
from netspace_client.confinement import Confined, ConfinementError, confine
from netspace_client.errors import (
    BatchFailed,
    CardError,
    Closed,
    HostRefused,
    InboxFull,
    LinkError,
    MailboxFull,
    NoSecret,
    NotAdmitted,
    NotDeclared,
    Refused,
    Revoked,
    SealError,
    Timeout,
    TooFast,
    Unreachable,
)
from netspace_client.host_answers import Child, Delegation, Offer, Sealed, Self, Signature, Trust
from netspace_client.host_peer import HostPeer
from netspace_client.mailbox import Link, Mailbox
from netspace_client.message import Message
from netspace_client.monitor import Change, Monitor
from netspace_client.replicas import Replicas
from netspace_client.secret import secret

__all__ = [
    "Batch",
    "BatchFailed",
    "Card",
    "CardError",
    "Change",
    "Child",
    "Delegation",
    "Closed",
    "Confined",
    "ConfinementError",
    "HostPeer",
    "HostRefused",
    "InboxFull",
    "Link",
    "LinkError",
    "Mailbox",
    "MailboxFull",
    "Message",
    "Monitor",
    "NoSecret",
    "NotAdmitted",
    "NotDeclared",
    "Offer",
    "Refused",
    "Replicas",
    "Revoked",
    "SealError",
    "Sealed",
    "Self",
    "Signature",
    "Timeout",
    "TooFast",
    "Trust",
    "Unreachable",
    "confine",
    "secret",
]
