"""The host's nftables table in the kernel: loading it, and detecting changes by others.

One message asks the kernel for its ruleset's generation. Only if that differs, the table is
listed and compared. Each transaction names the generation that it builds on, and the kernel
refuses it at any other. So no change of somebody else lies between that generation and the
one that the transaction makes. Generations start again at a reboot, hence the boot's id.
Never touches another table.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netspace.errors import MissingError, NetspaceError
from netspace.interface import nftables as nf
from netspace.interface.firewall import table as tables
from netspace.interface.firewall.table import Table
from netspace.interface.netlink import connection
from netspace.interface.netlink.reading import NetlinkError

_TRIES = 20
# The kernel lacks this kind of rule, chain or object, or nftables as a whole.
_LACKING = (*connection.UNSUPPORTED, errno.ENOENT)


def state(name: str, loaded: Mapping[str, Any]) -> str:
    """Return ``absent``, ``intact`` or ``changed``; *loaded* is what :func:`put` returned."""
    if not loaded:
        return "absent"
    try:
        with nf.Ruleset() as ruleset:
            return _state(ruleset, name, loaded, ruleset.generation())
    except OSError:
        return "changed"  # unknown; loading then reports the missing feature


def _state(ruleset: nf.Ruleset, name: str, loaded: Mapping[str, Any], generation: int | None) -> str:
    if _untouched(loaded, generation):
        return "intact"
    listed = ruleset.listed(name, nf.INET)
    if listed is None:
        return "absent"
    return "intact" if listed == (loaded.get("structure"), loaded.get("elements")) else "changed"


def put(name: str, table: Table, before: Table | None, loaded: Mapping[str, Any]) -> dict[str, Any]:
    """Load *table* under this name, in one transaction; return the facts to record in ``Volatile``.

    :param before: the table that *loaded* describes; if the kernel still holds it, only the difference is changed.
    :raises MissingError: the kernel lacks a feature.
    :raises NetspaceError: the kernel refused the table; nothing has changed.
    """
    try:
        with nf.Ruleset() as ruleset:
            return _put(ruleset, name, table, before, loaded)
    except OSError as err:
        raise _explained(err) from err


def _put(
    ruleset: nf.Ruleset, name: str, table: Table, before: Table | None, loaded: Mapping[str, Any]
) -> dict[str, Any]:
    for _ in range(_TRIES):
        generation = ruleset.generation()
        in_place = before is not None and bool(table.chains) and _holds(ruleset, name, loaded, generation)
        old = before if in_place else None
        messages = tables.whole(name, table) if old is None else tables.difference(name, old, table)
        try:
            made = ruleset.load(messages, generation)
            break
        except NetlinkError as err:
            if err.errno != errno.ERESTART:
                raise
    else:
        raise NetspaceError(
            "the packet filter can't be loaded: something else on this host changes nftables all the time"
        )
    if not table.chains:
        return {}
    if old is not None and old.same_structure(table):
        structure = loaded.get("structure")
    else:
        listed = ruleset.confirmed(name, made, nf.INET)
        # None if somebody else changed the ruleset meanwhile: the next observation then reports the table as changed.
        structure = None if listed is None else listed[0]
    return {
        "rendered": table.digest,
        "boot": _boot(),
        "generation": made,
        "structure": structure,
        "elements": table.elements,
    }


def _untouched(loaded: Mapping[str, Any], generation: int | None) -> bool:
    return generation is not None and loaded.get("generation") == generation and loaded.get("boot") == _boot()


def _holds(ruleset: nf.Ruleset, name: str, loaded: Mapping[str, Any], generation: int | None) -> bool:
    """Return whether the kernel at *generation* holds the loaded table.

    If the generation changes afterwards, the kernel refuses the transaction that names this one.
    """
    return bool(loaded) and generation is not None and _state(ruleset, name, loaded, generation) == "intact"


@functools.cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _explained(error: OSError) -> NetspaceError:
    said = error.strerror or str(error)
    if error.errno in _LACKING:
        return MissingError(
            f"nftables in the kernel ({said})",
            "use a kernel with CONFIG_NF_TABLES_INET, NFT_CT, NFT_CONNLIMIT, NFT_MASQ, NFT_NAT, NFT_FIB_INET, "
            "NF_CONNTRACK and NF_CONNTRACK_TIMEOUT, or declare kind none only",
        )
    if error.errno == errno.EPERM:
        said += "; another program owns a table of that name (nft list tables), or this one isn't run by root"
    return NetspaceError(f"the kernel refused the packet filter: {said}")
