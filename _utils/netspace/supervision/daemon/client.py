"""The client of netspace's own supervisor, for hosts where systemd is not PID 1.

The client reads definitions, desired services and statuses from files (see ``definitions``). Only starts and stops need
the daemon. To read the states of many services, the client asks the daemon first, because that takes a fifth of the
time. The client starts the daemon on demand, from the library's copy. The daemon ends when it has nothing left to
watch.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Literal

import msgspec

from netspace import files, library_copy
from netspace.layout import Layout
from netspace.supervision import definitions, memory_events, process
from netspace.supervision.cgroup import payload_cgroups
from netspace.supervision.daemon import look, presence, protocol
from netspace.supervision.definitions import SupervisorError
from netspace.supervision.service import Service, State, Status

# Seconds to wait for an answer: the longest possible stop, and a reserve.
PATIENCE = 3600.0 + 120.0
ATTEMPTS = 5
GLANCE = 1.0  # seconds to wait for the daemon; without an answer, the traces are read

STATES: dict[str, State] = {
    "launching": "starting",
    "starting": "starting",
    "running": "running",
    "stopping": "running",
    "stopped": "stopped",
    "failed": "failed",
}


class DaemonSupervisor:
    """The :class:`~netspace.supervision.Supervisor` that works through the daemon of ``daemon.py``."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def observe(self, names: Collection[str] | None = None, *, noticed: bool = False) -> dict[str, Status]:
        names = definitions.defined(self.layout, names)
        found = self._running(names) if noticed and len(names) > definitions.MANY else {}
        # Nearly always all services run, so there is nothing else to look at.
        names = [name for name in names if name not in found] if found else names
        traced = set(definitions.traced(self.layout, names)) if names else set()
        watched = bool(traced) and presence.attended(self.layout)
        cgroup, kernel = payload_cgroups(self.layout), memory_events.reader()

        def kills(name: str) -> int | None:
            return None if noticed else kernel(cgroup(name))  # the daemon notes each kill in the trace

        with files.folder(definitions.traces(self.layout)) as folder, files.folder("/proc") as processes:
            for name in names:
                trace = _brief(f"{name}.json", folder) if folder is not None and name in traced else None
                found[name] = _STOPPED if trace is None else _status(name, trace, watched, kills, processes)
        failed = {name for name, status in found.items() if status.state == "failed"}
        # A failed service that shall no longer run is reported as stopped.
        for name in failed - definitions.desired(self.layout) if failed else ():
            found[name] = found[name]._replace(state="stopped")
        return found

    def _running(self, names: Collection[str]) -> dict[str, Status]:
        """Return the statuses of the running services among *names*, by one question to the daemon.

        The result is empty if no daemon answers soon: no daemon runs, it has an earlier version, or the host is too
        busy.
        """
        if not presence.attended(self.layout):
            return {}
        try:
            raw = self._answered(protocol.render(protocol.Request("look")), GLANCE)
            told = look.parse(raw)
        except (OSError, ValueError):
            return {}
        return {
            name: Status(
                "frozen" if one.frozen else "running", one.pid, one.since, one.restarts, one.exit, one.oom_kills
            )
            for name in names
            if (one := told.get(name)) is not None
        }

    def define(self, services: Sequence[Service]) -> bool:
        wanted = definitions.validate(services)
        changed = bool(wanted) and library_copy.install(self.layout)
        folder = definitions.folder(self.layout)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with files.locked(folder / ".lock"):
            written, failed = files.write_all(
                {folder / f"{name}.json": files.encode(one) for name, one in wanted.items()}
            )
        for error in failed.values():
            raise error
        return changed or bool(written)

    def differing(self, services: Sequence[Service]) -> set[str]:
        folder = definitions.folder(self.layout)
        return {
            service.name
            for service in services
            if files.differs(folder / f"{service.name}.json", files.encode(definitions.encode(service)))
        }

    def start(self, names: Collection[str]) -> dict[str, str]:
        errors = definitions.unknown(names, definitions.defined(self.layout, names))
        known = [name for name in names if name not in errors]
        if known:
            for status in self.observe(known).values():
                if status.state == "frozen":
                    process.thaw(status.pid)
            definitions.desire(self.layout, add=known)
            errors.update(self._ask("start", known))
        return errors

    def stop(self, names: Collection[str]) -> dict[str, str]:
        errors = definitions.unknown(names, definitions.defined(self.layout, names))
        return {**errors, **self._end("stop", [name for name in names if name not in errors])}

    def reload(self, names: Collection[str]) -> dict[str, str]:
        errors = definitions.unknown(names, definitions.defined(self.layout, names))
        known = [name for name in names if name not in errors]
        return {**errors, **(self._ask("reload", known) if known else {})}

    def remove(self, names: Collection[str]) -> dict[str, str]:
        return self._end("remove", list(names))

    def attended(self) -> bool:
        if presence.running(self.layout):
            return presence.attended(self.layout)
        traces = (definitions.read_trace(self.layout, name) for name in definitions.traced(self.layout))
        return all(trace is None or trace.state in definitions.AT_REST for trace in traces)

    def attend(self) -> None:
        if presence.running(self.layout) or not self.attended():
            self._ask("hello", ())

    def resume(self) -> None:
        wanted = definitions.desired(self.layout) & set(definitions.defined(self.layout))
        if wanted and not (presence.running(self.layout) and wanted <= set(definitions.traced(self.layout))):
            self._ask("resume", ())

    def purge(self) -> None:
        import shutil

        errors = self.remove(definitions.defined(self.layout))
        if errors:
            raise SupervisorError("\n".join(f"{name}: {error}" for name, error in errors.items()))
        deadline = time.monotonic() + 10
        while presence.running(self.layout):
            if time.monotonic() > deadline:
                raise SupervisorError(
                    "the supervisor still runs, although no service is left; see the supervisor's log"
                )
            time.sleep(0.02)
        shutil.rmtree(definitions.folder(self.layout), ignore_errors=True)
        files.remove(presence.lock_path(self.layout))
        files.remove(presence.socket_path(self.layout))
        files.remove(self.layout.logs / "supervisor.log")
        library_copy.remove(self.layout)

    def _end(self, do: Literal["stop", "remove"], names: list[str]) -> dict[str, str]:
        if not names:
            return {}
        with contextlib.suppress(FileNotFoundError):
            definitions.desire(self.layout, drop=names)
        # Without a daemon and a trace, no process of the service can be running.
        if do == "remove" or presence.running(self.layout) or definitions.traced(self.layout, names):
            there = {*definitions.defined(self.layout, names), *definitions.traced(self.layout, names)}
            names = [name for name in names if name in there]
            return self._ask(do, names) if names else {}
        return {}

    # -- the daemon -----------------------------------------------------------------
    def _ask(self, do: str, names: Iterable[str]) -> dict[str, str]:
        """Send the request to the daemon, and start a daemon if no daemon runs. The request may be sent twice."""
        asked = tuple(names)
        reason = ""
        process.thaw(presence.holder(self.layout))  # a frozen daemon would never answer
        for _ in range(ATTEMPTS):
            try:
                if not presence.running(self.layout) or reason:
                    self._launch()
                version = library_copy.installed(self.layout)
                if reason:  # the daemon may be of another version
                    self._renew(version)
                answer = self._exchange(protocol.render(protocol.Request(do, asked, version)))
                if answer.version == version:
                    return answer.errors
                reason = "the supervisor runs another version of the library, so it did nothing"
            except (OSError, ValueError, SupervisorError) as err:  # the daemon ended meanwhile, or was killed
                reason = str(err)
                time.sleep(0.05)
        log = self.layout.logs / "supervisor.log"
        raise SupervisorError(f"the supervisor of {self.layout.instance} does not answer ({reason}); see {log}")

    def _renew(self, version: str) -> None:
        """Make the daemon, which runs another version of the library, load the installed version."""
        if self._exchange(protocol.render(protocol.Request("hello"))).version == version:
            return
        with contextlib.suppress(OSError, ValueError):
            self._exchange(protocol.render(protocol.Request("renew")))
        for _ in range(200):
            with contextlib.suppress(OSError, ValueError):
                if self._exchange(protocol.render(protocol.Request("hello"))).version == version:
                    return
            time.sleep(0.02)
        raise OSError(errno.ETIMEDOUT, "the supervisor does not load the installed library")

    def _exchange(self, request: bytes) -> protocol.Answer:
        return protocol.parse_answer(self._answered(request, PATIENCE))

    def _answered(self, request: bytes, patience: float) -> bytes:
        """Send a request to the daemon; return the raw answer.

        :param patience: seconds to wait for each part of it.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(patience)
            connection.connect(str(presence.socket_path(self.layout)))
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            answer = bytearray()
            while chunk := connection.recv(65536):
                answer += chunk
                if len(answer) > protocol.LARGEST:
                    break
        return bytes(answer)

    def _launch(self) -> None:
        library_copy.install(self.layout)
        command = library_copy.command(self.layout, "supervise")
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": os.environ.get("LANG", "C.UTF-8")},
                cwd="/",
                start_new_session=True,
                timeout=60,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as err:
            raise SupervisorError(f"the supervisor can't be started: {err}") from err
        if done.returncode:
            text = done.stderr.decode(errors="replace").strip()
            raise SupervisorError(f"the supervisor can't be started: {text or done.returncode}")


class _Brief(msgspec.Struct, forbid_unknown_fields=True):
    """A trace without the service's definition.

    The definition is the largest part of a trace, so it isn't decoded (``definitions.Trace``).
    """

    state: str
    pid: int
    ticks: int
    since: float
    restarts: int
    exit: str
    service: msgspec.Raw
    oom_kills: int = 0
    oom_seen: int = 0


_STOPPED = Status("stopped")
_USUAL = 16384  # bytes that hold nearly every trace
_decode = msgspec.json.Decoder(_Brief).decode


def _brief(name: str, folder: int) -> _Brief | None:
    """Return the trace in the file *name*; None if it is missing or invalid, as for ``definitions.read_trace``.

    :param folder: a descriptor of the folder with the traces.
    """
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
        try:
            content = os.read(fd, _USUAL)  # one read returns a whole file that is in memory
            while len(content) >= _USUAL and len(content) <= files.MAX_RECORD and (more := os.read(fd, _USUAL)):
                content += more
        finally:
            os.close(fd)
        trace = _decode(content)
    except (OSError, ValueError):
        return None
    return trace if trace.pid >= 0 and bytes(trace.service).startswith(b"{") else None


def _status(
    name: str, trace: _Brief, watched: bool, kills: Callable[[str], int | None], processes: int | None
) -> Status:
    """Return the status of the service *name* from its trace.

    :param watched: whether a daemon runs; without a daemon, the process may have ended unnoticed.
    :param kills: a function that returns the kernel's count of OOM kills of a service; None: the trace's count is used.
    :param processes: a descriptor of ``/proc``.
    """
    state = STATES.get(trace.state, "failed")
    if state != "running":
        if not watched and state == "starting":
            return Status("failed", 0, trace.since, trace.restarts, "unknown", trace.oom_kills)
        return Status(state, 0, trace.since, trace.restarts, trace.exit, trace.oom_kills)
    if watched:
        now = process.letter(trace.pid, processes) if trace.pid > 0 else ""
    else:
        now, ticks = process.state(trace.pid, processes) if trace.pid > 0 else ("", 0)
        if ticks != trace.ticks or now in ("", "Z", "X"):
            return Status("failed", 0, trace.since, trace.restarts, "unknown", trace.oom_kills)
    count = kills(name)
    killed = trace.oom_kills if count is None else trace.oom_kills + max(0, count - trace.oom_seen)
    return Status("frozen" if now == "T" else state, trace.pid, trace.since, trace.restarts, trace.exit, killed)
