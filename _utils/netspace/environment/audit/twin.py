"""Temporary copies (twins) of an environment, in which an audit tries to break out or to exhaust shared resources.

A twin has the original's image, system call profile, limits, user and hardening, but separate ids, root, cgroup and
``environment.json``. It has none of the original's files, variables or credentials, and an empty tmpfs in place of each
volume. It runs a program of netspace with this host's interpreter, not the image's program. ``docs/isolation.md`` lists
the other differences. Unlike an environment, a twin has no record, but only a note: a file with the twins' names. The
note is removed last, so that the remains of an interrupted audit can be found and removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from netspace import files
from netspace.environment import record as records
from netspace.environment import user_ids
from netspace.environment.audit import interpreter as kit
from netspace.environment.builder import Builder
from netspace.environment.container import cgroups, oci_config, oci_runtime
from netspace.environment.record import Record
from netspace.environment.runtimes import Runtime
from netspace.environment.storage import mounts, rootfs
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.spec import parse
from netspace.supervision import weights
from netspace.text import harmless

INSIDE = "/run/netspace-audit"
# Modules that the programs import, and codecs that Python itself loads for them.
MODULES = (
    *("__future__", "contextlib", "ctypes", "errno", "fcntl", "json", "mmap", "os", "resource", "select"),
    *("signal", "socket", "stat", "struct", "sys", "threading", "time", "dataclasses", "itertools"),
    *("collections.abc", "typing", "encodings.idna", "encodings.ascii"),
)
PROGRAMS = ("probe.py", "exhaust.py")
# What the programs import of netspace: modules, and a package.
LIBRARY = ("pools.py", "storms.py")
ATTEMPTS = "attempts"
PORT = 7000
_KIND = "audits"
_PREFIX = "audit-"
_READY = 20.0  # seconds allowed to the peer for becoming ready
_TIMEOUT = 300.0  # seconds for the whole probe
_KIT_SIZE = 128 * 1024**2
_MOST = 4 * 1024**2  # the most bytes of the probe's answer


def names() -> tuple[str, str]:
    """Return names for a twin and for the peer that it attacks."""
    token = secrets.token_hex(4)
    return f"{_PREFIX}{token}", f"{_PREFIX}{token}-peer"


def note(layout: Layout, twins: Sequence[str]) -> None:
    """Write the note: a file with the twins' names. Call this function before any part of the twins is made."""
    files.write_json(_path(layout, twins), {"twins": list(twins)})


def forget(layout: Layout, twins: Sequence[str]) -> None:
    """Remove the note with the twins' names. Call this function after all parts of the twins are gone."""
    files.remove(_path(layout, twins))


def noted(layout: Layout) -> list[list[str]]:
    """Return the twins of interrupted audits: for each note that an audit left, the names in it."""
    return [[str(name) for name in note["twins"]] for note in files.read_records(layout.records(_KIND)).values()]


def _path(layout: Layout, twins: Sequence[str]) -> Path:
    return layout.records(_KIND) / f"{twins[0]}.json"


def erase(layout: Layout, name: str) -> None:
    """Remove all parts of a twin: processes, mounts, files, cgroup."""
    mounted = mounts.table()
    oci_runtime.delete(layout, name, mounted)
    kept = kit_folder(layout, name)
    mounts.unmount(kept)
    for left in (kept, kept.parent):
        with contextlib.suppress(OSError):  # absent, or another audit's
            left.rmdir()
    rootfs.erase(layout, name)
    for mount in mounted.values():
        if mount.kind in ("cgroup", "cgroup2"):
            for folder in (cgroup(layout, name), os.path.dirname(cgroup(layout, name))):
                with contextlib.suppress(OSError):  # absent, or another twin's
                    os.rmdir(mount.target + folder)


def kit_folder(layout: Layout, attacker: str) -> Path:
    """Return the folder of the interpreter and its programs.

    The folder is outside the OCI bundles, since the runtimes of both twins must be able to read it.
    """
    return layout.run / "kits" / attacker


def cgroup(layout: Layout, name: str) -> str:
    """Return a twin's cgroup, as a path from the root of each hierarchy."""
    # It is not below the supervisor's cgroup: a twin has neither a unit nor a service.
    return f"/{layout.instance}-audit/{name}"


def attack(
    making: Builder, original: Record, twins: tuple[str, str], target: Mapping[str, Any]
) -> list[dict[str, str]]:
    """Run the probe in the first twin, with the second twin as its target; return the probe's rows.

    The caller has written the file with the twins' names (:func:`note`), and made their network namespaces.

    :param target: what the probe tries besides the second twin and the original's limits, which this function adds.
    :raises NetspaceError: when one of the twins doesn't run.
    """
    image = _mounted(making, original)
    first, second = _readable(image)
    attacker, peer = twins
    aim = {
        "marker": secrets.token_hex(16),
        "locked": first,
        "touched": second,
        "shm_key": 1 + secrets.randbelow(2**30),
        "abstract": secrets.token_hex(8),
        "port": PORT,
    }
    marked = [f"MARKER={aim['marker']}"]
    prepare(making, original, {attacker: Role("probe.py"), peer: Role("probe.py", ("victim", json.dumps(aim)), marked)})
    given = {**target, "peer": {**target.get("peer", {}), **aim}, "limits": _limits(making, original)}
    with _running(making.layout, peer, original.runtime):
        return _rows(making.layout, attacker, original.runtime, json.dumps(given))


