"""Kernel settings that aren't plain numbers: crashes, BPF compiler, merged pages, security modules, lockdown. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from netspace.host.weaknesses.readings import Reading, Readings, path
from netspace.host.weaknesses.row import Outcome, Row, number, row, said, setting, unseen

_CORE = "kernel.core_pattern"
_COMPILED, _HARDENED = "net.core.bpf_jit_enable", "net.core.bpf_jit_harden"
SYSCTLS = (_CORE, _COMPILED, _HARDENED)

_CONFINING = ("apparmor", "selinux", "smack")
_SECURITY = "/sys/kernel/security"
_UNMOUNTED = (
    f"make sure that securityfs is mounted (`mount -t securityfs securityfs {_SECURITY}`), "
    f"and read {_SECURITY}/{{}} as root"
)


def core_pattern(known: Mapping[str, Reading]) -> Row:
    """Return the row on core dumps: where the kernel puts a crashed program's memory.

    The kernel writes the memory to a file, or passes it to a handler on the host. A handler behind ``|`` runs as root
    in the initial namespaces, unless the limit on core files is exactly 1 (core(5)). netspace sets that limit, and its
    profiles keep programs from changing it. An operator's own profile may allow a change. If the memory goes to a
    socket (``@``), no limit prevents it (fs/coredump.c, Linux 6.16).
    """
    reading = known[_CORE]
    outcome: Outcome = "unknown"
    if not reading.error:
        outcome = "weak" if reading.text.startswith(("|", "@")) else "good"
    return row(
        _CORE,
        outcome,
        said(reading),
        expected="the name of a file, with neither | nor @ before it",
        matters="environments",
        why="A handler on the host, usually run by root, reads the memory of a crashed program. With netspace's "
        "limit of 1 on core files, the kernel starts no handler behind |, and the profiles keep programs from changing "
        "the limit; a profile of your own may permit it. If a socket (@) handles crashes, the limit has no effect.",
        remedy=f"{setting(_CORE, 'core')} that sorts after the handler's own; or count the handler among what you "
        "trust",
        unseen=unseen(path(_CORE)),
    )


def compiler(known: Mapping[str, Reading]) -> Row:
    """Return the row on the BPF JIT compiler, which puts a program's constants into kernel code (sysctl/net.rst)."""
    reading = known[_HARDENED]
    value, found = number(reading), said(reading)
    outcome: Outcome = "unknown"
    if number(known[_COMPILED]) == 0:
        outcome, found = "good", f"{found}; {_COMPILED}: 0"
    elif value is not None:
        outcome = "good" if value in (1, 2) else "weak"
    return row(
        _HARDENED,
        outcome,
        found,
        expected=f"1 or 2, or {_COMPILED} 0",
        matters="environments",
        why="All profiles permit `seccomp`, so that a program can restrict itself. The kernel compiles its filter "
        "to machine code with constants of the program's choice, which helps to exploit a bug of the kernel.",
        remedy=setting(_HARDENED, 1),
        unseen=f"read {path(_HARDENED)} as root, in the host's own network namespace",
    )


def merging(reading: Reading) -> Row:
    """Return the row on the merging of pages with equal content (admin-guide/mm/ksm.rst, "KSM security concerns")."""
    outcomes: Mapping[int | None, Outcome] = {0: "good", 1: "weak", 2: "good"}
    return row(
        "ksm",
        outcomes.get(number(reading), "unknown"),
        said(reading),
        expected="0 or 2",
        matters="host",
        why="Equal pages of programs that ask for it are merged, and the time of a write shows that another program "
        "has the same page. No program under strict or standard can ask (madvise, prctl); virtual machines and "
        "services can.",
        remedy="`echo 2 >/sys/kernel/mm/ksm/run`, and stop what switches it on (ksmtuned)",
        unseen=unseen("/sys/kernel/mm/ksm/run"),
    )


def modules(reading: Reading) -> Row:
    """Return the row on security modules that can confine the host's services (admin-guide/LSM)."""
    outcome: Outcome = "unknown"
    if reading.text:
        outcome = "good" if set(reading.text.split(",")) & set(_CONFINING) else "weak"
    return row(
        "security modules",
        outcome,
        said(reading),
        expected=f"one of {', '.join(_CONFINING)} among them",
        matters="host",
        why="If an attacker controls a service of the host (broker, forwarder), only the rights of its user limit it.",
        remedy="install the distribution's policy (Debian: `apparmor`), and boot with it (`security=apparmor`)",
        unseen=_UNMOUNTED.format("lsm"),
    )


def profiles(seen: Readings) -> Row:
    """Return the row on the AppArmor profile that confines environments (``environment.container.apparmor``)."""
    switched, program = seen.apparmor.text, seen.parser
    outcome: Outcome = "unknown"
    found = said(seen.apparmor)
    if switched == "Y":
        outcome = "good" if program and not seen.unloaded and not seen.toothless else "weak"
        found = f"on, with {program}" if program else "on, without apparmor_parser"
        found += f", which failed: {seen.unloaded}" if program and seen.unloaded else ""
        found += f"; {seen.toothless}" if seen.toothless else ""
    elif switched or (seen.modules.text and "apparmor" not in seen.modules.text.split(",")):
        outcome, found = "weak", "off" if switched else f"not in this kernel: {said(seen.modules)}"
    return row(
        "AppArmor profile",
        outcome,
        found,
        expected="on and enforcing, with apparmor_parser",
        matters="environments",
        why="Environments run without a second barrier. With it, the kernel refuses mounts, capabilities and user "
        "namespaces once more, even if a profile of your own permits the system calls.",
        remedy="install Debian's `apparmor`, and boot a kernel that has it with `security=apparmor`; environments get "
        "the profile when netspace starts them the next time",
        unseen=_UNMOUNTED.format("lsm"),
    )


def lockdown(reading: Reading) -> Row:
    """Return the row on lockdown, which keeps root from changing the running kernel (kernel_lockdown(7))."""
    chosen = re.search(r"\[(\w+)\]", reading.text)
    mode = chosen[1] if chosen else ""
    outcomes: Mapping[str, Outcome] = {"none": "weak", "integrity": "good", "confidentiality": "good"}
    return row(
        "lockdown",
        outcomes.get(mode, "unknown"),
        mode or said(reading),
        expected="integrity or confidentiality",
        matters="host",
        why="Root can change the running kernel, and a measured boot does not show what runs after that. Programs "
        "in environments don't have the rights for that.",
        remedy="boot with Secure Boot, or with `lockdown=integrity`",
        unseen=_UNMOUNTED.format("lockdown"),
    )
