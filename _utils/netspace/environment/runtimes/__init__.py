"""Runtimes of environments, one module each; a module's name is the value of ``runtime`` in a declaration.

A new file adds a runtime. Every module has

- ``PROGRAM`` and ``PACKAGE``: its program, and the Debian package with the program (empty: none);
- ``RUNS``: ``"images"`` or ``"kernels"``: the kind of thing that the runtime runs;
- ``OWN_KERNEL``: whether programs under it run on another kernel than the host's;
- ``Settings``: the type of the settings in ``netspace:runtimes:<name>``: :class:`Settings`, or a class derived from it.

A module may have

- ``problem(settings) -> str``: returns why this host can't use the runtime, if the runtime needs more than its program;
- ``REMEDY``: what to do where its program is missing, if that is more than to install a package;
- ``LEAST``: the least values of an environment's limits (``memory``, ``pids``), if the runtime itself uses a part of
  them.

A module that runs **images** is an OCI runtime, called by the OCI's command line (``run``, ``exec``, ``delete``). It
states its differences from others:

- ``options(settings)``: global options of each call, before ``--root``;
- ``LACKS``: the abilities that it lacks (:data:`LACKS`); netspace replaces each, or works without it;
- ``FIXED_NAMES``: whether all names of containers must have the same length, because the runtime confuses a name with a
  longer one that begins with it;
- ``ENTRIES``: the names of all files that the runtime may leave in its state folder for a container, even after a
  killed launch; ``{}`` stands for the container's name.

A runtime may be unable to ``exec`` into a network namespace of the host. Such a runtime also has

- ``elsewhere(root, name, scratch) -> Path``: makes and returns another state folder, in *scratch*, which describes the
  container without its network namespace. netspace calls the runtime with this folder from within that namespace.

A module that runs **kernels** is a tender: a program whose guest is the kernel. The tender is the only process of an
ordinary environment (under crun), whose root holds just the tender and the kernel (``container.unikernel``). The module
has

- ``files(settings) -> {path inside: path on the host}``: the files that the tender needs besides its program and the
  program's libraries;
- ``command(settings, guest) -> (argument, ...)``: its arguments, for a :class:`Guest`;
- ``RESERVE``: bytes of the memory limit that the tender itself needs;
- ``ONE_LINE``: whether the kernel gets its arguments as one line, in which a space ends an argument;
- ``STOPS``: whether the tender ends after a SIGTERM; if not, netspace kills it at once;
- ``LOOKS``: whether the tender asks the host's kernel for all interfaces before it attaches to its own;
- ``WRITES``: whether the tender must open its disk for writing; if so, it gets its own copy of the disk;
- ``devices(settings)``: the host's devices that the tender opens, besides those of the interface.

A kernel may also be run by a hypervisor's toolstack (``OUTSIDE = True``): crun can't confine that program, so the
supervisor runs it with root's rights, and the hypervisor isolates the kernel (``container.domain``). Instead of
``files``, ``command``, ``LOOKS`` and ``devices`` its module has

- ``configuration(settings, domain) -> str``: the toolstack's configuration of a :class:`Domain`. No value in it may add
  a key;
- ``watch(program, watched) -> (argument, ...)``: a command that makes the domain, stays as long as it, and obeys a
  SIGTERM, for a :class:`Watched`;
- ``cleanup(program, name) -> ((argument, ...), ...)``: commands that end the domain *name*, if there is one;
- ``LONGEST``: the most bytes of the line with the kernel's arguments;
- ``LACKS``, ``FIXED_NAMES`` and ``ENTRIES``, as for an OCI runtime.

A module also has ``reads(kernel, disk) -> (argument, ...)`` if a kernel's file names its devices; netspace calls it
when it builds the kernel's image.

Everything else, hardening above all, is the same for all runtimes.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from netspace import paths
from netspace.compared import Compared
from netspace.errors import MissingError, NetspaceError
from netspace.spec.types import Base

DEFAULT = "crun"
SEARCHED = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# time: it makes time namespaces. idmap: it has the mount option of that name. hybrid: it works with version 1
# controllers and version 2 at /sys/fs/cgroup/unified. umask: it makes mount points that all users may pass, whatever
# its umask. tidy: it can delete all remains of a killed launch, and sets the limits of a cgroup that exists already.
# users: it can join an existing user namespace. sockets: it can bound TCP's data, where that is counted separately.
# apparmor: it can start the program under an AppArmor profile.
LACKS = ("time", "idmap", "hybrid", "umask", "tidy", "users", "sockets", "apparmor")

Thing = Literal["images", "kernels"]


class Settings(Base, frozen=True):
    """The settings that every runtime has.

    :param program: the path of the runtime's program; if absent, netspace looks for the program in the usual folders.
    """

    program: str | None = None


class Guest(msgspec.Struct, frozen=True):
    """A tender's guest (a kernel), with the paths that the tender sees.

    :param kernel: the kernel's path.
    :param found: arguments that follow from the kernel itself, as ``reads`` returned them when the image was built.
    :param arguments: the declared arguments of the kernel.
    :param memory: bytes for the kernel: the limit minus the tender's ``RESERVE``.
    :param disk: the path of the disk with the kernel's files.
    :param tap: the tap device's name; empty: the guest has no interface.
    :param mac: the interface's MAC address.
    """

    kernel: str
    found: tuple[str, ...]
    arguments: tuple[str, ...]
    memory: int
    disk: str
    tap: str
    mac: str


class Domain(msgspec.Struct, frozen=True):
    """A kernel in a domain of a hypervisor, with paths on the host.

    :param name: the domain's name.
    :param arguments: the declared arguments of the kernel.
    :param memory: bytes for the kernel.
    :param cpus: the number of processors that it may use.
    :param ramdisk: the path of the disk with the kernel's files.
    :param mac: the interface's MAC address; empty: the kernel has no interface.
    :param mtu: the interface's MTU; 0 without an interface.
    """

    name: str
    kernel: str
    arguments: tuple[str, ...]
    memory: int
    cpus: float
    ramdisk: str
    mac: str
    mtu: int


class Watched(msgspec.Struct, frozen=True):
    """A domain that a command makes and watches.

    :param name: the domain's name.
    :param configuration: the path of its configuration.
    :param namespace: the path of the environment's network namespace.
    :param refusal: the path of the file for the reason why the domain can't be made.
    :param pid_file: the path of the file for the command's PID, which it writes once the kernel runs.
    :param mtu: the interface's MTU; 0 without an interface.
    """

    name: str
    configuration: str
    namespace: str
    refusal: str
    pid_file: str
    mtu: int


class Runtime(Compared, frozen=True, eq=False, dict=True):
    """A runtime and its settings.

    :param settings: the runtime's settings, in plain values (as in the pillar).
    :param error: why the runtime can't be used on this host; empty if it can.
    """

    name: str = DEFAULT
    settings: Mapping[str, Any] = msgspec.field(default_factory=dict)
    error: str = ""

    def compared(self) -> object:
        """Return name and settings; the error doesn't count, because it depends on the host."""
        return self.name, self.settings

    @functools.cached_property
    def module(self) -> Any:
        return find(self.name)

    @property
    def runs(self) -> Thing:
        thing: Thing = self.module.RUNS
        return thing

    @functools.cached_property
    def typed(self) -> Any:
        """The settings as an object of the runtime module's class ``Settings``."""
        return msgspec.convert(dict(self.settings), self.module.Settings)

    @property
    def jail(self) -> Runtime:
        """The runtime that the supervisor calls: this runtime, or for a tender the default OCI runtime."""
        return self if self.runs == "images" or self.outside else USUAL

    @property
    def outside(self) -> bool:
        """Whether the supervisor runs the runtime's program, with the host's rights, and no OCI runtime does."""
        return bool(getattr(self.module, "OUTSIDE", False))

    @property
    def lacks(self) -> frozenset[str]:
        return frozenset(self.module.LACKS)

    @functools.cached_property
    def program(self) -> str:
        """The path of the runtime's program.

        :raises MissingError: when it is not installed.
        """
        return _program(self.name, self.module.PROGRAM, self.module.PACKAGE, self.typed.program)


