"""
Message-queue links as states
=============================

A link is the right of one environment to send to another's mailbox. Nothing else
connects two environments, and what is not declared is not there.

.. code-block:: yaml

    links:
      netspace_link.managed

    web.orders:
      netspace_link.present:
        - from: web
        - to: orders
        - pattern: request
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from netspace import declared, report  # noqa: E402
from netspace.errors import NetspaceError  # noqa: E402
from netspace.host import Host  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]
    __pillar__: dict[str, Any]

__virtualname__ = "netspace_link"


def __virtual__() -> str:
    return __virtualname__


def managed(name: str, declaration: dict[str, Any] | None = None) -> dict[str, Any]:
    """
    All declared links exist, and no others; the broker runs if there is any.

    Links that are no longer declared are revoked first: their senders are told at once.
    Mail that was accepted stays until it is read (see ``purge`` of :py:func:`absent`).

    name
        Any text.

    declaration
        The host's declaration. By default, what ``pillar:netspace`` says.
    """
    test = bool(__opts__["test"])
    try:
        wanted = declared.whole(declaration, __pillar__)
        result = Host(declared.layout(__opts__)).converge_links(wanted, whole=True, test=test)
    except NetspaceError as err:
        return report.failure(name, err)
    return report.state(name, result, test=test)


def present(name: str, **kwargs: Any) -> dict[str, Any]:
    """
    A link exists.

    name
        Any text; ``<from>.<to>`` says which link, where ``from`` and ``to`` are not given.

    from
        The environment that may send; of another host: ``<name>@<host>``.

    to
        The environment whose mailbox it may send to; of another host: ``<name>@<host>``.

    as
        What the sender's program calls the receiver, whichever environment of whichever host that is.

    pattern
        ``send`` (default), or ``request``: each message asks for one reply, which goes to
        the asker alone.

    seal
        Messages and answers are signed and encrypted end to end with the environments' own keys.

    monitor
        The sender is told when the receiver's program goes and comes.

    via
        To or from another host: ``direct`` (default), the sender is told at once what becomes of a message; or
        ``buffered``, its own host keeps it until the other one has taken it.

    ttl
        Seconds that a message may wait to be read; then it is a dead letter.

    length
        How many messages may wait.

    full
        What happens beyond ``length``: ``reject`` (default), the sender is told; or ``drop-head``, the oldest message
        is a dead letter.

    rate
        Messages in a second; needs ``length``. This, ``size`` and ``content_type`` are **kept by netspace-client** at
        both ends; other programs have to look at their card.

    size
        Bytes that the body of a message may have.

    content_type
        What all messages must be, such as ``application/json``.

    attestation
        ``{policy, minimum}``: the least trust level without which the link is withheld.
    """
    test = bool(__opts__["test"])
    try:
        wanted = declared.one_link(name, kwargs, __pillar__)
        result = Host(declared.layout(__opts__)).converge_links(wanted, test=test)
    except NetspaceError as err:
        return report.failure(name, err)
    return {**report.state(wanted.links[0].name, result, test=test, only=wanted.links[0].name), "name": name}


def absent(name: str, purge: bool = False, **kwargs: Any) -> dict[str, Any]:
    """
    A link doesn't exist; its sender is told at once.

    name
        Any text; ``<from>.<to>`` says which link, where ``from`` and ``to`` are not given.

    from, to
        The link's ends.

    purge
        Drop mail in mailboxes that no link leads to any more, also where this link was revoked before. By default it
        is parked. ``changes`` (``mail``) say whose, and how many messages, as far as the broker
        has counted them (what came in the last 10 s is just "mail").
    """
    test = bool(__opts__["test"])
    try:
        link = declared.link(name, kwargs, __pillar__)
        result = Host(declared.layout(__opts__)).remove_links({link.name}, test=test, purge=purge)
    except NetspaceError as err:
        return report.failure(name, err)
    return {**report.state(link.name, result, test=test, only=link.name), "name": name}
