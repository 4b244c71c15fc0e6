"""The kinds of interface, one module each: adding a file here adds a kind.

A module holds all that is special to its kind, and nothing else knows it:

- exactly one subclass of :class:`netspace.spec.types.Interface`, whose ``tag`` is the
  kind's name: what an operator may declare;
- ``NEEDS``: the kernel module it needs, or an empty text;
- ``FILTER``: where its packets can be filtered (see below);
- ``ends(spec, place) -> Ends``: what there should be inside and outside, in values;
- ``create(wanted, host) -> [Message]``: how its link is made, put from within the
  environment's namespace. Addresses, routes, settings, drift, changes in place and
  removal are then done alike for every kind.

``FILTER`` is one of

- ``"host"``: they pass the host's network stack at an end that the host has, so that the
  host's nftables table sees them by that end's name (veth);
- ``"inside"``: they don't: they come out of the host's NIC, a bridge or a tunnel straight into
  the environment's namespace. A table in that namespace filters them. The namespace belongs to
  the host's user namespace, so that the environment has no right to change it (macvlan, ipvlan,
  vlan, vxlan, bridge, wireguard);
- ``""``: there are none (none).

Keys that mean the same in every kind: ``ipv4`` and ``ipv6`` (a kind with them gets
addresses), ``mtu``, and those of :class:`netspace.spec.types.Filtered`, the base of every kind
that has a ``FILTER``.
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


def of(spec: Interface) -> ModuleType:
    """Return the module of a declared interface's kind."""
    return _found()[str(type(spec).__struct_config__.tag)][0]
