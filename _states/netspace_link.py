"""
Message-queue links as states
=============================

A link is the right of one environment to send to another's mailbox. Environments have no other connection to each
other, and only declared links exist.

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

from netspace.errors import NetspaceError  # noqa: E402
from netspace.host.host import Host  # noqa: E402
from netspace.plugin import apply_progress, arguments, state_return  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]
    __salt__: dict[str, Any]
    __pillar__: dict[str, Any]

__virtualname__ = "netspace_link"


def __virtual__() -> str:
    return __virtualname__


def _host() -> Host:
    return Host(arguments.layout(__opts__), **apply_progress.hooks(__opts__, __salt__))


def managed(name: str, declaration: dict[str, Any] | None = None) -> dict[str, Any]:
    """
    Ensure that exactly the declared links exist, and that the broker runs if there is one.

    Undeclared links are revoked first; their senders get an error at once. Accepted mail stays until it is read (see
    ``purge`` of :py:func:`absent`).

    The result has a row for each link, with its own result, comment and changes. The changes of the state
    itself only name them. ``netspace.rows`` in the minion's configuration is the greatest number of rows (100).

    name
        Any text.

    declaration
        The host's declaration. By default, ``pillar:netspace``.
    """
    test = bool(__opts__["test"])
    try:
        most = arguments.rows(__opts__)
        wanted = arguments.whole(declaration, __pillar__)
        result = _host().converge_links(wanted, whole=True, test=test)
    except NetspaceError as err:
        return state_return.failure(name, err)
    links = (link.name for link in wanted.links)
    return state_return.rows(name, result, "link", links, test=test, most=most)


def present(name: str, **kwargs: Any) -> dict[str, Any]:
    """
    Ensure that a link exists.

    name
        Any text. If ``from`` and ``to`` are not given, ``<from>.<to>``.

    from
        The sending environment; on another host: ``<name>@<host>``.

    to
        The receiving environment; on another host: ``<name>@<host>``.

    as
        A local name by which the sender's programs address the receiver, independent of its name and host.

    pattern
        ``send`` (default), or ``request``: each message asks for one reply, which goes to
        the asker alone.

    seal
        Messages and answers are signed and encrypted end to end with the environments' own keys.

    monitor
        The sender's programs may watch whether a program reads the receiver's mailbox.

    via
        For a link to or from another host. ``direct`` (default): the sender publishes to the receiver's broker and
        learns at once whether it accepted a message. ``buffered``: the sender's host keeps a message until the other
        host has taken it.

    ttl
        Seconds that a message may wait to be read; then it becomes a dead letter.

    length
        The most messages that may wait.

    full
        If ``length`` messages wait: ``reject`` (default), the sender gets an error; or ``drop-head``, the oldest
        message becomes a dead letter.

    rate
        Messages per second; needs ``length``. ``rate``, ``size`` and ``content_type`` are **enforced by
        netspace-client** at both ends; other programs must read them from their card.

    size
        The most bytes of a message's body.

    content_type
        The required type of all messages, such as ``application/json``.

    attestation
        ``{policy, minimum}``: the lowest trust level. Below it, the link is withheld.
    """
    test = bool(__opts__["test"])
    try:
        wanted = arguments.one_link(name, kwargs, __pillar__)
        result = _host().converge_links(wanted, test=test)
    except NetspaceError as err:
        return state_return.failure(name, err)
    return {**state_return.state(wanted.links[0].name, result, test=test, only=wanted.links[0].name), "name": name}


def absent(name: str, purge: bool = False, **kwargs: Any) -> dict[str, Any]:
    """
    Ensure that a link doesn't exist. Its sender gets an error at once.

    name
        Any text. If ``from`` and ``to`` are not given, ``<from>.<to>``.

    from, to
        The link's ends.

    purge
        Drop mail in mailboxes to which no link delivers any more, even if this link was revoked earlier. By default
        such mail is parked. ``changes`` (``mail``) list its owners and the number of messages, as counted by the
        broker. If the broker hasn't counted them yet (messages of the last 10 s), they say only "mail".
    """
    test = bool(__opts__["test"])
    try:
        link = arguments.link(name, kwargs, __pillar__)
        result = _host().remove_links({link.name}, test=test, purge=purge)
    except NetspaceError as err:
        return state_return.failure(name, err)
    return {**state_return.state(link.name, result, test=test, only=link.name), "name": name}
