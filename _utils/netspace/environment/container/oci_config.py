"""The OCI runtime configuration of an environment. Pure: values in, a dict out.

All hardening is here: own namespaces and user ids, no capability, no new privileges, a system call profile, a minimal
/dev, masked kernel files, limits. A declaration can change only the profile and the limits. There are no annotations
(``run.oci.*`` would reconfigure crun) and no hooks. The only devices are those that a kind of interface (``DEVICES``)
or a runtime needs. Source: OCI runtime specification 1.1.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from netspace.environment.container import cgroups, seccomp
from netspace.environment.images.sources import Defaults
from netspace.environment.storage import init, volumes
from netspace.environment.user_ids import COUNT, FIRST
from netspace.errors import NetspaceError
from netspace.layout import Layout, below
from netspace.spec.types import Environment, Limits, Volume

PATH = "/usr/local/bin:/usr/bin:/bin"
HOME = "/tmp"  # noqa: S108 (inside; a tmpfs of the environment's own)
INSIDE = "/run/netspace"

# The uid and gid if neither the declaration nor the image names a user.
USER = 1000

_MEMLOCK = 64 * 1024
_SIGNALS = 1024  # queued signals; each timer reserves one, too
# core(5): if the host pipes crashes to a handler, that runs as the host's root with any limit except 1.
_NO_CORE = 1
OOM_SCORE_ADJ = 500  # an environment dies before the host's own services

_MASKED = (
    *("/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/key-users", "/proc/latency_stats"),
    *("/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/proc/kallsyms"),
    *("/proc/config.gz", "/proc/cmdline", "/proc/pressure", "/proc/interrupts", "/proc/softirqs", "/proc/modules"),
    *("/proc/kpagecount", "/proc/kpageflags", "/proc/kpagecgroup", "/proc/kmsg", "/proc/vmallocinfo"),
    *("/proc/slabinfo", "/proc/iomem", "/proc/ioports", "/proc/dma", "/proc/diskstats"),
    *("/proc/bootconfig", "/proc/mtrr", "/proc/swaps", "/proc/zoneinfo", "/proc/buddyinfo"),
    # Files that identify the host or show its load, and that ordinary programs don't read.
    *("/proc/sys/kernel/random/boot_id", "/proc/sys/fs/file-nr", "/proc/sys/fs/inode-nr", "/proc/sys/fs/inode-state"),
    *("/proc/sys/fs/dentry-state", "/proc/sys/fs/aio-nr", "/proc/sys/fs/quota", "/proc/sys/kernel/pty/nr"),
    *("/proc/bus", "/proc/driver", "/proc/fs", "/proc/irq", "/proc/tty"),
    *("/proc/vmstat", "/proc/schedstat", "/proc/partitions", "/proc/cgroups", "/proc/consoles", "/proc/crypto"),
    "/proc/locks",  # open file description locks are shown to every pid namespace
)
_NAMESPACES = ("pid", "ipc", "uts", "mount", "cgroup", "time")
_READ_ONLY = ("/proc/sys", "/proc/sysrq-trigger")


def config(
    name: str,
    spec: Environment,
    *,
    layout: Layout,
    base: int,
    cgroup: str,
    controllers: Collection[str] = frozenset(cgroups.CONTROLLERS.values()),
    disks: Collection[cgroups.Device] = (),
    unified: bool = False,
    defaults: Defaults = Defaults(),  # noqa: B008 (immutable)
    machine: str | None = None,
    rules: Mapping[str, Any] | None = None,
    lacks: Collection[str] = (),
    opened: Collection[str] = (),
    seen: Sequence[Mapping[str, Any]] = (),
    confined: str = "",
) -> dict[str, Any]:
    """Return ``config.json`` of the environment's bundle.

    :param base: the host user id to which the environment's user id 0 is mapped.
    :param cgroup: path of the environment's cgroup, from the root of the cgroup hierarchy.
    :param controllers: the host's cgroup controllers. Other limits are left out, because a runtime would refuse them.
    :param disks: the disks with the environment's layer and volumes, to which ``limits:io`` applies.
    :param unified: whether the controllers are of cgroup version 2.
    :param defaults: the image's own settings, used if *spec* has none.
    :param rules: the system call profile from an operator's file, or for a unikernel's tender; None: the built-in
        profile that *spec* names.
    :param opened: host devices that the environment may open, in addition to those of its interface.
    :param seen: additional mounts, besides those that every environment has.
    :param lacks: the abilities that the runtime lacks (``runtimes.LACKS``).
    :param confined: the AppArmor profile under which the program starts; empty if it has none.
    :raises NetspaceError: when neither *spec* nor the image names a command.
    """
    devices = (*(spec.interface.DEVICES if spec.interface is not None else ()), *opened)
    return {
        "ociVersion": "1.0.2",
        "hostname": layout.whose(name),
        "root": {"path": str(below(layout.bundle(name), "rootfs")), "readonly": spec.read_only},
        "process": process(name, spec, defaults, confined=confined),
        "mounts": [
            *_own_mounts(spec.limits),
            _bind(str(layout.inside(name)), INSIDE, "ro", "noexec"),
            *(
                _volume(layout, name, volume, index if "idmap" in lacks else None)
                for index, volume in enumerate(spec.volumes)
            ),
            *(dict(mount) for mount in seen),
        ],
        "linux": {
            "namespaces": [
                *({"type": kind} for kind in _NAMESPACES if kind not in lacks),
                {"type": "user", **({} if "users" in lacks else {"path": str(layout.users(name))})},
                {"type": "network", "path": str(layout.netns(name))},
            ],
            "uidMappings": [{"containerID": 0, "hostID": base, "size": COUNT}],
            "gidMappings": [{"containerID": 0, "hostID": base, "size": COUNT}],
            "cgroupsPath": cgroup,
            **({"devices": [_device(path) for path in devices]} if devices else {}),
            "resources": _resources(spec.limits, controllers, disks, unified, devices),
            "seccomp": seccomp.profile(spec.seccomp, machine) if rules is None else dict(rules),
            "rootfsPropagation": "private",
            "maskedPaths": list(_MASKED),
            "readonlyPaths": list(_READ_ONLY),
        },
    }


def process(
    name: str,
    spec: Environment,
    defaults: Defaults = Defaults(),  # noqa: B008 (immutable)
    command: Sequence[str] = (),
    *,
    confined: str = "",
) -> dict[str, Any]:
    """Return the ``process`` object of the environment's program, or of another *command* in the environment.

    :param confined: the AppArmor profile of the environment's program; empty if it has none.
    :raises NetspaceError: when neither *spec* nor the image names a command, and *command* is empty.
    """
    own = arguments_of(spec, defaults)
    arguments = list(command or (*init.before(spec), *own))
    if not (command or own):
        raise NetspaceError(f"environment {name}: the image names no command; set command")
    variables = {"PATH": PATH, "HOME": HOME, **dict(defaults.env), **spec.env}
    none: list[str] = []
    return {
        "terminal": False,
        "user": {"uid": user_of(spec, defaults), "gid": group_of(spec, defaults), "umask": 0o077, "additionalGids": []},
        "args": arguments,
        "env": [f"{key}={variables[key]}" for key in sorted(variables)],
        "cwd": spec.working_dir or defaults.working_dir or "/",
        "capabilities": dict.fromkeys(("bounding", "effective", "inheritable", "permitted", "ambient"), none),
        "noNewPrivileges": True,
        **({"apparmorProfile": confined} if confined else {}),
        "oomScoreAdj": OOM_SCORE_ADJ,
        "rlimits": [
            {"type": f"RLIMIT_{kind}", "soft": value, "hard": value}
            for kind, value in (
                ("NOFILE", spec.limits.files),
                ("CORE", _NO_CORE),
                ("MEMLOCK", _MEMLOCK),
                ("SIGPENDING", _SIGNALS),
                ("NPROC", spec.limits.pids),
                ("MSGQUEUE", 0),
            )
        ],
    }


def user_of(spec: Environment, defaults: Defaults) -> int:
    """Return the user id in the environment: the declared one, else the image's, else the default; never 0."""
    return spec.user or defaults.user or USER


