"""AppArmor: confines environments by a profile, on hosts whose kernel has it switched on.

This module writes a profile to the state folder. ``apparmor_parser`` compiles it and loads it into the kernel in one
write, so a profile is never loaded in part. The runtime then starts the program under the profile. A reboot empties the
kernel's list of profiles, so each start loads a missing profile. Sources: apparmor.d(5), apparmor_parser(8), and the
kernel's admin-guide/LSM/apparmor.rst.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import msgspec

from netspace import files, paths
from netspace.environment import runtimes
from netspace.environment.container import apparmor_profile
from netspace.environment.runtimes import Runtime
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.log import Log
from netspace.spec.types import Environment

PARSER, PACKAGE = "apparmor_parser", "apparmor"
LACK = "apparmor"  # in runtimes.LACKS
_SECURITY = "sys/kernel/security/apparmor"
_MODE = "sys/module/apparmor/parameters/mode"
_ENFORCING = ("enforce", "kill")  # in the other modes, AppArmor allows what a profile refuses, and only reports it
_TIMEOUT = 300.0  # seconds that the parser may take; it needs some milliseconds
_LARGEST = 4 * 1024**2  # bytes of the kernel's list of profiles
_SETTLES = 2.0  # seconds within which a process that was just started is under its profile

log = Log(__name__)


class State(msgspec.Struct, frozen=True):
    """AppArmor on this host.

    :param enabled: whether the kernel has AppArmor, and it is switched on.
    :param problem: why AppArmor can't confine environments; empty if it can.
    :param failed: the parser's error at the last attempt to load a profile; empty after a success.
    :param loaded: the instance's profiles that the kernel enforces; None if the kernel's list can't be read.
    """

    enabled: bool = False
    problem: str = ""
    failed: str = ""
    loaded: frozenset[str] | None = None

    @property
    def told(self) -> str:
        """Return why environments get no profile although this host has AppArmor.

        Empty if environments get a profile, or if the host has no AppArmor.
        """
        return (self.problem or self.failed) if self.enabled else ""


def look(layout: Layout) -> State:
    """Return the state of AppArmor on this host. Changes nothing."""
    root = layout.root
    try:
        enabled = files.read(root / "sys/module/apparmor/parameters/enabled", 16).strip() == b"Y"
    except OSError:
        enabled = False
    if not enabled:
        return State(
            problem="this kernel has no AppArmor, or it is switched off; boot a kernel that has it, "
            "with `security=apparmor`"
        )
    try:
        loaded = _loaded(layout)
    except OSError as err:
        return State(
            True,
            f"the kernel's list of AppArmor profiles can't be read ({err.strerror}); "
            "`mount -t securityfs securityfs /sys/kernel/security`",
        )
    problem = toothless(layout)
    if not problem and not parser(layout):
        problem = f"the program {PARSER} is missing; install it: apt-get install {PACKAGE}"
    try:
        failed = files.read(_note(layout), 4096).decode(errors="replace")
    except OSError:
        failed = ""
    return State(True, problem, failed, loaded)


def toothless(layout: Layout) -> str:
    """Return why AppArmor, though switched on, refuses nothing; empty if it enforces profiles.

    The kernel's list alone doesn't show this: a profile is listed as enforced even if the mode for all profiles is
    ``complain``.
    """
    try:
        mode = files.read(layout.root / _MODE, 64).decode(errors="replace").strip()
    except OSError as err:
        return f"AppArmor's mode can't be read ({err.strerror}); make /{_MODE} readable to root"
    if mode in _ENFORCING:
        return ""
    return (
        f"AppArmor is in mode {mode!r}, which refuses nothing; `echo enforce >/{_MODE}`, and remove `apparmor.mode` "
        "from the kernel's command line"
    )


def label(pid: int) -> str:
    """Return the AppArmor profile of a process, without its mode; empty if it can't be read."""
    for place in ("attr/apparmor/current", "attr/current"):
        try:
            with open(f"/proc/{pid}/{place}") as stream:
                found = stream.read(4096).rstrip("\n\0")
        except OSError:
            continue
        return found.removesuffix(" (enforce)")
    return ""


def loose(programs: Mapping[str, tuple[str, int]]) -> set[str]:
    """Return the names of the programs that are not under the profile chosen at their start.

    A program gets its profile only when the runtime executes it. So this function waits a few seconds, once for all
    programs. Processes that have ended are not returned.

    :param programs: profile and process of each, by name.
    """
    left, until = dict(programs), time.monotonic() + _SETTLES
    while True:
        left = {name: (confined, pid) for name, (confined, pid) in left.items() if _astray(confined, pid)}
        if not left or time.monotonic() >= until:
            return set(left)
        time.sleep(0.02)


def _astray(confined: str, pid: int) -> bool:
    found = label(pid)
    return found not in ("", confined) and os.path.exists(f"/proc/{pid}")


