"""Execution of the steps planned for interfaces, batched, in an order that is safe at every moment.

The order is: records, removals, the packet filter, the host's forwarding, and then new interfaces. So no interface is
ever up without the rules that guard it. If this process is killed between any two system calls, the next run finds and
completes the rest. For this, a record is written before its interface is created, and deleted after the interface is
gone. A namespace counts as set up only once it is listed in ``Volatile``.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from netspace import files
from netspace.errors import NetspaceError, StateError
from netspace.interface import endpoints, forwarding, netns
from netspace.interface import record as records
from netspace.interface.changes import Firewall, Forwarding, InterfaceChange
from netspace.interface.endpoints import INSIDE_INDEX, Endpoints
from netspace.interface.failures import patiently, refusal, unfiltered
from netspace.interface.firewall import host_table, netns_table
from netspace.interface.names import sets
from netspace.interface.names.answers import Own
from netspace.interface.record import Record, Volatile
from netspace.layout import Layout
from netspace.netlink import connection, requests
from netspace.netlink.connection import Failure, Message, Socket
from netspace.nftables.table import Table
from netspace.plan import Outcome, Step
from netspace.threads import in_thread

# The number of devices that are created from the host in one batch: each keeps a descriptor open meanwhile.
_TOGETHER = 128


class ApplyRun:
    """One execution of steps. ``errors`` holds the first error of each step, by the step's name."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.errors: dict[str, str] = {}
        self.volatile = Volatile.read(layout)
        self._own = Own()  # the host's addresses, if rules for names need them

    def run(self, steps: Sequence[Step]) -> list[Outcome]:
        work = {step.name: step.data for step in steps if isinstance(step.data, InterfaceChange)}
        if any(sets.rules(one.record) for one in work.values() if one.record is not None and one.guard):
            self._own = sets.own_addresses()
        try:
            self._remember(work)
            self._drop(work)
            if self._filter(steps):
                self._forward(steps)
            else:
                for step in steps:
                    if isinstance(step.data, Forwarding):
                        self._fail(step.name, "not switched, because the packet filter could not be loaded")
                for name, one in work.items():
                    if one.wanted != Endpoints():
                        self._fail(name, "not touched, because the packet filter could not be loaded")
            self._inside(work)
            self._outside(work)
            self._release_folder()
        finally:
            self.volatile.write(self.layout)
        self._forget(work)
        return [Outcome(step, self.errors.get(step.name, "")) for step in steps]

    def _fail(self, name: str, error: object) -> None:
        self.errors.setdefault(name, str(error))

    def _going_on(self, work: Mapping[str, InterfaceChange]) -> dict[str, InterfaceChange]:
        return {name: one for name, one in work.items() if one.record is not None and name not in self.errors}

    # -- records ---------------------------------------------------------------------
    def _remember(self, work: Mapping[str, InterfaceChange]) -> None:
        written = {}
        for name, one in work.items():
            record = one.record
            if record is not None:
                try:
                    record = records.with_key(self.layout, name, record, getattr(one.kind, "secret", None))
                except (OSError, StateError) as err:
                    self._fail(name, f"its private key can't be read or made: {err}")
                    continue
                # If the step only deletes the device, the old record stays until the device is gone.
                if not (one.drop and not one.make):
                    written[name] = record
        self._write(written)

    def _write(self, wanted: Mapping[str, Record]) -> None:
        for name, error in records.write_all(self.layout, wanted).items():
            self._fail(name, error)

    def _forget(self, work: Mapping[str, InterfaceChange]) -> None:
        done = {name: one for name, one in work.items() if name not in self.errors}
        secrets = records.secrets(self.layout, done)
        for name, one in done.items():
            if name in secrets and getattr(one.kind, "secret", None) is None:
                files.remove(records.secret(self.layout, name))
            if one.record is None:
                files.remove(records.path(self.layout, name))
        self._write(
            {name: one.record for name, one in done.items() if one.record is not None and one.drop and not one.make}
        )

    # -- removals ----------------------------------------------------------------------
    def _drop(self, work: Mapping[str, InterfaceChange]) -> None:
        doomed = {name: one for name, one in work.items() if one.drop and name not in self.errors}
        self._delete_outside({name: one.live.outside for name, one in doomed.items() if one.live.outside})
        # An inner end without an outer one is deleted from within the namespace, and at once: the kernel
        # may take a while to end the namespace, and until then the device occupies, say, its parent's VLAN.
        alone = [
            name for name, one in doomed.items() if one.live.inside and not one.live.outside and name not in self.errors
        ]
        if alone:
            in_thread(lambda: self._delete_inside(alone, work))
        for name, one in doomed.items():
            if one.record is None and name not in self.errors:
                try:
                    netns.remove(self.layout.netns(name))
                except OSError as err:
                    self._fail(name, f"its namespace can't be removed: {err}")
                    continue
                self.volatile.namespaces.pop(name, None)
                self.volatile.guards.pop(name, None)

    def _delete_outside(self, indexes: Mapping[str, int]) -> None:
        if not indexes:
            return
        names = list(indexes)
        with Socket() as host:
            if len(names) == 1:
                for failure in host.batch([requests.delete_link(indexes[names[0]])]).values():
                    if failure.code != errno.ENODEV:
                        self._fail(names[0], f"its network device can't be deleted: {failure}")
                return
            # The kernel deletes a group of devices much faster than each by itself.
            group = requests.free_group({link.group for link in host.links()})
            failures = host.batch([requests.set_link(indexes[name], group=group) for name in names])
            for place, failure in failures.items():
                if failure.code != errno.ENODEV:
                    self._fail(names[place], f"its network device can't be deleted: {failure}")
            if len(failures) < len(names):
                failed = host.batch([requests.delete_group(group)])
                for failure in failed.values():
                    for name in names:
                        self._fail(name, f"its network device can't be deleted: {failure}")

    def _delete_inside(self, names: Sequence[str], work: Mapping[str, InterfaceChange]) -> None:
        for name in names:
            try:
                netns.enter(self.layout.netns(name))
                with Socket() as inner:
                    failures = inner.batch([requests.delete_link(work[name].live.inside)])
            except OSError as err:
                self._fail(name, err)
                continue
            for failure in failures.values():
                self._fail(name, f"its network device can't be deleted: {failure}")

    # -- the host as a whole -----------------------------------------------------------
    def _filter(self, steps: Sequence[Step]) -> bool:
        """Load the packet filter if a step asks for it; return False if that failed."""
        for step in steps:
            if isinstance(step.data, Firewall):
                todo, before = step.data, self.volatile.firewall
                self.volatile.firewall = {"rendered": "being loaded"}
                self.volatile.write(self.layout)
                try:
                    self.volatile.firewall = host_table.put(
                        *(self.layout.nft_table, todo.table, todo.before, before),
                        *(todo.whole, todo.notes),
                    )
                    if todo.led:
                        from netspace.interface import conntrack  # few interfaces publish a port

                        conntrack.forget_stale(todo.led)
                    self._name(step.name, todo.table)
                except NetspaceError as err:
                    self._fail(step.name, err)
                    self.volatile.firewall = before  # a load succeeds as a whole or changes nothing
                    return False
        return True

    def _name(self, step: str, table: Table) -> None:
        """Fill the sets with the known addresses of names. After a table is loaded as a whole, its sets are empty."""
        try:
            if any(one.expiring for one in table.sets.values()):
                sets.fill_host(self.layout, time.time(), there=table.sets)
        except (OSError, NetspaceError) as err:
            self._fail(step, f"the addresses of names can't be put into the packet filter: {err}")

    def _forward(self, steps: Sequence[Step]) -> None:
        for step in steps:
            todo = step.data
            if not isinstance(todo, Forwarding):
                continue
            try:
                values = dict(forwarding.old_values(todo.needed, todo.ours))
                self.volatile.forwarding = values | self.volatile.forwarding
                self.volatile.write(self.layout)
                forwarding.switch_on(values)
                over = {
                    name: value
                    for name, value in self.volatile.forwarding.items()
                    if not any(forwarding.belongs(name, family) for family in todo.needed)
                }
                forwarding.restore(over)
                for name in over:
                    del self.volatile.forwarding[name]
                # The host's switch has overwritten every interface's own setting: restore it on existing host ends.
                with Socket() as host:
                    host.batch([requests.set_link(index, ipv4=ipv4) for index, ipv4 in todo.settings.items()])
            except OSError as err:
                self._fail(step.name, err)

    # -- new interfaces -------------------------------------------------------------------
    def _inside(self, work: Mapping[str, InterfaceChange]) -> None:
        """Create and set up namespaces, and in each the network device and its inner end."""
        todo = {
            name: one
            for name, one in self._going_on(work).items()
            if one.namespace != "keep" or one.make or _differ(one.live.ends.inside, one.wanted.inside)
        }
        guarded = {
            name: one for name, one in self._going_on(work).items() if one.guard is not None and name not in todo
        }
        if guarded:
            self._guard_only(guarded)
        if not todo:
            return
        if any(one.namespace == "create" for one in todo.values()):
            self._prepare_folder()
        host = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with Socket() as outer:
                in_thread(lambda: self._one_by_one(todo, host, outer))
        finally:
            os.close(host)

    def _guard_only(self, work: Mapping[str, InterfaceChange]) -> None:
        """Replace the packet filter tables in namespaces where nothing else changes."""

        def put() -> None:
            for name, one in work.items():
                self._guard(name, one, enter=True)

        in_thread(put)

    def _guard(self, name: str, one: InterfaceChange, *, enter: bool = False) -> None:
        """Load the environment's packet filter table in its namespace.

        :param enter: whether the calling thread must first enter that namespace.
        """
        assert one.guard is not None
        try:
            if enter:
                netns.enter(self.layout.netns(name))
            loaded = netns_table.put(
                self.layout,
                one.guard,
                fresh=one.namespace == "create",
                before=one.guard_before,
                loaded=self.volatile.guards.get(name),
            )
            if one.record is not None:
                sets.fill_here(self.layout, one.record, self._own, time.time())
        except OSError as err:
            self._fail(name, unfiltered(err))
            return
        if loaded:
            self.volatile.guards[name] = loaded
        else:
            self.volatile.guards.pop(name, None)

    def _prepare_folder(self) -> None:
        folder = self.layout.netns("").parent
        if lacks := netns.lacking(folder):
            self.volatile.folder |= lacks
            self.volatile.write(self.layout)
            netns.prepare(folder)

    def _release_folder(self) -> None:
        """Unmount the folder of namespaces once netspace's last namespace is gone."""
        if (
            self.volatile.folder
            and not self.volatile.namespaces
            and netns.release(self.layout.netns("").parent, self.volatile.folder)
        ):
            self.volatile.folder = {}

    def _one_by_one(self, todo: Mapping[str, InterfaceChange], host: int, outer: Socket) -> None:
        """Do the work in the calling thread, which enters one namespace after the other.

        :param host: a descriptor of the host's namespace.
        :param outer: a socket in the host's namespace.
        """
        far: dict[str, int] = {}  # namespaces, as descriptors, of devices that are created from the host in one batch
        for name, one in todo.items():
            path = self.layout.netns(name)
            try:
                inode = self._settle(path, one)
                if one.make and one.from_host:
                    far[name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                else:
                    with Socket() as inner:
                        self._set_up(name, one, inner, host)
            except OSError as err:
                self._fail(name, err)
                continue
            if name in far:
                if len(far) >= _TOGETHER:
                    self._from_host(far, todo, outer)
            elif name not in self.errors:
                self.volatile.namespaces[name] = inode
        self._from_host(far, todo, outer)

    def _from_host(self, far: dict[str, int], work: Mapping[str, InterfaceChange], outer: Socket) -> None:
        """Create the network devices of the namespaces *far* from the host's namespace, set them up; empty *far*."""
        try:
            messages: list[Message] = []
            owners: list[str] = []
            for name, namespace in far.items():
                made = work[name].create(namespace)
                messages += made
                owners += [name] * len(made)
            failures = patiently(outer, messages, lambda place: work[owners[place]].late)
            self._judge(failures, messages, owners, work)
            for name in far:
                if name in self.errors:
                    continue
                path = self.layout.netns(name)
                try:
                    netns.enter(path)
                    with Socket() as inner:
                        self._set_up(name, work[name], inner, -1)
                    if name not in self.errors:
                        self.volatile.namespaces[name] = path.stat().st_ino
                except OSError as err:
                    self._fail(name, err)
        finally:
            for namespace in far.values():
                os.close(namespace)
            far.clear()

    def _settle(self, path: Path, one: InterfaceChange) -> int:
        if one.namespace == "create":
            inode = netns.create(path)
        else:
            netns.enter(path)
            inode = path.stat().st_ino
        if one.namespace != "keep":
            netns.write_settings(netns.SETTINGS.items())
        return inode

    def _set_up(self, name: str, one: InterfaceChange, inner: Socket, host: int) -> None:
        messages: list[Message] = []
        if one.namespace != "keep":
            messages.append(requests.set_link(1, up=True))
        if one.make and not one.from_host:
            messages += one.create(host)
        special: list[Message] = []
        wanted = one.wanted.inside
        if wanted is not None:
            now = None if one.make else one.live.ends.inside
            index = INSIDE_INDEX if one.make else one.live.inside
            if one.make and one.from_host:
                index = socket.if_nametoindex(one.wanted.made_as)
                messages.append(requests.set_link(index, name=wanted.name))
            changed = one.change(index, now, wanted)
            if one.guard is not None:  # load the table while the device exists but is still down
                if now is not None and now.name != wanted.name:
                    # The table names the device; before Linux 6.16 a device of that name must exist.
                    messages += [requests.set_link(index, up=False), requests.set_link(index, name=wanted.name)]
                    now = msgspec.structs.replace(now, name=wanted.name, up=False)
                self._send(name, one, inner, messages)
                messages = []
                if name not in self.errors:
                    self._guard(name, one)
            for message in changed:
                (messages if message.protocol == connection.NETLINK_ROUTE else special).append(message)
            messages += endpoints.messages(index, now, wanted)
        elif one.guard is not None:
            self._guard(name, one)
        if special and name not in self.errors:
            with Socket(connection.NETLINK_GENERIC) as generic:
                self._judge(generic.batch(special), special, [name] * len(special), {name: one})
        if name not in self.errors:
            self._send(name, one, inner, messages)

    def _send(self, name: str, one: InterfaceChange, inner: Socket, messages: Sequence[Message]) -> None:
        failures = patiently(inner, messages, lambda _: one.late)
        self._judge(failures, messages, [name] * len(messages), {name: one})

    def _outside(self, work: Mapping[str, InterfaceChange]) -> None:
        """Set up the host's ends of interfaces in one batch."""
        todo = {
            name: one
            for name, one in self._going_on(work).items()
            if one.wanted.outside is not None and (one.make or _differ(one.live.ends.outside, one.wanted.outside))
        }
        if not todo:
            return
        disabled = forwarding.read("net/ipv6/conf/default/disable_ipv6") == "1"
        with Socket() as host, netns.settings_folder("net/ipv6/conf") as settings:
            each: list[list[tuple[str, Message]]] = []
            for name, one in todo.items():
                wanted = one.wanted.outside
                assert wanted is not None
                now = None if one.make else one.live.ends.outside
                try:
                    index = socket.if_nametoindex(wanted.name) if one.make else one.live.outside
                    netns.write_end_settings(settings, now.name if now is not None else wanted.name, wanted, disabled)
                except OSError as err:
                    self._fail(name, f"its host end {wanted.name} can't be set up: {err}; apply again")
                    continue
                own = one.change(index, now, wanted) + endpoints.messages(index, now, wanted)
                each.append([(name, message) for message in own])
            # Send the first message of each interface, then the second of each, and so on: whenever a device goes
            # up, the kernel walks through all IPv6 routes, so the routes are added once every device is up.
            ordered = [entry for row in itertools.zip_longest(*each) for entry in row if entry is not None]
            messages = [message for _, message in ordered]
            self._judge(host.batch(messages), messages, [name for name, _ in ordered], todo)

    def _judge(
        self,
        failures: Mapping[int, Failure],
        messages: Sequence[Message],
        owners: Sequence[str],
        work: Mapping[str, InterfaceChange],
    ) -> None:
        for place, failure in sorted(failures.items()):
            if requests.forgiven(messages[place], failure):
                continue
            name = owners[place]
            self._fail(name, refusal(failure, messages[place], work[name]))


def _differ(now: Any, wanted: Any) -> bool:
    return wanted is not None and now != wanted
