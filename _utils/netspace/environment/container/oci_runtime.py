"""Calls of OCI runtimes: their command lines, and the errors in their logs.

The module ``runtimes`` describes the runtimes and their differences. A runtime runs detached: it starts the program,
writes the program's PID to a file and ends. So no process of netspace stays with an environment.

crun refuses a *hybrid* cgroup layout (version 1 controllers with version 2 at ``/sys/fs/cgroup/unified``). On a host
with this layout, each call runs in a separate mount namespace, in which another mount hides version 2. The host's own
mounts are not changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from netspace.environment import runtimes
from netspace.environment.container import cgroups, oci_config
from netspace.environment.runtimes import USUAL, Runtime
from netspace.environment.storage import mounts
from netspace.errors import MissingError, NetspaceError
from netspace.layout import Layout, below
from netspace.supervision.cgroup import payload_cgroup
from netspace.supervision.daemon import logs
from netspace.text import harmless

VARIABLES = {"PATH": runtimes.SEARCHED}
PATIENCE = 60.0  # seconds for a runtime to kill and forget a container
# For a second program, the runtime sets neither the OOM score nor the umask of the first one. Without them the OOM
# killer would spare the program as it spares the minion, and everybody could read its files.
_BESIDE = f'umask 077 && echo {oci_config.OOM_SCORE_ADJ} >/proc/self/oom_score_adj && exec "$@"'
# Removes what a runtime leaves behind: files of its state folder, and the environment's cgroup ($0) in all hierarchies.
_TIDY = f'rm -f -- "$@"; for folder in {cgroups.ROOT}"$0" {cgroups.ROOT}/*"$0"; do rmdir "$folder"; done 2>/dev/null; :'
_UNIFIED = f"{cgroups.ROOT}/unified"


def service_name(name: str) -> str:
    """Return the name of the environment's service in the supervisor."""
    return f"environment-{name}"


def container(layout: Layout, name: str, runtime: Runtime) -> str:
    """Return the environment's container name for the runtime."""
    if runtime.module.FIXED_NAMES:
        return f"{layout.instance}-{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    return f"{layout.instance}-{name}"


def prefix(mounted: Mapping[str, mounts.Mount]) -> tuple[str, ...]:
    """Return the command prefix that hides hybrid cgroups from a runtime; empty if the host isn't hybrid."""
    unified = mounted.get(_UNIFIED)
    if unified is None or unified.kind != "cgroup2" or not os.path.ismount(_UNIFIED):
        return ()  # not there, or covered by another mount
    # The runtime still makes a folder for the environment there: it lies in a tmpfs that ends with the namespace.
    script = f'mount -t tmpfs -o size=64k none {_UNIFIED} && exec "$@"'
    return ("/usr/bin/unshare", "--mount", "--propagation", "private", "--", "/bin/sh", "-c", script, "sh")


def call(layout: Layout, runtime: Runtime, mounted: Mapping[str, mounts.Mount], *arguments: str) -> tuple[str, ...]:
    """Return the command line of an OCI runtime that uses netspace's own state folder.

    :raises MissingError: when the runtime is not installed.
    """
    return (*_before(runtime, mounted), *_program(runtime, state(layout, runtime.name)), *arguments)


def _before(runtime: Runtime, mounted: Mapping[str, mounts.Mount]) -> tuple[str, ...]:
    if "hybrid" in runtime.lacks:
        return prefix(mounted)
    return ("/bin/sh", "-c", 'umask 022 && exec "$@"', "sh") if "umask" in runtime.lacks else ()


def _program(runtime: Runtime, root: Path) -> tuple[str, ...]:
    return (runtime.program, *runtime.module.options(runtime.typed), "--root", str(root))


def beside(
    layout: Layout, name: str, runtime: Runtime, mounted: Mapping[str, mounts.Mount], scratch: Path
) -> tuple[str, ...]:
    """Return the command line that runs an additional program in a running environment.

    The program is described in ``<scratch>/process.json``. The runtime writes the program's PID to ``<scratch>/pid``,
    and errors to ``<scratch>/log``.

    :raises NetspaceError: when the runtime has no container of the environment (any more).
    """
    runtime = runtime.jail
    own, root = container(layout, name, runtime), state(layout, runtime.name)
    before = prefix(mounted) if "hybrid" in runtime.lacks else ()
    if hasattr(runtime.module, "elsewhere"):
        (scratch / "state").mkdir(mode=0o700)
        try:
            root = runtime.module.elsewhere(root, own, scratch / "state")
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise NetspaceError(f"environment {name} is not known to {runtime.name}: {err}") from err
        before = ("/usr/bin/nsenter", f"--net={layout.netns(name)}")
    return (
        *("/bin/sh", "-c", _BESIDE, "sh", *before, *_program(runtime, root), "--log", str(scratch / "log"), "exec"),
        *("--process", str(scratch / "process.json"), "--pid-file", str(scratch / "pid"), own),
    )


