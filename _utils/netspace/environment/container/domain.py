"""Kernels in domains of a hypervisor: the domain's configuration, and the command that makes and watches the domain.

Such a kernel is an environment like that of a tender (``unikernel``): its image holds the kernel, its files are on one
disk, and its interface is in the environment's network namespace. But no OCI runtime runs a program for it. The
supervisor runs the hypervisor's toolstack on the host. The hypervisor isolates the kernel and keeps its limits. This
module knows no hypervisor: the modules of ``runtimes`` do.
"""

from __future__ import annotations

from netspace.environment.container import oci_runtime, unikernel
from netspace.environment.runtimes import Domain, Runtime, Watched
from netspace.layout import DOMAIN, Layout
from netspace.spec.types import Environment

# What the toolstack's own processes may use under systemd. They hold the kernel and its disk in memory while they make
# the domain, and these fit into the domain.
_OWN_MEMORY = 128 * 1024**2
_OWN_PROCESSES = 64


def configuration(layout: Layout, name: str, spec: Environment, runtime: Runtime) -> bytes:
    """Return the configuration of an environment's domain."""
    mtu = _mtu(spec)
    domain = Domain(
        name=oci_runtime.container(layout, name, runtime),
        kernel=f"{layout.bundle(name)}/rootfs{unikernel.KERNEL}",
        arguments=spec.args or (),
        memory=int(spec.limits.memory) - int(runtime.module.RESERVE),
        cpus=spec.limits.cpus,
        ramdisk=str(layout.inside(name) / unikernel.DISK),
        mac=layout.mac(name) if mtu else "",
        mtu=mtu,
    )
    text: str = runtime.module.configuration(runtime.typed, domain)
    return text.encode()


def command(layout: Layout, name: str, spec: Environment, runtime: Runtime) -> tuple[str, ...]:
    """Return the command that makes an environment's domain and stays until the domain ends.

    :raises MissingError: when the toolstack is not installed.
    """
    watched = Watched(
        name=oci_runtime.container(layout, name, runtime),
        configuration=str(oci_runtime.configuration(layout, name, runtime)),
        namespace=str(layout.netns(name)),
        refusal=str(oci_runtime.log(layout, name)),
        pid_file=str(oci_runtime.pid_file(layout, name)),
        mtu=_mtu(spec),
    )
    argv: tuple[str, ...] = runtime.module.watch(runtime.program, watched)
    return argv


def cleanup(layout: Layout, name: str, runtime: Runtime) -> tuple[tuple[str, ...], ...]:
    """Return the commands that end an environment's domain, if there is one.

    :raises MissingError: when the toolstack is not installed.
    """
    commands: tuple[tuple[str, ...], ...] = runtime.module.cleanup(
        runtime.program, oci_runtime.container(layout, name, runtime)
    )
    return commands


def owner(runtime: Runtime, user: int) -> int:
    """Return the owner of the interface's device: a domain, or the host's uid *user* of the environment's program."""
    return DOMAIN if runtime.outside else user


def limits(spec: Environment) -> dict[str, float]:
    """Return the limits of the toolstack's own processes. The hypervisor keeps the kernel's."""
    return {"memory": int(spec.limits.memory) + _OWN_MEMORY, "cpus": spec.limits.cpus, "pids": _OWN_PROCESSES}


def _mtu(spec: Environment) -> int:
    """Return the MTU of an environment's interface; 0 if it has none."""
    interface = spec.interface
    return int(getattr(interface, "mtu", 0)) if interface is not None and interface.DEVICES else 0