USUAL = Runtime()


@functools.cache
def _program(runtime: str, name: str, package: str, path: str | None) -> str:
    if path is not None:
        real = Path(os.path.realpath(path))
        if not os.access(real, os.X_OK) or not real.is_file():
            raise MissingError(f"the program {path}", "install it there, or name another path")
        info = real.stat()
        changeable = real if info.st_uid != 0 or info.st_mode & 0o022 else paths.loose(real)
        if changeable:
            raise NetspaceError(
                f"{path} is not used: users other than root may change {changeable} (chown root, chmod go-w)"
            )
        return path
    found = paths.program(name, SEARCHED)
    if found is None:
        remedy = (
            f"install it: apt-get install {package}"
            if package
            else getattr(find(runtime), "REMEDY", "") or f"say where it is: netspace:runtimes:{runtime}:program"
        )
        raise MissingError(f"the program {name}", remedy)
    return found


@functools.cache
def names() -> tuple[str, ...]:
    """Return the names of all runtimes, from their modules' file names, without importing a module."""
    found = {path.stem for folder in __path__ for path in Path(folder).glob("*.py")}
    return tuple(sorted(found - {"__init__"}))


@functools.cache
def find(name: str) -> Any:
    """Return the module of a runtime.

    :raises NetspaceError: when there is no such runtime.
    """
    if name not in names():
        raise NetspaceError(f"there is no runtime {name!r}; choose from {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def running(thing: Thing) -> list[str]:
    """Return the names of the runtimes that run *images*, or of those that run *kernels*."""
    return [name for name in names() if thing == find(name).RUNS]


def look(name: str, settings: Mapping[str, Any]) -> Runtime:
    """Return a runtime; its ``error`` says why this host can't use it, if that is so."""
    wanted = Runtime(name, settings)
    try:
        for one in {wanted.name: wanted, wanted.jail.name: wanted.jail}.values():
            _ = one.program
        check = getattr(wanted.module, "problem", None)
        error = "" if check is None else check(wanted.typed)
    except NetspaceError as err:
        error = str(err)
    return Runtime(name, settings, error)
