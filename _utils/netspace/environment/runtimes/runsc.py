"""``runsc`` (gVisor): the program's system calls are answered by a kernel of its own, in user space.

That kernel has its own ``/proc`` and ``/sys`` and sees neither masks nor a time namespace. It uses the
network namespace's own stack (``--network=host``): the only way into an existing namespace.
Its sandbox passes signals on to the program, and ends when the program ends. The program's writes go to
the environment's layer, never to memory of runsc's own (``--overlay2=none``).
"""

from __future__ import annotations

from typing import Literal

from netspace.environment import runtimes

PROGRAM = PACKAGE = "runsc"
RUNS = "images"
OWN_KERNEL = True
LACKS = ("time", "idmap", "umask", "tidy", "users")
FIXED_NAMES = True
# Measured with two processors and an idle shell in it: of four starts each succeeds from 20M and from 32 on. It peaks
# at 18M and 29 threads, of its kernel and its file server; a program needs more of both.
LEAST = {"memory": 24 * 1024**2, "pids": 48}
# With the socket of a launch that was killed, the next one would put its own into /run, then /tmp, and then fail.
ENTRIES = ("{0}_sandbox:{0}.state", "{0}_sandbox:{0}.lock", "runsc-{0}.sock")


class Settings(runtimes.Settings, frozen=True):
    """The settings of runsc.

    :param platform: the way in which the program's system calls are caught; ``kvm`` needs ``/dev/kvm``.
    """

    platform: Literal["systrap", "ptrace", "kvm"] = "systrap"


def options(settings: Settings) -> tuple[str, ...]:
    return (
        *("--log-format", "json", "--platform", settings.platform, "--network", "host"),
        *("--overlay2", "none", "--oci-seccomp", "--host-uds", "none", "--host-fifo", "none"),
    )
