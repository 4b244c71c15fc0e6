"""Whether the host forwards packets: switched on only where an ``allow`` rule needs it.

It is the host's setting as a whole, so the old values are kept and restored when
nothing needs it any more. With IPv6 forwarding, a host that learns its own route from
router advertisements would lose it (``accept_ra`` 1 means "not if forwarding", kernel's
ip-sysctl.rst); there it is raised to 2 first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

SWITCH = {"ipv4": "net/ipv4/ip_forward", "ipv6": "net/ipv6/conf/all/forwarding"}
_SYSCTL = Path("/proc/sys")
_CONF6 = "net/ipv6/conf"


def read(name: str) -> str | None:
    """Return a sysctl's value, or None where the kernel has none of that name."""
    try:
        return (_SYSCTL / name).read_text().strip()
    except OSError:
        return None


def write(name: str, value: str) -> None:
    (_SYSCTL / name).write_text(value)


def switches() -> dict[str, str]:
    """Return the present value of each family's switch, where the kernel has the family."""
    values = {family: read(name) for family, name in SWITCH.items()}
    return {family: value for family, value in values.items() if value is not None}


def changes(needed: Collection[str], now: Mapping[str, str], before: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the changes by sysctl (with dots): ``{"old", "new"}``. Pure.

    :param needed: the families in which packets must be forwarded.
    :param now: :func:`switches`.
    :param before: the values to restore, of what we changed.
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
                # Equal where a run was stopped between restoring and forgetting.
                found[name] = {"old": old if old != wanted else "not confirmed", "new": wanted}
    return {name.replace("/", "."): change for name, change in found.items()}


def old_values(needed: Collection[str], ours: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield each sysctl that :func:`switch` is about to change for *needed*, and its present value.

    :param ours: names of our own interfaces, which never accept advertisements.
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
    """Change what :func:`old_values` told: advertisements first, then the switches."""
    for name in sorted(values, key=lambda name: name in SWITCH.values()):
        write(name, "2" if name.endswith("/accept_ra") else "1")


def restore(values: Mapping[str, str]) -> None:
    """Restore sysctls' old values, the switches first. The settings of an interface that is gone are passed over."""
    for name in sorted(values, key=lambda name: name not in SWITCH.values()):
        with contextlib.suppress(FileNotFoundError):
            write(name, values[name])


def belongs(name: str, family: str) -> bool:
    """Return whether a sysctl was changed for *family*'s sake."""
    return name.startswith(f"net/{family}/")
