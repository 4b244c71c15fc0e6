"""Claims of an environment: the part of its record that all other environments must respect.

A change of one environment needs the claims of all others. They come from an index (:mod:`netspace.index`), so that
only records that the index lacks are decoded.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

import msgspec

import netspace
from netspace.environment import record as records
from netspace.environment.record import Record
from netspace.environment.storage import disk_sizes
from netspace.index import Index
from netspace.known import Known
from netspace.layout import Layout
from netspace.spec.types import Environment

_VERSION = "4"  # increase it whenever `of` or `sort` returns something else for the same record


class Claims(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One environment's claims on the host.

    :param base: host user id to which the environment's user id 0 is mapped.
    :param folders: the host's folders that belong to the environment, as declared.
    :param after: the environments that must be ready before this one starts.
    :param promised: bytes that the environment's own file systems may hold.
    :param watched: whether the environment needs the health-watching service.
    :param confined: the AppArmor profile under which the environment starts; empty if it has none.
    :param tenant: the tenant to which the environment belongs; empty if it belongs to none.
    """

    base: int
    folders: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    promised: int = 0
    watched: bool = False
    confined: str = ""
    tenant: str = ""


class Bases(Container[int]):
    """The set of the first host user ids of all environments.

    Whether an id is in it is mostly decided by the index's encoded text, without decoding the claims.

    :param known: the claims of all environments.
    """

    def __init__(self, known: Mapping[str, Claims]) -> None:
        self._known = known
        self._given: set[int] = set()
        self._all: set[int] | None = None

    def add(self, base: int) -> None:
        """Count *base* as taken, too."""
        self._given.add(base)

    def __contains__(self, base: object) -> bool:
        if base in self._given:
            return True
        # A value's JSON begins with the base: "[1879048192,".
        if self._all is None and isinstance(self._known, Known) and self._known.lack(f"[{base},".encode()):
            return False
        if self._all is None:
            self._all = {its.base for its in self._known.values()}
        return base in self._all


def sort(its: Claims) -> str:
    """Return the group of an environment's claims in the index.

    The group's text tells whether the environment needs the health-watching service, whether it has file systems of a
    bounded size, whether it belongs to a tenant, and its AppArmor profile.

    The index groups the claims by this text.
    """
    return f"{its.watched:d} {its.promised > 0:d} {its.tenant != '':d} {its.confined}"


def of(record: Record) -> Claims:
    """Return the claims of an environment."""
    spec = record.spec
    promised = sum(disk_sizes.sizes(spec).values())
    whose = spec.tenant or ""
    return Claims(record.base, folders(spec), spec.after, promised, watched(spec), record.confined, whose)


def folders(spec: Environment) -> tuple[str, ...]:
    """Return the host's folders that belong to a declared environment."""
    return tuple(volume.source for volume in spec.volumes if volume.source is not None)


def watched(spec: Environment) -> bool:
    """Return whether a declared environment needs the health-watching service."""
    return spec.health is not None or bool(spec.after)


def index(layout: Layout) -> Index[Claims]:
    """Return the index of all environments' claims."""

    def claims(name: str) -> Claims | None:
        record = records.read_one(layout, name)
        return None if record is None else of(record)

    return Index(layout, records.KIND, Claims, f"{_VERSION} {netspace.LOADED}", claims, sort=sort)
