"""Work of the steps that are planned for interfaces, for the packet filter and for the host's forwarding."""

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
    """The work of one step on one environment.

    :param record: the record to write; None: remove the interface.
    :param namespace: ``create`` it, ``settle`` one that isn't set up completely, or ``keep`` it.
    :param make: create the link.
    :param drop: delete the present link, or the rest of it, first.
    :param kind: the module of its kind (see ``kinds``).
    :param parents: indexes of the host's links that it may need.
    :param guard: the tables in its namespace; empty: none; None: leave the present ones.
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
        """True if the link is created from the host's namespace, not from its own."""
        return bool(getattr(self.kind, "FROM_HOST", False))

    @property
    def late(self) -> bool:
        """True if the kernel may still hold the link of an earlier namespace, which occupies a MAC, VLAN or VNI."""
        return self.namespace == "create"

    def create(self, far: int) -> list[Message]:
        """Return the kind's messages that create the link."""
        made: list[Message] = self.kind.create(self.wanted, far, self.parents) if self.kind is not None else []
        return made

    def change(self, index: int, now: Endpoint | None, wanted: Endpoint) -> list[Message]:
        """Return the kind's messages that change the end's ``details``."""
        change = getattr(self.kind, "change", None)
        messages: list[Message] = change(index, now, wanted, self.parents) if change is not None else []
        return messages


class Firewall(msgspec.Struct, frozen=True):
    """The packet filter to load.

    :param before: the table in the kernel, if it is known; then only the difference is changed.
    :param whole: returns the complete tables, before and after, if *before* and *table* have only the parts that matter
        for the difference.
    :param notes: see ``host_filter.notes``.
    :param led: publications, with the addresses they lead to, that may be missing in the kernel's table.
    """

    table: Table
    before: Table | None = None
    led: Sequence[Led] = ()
    whole: Callable[[], Sequence[Table]] | None = None
    notes: Mapping[str, str] = msgspec.field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Digest of the complete table; empty if no table is wanted."""
        table = self.table if self.whole is None else self.whole()[-1]
        return table.digest if table.chains else ""


class Forwarding(msgspec.Struct, frozen=True):
    """The address families in which the host forwards packets.

    :param ours: the names of netspace's existing host ends.
    :param settings: the IPv4 settings to restore on each host end afterwards, by its index.
    """

    needed: frozenset[str]
    ours: frozenset[str] = frozenset()
    settings: Mapping[int, Mapping[str, int]] = msgspec.field(default_factory=dict)