@dataclass(frozen=True)
class Role:
    """The role of one twin in an audit.

    :param program: one of :data:`PROGRAMS`.
    :param variables: environment variables in addition to those that every twin has.
    """

    program: str
    arguments: Sequence[str] = ()
    variables: Sequence[str] = ()


def prepare(making: Builder, original: Record, roles: Mapping[str, Role]) -> kit.PortableInterpreter:
    """Make twins, one for each role; return the interpreter, which is in the first twin's :func:`kit_folder`.

    The caller has written the file with the twins' names (:func:`note`), and made their network namespaces.

    :raises NetspaceError: when a twin can't be made.
    """
    _mounted(making, original)
    taken = {name: record.base for name, record in records.read(making.layout).items()}
    bases = user_ids.allocate(tuple(roles), taken)
    folder = kit_folder(making.layout, next(iter(roles)))
    interpreter = pack(folder)
    # Twins have neither a unit nor the cgroup of environments, from which these have their weight.
    weights.lower_group(os.path.dirname(cgroup(making.layout, next(iter(roles))))[1:])
    for name, role in roles.items():
        command = interpreter.command(INSIDE, f"{INSIDE}/{role.program}", *role.arguments)
        variables = [
            *interpreter.variables(INSIDE),
            f"HOME={oci_config.HOME}",
            f"PATH={oci_config.PATH}",
            *role.variables,
        ]
        _make(making, name, original, bases[name], folder, command, variables)
    return interpreter


def _mounted(making: Builder, original: Record) -> Path:
    """Return the mount point of the original's image; mount the image if needed."""
    if original.spec.kernel is not None:
        raise NetspaceError("a unikernel makes no system calls of the host, so the probe can't run in it")
    problems = making.mount_images({original.image.digest}, mounts.table())
    if problems:
        raise NetspaceError(*problems.values())
    return making.store.mountpoint(original.image.digest)


def pack(
    folder: Path,
    modules: Sequence[str] = MODULES,
    programs: Sequence[str] = PROGRAMS,
    library: Sequence[str] = LIBRARY,
) -> kit.PortableInterpreter:
    """Copy the interpreter and the programs into a new tmpfs, because /run may be mounted noexec.

    :param folder: the mount point, which is made.
    :param library: modules of this package that the programs import.
    """
    folder.mkdir(parents=True)
    folder.parent.chmod(0o711)
    mounts.mount("tmpfs", folder, "tmpfs", mounts.NOSUID | mounts.NODEV, f"mode=755,size={_KIT_SIZE}")
    packed = kit.pack(folder, modules)
    here, package = Path(__file__).parent, folder / "netspace" / "environment" / "audit"
    package.mkdir(parents=True)
    for part in (package.parents[1], package.parent, package):
        (part / "__init__.py").touch()  # leave it empty: the library's own file imports modules that the kit lacks
    for program in programs:
        shutil.copyfile(here / program, folder / program)
    for module in library:
        shutil.copyfile(here / module, package / module)
    shutil.copytree(here / ATTEMPTS, package / ATTEMPTS, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [folder, *folder.rglob("*")]:  # independent of the umask
        path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o444))
    return packed


def _make(
    making: Builder, name: str, original: Record, base: int, folder: Path, command: list[str], variables: list[str]
) -> None:
    layout = making.layout
    bare = {"env": {}, "init": False, "volumes": (), "interface": None, "host": (), "spawns": {}, "delegates": {}}
    spec = msgspec.structs.replace(original.spec, command=("/probe",), **bare)
    twin = msgspec.structs.replace(original, spec=spec, base=base)
    making.assemble(name, twin)
    making.hand_out(name, twin, {"environment.json": files.encode({"name": name, "peers": [], "senders": []})})
    making.confinement.ensure(original.confined)
    config = json.loads(
        making.render(name, spec, base, original.image, original.runtime, original.profile, original.confined)
    )
    config["process"]["args"], config["process"]["env"] = command, variables
    config["linux"]["cgroupsPath"] = cgroup(layout, name)
    config["linux"]["resources"] = spared(config["linux"]["resources"])
    options = ["nosuid", "nodev"]
    bound = {"type": "bind", "source": str(folder), "options": ["bind", "private", "ro", *options]}
    empty = {"type": "tmpfs", "source": "tmpfs", "options": ["mode=1777", "size=1048576", *options]}
    config["mounts"].append({"destination": INSIDE, **bound})
    config["mounts"] += [{"destination": volume.target, **empty} for volume in original.spec.volumes]
    files.write(layout.bundle(name) / "config.json", oci_config.encode(config))


