"""Changes of a broker's objects through its management API: import, delete, and sweep of undeclared queues."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from netspace.layout import Layout
from netspace.link.broker import access, node
from netspace.link.broker.management import Management, RefusedError
from netspace.link.pki.certificates import Accounts
from netspace.link.topology import names, objects
from netspace.link.topology.objects import Key
from netspace.spec.types import Broker, ClusterBroker, Link, LocalBroker

IMPORT_SECONDS = 300.0


class BrokerChanges:
    """Changes of one broker's objects.

    :param api: an open client of the broker's management API.
    :param accounts: the names that accounts have on this broker.
    """

    def __init__(
        self, layout: Layout, broker: Broker, api: Management, accounts: Accounts, progress: Callable[[str], None]
    ) -> None:
        self.layout = layout
        self.broker = broker
        self.api = api
        self.accounts = accounts
        self.progress = progress
        self.vhost = access.vhost(layout, broker)

    def put(self, document: dict[str, Any]) -> None:
        """Import the missing and differing objects in *document*. On a cluster, also import a missing vhost."""
        if isinstance(self.broker, ClusterBroker) and self.api.get("vhosts", self.vhost, query="columns=name") is None:
            document["vhosts"] = [{"name": self.vhost}]
            every = dict.fromkeys(("configure", "write", "read"), ".*")
            manager = {"user": access.login(self.broker).username, "vhost": self.vhost, **every}
            document["permissions"] = [*document.get("permissions", ()), manager]
        count = sum(map(len, document.values()))
        self.progress(f"importing {count} object{'' if count == 1 else 's'} into the broker")
        # Shovels are imported last: a shovel that finds no queue would declare one with other arguments.
        shovels = {"parameters": document.pop("parameters")} if "parameters" in document else {}
        for body in (document, shovels):
            if body:
                self._post(self.accounts.document(body))

    def _post(self, document: Mapping[str, Any]) -> None:
        post = functools.partial(self.api.post, "definitions", body=document, timeout=IMPORT_SECONDS)
        if "parameters" in document:
            self._with_carriers(post)
        else:
            post()

    def delete(self, keys: Iterable[Key]) -> None:
        """Delete the objects with these keys, in the given order; missing objects are ignored."""
        for key in keys:
            delete = functools.partial(_delete, self.api, self.vhost, key, self.accounts)
            if key[0] == "shovel":
                self._with_carriers(delete)
            else:
                delete()

    def ensure_carriers(self, after: Mapping[str, Link]) -> None:
        """Wait until the broker lists its shovels; restart the shovel plugin if it keeps listing none.

        A change of one shovel may end the process that runs all shovels (``access.ended``), shortly after the broker
        accepted the change.
        """
        if not isinstance(self.broker, LocalBroker) or not any(map(objects.carried, after.values())):
            return
        if access.carriers_ended(self.api, self.vhost):
            node.restart_plugin(self.layout, self.broker, access.SHOVELS)

    def _with_carriers(self, do: Callable[[], object]) -> None:
        """Call *do*, which changes a shovel.

        If netspace's own broker refuses, restart its shovel plugin and try once more.

        See ``access.ended`` for the bug of the shovel plugin.
        """
        try:
            do()
        except RefusedError:
            if not isinstance(self.broker, LocalBroker):
                raise
            node.restart_plugin(self.layout, self.broker, access.SHOVELS)
            do()

    def sweep(self, left: Sequence[str], purge: bool) -> list[str]:
        """Delete undeclared queues. Queues with mail are deleted only with *purge*.

        :param left: the names of the queues.
        :return: the owners of the queues that stay.
        """
        queues = dict.fromkeys(left)
        if not queues:
            return []
        if purge:
            for name in queues:
                self.api.delete("queues", self.vhost, name)
            return []
        counted = self.api.get("queues", self.vhost, query="columns=name,messages") or []
        full = {queue["name"] for queue in counted if queue.get("messages")} & queues.keys()
        # These counts are up to 5 s old, and unacknowledged mail returns to its queue only when its consumer's
        # connection has ended. So try to get a message from each queue, and again 0.2 s later.
        for _ in range(2):
            full |= {name for name in queues if name not in full and access.has_mail(self.api, self.vhost, name)}
            time.sleep(0.2)
        for name in queues.keys() - full:
            self.api.delete("queues", self.vhost, name)
        return sorted({names.owner(name) for name in full})


def _delete(api: Management, vhost: str, key: Key, accounts: Accounts) -> None:
    """Delete one object, if it still exists."""
    match key[0]:
        case "user":
            api.delete("users", accounts.there(key[1]))
        case "permission":
            api.delete("permissions", vhost, accounts.there(key[1]))
        case "policy":
            api.delete("policies", vhost, key[1])
        case "shovel":
            # The shovel first closes its connection to the other host, or waits until that times out.
            api.delete("parameters", "shovel", vhost, key[1], timeout=IMPORT_SECONDS)
        case "exchange" | "queue":
            # This also deletes its bindings, of which there may be many.
            api.delete(f"{key[0]}s", vhost, key[1], timeout=IMPORT_SECONDS)
        case _:
            _, source, kind, target, routing_key = key
            where = ("bindings", vhost, "e", source, "q" if kind == "queue" else "e", target)
            for one in api.get(*where, query="columns=routing_key,properties_key") or []:
                if one.get("routing_key") == routing_key:
                    api.delete(*where, one["properties_key"])
