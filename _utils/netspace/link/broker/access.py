"""Access to the recorded broker: its management API, its state, and netspace's objects on it. Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link.broker import listening, node, plugin, refusals
from netspace.link.broker.management import Login, Management, RefusedError, TooLargeError, UnreachableError
from netspace.link.pki import authority, certificates
from netspace.link.pki.certificates import Accounts
from netspace.link.record import Record
from netspace.link.topology import draining, found_objects, names, objects
from netspace.link.topology.objects import Key
from netspace.spec.types import Broker, ClusterBroker, Link, LocalBroker
from netspace.supervision.service import Status

BrokerState = Literal["absent", "stopped", "starting", "running", "deaf", "unreachable"]
"""State of the broker. ``deaf``: our broker runs but doesn't listen at its port, which another program may have."""
SHOVELS = "rabbitmq_shovel"
CARRIERS_SECONDS = 3.0
"""Seconds for which shovels that were just changed may be missing in the broker's list."""
BOOTED_SECONDS = 60.0
"""Seconds after its start for which a node may list only some of its plugins."""
GUARD_SECONDS = 30.0
"""Seconds for which a guard that was just started may be missing in the broker's list: several of its intervals."""


def vhost(layout: Layout, broker: Broker) -> str:
    """Return the virtual host of the links."""
    return layout.instance if isinstance(broker, LocalBroker) else broker.vhost


def same(one: Broker, other: Broker) -> bool:
    """Return whether two declarations mean the same broker, even if settings differ.

    Two clusters are the same if the vhost and at least one management URL are equal.
    """
    if isinstance(one, LocalBroker) or isinstance(other, LocalBroker):
        return isinstance(one, LocalBroker) and isinstance(other, LocalBroker)
    return one.vhost == other.vhost and not set(one.managements).isdisjoint(other.managements)


def management(layout: Layout, broker: Broker) -> Management:
    """Return a client of *broker*'s management API."""
    if isinstance(broker, LocalBroker):
        return node.management(layout, broker)
    return Management(broker.managements, login(broker), ca=broker.ca)


def login(broker: ClusterBroker) -> Login:
    """Return the credentials of the management account on a broker that isn't netspace's own.

    :raises NetspaceError: the file of credentials can't be read, or is malformed.
    """
    try:
        with open(broker.credentials) as stream:
            username, colon, password = stream.read(4096).strip().partition(":")
    except OSError as err:
        raise NetspaceError(f"broker:credentials: {err}") from err
    if not colon or not username:
        raise NetspaceError(f"broker:credentials: {broker.credentials}: expected user:password")
    return Login(username, password)


def accounts(layout: Layout, broker: Broker) -> Accounts:
    """Return the conversion between netspace's names of accounts and *broker*'s names of the same accounts."""
    known = authority.read(layout) if isinstance(broker, LocalBroker) else None
    return certificates.accounts(broker, None if known is None else known.host)


def definitions(layout: Layout, api: Management, broker: Broker) -> dict[str, Any]:
    """Return all definitions of the broker, with account names converted to netspace's."""
    return accounts(layout, broker).told(api.get("definitions") or {})


def ask(
    layout: Layout, record: Record, services: Mapping[str, Status], *, whole: bool = True
) -> tuple[BrokerState, str, Mapping[str, Any] | None, tuple[Key, ...]]:
    """Return four values about the recorded broker: its state, a detail, its definitions, and flooded objects.

    Flooded objects have excess bindings (:func:`flooded`). If there are any, the definitions are None.

    :param services: the supervisor's statuses.
    :param whole: whether to read definitions and flooded objects of a running broker; if not, they are None and empty.
    """
    broker = record.broker or LocalBroker()
    if isinstance(broker, LocalBroker):
        status = services.get(node.NODE)
        if status is None or status.state in ("stopped", "failed"):
            return "stopped", status.exit if status else "", None, ()
        if status.state == "frozen":
            return "stopped", f"its process {status.pid} is stopped by a signal; apply again", None, ()
        if node.login(layout) is None:
            return "starting", "its management credentials are missing", None, ()
    try:
        with management(layout, broker) as api:
            if not whole:
                api.get("overview")
            if isinstance(broker, LocalBroker) and (why := listening.unanswered(layout, broker)):
                return "deaf", why, None, ()
            if not whole:
                return "running", "", None, ()
            excess = flooded(layout, api, broker, record.links)
            if excess:
                return "running", unneeded(excess), None, excess
            return "running", "", definitions(layout, api, broker), ()
    except (UnreachableError, TooLargeError) as err:
        return ("starting" if isinstance(broker, LocalBroker) else "unreachable"), str(err), None, ()
    except RefusedError as err:
        if isinstance(broker, LocalBroker) and err.status in (401, 503):
            return "starting", str(err), None, ()
        return "unreachable", str(err), None, ()
    except NetspaceError as err:  # the credentials can't be read
        if isinstance(broker, LocalBroker):
            raise
        return "unreachable", str(err), None, ()


def unneeded(excess: Collection[Key]) -> str:
    """Return the message about objects with excess bindings (:func:`flooded`)."""
    return f"excess bindings to answers: of {', '.join(names.shown(key[1]) for key in excess)}; apply again"