class Confinement:
    """The profiles of one instance. The caller holds the layout's lock; several of its threads may call methods."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._lock = threading.Lock()
        self._errors: dict[str, str] = {}
        self._chosen: set[str] = set()

    def chosen(self, spec: Environment, used: Runtime) -> str:
        """Return the name of the profile for a new environment, and load the profile; empty if it gets no profile.

        :raises NetspaceError: when the declaration demands a profile, but the environment can't have one.
        """
        if spec.apparmor == "off":
            return ""
        state = look(self._layout)
        error = lacking(used) or state.problem
        if not error:
            name = apparmor_profile.name(self._layout.instance, _abi(self._layout))
            try:
                self.ensure(name)
            except NetspaceError as err:
                error = str(err)
            else:
                return name
        if spec.apparmor == "require":
            raise NetspaceError(f"apparmor: {error}")
        if state.enabled:
            log.warning("an environment runs without an AppArmor profile: %s", error)
        return ""

    def ensure(self, name: str, demanded: bool = False) -> None:
        """Load the profile *name* if the kernel doesn't have it.

        :param demanded: whether the declaration demands that the profile is enforced.
        :raises NetspaceError: when the profile can't be loaded; or when it is demanded, but AppArmor refuses nothing.
        """
        if not name:
            return
        if demanded and (error := toothless(self._layout)):
            raise NetspaceError(f"apparmor: {error}")
        with self._lock:
            self._chosen.add(name)
            if name in (look(self._layout).loaded or ()):
                return
            if name not in self._errors:  # what failed once fails for each environment of this run
                self._errors[name] = self._load(name)
            if error := self._errors[name]:
                raise NetspaceError(f"the AppArmor profile {name} can't be loaded: {error}")
            del self._errors[name]

    def outdated(self, spec: Environment, used: Runtime, confined: str) -> bool:
        """Return whether an environment whose profile has the name *confined* would get another profile now."""
        state = look(self._layout)
        if spec.apparmor == "off" or lacking(used) or state.problem:
            return False
        return confined != apparmor_profile.name(self._layout.instance, _abi(self._layout))

    def forget(self, used: Callable[[], Collection[str]]) -> None:
        """Remove the profiles of this instance that no environment uses.

        :param used: returns the profiles that environments use; called only if the kernel has profiles that may be
            removed.
        """
        loaded = look(self._layout).loaded or frozenset()
        if not loaded and not self._layout.apparmor.is_dir():
            return
        kept = {*used(), *self._chosen}
        for name in sorted(loaded - kept):
            with contextlib.suppress(OSError):  # the next removal tries again
                (self._layout.root / _SECURITY / ".remove").write_text(name)
        with contextlib.suppress(FileNotFoundError):
            for entry in list(os.scandir(self._layout.apparmor)):
                if entry.name not in kept:
                    os.unlink(entry.path)
        with contextlib.suppress(OSError):  # absent, or not empty
            self._layout.apparmor.rmdir()

    def _load(self, name: str) -> str:
        """Load a profile. Return the error, and save it for the next call of :func:`look`."""
        error = self._run(name)
        note = _note(self._layout)
        if error:
            files.write(note, error.encode())
        else:
            files.remove(note)
        return error

    def _run(self, name: str) -> str:
        layout, program = self._layout, parser(self._layout)
        path, abi = layout.apparmor / name, _abi(layout)
        if name == apparmor_profile.name(layout.instance, abi):
            files.write(path, apparmor_profile.text(name, abi).encode())
        elif not path.exists():
            return f"{path} is missing; restart what runs under it (netspace_environment.restart)"
        if program is None:
            return look(layout).problem
        call = [program, "--replace", "--skip-cache", str(path)]
        try:
            done = subprocess.run(
                call, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT, check=False, env={"LC_ALL": "C"}
            )
        except (OSError, subprocess.TimeoutExpired) as err:
            return f"{program}: {err}; reinstall the package {PACKAGE}"
        try:
            there = name in _loaded(layout)
        except OSError as err:
            return f"the kernel's list can't be read: {err.strerror}"
        if done.returncode == 0 and there:
            return ""
        said = (done.stderr or done.stdout).decode(errors="replace").strip()[-500:]
        how = said or (f"it ended with {done.returncode}" if done.returncode else "the kernel doesn't list it")
        return f"{program}: {how}; reinstall the package {PACKAGE}"


def lacking(used: Runtime) -> str:
    """Return why a runtime can't start a program under a profile; empty if the runtime can."""
    if LACK not in used.jail.lacks:
        return ""
    return f"{used.jail.name} starts no program under an AppArmor profile; choose crun or runc"


def _loaded(layout: Layout) -> frozenset[str]:
    """Return the instance's profiles that the kernel enforces.

    :raises OSError: when the kernel's list can't be read.
    """
    listed = files.read(layout.root / _SECURITY / "profiles", _LARGEST).decode(errors="replace")
    ours = apparmor_profile.pattern(layout.instance)
    names = (line.removesuffix(" (enforce)") for line in listed.splitlines() if line.endswith(" (enforce)"))
    return frozenset(name for name in names if ours.fullmatch(name))


def parser(layout: Layout) -> str | None:
    """Return the path of the program that compiles profiles; None if it is not installed."""
    places = (str(layout.root / place.lstrip("/")) for place in runtimes.SEARCHED.split(":"))
    return paths.program(PARSER, ":".join(places))


def _abi(layout: Layout) -> str:
    folder = layout.root / "etc/apparmor.d/abi"
    return next((abi for abi in apparmor_profile.ABIS if (folder / abi).exists()), "")


def _note(layout: Layout) -> Path:
    return layout.run / "apparmor-problem"
