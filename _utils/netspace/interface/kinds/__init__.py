"""The kinds of interface, one module each: adding a file here adds a kind.

A module holds everything that is special to its kind; no other module knows it:

- exactly one subclass of :class:`netspace.spec.types.Interface`, whose ``tag`` is the kind's name. Its fields are the
  keys that an operator may declare. Its methods return the problems of the values (``problems``), the things that only
  one interface can have (``claims``), the values that all interfaces must agree about (``shares``) and the UDP ports of
  the host that its tunnel uses (``listens``);
- ``NEEDS``: the kernel module that the kind needs, and ``LINK``: the kernel's name of such devices; or empty texts;
- ``FILTER``: the place where packets are filtered (see below);
- ``ends(spec, place) -> Endpoints``: the desired inner and outer end, as values. An end's ``details`` hold the settings
  that only this kind knows;
- ``create(wanted, far, parents) -> [Message]``: the netlink messages that create the device. They are sent from the
  environment's namespace, and *far* is a descriptor of the host's. With ``FROM_HOST = True`` they are sent from the
  host's namespace, and *far* is a descriptor of the environment's; the device is then created with the name
  ``wanted.made_as``. *parents* are the indexes of the host's devices that the interface names.

A module may also have:

- ``parents(spec) -> (name, ...)``: the devices of the host that the interface needs;
- ``lacks(spec, links) -> str``: for the operator, why these devices of the host don't allow the interface; empty if
  they do. Pure. If there is a reason, nothing of that environment is changed;
- ``details(link, like, hosts) -> dict``: the observed ``details`` of an end; *hosts* are the names of the host's
  devices by their index. Runs in the device's namespace; reads only;
- ``FIXED``: the details that the kernel can't change in place. If one differs, the device is created again. The step
  names this detail as its reason;
- ``change(index, now, wanted, parents) -> [Message]``: the netlink messages that change the other details of one end
  from *now* (None: just created) to *wanted*. They are sent from the device's namespace before the device is up;
- ``guard(wanted, place) -> (Table, ...)``: the kind's own tables in the environment's namespace. A kind with ``FILTER =
  "inside"`` that lacks this function gets the tables of ``netspace.interface.firewall.netns_rules``;
- ``secret(path) -> str``: creates the interface's secret at *path* unless there is one, and returns its public part.

The common code then handles addresses, routes, settings, drift, changes in place, restoring and removal for every kind.
``netspace.interface.lan`` holds the code that kinds on an external network share.

``FILTER`` is one of

- ``"host"``: packets pass the host's network stack at an end on the host. The host's nftables table matches them by
  that end's name (veth, tap);
- ``"inside"``: packets go from the host's NIC, a bridge or a tunnel straight into the environment's namespace. A table
  in that namespace filters them. The namespace belongs to the host's user namespace, so that the environment has no
  right to change the table (macvlan, ipvlan, vlan, vxlan, bridge, wireguard);
- ``""``: there are no packets (none).

These keys mean the same in every kind: ``ipv4`` and ``ipv6`` (a single address is from netspace's own ranges; an
address with a prefix is on an external network), ``mtu``, and the keys of :class:`netspace.spec.types.Filtered`, the
base of every kind that has a ``FILTER``.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from types import ModuleType

from netspace.spec.types import Interface


@functools.cache
def names() -> tuple[str, ...]:
    """Return the names of all kinds: those of this folder's modules. Imports none of them."""
    # Not by pkgutil, which loads ``inspect``: 10 ms in each process.
    return tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__"))


@functools.cache
def _found(kind: str) -> tuple[ModuleType, type[Interface]]:
    """Return the module of a kind and its declared type. A process imports only the kinds that it meets."""
    module = importlib.import_module(f"{__name__}.{kind}")
    own = (value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__)
    return module, next(value for value in own if issubclass(value, Interface))


def modules() -> dict[str, ModuleType]:
    """Return the module of each kind, by the kind's name."""
    return {kind: _found(kind)[0] for kind in names()}


def specs() -> list[type[Interface]]:
    """Return the declared type of each kind."""
    return [_found(kind)[1] for kind in names()]


def spec(kind: object) -> type[Interface] | None:
    """Return the declared type of the kind with this name; None if there is no such kind."""
    return _found(kind)[1] if isinstance(kind, str) and kind in names() else None


def name(spec: Interface) -> str:
    """Return the name of a declared interface's kind."""
    return str(type(spec).__struct_config__.tag)


def of(spec: Interface) -> ModuleType:
    """Return the module of a declared interface's kind."""
    return _found(str(type(spec).__struct_config__.tag))[0]


@functools.lru_cache(64)
def filtered(kind: str, place: str) -> bool:
    """Return whether packets of the kind with this name are filtered at *place* (a value of ``FILTER``)."""
    return kind in names() and bool(place == _found(kind)[0].FILTER)


def parents(spec: Interface) -> tuple[str, ...]:
    """Return the network devices of the host that a declared interface needs."""
    named = getattr(of(spec), "parents", None)
    return tuple(named(spec)) if named is not None else ()
