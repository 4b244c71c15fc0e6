"""Whether the kernel killed something in a control group for want of memory. Reads only.

cgroup version 2 counts that in ``memory.events``, version 1 in ``memory.oom_control``.
"""

from __future__ import annotations

ROOT = "/sys/fs/cgroup"


def killed(cgroup: str, root: str = ROOT) -> bool:
    """Whether any process of *cgroup* was; it must still be there.

    :param root: where the cgroup file systems are mounted; only tests set it.
    """
    for file in (f"{root}{cgroup}/memory.events", f"{root}/memory{cgroup}/memory.oom_control"):
        try:
            with open(file) as stream:
                counts = dict(line.split() for line in stream)
        except (OSError, ValueError):
            continue
        if counts.get("oom_kill", "0") != "0":
            return True
    return False