def spared(resources: Mapping[str, Any]) -> dict[str, Any]:
    """Return an environment's OCI resources, changed so that a lack of memory doesn't kill the whole twin. Pure.

    With an environment's own settings for cgroup version 2, the kernel kills all processes, and the twin's program
    could not report the units that it took. With the changed settings, the kernel kills only the process that took too
    much.
    """
    unified = {key: value for key, value in resources.get("unified", {}).items() if key != "memory.oom.group"}
    kept = {key: value for key, value in resources.items() if key != "unified"}
    return {**kept, "unified": unified} if unified else kept


def _limits(making: Builder, original: Record) -> dict[str, Any]:
    """Return the limits that the probe tries to exceed. A limit that this host can't enforce is marked as skipped."""
    found: dict[str, Any] = {
        key: value for key, value in parse.encode(original.spec.limits).items() if isinstance(value, int | float)
    }
    for key, controller in cgroups.CONTROLLERS.items():
        if key in found and controller not in making.controllers:
            found[key] = {"skip": f"this host has no cgroup controller for {key}, so it enforces no limit"}
    return found


def _readable(image: Path) -> tuple[str, str]:
    """Return the paths of two files of an image that everybody may read; if only one exists, its path twice."""
    found: list[str] = []
    for folder, folders, entries in os.walk(image):
        folders[:] = [
            name for name in folders if os.stat(os.path.join(folder, name), follow_symlinks=False).st_mode & 1
        ]
        for entry in entries:
            path = os.path.join(folder, entry)
            info = os.lstat(path)
            if stat.S_ISREG(info.st_mode) and info.st_mode & 0o004:
                found.append("/" + os.path.relpath(path, image))
                if len(found) == 2:
                    return found[0], found[1]
    return (found[0], found[0]) if found else ("", "")


# -- running ---------------------------------------------------------------------------------


def start(layout: Layout, name: str, used: Runtime) -> subprocess.Popen[bytes]:
    bundle = layout.bundle(name)
    own = oci_runtime.container(layout, name, used)
    run = ("--log", str(oci_runtime.log(layout, name)), "run", "--bundle", str(bundle), own)
    return oci_runtime.piped(oci_runtime.call(layout, used, mounts.table(), *run))


@contextlib.contextmanager
def _running(layout: Layout, name: str, used: Runtime) -> Iterator[None]:
    """Context manager that runs the peer. Its body begins when the peer is ready."""
    process = start(layout, name, used)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            ready = selector.select(_READY) and os.read(process.stdout.fileno(), 64) == b"ready\n"
        if not ready:
            raise failed(layout, name, process)
        yield
    finally:
        end(layout, name, process)


def _rows(layout: Layout, name: str, used: Runtime, stdin: str) -> list[dict[str, str]]:
    process = start(layout, name, used)
    try:
        try:
            answer, _ = process.communicate(stdin.encode(), timeout=_TIMEOUT)
        except subprocess.TimeoutExpired as err:
            raise NetspaceError(f"the probe did not end within {_TIMEOUT:.0f} seconds") from err
        if process.returncode != 0 or len(answer) > _MOST:
            raise failed(layout, name, process)
        return understood(answer)
    finally:
        end(layout, name, process)


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An attempt of the probe, and its outcome."""

    name: str
    group: str
    outcome: Literal["refused", "succeeded", "skipped"]
    detail: str


def understood(answer: bytes) -> list[dict[str, str]]:
    """Parse the rows of a probe's answer, which comes from inside an environment, so it isn't trusted.

    :raises NetspaceError: when the answer is malformed.
    """
    try:
        rows = msgspec.json.decode(answer, type=list[_Row])
    except msgspec.DecodeError as err:
        raise NetspaceError(f"the probe's answer can't be understood: {harmless(str(err))}") from err
    return [{key: harmless(value) for key, value in msgspec.structs.asdict(row).items()} for row in rows]


def failed(layout: Layout, name: str, process: subprocess.Popen[bytes]) -> NetspaceError:
    """End a twin; return an error with the reason why it doesn't run."""
    end(layout, name, process)
    reason = oci_runtime.failure(layout, name)
    if not reason and process.stderr is not None and not process.stderr.closed:
        reason = process.stderr.read(4096).decode(errors="replace").strip()
    if not reason:
        reason = f"it ended ({process.returncode}); are its limits too narrow for Python?"
    return NetspaceError(f"a twin can't be run: {reason}")


def end(layout: Layout, name: str, process: subprocess.Popen[bytes]) -> None:
    """Kill a twin's remaining processes; the runtime then ends, too."""
    if process.poll() is None:
        oci_runtime.delete(layout, name, mounts.table())
        deadline = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if process.poll() is None:
            process.kill()
            process.wait()
