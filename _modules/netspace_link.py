"""
Message-queue links between environments
========================================

List the links of this host, check them, and manage their keys and mail. To make or revoke links, use the states of the
same name.
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

from netspace import files, supervision  # noqa: E402
from netspace.errors import NetspaceError  # noqa: E402
from netspace.host import delegation_records  # noqa: E402
from netspace.host.host import Host  # noqa: E402
from netspace.link.mail.dead_letters import LetterFilter, Letters  # noqa: E402
from netspace.link.reconciler import Links  # noqa: E402
from netspace.plugin import arguments, dates, refusal, salt_keys  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]
    __salt__: dict[str, Any]

log = logging.getLogger(__name__)

__virtualname__ = "netspace_link"

__func_alias__ = {"list_": "list"}
__outputter__ = dict.fromkeys(("list_", "health", "dead_letters"), "netspace")


def __virtual__() -> str:
    return __virtualname__


def list_() -> dict[str, Any]:
    """Return the links of this host with their states, and the mailboxes.

    ``links`` has, for each link, ``from``, ``to``, ``pattern`` and
    ``state``, and ``why`` if the reason for the state is known. The
    states are:

    - ``active``;
    - ``missing``: the link is declared, but the broker has no such link
      (for a direct link to another host: that host's broker). Apply
      again;
    - ``stalled``: the mail of a buffered link isn't moved to the other
      host, or an environment of this host can't reach the broker;
    - ``unknown``: the broker doesn't answer.

    A link that a program delegated also has ``delegated_by``, the
    environment of that program, and ``until``, when the right ends.

    ``mailboxes`` has, for each environment, the numbers of ``messages``
    and ``consumers`` (up to 5 s old). ``parked`` lists the environments
    whose mailbox still has mail, although the last link to the mailbox
    was revoked.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_link.list
    """
    try:
        links = _links()
        listed = links.list()
        delegation_records.mark(links.layout, listed["links"])
        return dates.with_texts(listed)
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def health() -> dict[str, Any]:
    """Return the problems of links: ``{ok: bool, problems: [text], dead:
    number, late: number}``.

    Problems are a broker or forwarder that is down, the broker's memory
    and disk alarms, mailboxes that are 80 % full, mailboxes with mail
    that no program reads (except for environments with ``state:
    stopped``), dead letters, and mail in mailboxes without a link. The
    beacon ``netspace_link`` sends the result as an event.

    ``dead`` counts messages that the reader rejected or that reached
    the delivery limit. These messages are a problem until they are sent
    again or discarded. ``late`` counts messages that expired or were
    dropped from a full queue, as declared or as their sender requested.
    These messages are no problem.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_link.health
    """
    try:
        return dates.with_texts(Host(arguments.layout(__opts__)).link_health())
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def renew(authority: bool = False, distrust: bool = False) -> list[str]:
    """Replace environments' certificates that are due for renewal; return the
    environments with a new certificate.

    A service renews certificates each hour, and every apply does too.
    Call this function if you don't want to wait. No service is
    restarted and no connection ends: clients read their certificate
    each time they connect.

    authority
        Make a new authority (or read it, if the operator supplies one),
        and issue all certificates again. Certificates of the old
        authority stay valid for one more day, so that no client is
        refused.

    distrust
        Trust no earlier authority from now on: **clients with
        certificates of an earlier authority are refused.** Use this if
        others may know the authority's key. The keys for sealed links
        are replaced, too. ``salt-run netspace_link.exchange_seals``
        gives the new keys to the other hosts. Until then, nothing is
        sealed for these hosts.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_link.renew
        salt '*' netspace_link.renew authority=True distrust=True
    """
    from netspace.host import renew as work

    try:
        layout = arguments.layout(__opts__)
        renewed, failed = work.renew(layout, replace=bool(authority), distrust=bool(distrust))
        if distrust:
            _told("the certificates are new, but not all environments got new keys", Host(layout).renew_seals()[1])
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err
    if failed:
        told = "; ".join(f"{name}: {text}" for name, text in failed.items())
        raise CommandExecutionError(f"the certificates are new, but not all environments got their certificate: {told}")
    return sorted(renewed)


def renew_seals(*environments: str) -> list[str]:
    """Make new keys for environments' sealed links and publish the keys to
    peers; return the environments.

    The new keys are used a minute later, when all peers have them. The
    old keys are kept for messages that are under way, so none is lost.
    An apply renews keys that are 30 days old; call this function if
    others may know a key.

    environments
        Names; by default all environments with sealed links.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_link.renew_seals vault
    """
    try:
        renewed, result = Host(arguments.layout(__opts__)).renew_seals(environments)
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err
    _told("the keys are new, but not all environments know them yet", result)
    return renewed


def seal_bundles() -> dict[str, Any]:
    """Return this host's keys for sealed links, in one bundle for each peer
    host.

    A peer host has sealed links to or from this host.

    The form is ``{host: <its name>, bundles: {<host>: text}}``. A
    bundle contains no secret. The runner
    ``netspace_link.exchange_seals`` delivers bundles. Without a master,
    write each bundle to a file, copy the file to the bundle's host, and
    call ``seal_adopt`` there. Keys that are due are renewed first.

    CLI Example:

    .. code-block:: bash

        salt-call --local netspace_link.seal_bundles
    """
    try:
        host = Host(arguments.layout(__opts__))
        bundles, result = host.seal_bundles()
        name = host.links.recorded_broker().host
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err
    _told("the keys are new, but not all environments know them yet", result)
    return {"host": name, "bundles": bundles}


def seal_adopt(bundles: str | list[str]) -> dict[str, bool]:
    """Check and store bundles with other hosts' keys for sealed links; return
    by host whether its bundle was new.

    Each bundle is checked separately. Its signature must chain through
    the other host's authority to the root that this host trusts. The
    bundle must be for this host, and not be older than the stored one.
    If a bundle is refused, the function stores the other bundles and
    then raises an error.

    bundles
        A bundle for this host from ``seal_bundles`` on another host,
        the path of a file with such a bundle, or a list of bundles and
        paths.

    CLI Example:

    .. code-block:: bash

        salt-call --local netspace_link.seal_adopt /root/from-h1.json
    """
    try:
        given = [bundles] if isinstance(bundles, str) else list(bundles)
        texts = [Path(one).read_text() if one.startswith("/") else one for one in given]
        adopted, refused, result = Host(arguments.layout(__opts__)).adopt_seals(texts)
    except (NetspaceError, OSError, ValueError, TypeError, AttributeError) as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err
    if refused:
        raise CommandExecutionError(refusal.told(__opts__, "; ".join(refused)))
    _told("the keys are stored, but not all environments know them yet", result)
    return adopted


def _told(what: str, result: Any) -> None:
    if result.failures:
        told = "; ".join(f"{failure.step.name}: {failure.error}" for failure in result.failures)
        raise CommandExecutionError(refusal.told(__opts__, f"{what}: {told}"))


def backup(file: str) -> dict[str, Any]:
    """Write all mail of this host's own broker to a file; return ``file`` and
    ``size``.

    The mail is that of mailboxes, outboxes and dead letters.

    **The broker is down for some seconds**: programs reconnect, and
    buffered links of other hosts wait. Mail that is on its way between
    brokers stays at the sender's broker.

    file
        An absolute path in a folder that only root may write. An
        existing file is replaced once the new file is complete. Only
        root can read the new file. Mail is in plain text there, except
        mail of sealed links.

    CLI Example:

    .. code-block:: bash

        salt h1 netspace_link.backup /srv/backup/mail.tar
    """
    from netspace.link.mail import backup as mail

    try:
        host = Host(arguments.layout(__opts__))
        return mail.save(host.layout, host.supervisor, Path(file), log.info)
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def restore(file: str) -> dict[str, Any]:
    """Replace all mail of this host's own broker by that of a backup; return
    ``file`` and ``size``.

    **The broker's present mail is lost.** Messages that were read since
    the backup are delivered again.

    The links of this host must have been applied. Apply again
    afterwards, to bring accounts and links to their declared state. If
    the file is damaged or of a newer RabbitMQ, the function raises an
    error and replaces nothing. If the broker does not start with the
    restored mail, the function puts the previous mail back and raises
    an error.

    file
        A file from ``backup``, which must belong to root.

    CLI Example:

    .. code-block:: bash

        salt h1 netspace_link.restore /srv/backup/mail.tar
    """
    from netspace.link.mail import backup as mail

    try:
        host = Host(arguments.layout(__opts__))
        return mail.load(host.layout, host.supervisor, Path(file), log.info)
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def authority_request(folder: str = "/etc/netspace/authority") -> str:
    """Return a certificate signing request (PEM) for this host's authority
    below a fleet's root.

    If the authority has no key, the function makes one. The key never
    leaves ``folder``. The runner ``netspace_link.certify`` calls this
    function and ``authority_adopt`` in one step.

    folder
        The authority's folder, as in ``broker: {authority: ...}``.

    CLI Example:

    .. code-block:: bash

        salt-call --local --out=netspace_text \\
            netspace_link.authority_request > h1.csr
    """
    from netspace.link.pki import root

    try:
        return root.request(_folder(folder))
    except (NetspaceError, OSError) as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def authority_adopt(chain: str, folder: str = "/etc/netspace/authority") -> bool:
    """Install the certificate that the root issued for this authority; return
    whether it differs from the old one.

    chain
        The certificate chain (PEM), with the root's certificate at its
        end; or the path of a file with the chain.

    folder
        As for ``authority_request``.

    CLI Example:

    .. code-block:: bash

        salt-call --local netspace_link.authority_adopt /root/h1.pem
    """
    from netspace.link.pki import root

    try:
        text = Path(chain).read_text() if chain.startswith("/") else chain
        return root.adopt(_folder(folder), text)
    except (NetspaceError, OSError, ValueError) as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def public_key(folder: str = "/etc/netspace/authority") -> str:
    """Return the public half of this host's key for links to other hosts. Make
    the key if there is none.

    The public half is no secret: the other hosts declare it as
    ``broker:hosts:<this host>:public_key``. Each of two hosts derives
    the names of their shared broker objects from its own key and the
    other's public half (a key agreement), so no third host can know
    these names. The key itself (``names.key``) never leaves ``folder``.
    To get a new key, remove this file. Links to other hosts then don't
    work until these hosts declare the new public half.

    folder
        The key's folder, as in ``broker: {authority: ...}``.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_link.public_key
    """
    from netspace.link.topology import pair_keys

    try:
        return pair_keys.public(_folder(folder))
    except (NetspaceError, OSError) as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def signed_answer(asked: dict[str, Any]) -> dict[str, Any]:
    """Call a function for the master, and sign the answer, because Salt's bus
    does not prove who answered.

    The runners ``netspace_attestation``, ``netspace_fleet``,
    ``netspace_link`` and ``netspace_trust`` call this function. It
    returns ``answer``, or ``error`` if the called function failed, and
    ``salt``: this minion's signature of the call and its answer, by its
    Salt key, in hex.

    asked
        ``function``, ``arguments`` and ``nonce``. The functions are
        ``authority_request``, ``authority_adopt``, ``public_key``,
        ``seal_bundles`` and ``seal_adopt`` of this module; ``plan``,
        ``prepare``, ``apply`` and ``ailing`` of ``netspace_fleet``;
        ``explain`` and ``glance`` of ``netspace``;
        ``netspace_attestation.host_key``; ``netspace_trust.revise``;
        and ``grains.get``.

    CLI Example:

    .. code-block:: bash

        salt h1 netspace_link.signed_answer '{nonce: "00",
            function: netspace_link.public_key, arguments: {}}'
    """
    from netspace.attestation.fleet import own_answers

    try:
        master = salt_keys.minions_master(__opts__)
        minion = str(__opts__["id"])
        return own_answers.answer(asked, __salt__, master, minion, lambda: salt_keys.own(__opts__))
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def _folder(path: str) -> Path:
    if not path.startswith("/") or ".." in path.split("/"):
        raise NetspaceError(f"{path!r}: expected the absolute path of a folder")
    return Path(path)


def dead_letters(limit: int = 20, payload: bool = False) -> dict[str, Any]:
    """Return the number of dead letters (``count``), the number of late ones
    (``late``), and the first ``letters``.

    A message becomes a dead letter if its reader rejected it, or if it
    was delivered 20 times and never accepted. A dead letter is late if
    it waited too long, or if a full queue dropped it as its oldest
    message. Each entry of ``letters`` has ``link``, ``reason``,
    ``died`` (seconds since 1970), ``died_at`` (the same as ISO 8601),
    the size in ``bytes``, and the sender's ``message_id`` and
    ``content_type``. Dead letters are kept
    for 30 days, or until they are sent again or discarded. Of all
    links' late dead letters together, only the newest 10,000 or 64 MiB
    are kept.

    limit
        The most dead letters to return, up to 1000.

    payload
        Also return the first 4 KiB of each payload. **The job's return
        then contains payloads**, on the master too.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_link.dead_letters limit=5
    """
    try:
        return dates.with_texts(Letters(arguments.layout(__opts__)).count(limit, payload))
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def redeliver(
    limit: int = 100, link: str | None = None, message_id: str | None = None, test: bool = False
) -> dict[str, Any]:
    """Send dead letters again, each through its own link.

    Dead letters whose link is revoked or whose mailbox is full are
    kept. The function returns, by link, how many were ``sent``, and how
    many were ``kept``, with the reason. A message keeps its
    ``message_id``. If this function is interrupted, one message may be
    sent twice.

    limit
        The most messages to send, up to 1000. Kept messages don't
        count.

    link
        Send only dead letters of this link, ``<from>.<to>``.

    message_id
        Send only dead letters with this id.

    test
        Change nothing; return what would be done.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_link.redeliver link=web.orders
    """
    try:
        with _letters(test) as letters:
            return letters.redeliver(_choice(limit, link, message_id), bool(test))
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def discard(
    limit: int = 100, link: str | None = None, message_id: str | None = None, test: bool = False
) -> dict[str, Any]:
    """Delete dead letters. Return by link how many were ``discarded``, and how
    many were ``kept``.

    limit
        The most dead letters to delete, up to 1000.

    link
        Delete only dead letters of this link, ``<from>.<to>``; or
        ``unknown``, for dead letters whose link is unknown. **By
        default, dead letters of all links are deleted.**

    message_id
        Delete only dead letters with this id.

    test
        Change nothing; return what would be done.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_link.discard link=web.orders test=True
        salt '*' netspace_link.discard message_id=8c2f
    """
    try:
        with _letters(test) as letters:
            return letters.discard(_choice(limit, link, message_id), bool(test))
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


@contextlib.contextmanager
def _letters(test: bool) -> Iterator[Letters]:
    layout = arguments.layout(__opts__)
    with contextlib.nullcontext() if test else files.locked(layout.lock):
        yield Letters(layout)


def _choice(limit: int, link: str | None, message_id: str | None) -> LetterFilter:
    # Salt converts an argument of the command line that looks like a number.
    return LetterFilter(limit, link, None if message_id is None else str(message_id))


def _links() -> Links:
    layout = arguments.layout(__opts__)
    return Links(layout, supervision.select(layout))