def group_of(spec: Environment, defaults: Defaults) -> int:
    """Return the group id in the environment: the declared user's number, else the image's, else the default."""
    return spec.user or defaults.group or USER


def arguments_of(spec: Environment, defaults: Defaults) -> tuple[str, ...]:
    """Return the argument vector.

    As in Kubernetes, ``command`` replaces the image's Entrypoint and Cmd, and ``args`` replaces only its Cmd.
    """
    if spec.command:
        return (*spec.command, *(spec.args or ()))
    return (*defaults.entrypoint, *(defaults.cmd if spec.args is None else spec.args))


def _own_mounts(limits: Limits) -> list[dict[str, Any]]:
    return [
        {
            "destination": "/proc",
            "type": "proc",
            "source": "proc",
            "options": ["nosuid", "nodev", "noexec"],
        },
        _tmpfs("/dev", "755", 64 * 1024),
        _tmpfs("/dev/shm", "1777", limits.shm, "nodev"),  # noqa: S108 (inside)
        _tmpfs("/tmp", "1777", limits.tmp, "nodev"),  # noqa: S108 (inside)
    ]


def _tmpfs(target: str, mode: str, size: int, *options: str) -> dict[str, Any]:
    # tmpfs(5): size=0 would mean no limit, so the least is one page.
    return {
        "destination": target,
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "noexec", *options, f"mode={mode}", f"size={max(int(size), 4096)}"],
    }


