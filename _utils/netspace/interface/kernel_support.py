"""Check of the kernel modules that kinds of interface need. Reads only; never loads a module itself.

Files list the modules that are loaded, built in or loadable. If they don't list the module (say, because the kernel has
no such files), a device of the kind is created in a temporary network namespace, as a test. Each kind is checked once
per run.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from pathlib import Path

from netspace.interface import kinds, netns
from netspace.netlink import connection, requests
from netspace.netlink.connection import Socket
from netspace.netlink.reading import Link
from netspace.spec.types import Interface
from netspace.threads import in_thread


def missing(specs: Iterable[Interface], links: Iterable[Link]) -> dict[str, str]:
    """Return, for each kind among *specs* that this kernel lacks, a text: the missing module and the remedy.

    :param links: the host's network devices. If one is of the kind, the kernel has the module.
    """
    modules = {kinds.name(spec): kinds.of(spec) for spec in specs}
    there = {link.kind for link in links}
    return {
        name: f"the kernel's module {module.NEEDS} is missing on this host; boot a kernel that has it (Debian: "
        f"linux-image-amd64; then modprobe {module.NEEDS}), or declare an interface of another kind"
        for name, module in modules.items()
        if module.NEEDS and module.LINK not in there and not has(module.NEEDS, module.LINK)
    }


@functools.cache
def has(module: str, kind: str) -> bool:
    """Return whether the kernel has *module*, or can load it.

    :param kind: the kernel's name for network devices that the module provides.
    """
    return listed(module) or _tried(kind)


def listed(module: str, modules: Path = Path("/lib/modules"), sys: Path = Path("/sys/module")) -> bool:
    """Return whether files list a module as loaded, built in or loadable (modules.dep(5))."""
    if (sys / module.replace("-", "_")).is_dir():
        return True
    for name in ("modules.builtin", "modules.dep"):
        try:
            text = (modules / os.uname().release / name).read_text(errors="replace")
        except OSError:
            continue
        if any(line.partition(":")[0].rpartition("/")[2].startswith(f"{module}.ko") for line in text.splitlines()):
            return True
    return False


def _tried(kind: str) -> bool:
    def attempt() -> bool:
        netns.unshare()
        with Socket() as scratch:
            failures = scratch.batch([requests.add_link(kind, "try", mtu=1500)])
        # A kernel that has the kind may refuse with another error, because the message names no parent and no id.
        return all(failure.code not in connection.UNSUPPORTED for failure in failures.values())

    return in_thread(attempt)
