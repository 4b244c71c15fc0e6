"""Message-queue links as states
=============================

A link is the right of one environment to send messages to the mailbox of another environment. Environments have no
other connection to each other, and only declared links exist.

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

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from netspace.errors import NetspaceError  # noqa: E402
from netspace.host.host import Host  # noqa: E402
from netspace.plugin import apply_progress, arguments, editions, failure_log, state_return  # noqa: E402
from netspace.spec import delegations  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]
    __salt__: dict[str, Any]
    __pillar__: dict[str, Any]

__virtualname__ = "netspace_link"
__running__: Mapping[str, Mapping[str, Any]] = {}  # while a state runs, Salt sets it: the results of earlier states


def __virtual__() -> str:
    return __virtualname__


def _host() -> Host:
    return Host(arguments.layout(__opts__), **apply_progress.hooks(__opts__, __salt__))


def managed(name: str, declaration: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ensure that exactly the declared links exist, and that this host's
    broker, if it has one, runs.

    Undeclared links are revoked first; a sender on such a link gets an
    error at once. Accepted mail stays until it is read (see ``purge``
    of ``netspace_link.absent``).

    The result has a row for each link, with its own result, comment and
    changes. The state's own changes only have the names of changed
    links. ``netspace.rows`` in the minion's configuration limits the
    number of rows (default 100).

    name
        Any text.

    declaration
        The host's declaration. By default, ``pillar:netspace``.
    """
    test = bool(__opts__["test"])
    try:
        most = arguments.rows(__opts__)
        if declaration is None:
            editions.check(__opts__, __pillar__, note=not test)
        wanted = arguments.whole(declaration, __pillar__)
        result = _host().converge_links(wanted, whole=True, test=test)
    except NetspaceError as err:
        return state_return.failure(name, err, __running__)
    links = (link.name for link in delegations.always(wanted))
    state = state_return.rows(name, result, "link", links, test=test, most=most)
    failure_log.tell(state)
    return state


def present(name: str, **kwargs: Any) -> dict[str, Any]:
    """Ensure that a link exists.

    name
        Any text if ``from`` and ``to`` are given; otherwise
        ``<from>.<to>``.

    from
        The sending environment; on another host: ``<name>@<host>``.

    to
        The receiving environment; on another host: ``<name>@<host>``.

    as
        A local name by which the sender's programs address the
        receiver. It doesn't depend on the receiver's name and host.

    pattern
        ``send`` (default), or ``request``: each message asks for one
        reply, which goes only to the message's sender.

    seal
        Sign and encrypt messages and answers end to end, with the
        environments' own keys. Defaults to false.

    monitor
        Let the sender's programs see whether a program reads the
        receiver's mailbox. Defaults to false.

    via
        For a link to or from another host. ``direct`` (default): the
        sender publishes to the receiver's broker and learns at once
        whether the broker accepted a message. ``buffered``: the
        sender's host keeps a message until the other host has taken it.

    ttl
        Seconds for which a message may wait to be read. After this time
        it becomes a dead letter.

    length
        The most messages that may wait.

    full
        What happens if ``length`` messages already wait. ``reject``
        (default): the sender gets an error. ``drop-head``: the oldest
        message becomes a dead letter.

    rate
        Messages per second; needs ``length``. ``rate``, ``size`` and
        ``content_type`` are **enforced by netspace-client** at both
        ends; other programs must read them from their environment's
        file ``environment.json``.

    size
        The most bytes of a message's body.

    content_type
        The required type of all messages, such as ``application/json``.

    attestation
        ``{policy, minimum}``: the lowest trust level. Below it, the
        link is withheld.

    attested
        The lowest trust level of the sender's host, such as ``L3``. The
        receiver's host refuses the link if no valid result gives the
        sender's host this level. Defaults to none.
    """
    test = bool(__opts__["test"])
    try:
        wanted = arguments.one_link(name, kwargs, __pillar__)
        result = _host().converge_links(wanted, test=test)
    except NetspaceError as err:
        return state_return.failure(name, err, __running__)
    return {**state_return.state(wanted.links[0].name, result, test=test, only=wanted.links[0].name), "name": name}


def absent(name: str, purge: bool = False, **kwargs: Any) -> dict[str, Any]:
    """Ensure that a link doesn't exist. Its sender gets an error at once.

    name
        Any text if ``from`` and ``to`` are given; otherwise
        ``<from>.<to>``.

    from, to
        The link's ends.

    purge
        Delete the mail in mailboxes to which no link delivers any more,
        even if this link was revoked earlier. By default, such mail is
        kept. ``changes`` (``mail``) lists the owners of the mailboxes
        and the number of messages that the broker counted. For messages
        of the last 10 s, which the broker may not have counted yet, it
        says only "mail".
    """
    test = bool(__opts__["test"])
    try:
        link = arguments.link(name, kwargs, __pillar__)
        result = _host().remove_links({link.name}, test=test, purge=purge)
    except NetspaceError as err:
        return state_return.failure(name, err, __running__)
    return {**state_return.state(link.name, result, test=test, only=link.name), "name": name}
