"""How crun is called: the command lines, and what crun left behind when it failed.

Detached: crun starts the program, leaves its PID in a file and ends, so no process of ours
stands beside an environment. crun refuses a *hybrid* cgroup layout (version 1 controllers
with version 2 at ``/sys/fs/cgroup/unified``). There each call runs in a mount namespace of
its own where that mount is covered; the machine's mounts are never touched.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from netspace.environment import cgroups, mounts
from netspace.errors import MissingError, NetspaceError
from netspace.layout import Layout
from netspace.spec.types import Environment
from netspace.supervision import Service

VARIABLES = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
PATIENCE = 60.0  # seconds for crun to kill and forget a container
_UNIFIED = f"{cgroups.ROOT}/unified"


def service_name(name: str) -> str:
    """The environment's service, as the supervisor knows it."""
    return f"environment-{name}"


def container(layout: Layout, name: str) -> str:
    """The environment's name for crun."""
    return f"{layout.instance}-{name}"


@functools.cache
def program() -> str:
    """Where crun is.

    :raises MissingError: when it is not installed.
    """
    found = shutil.which("crun", path=VARIABLES["PATH"])
    if found is None:
        raise MissingError("the program crun", "install it: apt-get install crun")
    return found


def prefix(mounted: Mapping[str, mounts.Mount]) -> tuple[str, ...]:
    """What stands before each call of crun on this host: nothing, unless cgroups are hybrid."""
    unified = mounted.get(_UNIFIED)
    if unified is None or unified.kind != "cgroup2" or not os.path.ismount(_UNIFIED):
        return ()  # not there, or covered by another mount
    # crun makes a folder for the environment there all the same: in a tmpfs that goes with the namespace.
    script = f'mount -t tmpfs -o size=64k none {_UNIFIED} && exec "$@"'
    return ("/usr/bin/unshare", "--mount", "--propagation", "private", "--", "/bin/sh", "-c", script, "sh")


def crun(layout: Layout, mounted: Mapping[str, mounts.Mount], *arguments: str) -> tuple[str, ...]:
    """A call of crun with our own state folder."""
    return (*prefix(mounted), program(), "--root", str(state(layout)), *arguments)


def piped(call: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a call of crun that stays with its program, on three pipes.

    Never the host's /dev/null: crun hands its streams to the environment's user (fchown).
    """
    return subprocess.Popen(
        call,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=VARIABLES,
        start_new_session=True,
        bufsize=0,
    )


def state(layout: Layout) -> Path:
    """Where crun keeps what runs."""
    return layout.run / "crun"


def log(layout: Layout, name: str) -> Path:
    """Where crun writes why it failed."""
    return layout.bundle(name) / "runtime.log"


def output(layout: Layout, name: str) -> Path:
    """Where the program's output goes where there is no journal."""
    return layout.logs / f"{service_name(name)}.log"


def pid_file(layout: Layout, name: str) -> Path:
    return layout.bundle(name) / "pid"


def halt_mark(layout: Layout, name: str) -> Path:
    """There from before we stop the environment until it is started: its end was not its own."""
    return layout.bundle(name) / "halted"


def service(
    layout: Layout, name: str, spec: Environment, mounted: Mapping[str, mounts.Mount], controllers: Collection[str]
) -> Service:
    """The environment as something to keep running.

    :param controllers: the cgroup controllers that the host has; what none keeps is no limit.
    """
    limits = {"memory": int(spec.limits.memory), "cpus": spec.limits.cpus, "pids": spec.limits.pids}
    own = container(layout, name)
    errors = ("--log", str(log(layout, name)))
    pid = pid_file(layout, name)
    return Service(
        name=service_name(name),
        description=f"{layout.instance} environment {name}",
        command=crun(
            *(layout, mounted, *errors, "run", "--detach"),
            *("--bundle", str(layout.bundle(name)), "--pid-file", str(pid), own),
        ),
        variables=VARIABLES,
        pid_file=pid,
        cleanup=(crun(layout, mounted, "delete", "--force", own),),
        restart=spec.restart,
        stop_timeout=spec.stop_timeout,
        log=output(layout, name),
        limits={key: value for key, value in limits.items() if cgroups.CONTROLLERS[key] in controllers},
        delegate=True,
    )


def failure(layout: Layout, name: str) -> str:
    """Why the environment's last start failed in crun, or nothing."""
    return complaint(log(layout, name))


def complaint(path: Path) -> str:
    """The last thing in a log of crun's, or nothing."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    # "2026-01-31T12:00:00.000000Z: message"
    return lines[-1].split("Z: ", 1)[-1] if lines else ""


def known(layout: Layout, name: str) -> bool:
    """Whether crun knows a container of the environment's, running or not."""
    return (state(layout) / container(layout, name)).exists()


def delete(layout: Layout, name: str, mounted: Mapping[str, mounts.Mount]) -> None:
    """Have crun kill and forget the environment's container, if it still knows one.

    :raises NetspaceError: when it doesn't come to an end.
    """
    own = container(layout, name)
    if known(layout, name):
        try:
            subprocess.run(
                crun(layout, mounted, "delete", "--force", own),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                env=VARIABLES,
                timeout=PATIENCE,
            )
        except subprocess.TimeoutExpired as err:
            raise NetspaceError(
                f"crun did not delete {own} within {PATIENCE:.0f} s and was killed; apply again"
            ) from err


def remove_cgroups(layout: Layout, cgroup: str, mounted: Mapping[str, mounts.Mount]) -> None:
    """Remove an environment's empty cgroup in every hierarchy, and the instance's when it was the last."""
    for mount in mounted.values():
        if mount.kind in ("cgroup", "cgroup2") and mount.target.startswith(cgroups.ROOT):
            for folder in (cgroup, f"/{layout.instance}"):
                with contextlib.suppress(OSError):  # absent, or in use by another
                    os.rmdir(mount.target + folder)


def remove_output(layout: Layout, name: str) -> None:
    """Remove the program's log, rotated ones too."""
    own = output(layout, name)
    if own.parent.is_dir():
        for path in [own, *own.parent.glob(f"{own.name}.*")]:
            path.unlink(missing_ok=True)


def usage(cgroup: str, mounted: Mapping[str, mounts.Mount]) -> dict[str, int]:
    """What the environment uses now: ``memory`` in bytes and ``pids``; empty where it doesn't run."""
    found = {}
    for mount in mounted.values():
        if mount.kind in ("cgroup", "cgroup2") and mount.target.startswith(cgroups.ROOT):
            for key, files in (("memory", ("memory.current", "memory.usage_in_bytes")), ("pids", ("pids.current",))):
                for file in files:
                    with contextlib.suppress(OSError, ValueError):
                        found[key] = int(Path(f"{mount.target}{cgroup}/{file}").read_text())
    return found
