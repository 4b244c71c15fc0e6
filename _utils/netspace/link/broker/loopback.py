"""The nftables table that keeps local users of the host from the ports of netspace's own broker.

The broker listens at 127.0.0.1, where any process of the host can connect. Its ports require a certificate, a password
or a secret, but each connection is a chance to attack the code that checks these. So two rules drop packets on loopback
by the user who owns the sending socket. Only root, the broker and the forwarder may send to the ports. Only root and
the broker may send from them: if a program takes a port while the broker is down, it can't answer, so no client sends
it a password.

A record shows that the table is netspace's. It is written before the table is loaded, so that the next run and a
removal know the table even if a run is killed. A table of that name without a record belongs to somebody else, and
stays as it is.
"""

from __future__ import annotations

import pwd
import struct
from pathlib import Path
from typing import Literal

from netspace import files
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.nftables import table as tables
from netspace.nftables.library import LibraryMissingError, missing
from netspace.nftables.ruleset import FAMILIES, Ruleset
from netspace.nftables.table import Base, Chain, Collection, Table
from netspace.nftables.words import Verdict
from netspace.spec.types import PORTS, LocalBroker

State = Literal["intact", "changed", "unsupported"]

NODE, FORWARDER = "rabbitmq", "haproxy"
"""The system users of the broker and of the forwarder."""
_INET = FAMILIES["inet"]
_LOOPBACK = 1  # index of lo, in any network namespace
_ADDRESS = "127.0.0.1"


def table(layout: Layout) -> str:
    """Return the table's name, family inet."""
    return f"{layout.instance}-broker"


def _path(layout: Layout) -> Path:
    return layout.records("link") / "loopback.json"


def rules(*specs: LocalBroker) -> Table:
    """Return the table for the ports of these brokers: the declared one, and an earlier one that may still run."""
    node, forwarder = (_user(user) for user in (NODE, FORWARDER))
    ports: dict[bytes, Verdict | None] = {
        struct.pack(">Hxx", getattr(spec, key)): None for spec in specs for key in PORTS
    }
    towards, back = _dropped("daddr", "dport", (0, node, forwarder)), _dropped("saddr", "sport", (0, node))
    return Table(
        chains={"output": Chain([towards, back], Base("filter", "output"))},
        sets={"ports": Collection(("inet_service",), ports)},
    )


def _dropped(address: str, port: str, users: tuple[int, ...]) -> str:
    """Return a rule that drops packets of all users except *users*.

    A packet without a socket (for example, of a connection that its program has closed) has no user and passes.

    :param address: nft's name of the field with the broker's address: daddr or saddr.
    :param port: nft's name of the field with the broker's port: dport or sport.
    """
    others = f"meta skuid != {{ {', '.join(map(str, users))} }}"
    return f"oif {_LOOPBACK} ip {address} {_ADDRESS} tcp {port} @ports {others} drop"


def _user(name: str) -> int:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError as err:
        raise NetspaceError(f"the system user {name} is missing; install its Debian package") from err


def state(layout: Layout, spec: LocalBroker) -> State:
    """Return the state of the table: ``intact``, ``changed`` or ``unsupported``. Changes nothing.

    ``intact``: it is as netspace loaded it, and for the ports of *spec*. ``unsupported``: the host has no nftables.
    """
    known = files.read_json(_path(layout)) or {}
    try:
        with Ruleset() as ruleset:
            if ruleset.generation() is None:
                return "unsupported"
            listed = ruleset.listed(table(layout), _INET)
    except OSError:
        return "unsupported"
    loaded = listed is not None and list(listed) == known.get("listed")
    return "intact" if loaded and known.get("rendered") == rules(spec).digest else "changed"


def ensure(layout: Layout, *specs: LocalBroker) -> None:
    """Load the table for the ports of these brokers, unless it is loaded already. Without nftables, do nothing.

    :raises NetspaceError: a table that isn't netspace's has its name, or the kernel refuses it.
    """
    name, path = table(layout), _path(layout)
    wanted = rules(*specs)
    about = {"table": name, "rendered": wanted.digest}
    try:
        with Ruleset() as ruleset:
            before = ruleset.generation()
            if before is None:
                return
            known, there = files.read_json(path), ruleset.listed(name, _INET)
            if known is None and there is not None:
                raise NetspaceError(f"nftables table inet {name}: it isn't netspace's; rename or delete it")
            if there is not None and known == {**about, "listed": list(there)}:
                return
            files.write_json(path, about)
            generation = ruleset.load(tables.whole(name, wanted), before)
            listed = None if generation is None else ruleset.confirmed(name, generation, _INET)
    except LibraryMissingError as err:
        raise missing(err) from err
    except OSError as err:
        raise NetspaceError(f"nftables table inet {name}: it can't be loaded: {err}") from err
    if listed is not None:  # else somebody else changed the ruleset meanwhile, and the next observation says so
        files.write_json(path, {**about, "listed": list(listed)})


def remove(layout: Layout) -> None:
    """Remove the nftables table that the record names."""
    if not _path(layout).exists():
        return
    try:
        with Ruleset() as ruleset:
            generation = ruleset.generation()
            if generation is not None:
                ruleset.load(tables.removal("inet", table(layout)), generation)
    except LibraryMissingError as err:
        raise missing(err) from err
    except OSError as err:
        raise NetspaceError(f"nftables table inet {table(layout)}: it can't be removed: {err}") from err
    files.remove(_path(layout))
