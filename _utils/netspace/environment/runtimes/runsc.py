"""``runsc`` (gVisor): a kernel in user space answers the program's system calls.

That kernel has its own ``/proc`` and ``/sys`` and sees neither masks nor a time namespace. It uses the
network namespace's own stack (``--network=host``): the only way into an existing namespace.
Its sandbox forwards signals to the program, and ends when the program ends. The program's writes go to
the environment's layer, never to memory of runsc itself (``--overlay2=none``).
"""

from __future__ import annotations

from typing import Literal

from netspace.environment import runtimes

PROGRAM = PACKAGE = "runsc"
RUNS = "images"
OWN_KERNEL = True
LACKS = ("time", "idmap", "umask", "tidy", "users", "apparmor")
FIXED_NAMES = True
# Measured with two processors and an idle shell: from 20M and 32 pids on, each of four starts succeeds. Its kernel and
# its file server peak at 18M and 29 threads; a program needs more of both.
LEAST = {"memory": 24 * 1024**2, "pids": 48}
# If a killed launch left its socket, the next launch would put its own into /run, then /tmp, and then fail.
ENTRIES = ("{0}_sandbox:{0}.state", "{0}_sandbox:{0}.lock", "runsc-{0}.sock")


class Settings(runtimes.Settings, frozen=True):
    """The settings of runsc.

    :param platform: the mechanism that intercepts the program's system calls; ``kvm`` needs ``/dev/kvm``.
    """

    platform: Literal["systrap", "ptrace", "kvm"] = "systrap"


def options(settings: Settings) -> tuple[str, ...]:
    return (
        *("--log-format", "json", "--platform", settings.platform, "--network", "host"),
        *("--overlay2", "none", "--oci-seccomp", "--host-uds", "none", "--host-fifo", "none"),
    )
