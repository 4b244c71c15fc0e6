"""Putting the host's nftables table into the kernel, and telling whether it is still as we put it.

Whether anybody changed anything is asked of the kernel by one message, its ruleset's
generation; only when that differs is our table listed and compared. Each transaction names
the generation that it builds on, and is refused at any other: so the one it makes is known
to be ours alone, and a change in place never lands on what somebody else changed. After a
reboot generations count anew, hence the boot's id. Never touches another table.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netspace.errors import MissingError, NetspaceError
from netspace.interface import netlink
from netspace.interface import nftables as nf
from netspace.interface import table as tables
from netspace.interface.table import Table

_TRIES = 20
# The kernel knows no such kind of rule, chain or object, or no nftables at all.
_LACKING = (*netlink.UNSUPPORTED, errno.ENOENT)


def state(name: str, loaded: Mapping[str, Any]) -> str:
    """Return ``absent``, ``intact`` or ``changed``; *loaded* is what :func:`put` returned."""
    if not loaded:
        return "absent"
    try:
        with nf.Ruleset() as ruleset:
            return _state(ruleset, name, loaded, ruleset.generation())
    except OSError:
        return "changed"  # it can't be told; applying says what is missing


def _state(ruleset: nf.Ruleset, name: str, loaded: Mapping[str, Any], generation: int | None) -> str:
    if _untouched(loaded, generation):
        return "intact"
    listed = ruleset.listed(name, nf.INET)
    if listed is None:
        return "absent"
    return "intact" if listed == (loaded.get("structure"), loaded.get("elements")) else "changed"


def put(name: str, table: Table, before: Table | None, loaded: Mapping[str, Any]) -> dict[str, Any]:
    """Make *table* the one of this name, in one transaction; return what to remember.

    :param before: what *loaded* tells of; if the kernel still holds just that, only what differs is changed.
    :raises MissingError: where the kernel lacks something.
    :raises NetspaceError: it was refused; all is as before.
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
        except netlink.NetlinkError as err:
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
        # Where somebody else changed something meanwhile, the next look finds it changed.
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
    """Return whether the kernel at *generation* holds what was loaded. (One that moves on refuses what follows.)"""
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
