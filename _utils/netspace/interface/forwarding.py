"""The host's packet forwarding, which is switched on only if an ``allow`` rule or a published port needs it.

Forwarding is a setting of the whole host. So the old values are recorded, and restored when no interface needs
forwarding any more. A host that learns its own route from router advertisements would lose this route with IPv6
forwarding (``accept_ra`` 1 means "not if forwarding", kernel's ip-sysctl.rst). So ``accept_ra`` is raised to 2 first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from netspace.netlink.connection import Socket
from netspace.netlink.reading import FAMILIES

SWITCH = {"ipv4": "net/ipv4/ip_forward", "ipv6": "net/ipv6/conf/all/forwarding"}
_SYSCTL = Path("/proc/sys")
_CONF6 = "net/ipv6/conf"


def read(name: str) -> str | None:
    """Return a sysctl's value, or None if the kernel has no such sysctl."""
    try:
        return (_SYSCTL / name).read_text().strip()
    except OSError:
        return None


def write(name: str, value: str) -> None:
    (_SYSCTL / name).write_text(value)


def switches() -> dict[str, str]:
    """Return the present value of the forwarding sysctl of each family that the kernel has.

    The values come by netlink, not from files below ``/proc/sys/net``: each namespace has its own entries of the same
    names there, so that the kernel finds a file more slowly with every namespace.
    """
    with Socket() as host:
        values = {family: host.forwards(number) for family, number in FAMILIES.items()}
    return {family: f"{value}" for family, value in values.items() if value is not None}


def changes(needed: Collection[str], now: Mapping[str, str], before: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the needed changes of sysctls, by name (with dots), each as ``{"old", "new"}``. Pure.

    :param needed: the families in which packets must be forwarded.
    :param now: the result of :func:`switches`.
    :param before: the recorded old values of sysctls that netspace changed.
    """
    found = {}
    for family, switch in SWITCH.items():
        value = now.get(family)
        if value is None:
            continue
        if family in needed:
            if value != "1":
                found[switch] = {"old": value, "new": "1"}
            continue
        for name, wanted in before.items():
            if belongs(name, family):
                old = value if name == switch else "2"
                # The values are equal if a run was killed after it restored the value and before it recorded that.
                found[name] = {"old": old if old != wanted else "not confirmed", "new": wanted}
    return {name.replace("/", "."): change for name, change in found.items()}


def old_values(needed: Collection[str], ours: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield each sysctl that :func:`switch_on` must change for *needed*, with its present value.

    :param ours: names of netspace's host ends, which never accept advertisements.
    """
    for family in sorted(needed):
        if read(SWITCH[family]) != "0":
            continue
        yield SWITCH[family], "0"
        if family == "ipv6":
            for entry in sorted((_SYSCTL / _CONF6).iterdir()):
                name = f"{_CONF6}/{entry.name}/accept_ra"
                if entry.name not in ours and entry.name not in ("all", "lo") and read(name) == "1":
                    yield name, "1"


def switch_on(values: Mapping[str, str]) -> None:
    """Change the sysctls that :func:`old_values` yielded: ``accept_ra`` first, then the switches."""
    for name in sorted(values, key=lambda name: name in SWITCH.values()):
        write(name, "2" if name.endswith("/accept_ra") else "1")


def restore(values: Mapping[str, str]) -> None:
    """Restore the old values of sysctls, the forwarding sysctls first. Interfaces that no longer exist are skipped."""
    for name in sorted(values, key=lambda name: name not in SWITCH.values()):
        with contextlib.suppress(FileNotFoundError):
            write(name, values[name])


def belongs(name: str, family: str) -> bool:
    """Return whether a sysctl belongs to *family*."""
    return name.startswith(f"net/{family}/")
