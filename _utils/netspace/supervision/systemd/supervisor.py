"""Services as systemd units, one file each in ``/etc/systemd/system``.

systemd keeps them running, also after a reboot, without a process of netspace. A call runs a few ``systemctl``
processes, whatever the number of services (``reload``: one per service), and writes only files that differ. A unit file
without netspace's header is never changed, whatever its name.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from netspace import files, library_copy
from netspace.errors import StateError
from netspace.layout import Layout
from netspace.supervision import definitions, memory_events, process, weights
from netspace.supervision.cgroup import payload_cgroup
from netspace.supervision.definitions import SupervisorError
from netspace.supervision.service import Service, State, Status, looked_at
from netspace.supervision.systemd import dbus, survey, unit_file

TIMEOUT = 3600.0 + 120.0


class Systemd:
    """The :class:`~netspace.supervision.Supervisor` that works by systemd units."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.folder = layout.root / "etc/systemd/system"

    # -- names and files -----------------------------------------------------------
    def _unit(self, name: str) -> str:
        return unit_file.name(self.layout, name)

    def _file(self, name: str) -> Path:
        return self.folder / self._unit(name)

    def _wish(self, name: str) -> Path:
        """Return the path of the symlink by which systemd starts the unit at boot, as ``systemctl enable`` makes it."""
        return self.folder / "multi-user.target.wants" / self._unit(name)

    def _ours(self, name: str) -> bool:
        path = self._file(name)
        return path.exists() and _ours(path)

    def _defined(self, among: Collection[str] | None = None, known: Collection[str] = ()) -> list[str]:
        """Return the names of the defined services, sorted.

        :param among: names to look up, one by one; None: all names, by reading one directory.
        :param known: names that are certainly netspace's.
        """
        if among is not None:
            plain = {name for name in among if definitions.NAME.fullmatch(name)} - definitions.RESERVED
            return sorted(name for name in plain if self._ours(name))
        prefix, suffix = self.layout.service(""), ".service"
        try:
            entries = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        names = [e[len(prefix) : -len(suffix)] for e in entries if e.startswith(prefix) and e.endswith(suffix)]
        names = [name for name in names if name not in definitions.RESERVED]
        return sorted(name for name in names if name in known or self._ours(name))

    def _wanted(self, name: str) -> bool:
        return self._wish(name).is_symlink()

    @functools.cached_property
    def version(self) -> int:
        """The version of systemd. If it can't be read, the newest version for which this module has a special case."""
        try:
            return dbus.version()
        except (OSError, ValueError):
            return unit_file.GROWING

    def _noted(self, name: str) -> str:
        """Return how the last run of a detached service ended, from its note; empty if there is no note."""
        try:
            return end(unit_file.ended(self.layout, name).read_text())
        except OSError:
            return ""

    def _kills(self, name: str) -> int:
        """Return the number of the service's OOM kills: those noted at its ends, plus the kernel's current count."""
        noted = 0
        with contextlib.suppress(OSError):
            noted = unit_file.kills(self.layout, name).stat().st_size
        return noted + memory_events.kills(payload_cgroup(self.layout, name))

    def _forget(self, name: str) -> None:
        """Remove the notes of the service's earlier ends."""
        for path in (unit_file.ended(self.layout, name), unit_file.kills(self.layout, name)):
            path.unlink(missing_ok=True)

    def _waits(self, name: str) -> bool:
        """Return whether the unit waits for files before it is started, without a time limit."""
        try:
            return f"\n{unit_file.WAITS}\n" in self._file(name).read_text()
        except OSError:
            return False

    # -- the contract ----------------------------------------------------------------
    def observe(self, names: Collection[str] | None = None, *, noticed: bool = False) -> dict[str, Status]:
        known = survey.running(self.layout, self.folder) if noticed and names is None else {}
        names = self._defined(names, known)
        asked = {
            name: looked_at(_status(shown, self._wanted(name), self._noted(name), self._kills(name)))
            for name, shown in self._show([name for name in names if name not in known]).items()
        }
        return {name: known.get(name) or asked[name] for name in names}

    def define(self, services: Sequence[Service]) -> bool:
        definitions.validate(services)
        if not services:
            return False
        for service in services:
            path = self._file(service.name)
            if path.exists() and not self._ours(service.name):
                raise StateError(f"{path} is not netspace's; move it away or use another instance name")
        changed = library_copy.install(self.layout)
        texts = {service.name: unit_file.render(self.layout, service, self.version) for service in services}
        texts["restore"] = unit_file.render_restore(self.layout, library_copy.command(self.layout, "restore"))
        contents = {self._file(name): text.encode() for name, text in texts.items()} | self._weights()
        written, failed = files.write_all(contents, mode=0o644)
        for error in failed.values():
            raise error
        linked = self._link(["restore"])
        if written:
            self._call("daemon-reload")
        return changed or linked or bool(written)

    def differing(self, services: Sequence[Service]) -> set[str]:
        return {
            service.name
            for service in services
            if files.differs(self._file(service.name), unit_file.render(self.layout, service, self.version).encode())
        }

    def start(self, names: Collection[str]) -> dict[str, str]:
        known, errors = self._known(names)
        if not known:
            return errors
        seen = self.observe(known)
        for status in seen.values():
            if status.state == "frozen":
                process.thaw(status.pid)
        # systemd keeps a start of a unit that waits for its restart until that is due. Stopped units don't wait.
        if late := [name for name, status in seen.items() if status.state == "starting" and status.exit]:
            self._run("stop", *map(self._unit, late))
        for name in known:
            if seen[name].state not in ("running", "frozen"):  # a start of a running unit does nothing
                self._forget(name)
        self._link(known)
        waiting = [name for name in known if self._waits(name)]
        known = [name for name in known if name not in waiting]
        if waiting and self._run("start", "--no-block", *map(self._unit, waiting)).returncode:
            errors.update(dict.fromkeys(waiting, "systemd does not start the unit; see journalctl -u its unit"))
        if known and self._run("start", *map(self._unit, known)).returncode:
            for name, shown in self._show(known).items():
                if shown.get("ActiveState") != "active":
                    reason = shown.get("Result", "unknown")
                    end = _status(shown, True).exit
                    errors[name] = (
                        f"{self._unit(name)} does not start: {reason}{f' ({end})' if end else ''}; "
                        f"see journalctl -u {self._unit(name)}"
                    )
        return errors

    def stop(self, names: Collection[str]) -> dict[str, str]:
        known, errors = self._known(names)
        if known:
            self._unlink(known)
            errors.update(self._halt(known))
        return errors

    def reload(self, names: Collection[str]) -> dict[str, str]:
        known, errors = self._known(names)
        for name in known:
            # One by one: systemctl does not tell which of several failed.
            done = self._run("reload", self._unit(name))
            if done.returncode:
                errors[name] = done.stderr.strip() or f"{self._unit(name)} does not reload"
        return errors

    def remove(self, names: Collection[str]) -> dict[str, str]:
        known = [name for name in names if self._ours(name)]
        if not known:
            return {}
        self._unlink(known)
        errors = self._halt(known)
        self._erase([name for name in known if name not in errors])
        return errors

    def attended(self) -> bool:
        return True

    def attend(self) -> None:
        return None

    def resume(self) -> None:
        return None

    def purge(self) -> None:
        errors = self.remove(self._defined())
        if errors:
            raise SupervisorError("\n".join(f"{name}: {error}" for name, error in errors.items()))
        if self._ours("restore"):
            self._unlink(["restore"])
            with contextlib.suppress(OSError):  # like systemctl disable, remove the folder only if it is empty
                self._wish("restore").parent.rmdir()
            self._halt(["restore"])
            self._erase(["restore"])
            for path in self._weights():
                files.remove(path)
                if path.parent != self.folder:
                    with contextlib.suppress(OSError):  # an operator has a file there, too
                        path.parent.rmdir()
            self._run("stop", f"{self.layout.instance}.slice")  # systemd created it; this removes its cgroup
        library_copy.remove(self.layout)

    def _weights(self) -> dict[Path, bytes]:
        """Return the files of weights, without any that an operator wrote."""
        found = weights.units(self.layout, self.folder, unit_file.HEADER)
        for path in found:
            if path.parent != self.folder:
                path.parent.mkdir(exist_ok=True, mode=0o755)
        return {path: text.encode() for path, text in found.items() if _ours(path)}

    # -- plumbing ------------------------------------------------------------------------
    def _known(self, names: Iterable[str]) -> tuple[list[str], dict[str, str]]:
        names = list(names)
        known = [name for name in names if name not in definitions.RESERVED and self._ours(name)]
        return known, definitions.unknown(names, known)

    def _link(self, names: Iterable[str]) -> bool:
        changed = False
        for name in names:
            path = self._wish(name)
            if not path.is_symlink():
                path.parent.mkdir(exist_ok=True, mode=0o755)
                path.symlink_to(self._file(name))
                changed = True
        return changed

    def _unlink(self, names: Iterable[str]) -> None:
        for name in names:
            files.remove(self._wish(name))

    def _halt(self, names: Sequence[str]) -> dict[str, str]:
        done = self._run("stop", *map(self._unit, names))
        if not done.returncode:
            self._cancel(names)
            return {}
        left = {name: shown for name, shown in self._show(names).items() if shown.get("MainPID", "0") != "0"}
        return {name: f"{self._unit(name)} does not stop: {done.stderr.strip()}" for name in left}

    def _cancel(self, names: Sequence[str]) -> None:
        """Remove the timers that would kill the programs of these services, because they have stopped."""
        patterns = []
        for name in names:
            with contextlib.suppress(OSError):
                if unit_file.has_deadline(self._file(name).read_text()):
                    pattern = unit_file.deadline(self.layout, name, "*")
                    patterns += [f"{pattern}.timer", f"{pattern}.service"]
        if patterns:
            self._run("stop", "--", *patterns)

    def _erase(self, names: Sequence[str]) -> None:
        """Remove the units of stopped services, their notes, and systemd's record of their failures."""
        if names:
            for name in names:
                files.remove(self._file(name))
                self._forget(name)
            self._run("reset-failed", *map(self._unit, names))  # it fails for units that have not failed
            self._call("daemon-reload")

    def _show(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        if not names:
            return {}
        units = {self._unit(name): name for name in names}
        try:
            found = dbus.show(list(units))
        except (OSError, ValueError):
            # The socket is private to systemd and may change; systemctl is slower, but stable.
            found = self._systemctl_show(list(units))
        return {name: found.get(unit_name, {}) for unit_name, name in units.items()}

    def _systemctl_show(self, units: Sequence[str]) -> dict[str, dict[str, str]]:
        text = self._call("show", f"--property=Id,{','.join(dbus.WANTED)}", "--", *units)
        found = {}
        for block in text.split("\n\n"):
            shown = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
            found[shown.pop("Id", "")] = shown
        return found

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                ["systemctl", "--no-pager", "--no-ask-password", "--quiet", *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
            )
        except (OSError, subprocess.TimeoutExpired) as err:
            raise SupervisorError(f"systemctl {arguments[0]} can't be run: {err}") from err

    def _call(self, *arguments: str) -> str:
        done = self._run(*arguments)
        if done.returncode:
            raise SupervisorError(f"systemctl {arguments[0]} failed: {done.stderr.strip()}")
        return done.stdout


def _ours(path: Path) -> bool:
    """Return whether netspace may write a file: the file doesn't exist, or netspace wrote it before."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(unit_file.HEADER)) == unit_file.HEADER.encode()
    except FileNotFoundError:
        return True
    except OSError:
        return False


def end(note: str) -> str:
    """Return ``Status.exit`` from a note of systemd's variables (systemd.exec(5), $SERVICE_RESULT)."""
    result, code, value = [*note.split(), "", "", ""][:3]
    if result == "oom-kill":
        return "oom"
    if code == "exited" and value.isdigit():
        return f"exit {value}"
    if code in ("killed", "dumped"):
        known = signal.Signals.__members__.get(f"SIG{value}")
        return f"signal {known.value}" if known is not None else "unknown"
    return ""


def _status(shown: Mapping[str, str], wanted: bool, noted: str = "", kills: int = 0) -> Status:
    """Return a unit's status from the properties that systemd shows.

    :param wanted: whether the service shall run; if not, a failed unit is reported as stopped.
    :param noted: how the service last ended; used if systemd has forgotten it.
    :param kills: number of the service's OOM kills.
    """
    active = shown.get("ActiveState", "inactive")
    state: State
    if active in ("active", "reloading", "refreshing", "deactivating"):
        state = "running"
    elif active == "activating":
        state = "starting"
    else:
        state = "failed" if active == "failed" and wanted else "stopped"
    code, value = shown.get("ExecMainCode", "0"), shown.get("ExecMainStatus", "0")
    how = noted
    if shown.get("Result") == "oom-kill":
        how = "oom"
    elif code == "1":
        how = f"exit {value}"
    elif code in ("2", "3"):
        how = f"signal {value}"
    elif shown.get("Result") not in ("success", None):
        how = noted or "unknown"
    since = int(shown.get("StateChangeTimestampMonotonic") or 0)
    return Status(
        state,
        pid=int(shown.get("MainPID") or 0),
        since=time.time() - time.monotonic() + since / 1e6 if since else 0.0,
        restarts=int(shown.get("NRestarts") or 0),
        exit=how,
        oom_kills=kills,
    )
