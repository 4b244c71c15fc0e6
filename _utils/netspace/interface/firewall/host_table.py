"""The host's nftables table in the kernel: loads it, and detects changes by other programs.

The kernel counts the changes of its ruleset (the *generation*), and one message asks for this number. Only if it
differs from the recorded one, the table is listed and compared. A transaction that changes the table in place is based
on a generation. If the ruleset isn't at the next generation afterwards, somebody else has changed it, too; in this case
the table is compared, or loaded whole. Generations start again at a reboot, so the boot's id is recorded with them. No
other table is ever touched.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from netspace import files
from netspace.errors import MissingError, NetspaceError
from netspace.netlink import connection
from netspace.nftables import table as tables
from netspace.nftables.library import LibraryMissingError, NftablesError, missing
from netspace.nftables.ruleset import FAMILIES, Ruleset
from netspace.nftables.table import Table

# Returns two complete tables: before and after.
Whole = Callable[[], Sequence[Table]]
# The answers of a kernel that lacks this kind of rule, chain or object, or nftables as a whole.
_LACKING = (*connection.UNSUPPORTED, errno.ENOENT)


def state(name: str, loaded: Mapping[str, Any], elements: Callable[[], str | None] = lambda: None) -> str:
    """Return whether the table is ``absent``, ``intact`` or ``changed``.

    :param name: the table's name.
    :param loaded: the facts that :func:`put` returned.
    :param elements: returns the digest of the loaded table's elements, for the case that *loaded* lacks it; None:
        unknown.
    """
    if not loaded:
        return "absent"
    try:
        with Ruleset() as ruleset:
            return _state(ruleset, name, loaded, ruleset.generation(), elements)
    except OSError:
        return "changed"  # unknown; loading then reports the missing feature


def _state(
    ruleset: Ruleset,
    name: str,
    loaded: Mapping[str, Any],
    generation: int | None,
    elements: Callable[[], str | None] = lambda: None,
) -> str:
    if _untouched(loaded, generation):
        return "intact"
    listed = ruleset.listed(name, FAMILIES["inet"])
    if listed is None:
        return "absent"
    noted = loaded["elements"] if "elements" in loaded else elements()
    return "intact" if listed == (loaded.get("structure"), noted) else "changed"


def put(
    name: str,
    table: Table,
    before: Table | None,
    loaded: Mapping[str, Any],
    whole: Whole | None = None,
    notes: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Load *table* under this name, in one transaction; return the facts to record in ``Volatile``.

    :param before: the table that *loaded* describes. If the kernel still holds it, only the difference is changed.
    :param loaded: the facts that the last call returned.
    :param whole: returns the complete tables, before and after. They are needed if *before* and *table* have only the
        parts that matter for the difference.
    :param notes: facts by which the caller recognizes the table; they are recorded instead of digests of the complete
        table.
    :raises MissingError: the kernel lacks a feature.
    :raises NetspaceError: the kernel refused the table; nothing has changed.
    """
    try:
        with Ruleset() as ruleset:
            facts = _put(ruleset, name, table, before, loaded, whole)
    except OSError as err:
        raise explained(err) from err
    if not facts or not notes:
        return facts
    return {**{key: value for key, value in facts.items() if key not in ("rendered", "elements")}, **notes}


def _put(
    ruleset: Ruleset,
    name: str,
    table: Table,
    before: Table | None,
    loaded: Mapping[str, Any],
    whole: Whole | None,
) -> dict[str, Any]:
    now = ruleset.generation()
    if whole is not None and table.chains:
        if before is not None and _untouched(loaded, now):
            facts = _changed_in_place(ruleset, name, table, before, loaded, now, whole)
            if facts is not None:
                return facts
            now = ruleset.generation()
            before, table = None, whole()[1]
        else:
            before, table = whole()
            loaded = {**loaded, "elements": before.elements}
    old = before if before is not None and table.chains and _holds(ruleset, name, loaded, now) else None
    if old is not None:
        facts = _changed_in_place(ruleset, name, table, old, loaded, now)
        if facts is not None:
            return facts
        now = ruleset.generation()
    made = ruleset.load(tables.whole(name, table), now)
    if not table.chains:
        return {}
    return _facts(table, made, _structure(ruleset, name, made))


def _changed_in_place(
    ruleset: Ruleset,
    name: str,
    table: Table,
    old: Table,
    loaded: Mapping[str, Any],
    now: int | None,
    whole: Whole | None = None,
) -> dict[str, Any] | None:
    """Change *old*, which the kernel holds, into *table*; return the facts to record.

    None if somebody else changed the ruleset meanwhile.
    """
    try:
        made = ruleset.load(tables.difference(name, old, table), now)
    except NftablesError:
        if ruleset.generation() == now:
            raise
        return None
    if not old.same_structure(table):
        return None if made is None else _facts(table, made, _structure(ruleset, name, made), whole is None)
    structure = str(loaded.get("structure"))
    if made is None:
        made = ruleset.generation()
        if made is None or ruleset.confirmed(name, made, FAMILIES["inet"]) != (
            structure,
            (table if whole is None else whole()[1]).elements,
        ):
            return None
    return _facts(table, made, structure, whole is None)


def _structure(ruleset: Ruleset, name: str, generation: int | None) -> str | None:
    """Return the digest of the loaded table's structure.

    None if somebody else changed the ruleset meanwhile; the next observation then reports the table as changed.
    """
    listed = None if generation is None else ruleset.confirmed(name, generation, FAMILIES["inet"], elements=False)
    return None if listed is None else listed[0]


def _facts(table: Table, generation: int | None, structure: str | None, complete: bool = True) -> dict[str, Any]:
    """Return the facts to record about the loaded rules.

    :param complete: whether *table* is the complete table. If not, its digests are left out.
    """
    digests = {"rendered": table.digest, "elements": table.elements} if complete else {}
    return {**digests, "boot": _boot(), "generation": generation, "structure": structure}


def _untouched(loaded: Mapping[str, Any], generation: int | None) -> bool:
    return generation is not None and loaded.get("generation") == generation and loaded.get("boot") == _boot()


def _holds(ruleset: Ruleset, name: str, loaded: Mapping[str, Any], generation: int | None) -> bool:
    """Return whether the kernel's ruleset at *generation* contains the loaded table."""
    return bool(loaded) and generation is not None and _state(ruleset, name, loaded, generation) == "intact"


@functools.cache
def _boot() -> str:
    return files.boot_id()


def explained(error: OSError) -> NetspaceError:
    """Return the error, with reason and remedy, for a table that wasn't loaded."""
    said = error.strerror or str(error)
    if isinstance(error, LibraryMissingError):
        return missing(error)
    if error.errno in _LACKING:
        return MissingError(
            f"nftables in the kernel ({said})",
            "use a kernel with CONFIG_NF_TABLES_INET, NFT_CT, NFT_CONNLIMIT, NFT_MASQ, NFT_NAT, NFT_FIB_INET, "
            "NF_CONNTRACK and NF_CONNTRACK_TIMEOUT, or declare kind none only",
        )
    if error.errno == errno.EPERM:
        said += "; another program owns a table of that name (nft list tables), or this one isn't run by root"
    return NetspaceError(f"the kernel refused the packet filter: {said}")
