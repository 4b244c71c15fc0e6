"""
Message-queue links between environments
========================================

What links there are on this host, and whether they work. To make or revoke links
use the states of the same name.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from salt.exceptions import CommandExecutionError  # noqa: E402

from netspace import declared, files, supervision  # noqa: E402
from netspace.errors import NetspaceError  # noqa: E402
from netspace.host import Host  # noqa: E402
from netspace.link.kind import Links  # noqa: E402
from netspace.link.letters import Choice, Letters  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]

log = logging.getLogger(__name__)

__virtualname__ = "netspace_link"

__func_alias__ = {"list_": "list"}


def __virtual__() -> str:
    return __virtualname__


def list_() -> dict[str, Any]:
    """
    Return the links of this host, with the state of each, and the mailboxes.

    ``links`` says per link ``from``, ``to``, ``pattern`` and ``state``: ``active``, ``missing``
    (declared, but not on the broker: apply again; of a direct link to another host: not on its broker), ``stalled``
    (buffered, but its mail isn't carried over; or an environment of this host can't reach the broker) or ``unknown``
    (the broker gives no answer). ``why`` tells the reason.
    ``mailboxes`` says per environment ``messages`` and ``consumers`` (up to 5 s old), and
    ``parked`` whose mail was left when its last link went.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_link.list
    """
    try:
        return _links().list()
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err


def health() -> dict[str, Any]:
    """
    Return what needs attention: ``{ok: bool, problems: [text], dead: number, late: number}``.

    Looks at the broker and its memory and disk alarms, the forwarder, mailboxes that are 80 % full
    or whose mail nobody reads (but for those of environments with ``state: stopped``), dead letters and parked mail.
    The beacon of the same name sends this as an event.
    ``dead`` are letters that their reader refused or got in vain: they are a problem until they are sent again or
    discarded. ``late`` are those that waited too long or made way, as was declared or asked for: they are none.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_link.health
    """
    try:
        return Host(declared.layout(__opts__)).link_health()
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err


def renew(authority: bool = False, distrust: bool = False) -> list[str]:
    """
    Replace environments' certificates that are due; return the environments that got a new one.

    A service does the same each hour, and so does an apply: this is for when you don't want to wait. Nothing is
    restarted and no connection ends; clients read their certificate whenever they connect.

    authority
        Make (or read) another authority, and issue all certificates anew. Those of the former one are good for one
        more day, so that no client is turned away.

    distrust
        From now on trust no former authority: **whoever still shows one of its certificates is refused.** For when
        its key may be known to others. Keys for sealed links are made anew, too; other hosts have to be told of them
        (the master's ``netspace_link.exchange_seals``), and until then nothing is sealed for them.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_link.renew
        salt '*' netspace_link.renew authority=True distrust=True
    """
    from netspace import renew as work

    try:
        layout = declared.layout(__opts__)
        renewed, failed = work.renew(layout, replace=bool(authority), distrust=bool(distrust))
        if distrust:
            _told("the certificates are new, but not all were told of keys", Host(layout).renew_seals()[1])
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err
    if failed:
        told = "; ".join(f"{name}: {text}" for name, text in failed.items())
        raise CommandExecutionError(f"the certificates are new, but not all were handed out: {told}")
    return sorted(renewed)


def renew_seals(*environments: str) -> list[str]:
    """
    Give environments new keys for their sealed links now, and tell their peers; return which have new ones.

    They are used a minute later, when all have heard of them, and the old ones are kept for what is under way:
    nothing is lost. An apply does the same when keys are 30 days old; this is for when one may be known to others.

    environments
        Names; absent: all that have sealed links.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_link.renew_seals vault
    """
    try:
        renewed, result = Host(declared.layout(__opts__)).renew_seals(environments)
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err
    _told("the keys are new, but not all were told", result)
    return renewed


def seal_bundles() -> dict[str, Any]:
    """
    Return what this host says of its keys for sealed links to other hosts: ``{host: <its name>, bundles: {<host>:
    text}}``, for each host that such links lead to or come from.

    There is no secret in it. The master's ``netspace_link.exchange_seals`` hands them over; without a master, write
    each to a file, carry it there, and have ``seal_adopt`` read it. Keys that are due are renewed first.

    CLI Example:

    .. code-block:: bash

        salt-call --local netspace_link.seal_bundles
    """
    try:
        host = Host(declared.layout(__opts__))
        bundles, result = host.seal_bundles()
        name = host.links.recorded_broker().host
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err
    _told("the keys are new, but not all were told", result)
    return {"host": name, "bundles": bundles}


def seal_adopt(bundles: str | list[str]) -> dict[str, bool]:
    """
    Believe what other hosts say of their keys for sealed links; return per host whether it is news.

    Each is checked by itself: it has to be by that host's authority, below the root that this host trusts, for this
    host, and not older than what is known. If any isn't, that is an error, and the others are taken all the same.

    bundles
        What ``seal_bundles`` gave for this host on others; one of them or a list. Or the path of a file with one.

    CLI Example:

    .. code-block:: bash

        salt-call --local netspace_link.seal_adopt /root/from-h1.json
    """
    try:
        given = [bundles] if isinstance(bundles, str) else list(bundles)
        texts = [Path(one).read_text() if one.startswith("/") else one for one in given]
        adopted, refused, result = Host(declared.layout(__opts__)).adopt_seals(texts)
    except (NetspaceError, OSError, ValueError, TypeError, AttributeError) as err:
        raise CommandExecutionError(str(err)) from err
    if refused:
        raise CommandExecutionError("; ".join(refused))
    _told("the keys are known, but not all were told", result)
    return adopted


def _told(what: str, result: Any) -> None:
    if result.failures:
        told = "; ".join(f"{failure.step.name}: {failure.error}" for failure in result.failures)
        raise CommandExecutionError(f"{what}: {told}")


def backup(file: str) -> dict[str, Any]:
    """
    Write all mail of this host's own broker to a file: mailboxes, outboxes, dead letters; return ``file`` and ``size``.

    **The broker is down for the seconds that this takes**: programs connect anew, and buffered links of other hosts
    wait. Mail between brokers at that moment stays with its sender.

    file
        An absolute path in a folder that nobody but root may write to. A former file is replaced once the new one is
        whole. It holds the mail in plain, but for sealed links, and is root's alone.

    CLI Example:

    .. code-block:: bash

        salt h1 netspace_link.backup /srv/backup/mail.tar
    """
    from netspace.link import archive

    try:
        host = Host(declared.layout(__opts__))
        return archive.save(host.layout, host.supervisor, Path(file), log.info)
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err


def restore(file: str) -> dict[str, Any]:
    """
    Have this host's own broker hold the mail that ``backup`` wrote, and no other: **what it holds now is lost**, and
    what was read since the backup comes again. Return ``file`` and ``size``.

    The links of this host must have been applied. Apply once more afterwards: accounts and links become what is
    declared now. A damaged file, or one of a newer RabbitMQ, is an error and replaces nothing.

    file
        What ``backup`` wrote. It must be a file of root's.

    CLI Example:

    .. code-block:: bash

        salt h1 netspace_link.restore /srv/backup/mail.tar
    """
    from netspace.link import archive

    try:
        host = Host(declared.layout(__opts__))
        return archive.load(host.layout, host.supervisor, Path(file), log.info)
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err


def authority_request(folder: str = "/etc/netspace/authority") -> str:
    """
    Return a request (PEM) for an authority of this host's own below a fleet's root.

    Its key is made where there is none, and never leaves ``folder``. The master's ``netspace_link.certify`` does
    this and ``authority_adopt`` in one.

    folder
        Where it is kept: what ``broker: {authority: ...}`` says.

    CLI Example:

    .. code-block:: bash

        salt-call --local --out=newline_values_only netspace_link.authority_request > h1.csr
    """
    from netspace.link import root

    try:
        return root.request(_folder(folder))
    except (NetspaceError, OSError) as err:
        raise CommandExecutionError(str(err)) from err


def authority_adopt(chain: str, folder: str = "/etc/netspace/authority") -> bool:
    """
    Keep an authority that was asked for by ``authority_request``; return whether it is another than before.

    chain
        The answer (PEM): its certificate, and those above it with the root's last. Or the path of a file with that.

    folder
        As for ``authority_request``.

    CLI Example:

    .. code-block:: bash

        salt-call --local netspace_link.authority_adopt /root/h1.pem
    """
    from netspace.link import root

    try:
        text = Path(chain).read_text() if chain.startswith("/") else chain
        return root.adopt(_folder(folder), text)
    except (NetspaceError, OSError, ValueError) as err:
        raise CommandExecutionError(str(err)) from err


def public_key(folder: str = "/etc/netspace/authority") -> str:
    """
    Return the public half of this host's key for links to other hosts; the key is made where there is none.

    It is no secret: it stands in the declarations of the other hosts, ``broker:hosts:<this one>:public_key``. The names
    of what is between two hosts follow from what the key of one and the public half of the other's give, which no
    third host can know. The key itself (``names.key``) never leaves ``folder``. Remove it to have a new one: the public
    half is then another, and the links can't be used until the other hosts have been told.

    folder
        Where it is kept: what ``broker: {authority: ...}`` says.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_link.public_key
    """
    from netspace.link import pairs

    try:
        return pairs.public(_folder(folder))
    except (NetspaceError, OSError) as err:
        raise CommandExecutionError(str(err)) from err


def _folder(path: str) -> Path:
    if not path.startswith("/") or ".." in path.split("/"):
        raise NetspaceError(f"{path!r}: expected the absolute path of a folder")
    return Path(path)


def dead_letters(limit: int = 20, payload: bool = False) -> dict[str, Any]:
    """
    Return how many dead letters there are (``count``, of which ``late``), and the first of them (``letters``).

    A message is dead when it was refused by its reader or delivered 20 times in vain; and late, when it waited too
    long or made way in a full queue that drops the oldest. Each letter says its ``link``, the ``reason``, when it
    ``died`` (seconds since 1970), its size in ``bytes`` and what its sender gave as ``message_id`` and
    ``content_type``. All but the late ones stay until they are sent again or discarded, for 30 days; of the late
    ones 10,000 or 64 MiB, whosever they are.

    limit
        How many letters to return, at most 1000.

    payload
        Return the first 4 KiB of what was written, too. **It then stands in the job's return**, on the master as well.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_link.dead_letters limit=5
    """
    try:
        return Letters(declared.layout(__opts__)).count(limit, payload)
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err


def redeliver(
    limit: int = 100, link: str | None = None, message_id: str | None = None, test: bool = False
) -> dict[str, Any]:
    """
    Send dead letters again, each by the link that it came by.

    Those whose link is revoked, or whose mailbox is full, are kept. Return how many were ``sent`` per link, and how
    many were looked at and ``kept``, with the reason. A letter keeps its ``message_id``; should this be interrupted,
    one may be sent twice.

    limit
        How many letters to send at most, up to 1000. Those that are kept don't count.

    link
        ``<from>.<to>``: only those of this link.

    message_id
        Only those that bear it.

    test
        Only tell what would be done.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_link.redeliver link=web.orders
    """
    try:
        with _letters(test) as letters:
            return letters.redeliver(_choice(limit, link, message_id), bool(test))
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err


def discard(
    limit: int = 100, link: str | None = None, message_id: str | None = None, test: bool = False
) -> dict[str, Any]:
    """
    Throw dead letters away for good. Return how many were ``discarded`` per link, and how many looked at and ``kept``.

    limit
        How many letters to throw away at most, up to 1000.

    link
        ``<from>.<to>``: only those of this link; ``unknown``: those of which nobody can tell by which link they came.
        **Absent: of any link.**

    message_id
        Only those that bear it.

    test
        Only tell what would be done.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_link.discard link=web.orders test=True
        salt '*' netspace_link.discard message_id=8c2f
    """
    try:
        with _letters(test) as letters:
            return letters.discard(_choice(limit, link, message_id), bool(test))
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err


@contextlib.contextmanager
def _letters(test: bool) -> Iterator[Letters]:
    layout = declared.layout(__opts__)
    with contextlib.nullcontext() if test else files.locked(layout.lock):
        yield Letters(layout)


def _choice(limit: int, link: str | None, message_id: str | None) -> Choice:
    # Salt takes what looks like a number on the command line for one.
    return Choice(limit, link, None if message_id is None else str(message_id))


def _links() -> Links:
    layout = declared.layout(__opts__)
    return Links(layout, supervision.select(layout))
