"""Records of interfaces: the declared values are on disk; the changes in the kernel are recorded under /run.

``<state>/interfaces/<name>.json`` (:class:`Record`) survives a reboot. It is written before the interface is created,
and deleted after the interface is gone. ``<run>/network.json`` (:class:`Volatile`) describes kernel state, and is gone
after a reboot, like that state.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from netspace import files
from netspace.errors import SpecError, StateError
from netspace.layout import Layout, below
from netspace.spec import parse
from netspace.spec.types import Interface, Prefixed

KIND = "interfaces"


class Record(msgspec.Struct, frozen=True):
    """One environment's interface as it was applied.

    :param interface: the declared interface.
    :param addresses: the environment's addresses, by family.
    :param gateways: the host's addresses at the host's end, by family.
    :param host_end: the name of the host's end; empty for a kind without a host end.
    :param public_key: the public key, for a kind that has a secret.
    :param owner: the host's uid that owns the device, for a kind that has a device; 0: no owner yet.
    """

    interface: Interface
    addresses: Mapping[str, str] = msgspec.field(default_factory=dict)
    gateways: Mapping[str, str] = msgspec.field(default_factory=dict)
    host_end: str = ""
    public_key: str = ""
    owner: int = 0

    def encoded(self) -> dict[str, Any]:
        key = {"public_key": self.public_key} if self.public_key else {}
        return {
            **key,
            **({"owner": self.owner} if self.owner else {}),
            "interface": plain(self.interface),
            "addresses": dict(self.addresses),
            "gateways": dict(self.gateways),
            "host_end": self.host_end,
        }

    def shown(self) -> dict[str, Any]:
        """Return the values that a step shows to an operator as old or new."""
        return self._shown(parse.written(self.interface))

    def news(self) -> dict[str, Any]:
        """Return the values that an operator sees of a new interface: :meth:`shown` without defaults."""
        return self._shown(parse.beyond_defaults(self.interface))

    def _shown(self, declared: Mapping[str, Any]) -> dict[str, Any]:
        given = {family for family in self.addresses if not isinstance(getattr(self.interface, family), Prefixed)}
        shown = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in declared.items()
            if key not in ("ipv4", "ipv6") or isinstance(getattr(self.interface, key), Prefixed)
        }
        if self.owner:
            shown["owner"] = self.owner
        shown |= {f"address:{family}": self.addresses[family] for family in sorted(given)}
        return shown | {f"gateway:{family}": self.gateways[family] for family in sorted(given)}

    @classmethod
    def decoded(cls, value: Mapping[str, Any], path: Path) -> Record:
        """Return the record that *value* encodes.

        :raises StateError: *value* is not a valid record.
        """
        try:
            spec = parse.interface(value["interface"])
            key = str(value.get("public_key", ""))
            owner = int(value.get("owner", 0))
            return cls(spec, dict(value["addresses"]), dict(value["gateways"]), str(value["host_end"]), key, owner)
        except (SpecError, KeyError, TypeError, ValueError, OverflowError) as err:
            raise StateError(f"{path}: {err!r}; remove the file and apply again to rebuild it") from err


def plain(spec: Interface) -> dict[str, Any]:
    """Return a declared interface with lists in place of tuples, as JSON decodes it."""
    encoded = parse.encode(spec)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in encoded.items()}


def path(layout: Layout, name: str) -> Path:
    return below(layout.records(KIND), f"{name}.json")


def secret(layout: Layout, name: str) -> Path:
    """Return the path of the interface's private key. Only root can read the file and its folder."""
    return below(layout.records(KIND), f"{name}.key")


def secrets(layout: Layout, names: Iterable[str]) -> set[str]:
    """Return the names in *names* that have a private key on disk, or a temporary key file that a killed run left."""
    folder = layout.records(KIND)
    return {
        name
        for name in names
        if os.path.lexists(f"{folder}/{name}.key") or os.path.lexists(f"{folder}/.{name}.key.new")
    }


def with_key(layout: Layout, name: str, record: Record, make: Callable[[str], str] | None) -> Record:
    """Return the record with its public key. If the kind needs a secret and there is none, create it.

    :param make: creates the secret in a file, unless it exists, and returns the public key; None: the kind needs none.
    :raises StateError: the record has a public key, but the file of its private key is gone.
    """
    if make is None:
        return record
    where = secret(layout, name)
    if record.public_key and not where.exists():
        raise StateError(
            f"{where} is gone, and its peers know the public key {record.public_key}: put it back, or remove "
            "the interface (netspace_interface.absent) and apply again for a new one",
        )
    return msgspec.structs.replace(record, public_key=make(str(where)))


def write_all(layout: Layout, wanted: Mapping[str, Record]) -> dict[str, str]:
    """Write the records of these interfaces; return the errors, by environment."""
    paths = {path(layout, name): name for name in wanted}
    contents = {where: files.encode(wanted[name].encoded()) for where, name in paths.items()}
    return {paths[where]: f"its record can't be written: {err}" for where, err in files.write_all(contents)[1].items()}


def some(layout: Layout, names: Iterable[str]) -> dict[str, Record]:
    """Return the existing records of *names*, by name."""
    found = ((name, read_one(layout, name)) for name in sorted(files.record_names(layout.records(KIND), names)))
    return {name: record for name, record in found if record is not None}


def read_one(layout: Layout, name: str) -> Record | None:
    """Return one environment's record; None if there is none."""
    value = files.read_json(path(layout, name))
    return None if value is None else Record.decoded(value, path(layout, name))


def _quickly(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None if there is no such file, or the file has to be looked at more closely."""
    try:
        value = msgspec.json.decode(files.read(path, files.MAX_RECORD))
    except (OSError, msgspec.DecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


class Volatile(msgspec.Struct):
    """Changes in the kernel since the host started.

    :param namespaces: the inode of each namespace that was created and set up completely, by its environment.
    :param firewall: facts about the host's nftables table: ``rendered`` (digest of the desired table), ``structure``
        and ``elements`` (digests of the table that the kernel held after loading), ``generation``, and the ``boot`` in
        which the generation was counted. Empty: there is no table.
    :param forwarding: the sysctls of the host that were changed, each with the value to restore.
    :param folder: the parts of the folder of namespaces that netspace created (``folder``, ``mount``).
    :param guards: facts about the table in each environment's namespace: ``rendered``, ``listed`` (digests of the table
        that the kernel held after loading) and ``generation``.
    """

    namespaces: dict[str, int] = msgspec.field(default_factory=dict)
    firewall: dict[str, Any] = msgspec.field(default_factory=dict)
    forwarding: dict[str, str] = msgspec.field(default_factory=dict)
    folder: dict[str, bool] = msgspec.field(default_factory=dict)
    guards: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)

    @staticmethod
    def path(layout: Layout) -> Path:
        return layout.run / "network.json"

    @classmethod
    def read(cls, layout: Layout) -> Volatile:
        value = _quickly(cls.path(layout))
        if value is None:
            value = files.read_json(cls.path(layout)) or {}
        return cls(
            *(dict(value.get(key) or {}) for key in ("namespaces", "firewall", "forwarding", "folder", "guards"))
        )

    def write(self, layout: Layout) -> None:
        """Write the file if its content changed; remove it if nothing is to be stored."""
        content = {
            "namespaces": self.namespaces,
            "firewall": self.firewall,
            "forwarding": self.forwarding,
            "folder": self.folder,
            "guards": self.guards,
        }
        if any(content.values()):  # neither sorted nor indented: it may have thousands of namespaces
            files.write(self.path(layout), msgspec.json.encode(content) + b"\n")
        else:
            files.remove(self.path(layout))