def drained(layout: Layout, record: Record, now: float) -> tuple[str, ...]:
    """Return the recorded draining queues that certainly hold no message, not even an unacknowledged one.

    :param now: seconds since the epoch.
    """
    settled = {one.queue for one in record.former if now - one.since > draining.SETTLED}
    if not settled or record.broker is None:
        return ()
    try:
        with management(layout, record.broker) as api:
            counted = api.get("queues", vhost(layout, record.broker), query="columns=name,messages") or []
    except NetspaceError:  # the queues are then read a little longer
        return ()
    return tuple(sorted(queue["name"] for queue in counted if queue["name"] in settled and queue.get("messages") == 0))


def ended(layout: Layout, broker: Broker, definitions: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the plugins of a running broker that have ended, though the broker needs them.

    ``SHOVELS``: the broker lists no shovel although some are defined. The cause is a bug of RabbitMQ 4.0: if a shovel
    is deleted while it restarts after a broken connection, the process that runs all shovels ends
    (``mirrored_supervisor:child`` finds no such child). ``plugin.NAME``: the guard in our own broker had too many
    faults in a row. RabbitMQ restarts neither of them.
    """
    where = vhost(layout, broker)
    entries = (definitions or {}).get("parameters", ())
    carries = any((entry.get("component"), entry.get("vhost")) == ("shovel", where) for entry in entries)
    own = isinstance(broker, LocalBroker)
    if not carries and not own:
        return ()
    found = []
    try:
        with management(layout, broker) as api:
            if carries and carriers_ended(api, where):
                found.append(SHOVELS)
            if own and unguarded(api):
                found.append(plugin.NAME)
    except NetspaceError:  # the broker's state shows this problem
        pass
    return tuple(found)


def unguarded(api: Management) -> bool:
    """Return whether a node of our own broker runs without its guard, by the API's list, which is some seconds old."""
    return any(map(guard_ended, api.get("nodes", query="columns=name,uptime,applications") or []))


def await_guard(layout: Layout, broker: LocalBroker) -> None:
    """Wait until the API lists the guard, which was just started. The API updates its list every five seconds.

    :raises NetspaceError: the guard has ended again.
    """
    deadline = time.monotonic() + GUARD_SECONDS
    with management(layout, broker) as api:
        while unguarded(api):
            if time.monotonic() > deadline:
                raise NetspaceError("the broker's guard ended again; the broker's log tells why")
            time.sleep(0.2)


def guard_ended(node: Mapping[str, Any]) -> bool:
    """Return whether a row of the API's ``nodes`` lists the node's applications without the guard.

    The row of a starting node lacks the plugins that had not started yet when the row was made.
    """
    running = [one.get("name") for one in node.get("applications") or ()]
    return bool(running) and plugin.NAME not in running and float(node.get("uptime") or 0) > BOOTED_SECONDS * 1000


def carriers_ended(api: Management, vhost: str) -> bool:
    """Return whether the broker lists no shovel for ``CARRIERS_SECONDS``; a new shovel may take that long to appear."""
    deadline = time.monotonic() + CARRIERS_SECONDS
    while api.get("shovels", vhost) == []:
        if time.monotonic() > deadline:
            return True
        time.sleep(0.1)
    return False


def flooded(layout: Layout, api: Management, broker: Broker, links: Mapping[str, Link]) -> tuple[Key, ...]:
    """Return the objects that have more bindings, made by environments for their answers, than requests need.

    Bindings are read without their arguments, which may be huge, and ``found_objects.flooded`` selects the objects. If
    there are too many bindings to read, the result is this host's exchanges for answers.
    """
    asking = [link for link in links.values() if link.pattern == "request"]
    if not asking:
        return ()
    columns = "columns=source,destination_type,destination,properties_key"
    try:
        found = api.get("bindings", vhost(layout, broker), query=columns) or []
    except (TooLargeError, UnreachableError):
        api.get("overview")
        # The broker answers, so the bindings are too many. Deleting the exchanges for answers deletes all bindings
        # that environments have made.
        called = names.used(layout, broker)
        own = {called.reply(link.target, link.from_host) for link in asking if link.to_host is None}
        return tuple(("exchange", name) for name in sorted(own))
    whole = isinstance(broker, LocalBroker)
    return tuple(found_objects.flooded(found, objects.members(links.values()), whole=whole))


def refused_to(layout: Layout, broker: LocalBroker, api: Management, name: str) -> list[refusals.Refusal]:
    """Return the requests of an environment that the broker refused."""
    account = accounts(layout, broker).there(names.account(name))
    return refusals.decoded(api.get("global-parameters", refusals.parameter(account)))


def refused_counts(layout: Layout, broker: LocalBroker, api: Management, environments: Iterable[str]) -> dict[str, int]:
    """Return the number of requests that the broker refused to each environment, by name. Asks the broker once."""
    called = accounts(layout, broker)
    found = {one["name"]: refusals.total(one) for one in api.get("global-parameters") or []}
    return {name: found.get(refusals.parameter(called.there(names.account(name))), 0) for name in environments}


def cut_off(layout: Layout, broker: LocalBroker, api: Management) -> dict[str, dict[str, Any]]:
    """Return the environments whose connections the guard closed, by name, each as ``{why, times, at}``."""
    called = accounts(layout, broker)
    reported = plugin.cut_off(api.get("global-parameters", plugin.NAME))
    return {called.here(account).removeprefix("env."): about for account, about in reported.items()}


def has_mail(api: Management, vhost: str, queue: str) -> bool:
    """Return whether *queue* has a message (which is requeued). True also if the broker refuses the request."""
    body = {"count": 1, "ackmode": "ack_requeue_true", "encoding": "base64", "truncate": 1}
    try:
        got = api.post("queues", vhost, queue, "get", body=body)
    except RefusedError:
        return True
    return bool(got)
