"""pyroute2's message classes, imported at the first request, and only as far as requests need them.

Within Salt, ``import pyroute2`` takes 75 ms, because the package imports all its modules; the modules of the message
classes alone take 8 ms. So these modules are imported below a package whose own code isn't executed. They are kept
apart from any other pyroute2 that code in this process has imported or will import.

The module fills three gaps of pyroute2: settings of IPv4, which it can only read; the flags of ipvlan; and rates of
more than 34 Gbit/s.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Protocol


class MessageClass(Protocol):
    """The part of a pyroute2 message class that this library's requests need."""

    data: bytearray

    def __setitem__(self, key: str, value: object) -> None: ...
    def encode(self) -> None: ...


_PACKAGE = "pyroute2"
_lock = threading.Lock()
_imported: dict[str, ModuleType] = {}


def _is_of_package(name: str) -> bool:
    return name == _PACKAGE or name.startswith(f"{_PACKAGE}.")


@contextlib.contextmanager
def _package_not_executed() -> Iterator[None]:
    """Hide the process's modules of pyroute2 for the duration of the context, so that other copies are imported."""
    others = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_of_package(name)}
    try:
        if not _imported:
            spec = importlib.util.find_spec(_PACKAGE)
            if spec is None:
                raise ModuleNotFoundError(f"No module named {_PACKAGE!r}", name=_PACKAGE)
            _imported[_PACKAGE] = importlib.util.module_from_spec(spec)
        sys.modules.update(_imported)
        yield
        _imported.update((name, module) for name, module in sys.modules.items() if _is_of_package(name))
    finally:
        for name in [name for name in sys.modules if _is_of_package(name)]:
            del sys.modules[name]
        sys.modules.update(others)


def module(name: str) -> Any:
    """Return the module *name* of pyroute2. The whole package is imported only if a future version needs that."""
    with _lock:
        try:
            with _package_not_executed():
                return importlib.import_module(f"{_PACKAGE}.{name}")
        except (ImportError, AttributeError):
            return importlib.import_module(f"{_PACKAGE}.{name}")


def _derived(base: Any, **members: object) -> Any:
    """Return a class derived from one of pyroute2's message classes."""
    return type(base.__name__, (base,), members)


@functools.cache
def link() -> type[MessageClass]:
    """Return the class of messages about network devices."""
    theirs = module("netlink.rtnl.ifinfmsg")
    attribute, base = theirs.nla, theirs.ifinfmsg
    known = base.af_spec_inet
    # IFLA_INET_CONF: an attribute for each setting that is changed. pyroute2 names the settings in the kernel's order.
    conf = _derived(attribute, nla_map=tuple((name.upper(), "uint32") for name in known.inet.field_names))
    inet = _derived(attribute, nla_map=(("IFLA_INET_UNSPEC", "none"), ("IFLA_INET_CONF", "conf")), conf=conf)
    modes = (("IFLA_IPVLAN_UNSPEC", "none"), ("IFLA_IPVLAN_MODE", "uint16"), ("IFLA_IPVLAN_FLAGS", "uint16"))
    kinds = {**base.ifinfo.data_map, "ipvlan": _derived(attribute, nla_map=modes)}
    made: type[MessageClass] = _derived(
        base, af_spec_inet=_derived(known, inet=inet), ifinfo=_derived(base.ifinfo, data_map=kinds)
    )
    return made


@functools.cache
def address() -> type[MessageClass]:
    """Return the class of messages about addresses."""
    return _class("netlink.rtnl.ifaddrmsg", "ifaddrmsg")


@functools.cache
def route() -> type[MessageClass]:
    """Return the class of messages about routes."""
    return _class("netlink.rtnl.rtmsg", "rtmsg")


@functools.cache
def rate_limit() -> type[MessageClass]:
    """Return the class of messages about the rate limit of a network device (tc-tbf(8))."""
    package = module("netlink.rtnl.tcmsg")
    attribute, base, theirs = package.nla, package.tcmsg, package.sched_tbf.options
    options = _derived(
        attribute,
        nla_map=(
            # Without the tables of transmission times, which no kernel of today reads.
            *((name, of if of == "tbf_parms" else "none") for name, of in theirs.nla_map),
            ("TCA_TBF_RATE64", "uint64"),
            ("TCA_TBF_PRATE64", "uint64"),
            ("TCA_TBF_BURST", "uint32"),
        ),
        tbf_parms=_derived(attribute, fields=theirs.tbf_parms.fields),
    )
    names = tuple((name, "options" if name == "TCA_OPTIONS" else of) for name, of in base.nla_map)
    made: type[MessageClass] = _derived(base, nla_map=names, options=options)
    return made


@functools.cache
def wireguard() -> type[MessageClass]:
    """Return the class of messages about WireGuard devices."""
    return _class("netlink.generic.wireguard", "wgmsg")


def _class(where: str, name: str) -> type[MessageClass]:
    found: type[MessageClass] = getattr(module(where), name)
    return found
