"""What an operator does with environments that exist. Returns are plain values, fit for JSON.

What is started or stopped by hand is noted in the environment's record, so that a new card
doesn't start what was stopped; the next apply of the declaration decides again. No value of a
variable and no content of a handed-out file is ever returned.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from netspace import files
from netspace.environment import disks, ids, mounts, oci, records, runtime
from netspace.environment.kind import Environments
from netspace.environment.observe import describe, own_disks
from netspace.environment.records import Record, RunState
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.spec import parse
from netspace.spec.types import Environment
from netspace.supervision import Status, Supervisor, booted

MAX_OUTPUT = 1024 * 1024
MAX_LINES = 10_000
_REAPED = 5.0  # seconds that a runtime gets to end after the program it waits for was killed
_TAIL = 256  # bytes of log read per wanted line, to begin with


class Operations:
    """Operations on the environments of one host; those that change something take the layout's lock.

    :param withheld: says which of the environments must not be started now, and why.
    """

    def __init__(
        self,
        layout: Layout,
        supervisor: Supervisor,
        withheld: Callable[[Mapping[str, Environment]], Mapping[str, str]],
    ) -> None:
        self._layout = layout
        self._supervisor = supervisor
        self._withheld = withheld
        self._kind = Environments(layout, supervisor)

    def list(self) -> dict[str, Any]:
        """Per environment: ``state``, ``pid``, ``since``, ``restarts``, ``exit``, ``image``, ``digest``, ``wanted``,
        ``runtime``."""
        return self._kind.list()

    def inspect(self, name: str) -> dict[str, Any]:
        """All that is known of one environment.

        What :meth:`list` tells, and ``spec`` (values of variables hidden), ``user`` (``inside``,
        ``host``), ``ids`` (``base``, ``count``), ``cgroup``, ``netns``, ``layer``, ``log``, ``usage``
        (``memory`` in bytes, ``pids``; both absent where it doesn't run; ``disk`` and ``volumes``, in bytes,
        of those that have a bounded size) and ``files`` (names).
        """
        record = self.known([name])[name]
        status = self._status(name)
        spec = parse.encode(records.own(record.spec))
        spec.pop("interface", None)
        spec["env"] = dict.fromkeys(spec["env"], "(not shown)")
        user = oci.user_of(record.spec, record.image.defaults)
        cgroup = self._kind.making.cgroup(name)
        inside = self._layout.inside(name)
        mounted = mounts.table()
        return {
            **describe(record, status),
            "spec": spec,
            "user": {"inside": user, "host": record.base + user},
            "ids": {"base": record.base, "count": ids.COUNT},
            "cgroup": cgroup,
            "netns": str(self._layout.netns(name)),
            "layer": str(self._layout.environment(name)),
            "log": str(runtime.output(self._layout, name)),
            "usage": {**runtime.usage(cgroup, mounted), **_disk_usage(self._layout, name, record, mounted)},
            "files": sorted(os.listdir(inside)) if inside.is_dir() else [],
        }

    def start(self, names: Collection[str]) -> dict[str, str]:
        """Start those that don't run and are not withheld; return an error text per name, empty where it runs."""

        def act(known: Mapping[str, Record]) -> dict[str, str]:
            lost = self._kind.restore()
            statuses = self._supervisor.observe()
            idle = [
                name for name in known if name not in lost and _state(statuses, name) not in ("running", "starting")
            ]
            return {**lost, **self._kind.start(idle)}

        return self._change(names, "running", act)

    def stop(self, names: Collection[str]) -> dict[str, str]:
        """Stop them and wait until they are gone; return an error text per name, empty where it stopped."""
        return self._change(names, "stopped", self._kind.stop)

    def restart(self, names: Collection[str]) -> dict[str, str]:
        """Stop and start them, but not what is withheld; return an error text per name, empty where it runs."""

        def act(known: Mapping[str, Record]) -> dict[str, str]:
            failed = self._kind.stop(known)
            failed.update(self._kind.restore())
            return {**failed, **self._kind.start([name for name in known if name not in failed])}

        return self._change(names, "running", act)

    def logs(self, name: str, lines: int = 100) -> dict[str, Any]:
        """The last *lines* lines of what the program wrote: ``{"lines": [...]}``."""
        try:
            count = min(max(int(lines), 0), MAX_LINES)
        except (TypeError, ValueError, OverflowError) as err:
            raise NetspaceError(f"lines: expected a whole number, got {lines!r}") from err
        self.known([name])
        own = runtime.output(self._layout, name)
        if own.exists() or not booted():
            return {"lines": _last_lines(own, count)}
        service = self._layout.service(runtime.service_name(name))
        # By its identifier too: without what systemd itself says of the unit.
        which = ("--unit", f"{service}.service", "--identifier", service)
        done = subprocess.run(
            ["journalctl", *which, "--lines", str(count), "--output", "cat", "--no-pager", "--quiet"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if done.returncode != 0:
            raise NetspaceError(f"journalctl: {done.stderr.decode(errors='replace').strip()}")
        return {"lines": done.stdout[-MAX_OUTPUT:].decode(errors="replace").splitlines()[-count:] if count else []}

    def exec(
        self, name: str, command: Sequence[str], timeout: float = 60.0, stdin: bytes | str = b""
    ) -> dict[str, Any]:
        """Run another program in a running environment, with the same rights as its own.

        :param command: argument vector; the program is looked up inside.
        :param timeout: seconds; then it is killed.
        :return: ``retcode`` (124 after a timeout), ``stdout`` and ``stderr`` (text, at most 1 MiB
            each), ``truncated`` (whether there was more) and ``timed_out``.
        :raises NetspaceError: when the environment doesn't run or the program can't be run.
        """
        record = self.known([name])[name]
        arguments = [str(argument) for argument in command]
        if not arguments or not arguments[0]:
            raise NetspaceError("exec: no command is given")
        if self._status(name).state != "running":
            raise NetspaceError(f"environment {name} does not run")
        process = oci.process(name, record.spec, record.image.defaults, arguments)
        with tempfile.TemporaryDirectory(prefix="exec-", dir=self._layout.run) as folder:
            scratch = Path(folder)
            pid, log = scratch / "pid", scratch / "log"
            files.write(scratch / "process.json", oci.encode(process))
            call = runtime.beside(self._layout, name, record.runtime, mounts.table(), scratch)
            done = _run(call, stdin.encode() if isinstance(stdin, str) else stdin, timeout, pid)
            if not pid.exists() and log.exists():
                raise NetspaceError(f"exec in environment {name}: {runtime.complaint(log)}")
        return {
            "retcode": done.retcode,
            "stdout": done.stdout.decode(errors="replace"),
            "stderr": done.stderr.decode(errors="replace"),
            "truncated": done.truncated,
            "timed_out": done.timed_out,
        }

    def known(self, names: Collection[str]) -> dict[str, Record]:
        """The records of these.

        :raises NetspaceError: naming one that there is not.
        """
        known = self._kind.recorded()
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(known) or 'none'}"
                raise NetspaceError(f"there is no environment {name}{hint}")
        return {name: known[name] for name in names}

    # -- parts -------------------------------------------------------------------

    def _status(self, name: str) -> Status:
        return self._supervisor.observe().get(runtime.service_name(name), Status("stopped"))

    def _change(
        self, names: Collection[str], state: RunState, act: Callable[[Mapping[str, Record]], Mapping[str, str]]
    ) -> dict[str, str]:
        with files.locked(self._layout.lock):
            known = self.known(names)
            specs = {name: record.spec for name, record in known.items()}
            refused = self._withheld(specs) if state == "running" else {}
            permitted = {name: record for name, record in known.items() if name not in refused}
            for name, record in permitted.items():
                if record.state != state:
                    records.write(self._layout, name, msgspec.structs.replace(record, state=state))
            errors = {**act(permitted), **refused}
            return {name: errors.get(name, "") for name in known}


def _disk_usage(layout: Layout, name: str, record: Record, mounted: Mapping[str, mounts.Mount]) -> dict[str, Any]:
    used = {key: there.used for key, there in own_disks(layout, name, record, mounted).items()}
    found: dict[str, Any] = {"disk": used.pop(disks.LAYER)} if disks.LAYER in used else {}
    return {**found, "volumes": used} if used else found


def _state(statuses: Mapping[str, Status], name: str) -> str:
    return statuses.get(runtime.service_name(name), Status("stopped")).state


def _last_lines(path: Path, count: int) -> Sequence[str]:
    """The last *count* lines; reads no more of the file than it has to."""
    if not count or not path.exists():
        return []
    with path.open("rb") as stream:
        end = stream.seek(0, os.SEEK_END)
        size = count * _TAIL
        while True:
            start = max(end - size, 0)
            stream.seek(start)
            lines = stream.read(end - start).splitlines()
            # The first line may be cut, unless it is the file's first.
            if start == 0 or len(lines) > count or size >= MAX_OUTPUT:
                return [line.decode(errors="replace") for line in lines[-count:]]
            size *= 2


@dataclass
class _Done:
    retcode: int
    stdout: bytes
    stderr: bytes
    truncated: bool
    timed_out: bool


def _run(call: Sequence[str], stdin: bytes, timeout: float, pid_file: Path) -> _Done:
    """Run *call* to its end or the timeout, keeping no more than MAX_OUTPUT of each stream."""
    deadline = time.monotonic() + timeout
    kept = {"stdout": bytearray(), "stderr": bytearray()}
    truncated = timed_out = False
    process = runtime.piped(call)
    assert process.stdout is not None
    assert process.stderr is not None
    with process, selectors.DefaultSelector() as selector:
        streams = {"stdout": process.stdout, "stderr": process.stderr}
        for name, stream in streams.items():
            selector.register(stream, selectors.EVENT_READ, name)
        if process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE, "stdin")
        while selector.get_map() and not timed_out:
            ready = selector.select(max(deadline - time.monotonic(), 0.0))
            timed_out = not ready
            for key, _ in ready:
                if process.stdin is not None and key.data == "stdin":
                    stdin = _feed(process.stdin, stdin)
                    if not stdin:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(streams[key.data])
                room = MAX_OUTPUT - len(kept[key.data])
                kept[key.data] += chunk[:room]
                truncated = truncated or len(chunk) > room
        if not timed_out:
            try:
                process.wait(max(deadline - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                timed_out = True
        if timed_out:
            _kill(process, pid_file)
        retcode = process.wait()
    return _Done(124 if timed_out else retcode, bytes(kept["stdout"]), bytes(kept["stderr"]), truncated, timed_out)


def _feed(stream: IO[bytes], data: bytes) -> bytes:
    """Write what the pipe takes; return what is left (nothing, when nobody reads)."""
    try:
        return data[os.write(stream.fileno(), data) :]
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return b""


def _kill(process: subprocess.Popen[bytes], pid_file: Path) -> None:
    """Kill the program inside with its process group; the runtime then reaps it, and ends."""
    with contextlib.suppress(OSError, ValueError):
        inside = int(pid_file.read_text())
        if os.getpgid(inside) == inside:
            os.killpg(inside, signal.SIGKILL)
        else:
            os.kill(inside, signal.SIGKILL)
    try:
        process.wait(_REAPED)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
