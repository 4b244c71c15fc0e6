"""AppArmor profile of environments, as text for ``apparmor_parser``. Pure.

The profile is a second barrier: it refuses the accesses that namespaces, empty capability sets and the system call
profile refuse, too. So an error in one of these opens nothing. The profile matters most if the operator wrote the
system call profile. The kernel refuses everything that the AppArmor profile doesn't allow. A ``deny`` rule keeps
refusals out of the kernel's log, which a program could otherwise fill. Source: apparmor.d(5).

All environments of one instance have the same profile. Its name ends in a digest of its text, so a loaded profile never
changes. If a new version of netspace has another profile, running programs keep the old one.
"""

from __future__ import annotations

import hashlib
import re

ABIS = ("4.0", "3.0")  # the newest first
_DIGITS = 12

_RULES = """\
  file,
{families}
  unix,
  signal (receive),
  signal (send) peer="{name}",
  ptrace peer="{name}",
  # Of /proc a program may write to its own processes' files only.
  deny /proc/[^1-9]** wlk,
  deny /proc/{{kcore,kmem,kmsg,mem,sysrq-trigger}} rwlkm,
  deny /sys/** wlk,
  deny /sys/{{firmware,kernel/security}}/** rwlkm,
  deny mount,
  deny umount,
  deny pivot_root,
  deny capability,
  deny change_profile,
"""
_NEWER = {
    "4.0": """\
  deny userns,
  deny io_uring,
  mqueue,
""",
}
_FAMILIES = ("inet", "inet6", "unix", "netlink")


def text(name: str, abi: str) -> str:
    """Return the profile *name*.

    :param abi: the feature set for which the text is written (a file in ``/etc/apparmor.d/abi``); empty: the parser's
        default.
    """
    rules = _RULES.format(name=name, families="\n".join(f"  network {family}," for family in _FAMILIES))
    head = f"abi <abi/{abi}>,\n" if abi else ""
    # attach_disconnected: a named pipe of the host, opened before the program's root was set, has no path inside.
    return f'{head}profile "{name}" flags=(attach_disconnected, mediate_deleted) {{\n{rules}{_NEWER.get(abi, "")}}}\n'


def name(instance: str, abi: str) -> str:
    """Return the name of an instance's profile."""
    digest = hashlib.sha256(text("", abi).encode()).hexdigest()[:_DIGITS]
    return f"{instance}-environment-{digest}"


def pattern(instance: str) -> re.Pattern[str]:
    """Return a pattern for the names of an instance's profiles of any version."""
    return re.compile(rf"{re.escape(instance)}-environment-[0-9a-f]{{{_DIGITS}}}")
