"""The kinds of interface, one module each: adding a file here adds a kind.

A module holds all that is special to its kind, and nothing else knows it:

- exactly one subclass of :class:`netspace.spec.types.Interface`, whose ``tag`` is the
  kind's name: what an operator may declare. Its methods say what is wrong with the values
  (``problems``), what only one interface can have (``claims``) or all must agree about (``shares``);
- ``NEEDS``: the kernel module it needs, and ``LINK``: the kernel's name of such links; or empty texts;
- ``FILTER``: where its packets can be filtered (see below);
- ``ends(spec, place) -> Ends``: what there should be inside and outside, in values. What only
  this kind knows stands in an end's ``details``;
- ``create(wanted, far, parents) -> [Message]``: how its link is made. The messages are put from
  within the environment's namespace, *far* being a descriptor of the host's; or, with
  ``FROM_HOST = True``, from the host's, *far* being the environment's: then the link is made with
  the name ``wanted.made_as``. *parents* are the indexes of the host's links that it names.

and, where the kind has use for it:

- ``parents(spec) -> (name, ...)``: the links of the host that it needs;
- ``lacks(spec, links) -> str``: why it can't be had with these links of the host, for the
  operator; pure. Then nothing of that environment is changed;
- ``details(link, like, hosts) -> dict``: what is true of an end, in the keys of its ``details``;
  *hosts* are the names of the host's links by their index. Runs in the link's namespace; reads only;
- ``FIXED``: the details that the kernel can't change in place: where one differs, the link is
  made anew, with that as the reason;
- ``change(index, now, wanted, parents) -> [Message]``: what brings the other details of one end from
  *now* (None: just made) to *wanted*, put from within the link's namespace before the link is up;
- ``guard(table, wanted, place) -> [Message]``: the table in the environment's namespace,
  of the kind's own making (``"inside"`` has one without);
- ``secret(path) -> str``: make the secret that it needs at *path* unless there is one; return what
  may be known of it.

Addresses, routes, settings, drift, changes in place, restoring and removal are then done alike for
every kind. ``netspace.interface.lan`` has what kinds share that are part of somebody's network.

``FILTER`` is one of

- ``"host"``: they pass the host's network stack at an end that the host has, so that the
  host's nftables table sees them by that end's name (veth, tap);
- ``"inside"``: they don't: they come out of the host's NIC, a bridge or a tunnel straight into
  the environment's namespace. A table in that namespace filters them. The namespace belongs to
  the host's user namespace, so that the environment has no right to change it (macvlan, ipvlan,
  vlan, vxlan, bridge, wireguard);
- ``""``: there are none (none).

Keys that mean the same in every kind: ``ipv4`` and ``ipv6`` (a single address comes out of
netspace's own ranges, one with a prefix is on somebody's network), ``mtu``, and those of
:class:`netspace.spec.types.Filtered`, the base of every kind that has a ``FILTER``.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from types import ModuleType

from netspace.spec.types import Interface


@functools.cache
def _found() -> dict[str, tuple[ModuleType, type[Interface]]]:
    found = {}
    for entry in sorted(pkgutil.iter_modules(__path__), key=lambda entry: entry.name):
        module = importlib.import_module(f"{__name__}.{entry.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Interface) and value.__module__ == module.__name__:
                found[str(value.__struct_config__.tag)] = (module, value)
    return found


def modules() -> dict[str, ModuleType]:
    """Return the module of each kind, by the kind's name."""
    return {name: module for name, (module, _) in _found().items()}


def specs() -> list[type[Interface]]:
    """Return the declared type of each kind."""
    return [spec for _, spec in _found().values()]


def name(spec: Interface) -> str:
    """Return the name of a declared interface's kind."""
    return str(type(spec).__struct_config__.tag)


def of(spec: Interface) -> ModuleType:
    """Return the module of a declared interface's kind."""
    return _module(type(spec))


@functools.cache
def _module(spec: type[Interface]) -> ModuleType:
    return _found()[str(spec.__struct_config__.tag)][0]


def parents(spec: Interface) -> tuple[str, ...]:
    """Return the links of the host that a declared interface needs."""
    named = getattr(of(spec), "parents", None)
    return tuple(named(spec)) if named is not None else ()
