"""Data of planned steps: for an interface, for the packet filter, and for the host's forwarding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Literal

import msgspec

from netspace.interface.endpoints import Endpoint, Endpoints
from netspace.interface.observe import ObservedInterface
from netspace.interface.record import Record
from netspace.netlink.connection import Message
from netspace.nftables.table import Table
from netspace.spec.publish import Led


class InterfaceChange(msgspec.Struct, frozen=True):
    """The data of a step that changes one environment's interface.

    :param record: the record to write; None: remove the interface.
    :param wanted: the ends that the interface shall have.
    :param live: the observed interface.
    :param namespace: what to do with the namespace: ``create`` it, ``settle`` it (it isn't set up completely), or
        ``keep`` it.
    :param make: whether to create the network device.
    :param drop: whether to delete the present device, or the rest of it, first.
    :param kind: the module of the interface's kind (see ``kinds``).
    :param parents: the indexes of the host's devices that the kind may need, by name.
    :param guard: the packet filter tables for its namespace; empty: none; None: leave the present tables.
    :param guard_before: the present tables, if they are known.
    """

    record: Record | None
    wanted: Endpoints
    live: ObservedInterface
    namespace: Literal["create", "settle", "keep"] = "keep"
    make: bool = False
    drop: bool = False
    kind: ModuleType | None = None
    parents: Mapping[str, int] = msgspec.field(default_factory=dict)
    guard: tuple[Table, ...] | None = None
    guard_before: tuple[Table, ...] = ()

    @property
    def from_host(self) -> bool:
        """Whether the network device is created from the host's namespace, not from the environment's."""
        return bool(getattr(self.kind, "FROM_HOST", False))

    @property
    def late(self) -> bool:
        """Whether the kernel may still hold a removed namespace's network device, which occupies a MAC, VLAN or VNI."""
        return self.namespace == "create"

    def create(self, far: int) -> list[Message]:
        """Return the netlink messages that create the network device, as the kind makes them.

        :param far: a descriptor of the other namespace.
        """
        made: list[Message] = self.kind.create(self.wanted, far, self.parents) if self.kind is not None else []
        return made

    def change(self, index: int, now: Endpoint | None, wanted: Endpoint) -> list[Message]:
        """Return the netlink messages that change the end's ``details``, as the kind makes them."""
        change = getattr(self.kind, "change", None)
        messages: list[Message] = change(index, now, wanted, self.parents) if change is not None else []
        return messages


class Firewall(msgspec.Struct, frozen=True):
    """The data of the step that loads the host's packet filter.

    :param table: the table to load.
    :param before: the table in the kernel, if it is known; if so, only the difference is changed.
    :param led: publications that may be missing in the kernel's table, with the addresses to which they lead.
    :param whole: returns the complete tables, before and after. They are needed if *before* and *table* have only the
        parts that matter for the difference.
    :param notes: see ``host_filter.notes``.
    """

    table: Table
    before: Table | None = None
    led: Sequence[Led] = ()
    whole: Callable[[], Sequence[Table]] | None = None
    notes: Mapping[str, str] = msgspec.field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The digest of the complete table; empty if no table is wanted."""
        table = self.table if self.whole is None else self.whole()[-1]
        return table.digest if table.chains else ""


class Forwarding(msgspec.Struct, frozen=True):
    """The data of the step that sets in which address families the host forwards packets.

    :param needed: the families that need forwarding.
    :param ours: the names of netspace's existing host ends.
    :param settings: the IPv4 settings to restore on each host end afterwards, by its index.
    """

    needed: frozenset[str]
    ours: frozenset[str] = frozenset()
    settings: Mapping[int, Mapping[str, int]] = msgspec.field(default_factory=dict)
