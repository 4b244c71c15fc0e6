"""Drop of root's rights, before the peer reads the first byte from an environment.

After the drop, the process has its own user id, no capability, no way to gain any, no network, and few resources. It
can read its own folder, and every file that all users of the host can read. It can write only into the subfolder
``own``. It never gets root's rights back.
"""

from __future__ import annotations

import ctypes
import os
import resource

from netspace.supervision import process

_NEWNET, _NEWIPC = 0x40000000, 0x08000000  # linux/sched.h
_DESCRIPTORS, _FILE, _MEMORY = 64, 16 * 1024 * 1024, 512 * 1024 * 1024


def drop(user: int) -> None:
    """Become *user*, without a network.

    :raises OSError: a step failed; the process must end.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEWNET | _NEWIPC) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"unshare: {os.strerror(error)}")
    for limit, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _DESCRIPTORS),
        (resource.RLIMIT_FSIZE, _FILE),
        (resource.RLIMIT_AS, _MEMORY),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(limit, (most, most))
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    process.prctl(process.PR_SET_NO_NEW_PRIVS)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    if os.getresuid() != (user,) * 3 or os.getresgid() != (user,) * 3 or os.getgroups():
        raise OSError("the process still has root's rights")