def _bind(source: str, target: str, *options: str) -> dict[str, Any]:
    return {
        "destination": target,
        "type": "bind",
        "source": source,
        "options": ["bind", "nosuid", "nodev", "private", *options],
    }


def _volume(layout: Layout, name: str, volume: Volume, shown: int | None) -> dict[str, Any]:
    # "idmap": files on disk have the ids inside, whatever host ids the environment runs with.
    access = "ro" if volume.read_only else "rw"
    if shown is not None:
        return _bind(str(volumes.shown(layout, name, shown)), volume.target, access)
    return _bind(str(volumes.folder(layout, name, volume)), volume.target, "idmap", access)


# linux/Documentation/admin-guide/devices.txt: major and minor of devices that an environment can get.
_NUMBERS = {"/dev/net/tun": (10, 200), "/dev/kvm": (10, 232)}


def _device(path: str) -> dict[str, Any]:
    major, minor = _NUMBERS[path]
    return {"path": path, "type": "c", "major": major, "minor": minor, "fileMode": 0o666, "uid": 0, "gid": 0}


def _resources(
    limits: Limits,
    controllers: Collection[str],
    disks: Collection[cgroups.Device],
    unified: bool,
    devices: Collection[str],
) -> dict[str, Any]:
    memory = int(limits.memory)
    throttle = {
        cgroups.OCI_RATES[key]: [{"major": major, "minor": minor, "rate": rate} for major, minor in sorted(disks)]
        for key, rate in cgroups.rates(limits.io).items()
        if disks
    }
    # Version 1 counts TCP data separately, and only if it is bounded: else it is charged to nobody.
    sockets = {"kernelTCP": memory} if cgroups.SOCKETS in controllers else {}
    bounds = {
        # The OCI value of swap is memory and swap together: equal means no swap.
        "memory": ("memory", {"limit": memory, "swap": memory, **sockets}),
        "cpu": ("cpu", {"quota": cgroups.quota(limits.cpus), "period": cgroups.PERIOD}),
        "pids": ("pids", {"limit": limits.pids}),
        **({"io": ("blockIO", throttle)} if throttle else {}),
    }
    kept = {key: bound for controller, (key, bound) in bounds.items() if controller in controllers}
    # If memory runs out, the kernel kills the whole environment; version 1 has no such setting.
    whole = {"unified": {"memory.oom.group": "1"}} if unified and "memory" in controllers else {}
    opened = [
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rw"}
        for major, minor in (_NUMBERS[path] for path in devices)
    ]
    return {"devices": [{"allow": False, "access": "rwm"}, *opened], **kept, **whole}


@functools.lru_cache(maxsize=4)
def revision(controllers: frozenset[str]) -> str:
    """Return the revision of the hardening: a digest of a sample's configuration and of the profiles.

    The revision changes if a new version of this library has other hardening, or if the host can enforce other limits
    than before. A running program keeps its hardening until it is started again.
    """
    sample = Environment(image="tar:/sample", command=("/sample",))
    rendered = config("sample", sample, layout=Layout(), base=FIRST, cgroup="/sample", controllers=controllers)
    tenders = [seccomp.tender(looks=looks) for looks in (False, True)]
    profiles = [*(seccomp.profile(name) for name in seccomp.PROFILES), *tenders]
    return hashlib.sha256(encode({"sample": rendered, "profiles": profiles})).hexdigest()[:16]


def encode(config: Mapping[str, Any]) -> bytes:
    """Return a configuration as compact JSON."""
    return msgspec.json.encode(config, order="sorted")
