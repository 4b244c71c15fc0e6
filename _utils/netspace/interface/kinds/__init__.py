"""The kinds of interface, one module each: adding a file here adds a kind.

A module defines exactly one subclass of :class:`netspace.spec.types.Interface`,
whose ``tag`` is the kind's name, and what is special to it in netlink terms.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from types import ModuleType

from netspace.spec.types import Interface


@functools.cache
def modules() -> dict[str, ModuleType]:
    """Return the module of each kind, by the kind's name."""
    found = {}
    for entry in sorted(pkgutil.iter_modules(__path__), key=lambda entry: entry.name):
        module = importlib.import_module(f"{__name__}.{entry.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Interface) and value is not Interface:
                found[str(value.__struct_config__.tag)] = module
    return found


def specs() -> list[type[Interface]]:
    """Return the declared type of each kind."""
    return [
        value
        for module in modules().values()
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Interface) and value is not Interface
    ]