def piped(call: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a runtime that stays until its program ends, with pipes as its three standard streams.

    The streams must not be the host's /dev/null, because a runtime makes the environment's user their owner (fchown).
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


def state(layout: Layout, runtime: str) -> Path:
    """Return the runtime's state folder, in which it keeps its running containers."""
    return below(layout.run, runtime)


def log(layout: Layout, name: str) -> Path:
    """Return the path of the runtime's log, to which it writes its errors."""
    return below(layout.bundle(name), "runtime.log")


def output(layout: Layout, name: str) -> Path:
    """Return the path of the program's output on a host without a journal."""
    return below(layout.logs, f"{service_name(name)}.log")


def configuration(layout: Layout, name: str, runtime: Runtime) -> Path:
    """Return the path of the runtime's configuration of the environment."""
    return below(layout.bundle(name), "domain.cfg" if runtime.outside else "config.json")


def pid_file(layout: Layout, name: str) -> Path:
    return below(layout.bundle(name), "pid")


def halt_mark(layout: Layout, name: str) -> Path:
    """Return the path of the halt mark: a file that exists from shortly before a stop until the next start."""
    return below(layout.bundle(name), "halted")


def _entries(layout: Layout, name: str, runtime: Runtime) -> list[Path]:
    """Return the paths of all files about the environment that a runtime's state folder may have."""
    folder, own = state(layout, runtime.name), container(layout, name, runtime)
    return [folder / entry.format(own) for entry in runtime.module.ENTRIES]


def cleanup(
    layout: Layout, name: str, runtime: Runtime, mounted: Mapping[str, mounts.Mount]
) -> tuple[tuple[str, ...], ...]:
    """Return the commands that kill and delete the environment's container, even if its start was incomplete."""
    own = container(layout, name, runtime)
    delete = call(layout, runtime, mounted, "delete", "--force", own)
    if "tidy" not in runtime.lacks:
        return (delete,)
    entries = map(str, _entries(layout, name, runtime))
    return (delete, ("/bin/sh", "-c", _TIDY, payload_cgroup(layout, service_name(name)), *entries))


def failure(layout: Layout, name: str) -> str:
    """Return why the last start of the environment failed; empty if it didn't fail."""
    return complaint(log(layout, name))


def complaint(path: Path) -> str:
    """Return the last error in a runtime's log; empty if there is none.

    Control characters are escaped, since an error may quote content of an image.
    """
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        if not line.startswith("{"):
            return harmless(line.split("Z: ", 1)[-1])  # "2026-01-31T12:00:00.000000Z: message"
        for entry in reversed(_objects(line)):
            if entry.get("level") in ("error", "fatal"):
                return harmless(" ".join(str(entry.get("msg", "")).split()))
    return ""


def _objects(line: str) -> list[dict[str, Any]]:
    """Return all JSON objects in *line*. There can be several, because runsc writes no newline between them."""
    found, at = [], 0
    with contextlib.suppress(ValueError, RecursionError):  # the last may be cut off
        while at < len(line):
            entry, at = json.JSONDecoder().raw_decode(line, at)
            found.append(entry)
    return [entry for entry in found if isinstance(entry, dict)]


def known(layout: Layout, name: str) -> list[str]:
    """Return the runtimes that have a container of the environment, running or not, or remains of one."""
    return [
        runtime
        for runtime in runtimes.names()
        if state(layout, runtime).is_dir()
        and any(os.path.lexists(entry) for entry in _entries(layout, name, Runtime(runtime)))
    ]


def delete(layout: Layout, name: str, mounted: Mapping[str, mounts.Mount], used: Runtime = USUAL) -> None:
    """Make each runtime that has the environment's container, or remains of it, kill and delete the container.

    A hypervisor's toolstack keeps no file that would tell of a domain here, so it is always asked to end the domain.

    :param used: the runtime with which the environment was made.
    :raises NetspaceError: when a runtime does not end within ``PATIENCE``.
    """
    todo = {one: used.jail if used.jail.name == one else Runtime(one) for one in known(layout, name)}
    commands = {one: cleanup(layout, name, runtime, mounted) for one, runtime in todo.items()}
    with contextlib.suppress(MissingError):  # without the toolstack, the host has no domains
        if used.outside:
            commands[used.name] = used.module.cleanup(used.program, container(layout, name, used))
    for one, ends in commands.items():
        try:
            for command in ends:
                subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    check=False,
                    env=VARIABLES,
                    timeout=PATIENCE,
                )
        except subprocess.TimeoutExpired as err:
            own = container(layout, name, todo.get(one, used))
            raise NetspaceError(
                f"{one} did not delete {own} within {PATIENCE:.0f} s and was killed; apply again"
            ) from err


def remove_cgroups(layout: Layout, cgroup: str, mounted: Mapping[str, mounts.Mount]) -> None:
    """Remove an environment's empty cgroup in every hierarchy, and the instance's cgroup if it is empty then."""
    for target, mount in mounts.below(cgroups.ROOT, mounted).items():
        if mount.kind in ("cgroup", "cgroup2"):
            for folder in (cgroup, f"/{layout.instance}"):
                with contextlib.suppress(OSError):  # absent, or in use by another
                    os.rmdir(target + folder)


def remove_output(layout: Layout, *names: str) -> None:
    """Remove the programs' output files, including rotated files.

    The folder isn't listed, because it has the files of all environments.
    """
    for name in names:
        logs.remove(output(layout, name))


def usage(cgroup: str, mounted: Mapping[str, mounts.Mount]) -> dict[str, int]:
    """Return the environment's usage: ``memory`` (bytes) and ``pids`` (number); empty if it doesn't run."""
    found = {}
    for target, mount in mounts.below(cgroups.ROOT, mounted).items():
        if mount.kind in ("cgroup", "cgroup2"):
            for key, files in (("memory", ("memory.current", "memory.usage_in_bytes")), ("pids", ("pids.current",))):
                for file in files:
                    with contextlib.suppress(OSError, ValueError):
                        found[key] = int(Path(f"{target}{cgroup}/{file}").read_text())
    return found
