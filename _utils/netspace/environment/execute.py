"""Execution of an additional program in a running environment, for ``exec`` and health probes.

The program has the same rights, limits and system call filter as the environment's own program. At most MAX_OUTPUT
bytes of each output stream are kept; what follows is read slowly, because reading costs the host's root processor time.
A program that exceeds its timeout is killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from netspace import files
from netspace.environment.container import oci_config, oci_runtime
from netspace.environment.record import Record
from netspace.environment.storage import mounts
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.supervision import process as processes
from netspace.supervision.cgroup import payload_cgroup
from netspace.text import harmless

MAX_OUTPUT = 1024 * 1024
DROPPED = 12 * 1024 * 1024  # the most bytes a second that are read and dropped, as of a program's log
_PREFIX = "exec-"  # of the folder of one execution
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PROCESS_GROUP = 1 << 2  # PIDFD_SIGNAL_PROCESS_GROUP of pidfd_send_signal(2)
_REAPED = 5.0  # seconds allowed to a runtime for ending after its program was killed


class Done(msgspec.Struct):
    """The result of a program that ended; ``retcode`` is 124 after a timeout."""

    retcode: int
    stdout: bytes
    stderr: bytes
    truncated: bool
    timed_out: bool

    def shown(self) -> dict[str, Any]:
        """Return the result for an operator. Control characters in the outputs are escaped."""
        return {
            "retcode": self.retcode,
            "stdout": harmless(self.stdout.decode(errors="replace")),
            "stderr": harmless(self.stderr.decode(errors="replace")),
            "truncated": self.truncated,
            "timed_out": self.timed_out,
        }


def enter(
    layout: Layout, name: str, record: Record, arguments: Sequence[str], timeout: float, stdin: bytes = b""
) -> Done:
    """Run *arguments* in the running environment *name*.

    :raises NetspaceError: when the program can't be run.
    """
    process = oci_config.process(name, record.spec, record.image.defaults, list(arguments), confined=record.confined)
    sweep(layout)
    with _scratch(layout) as scratch:
        pid, log = scratch / "pid", scratch / "log"
        files.write(scratch / "process.json", oci_config.encode(process))
        call = oci_runtime.beside(layout, name, record.runtime, mounts.table(), scratch)
        done = _run(call, stdin, timeout, pid, payload_cgroup(layout, oci_runtime.service_name(name)))
        if not done.timed_out and not pid.exists() and log.exists():
            raise NetspaceError(f"exec in environment {name}: {oci_runtime.complaint(log)}")
        return done


def sweep(layout: Layout) -> None:
    """Remove the folders of executions whose process was killed."""
    for folder in layout.run.glob(f"{_PREFIX}*"):
        import shutil  # only after a kill

        with contextlib.suppress(OSError):  # in use, or gone
            fd = os.open(folder, _FOLDER)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(fd)


@contextlib.contextmanager
def _scratch(layout: Layout) -> Iterator[Path]:
    """Make a folder for one execution. Its lock tells :func:`sweep` that the folder is in use."""
    import tempfile

    while True:
        with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=layout.run) as folder:
            try:
                fd = os.open(folder, _FOLDER)
            except FileNotFoundError:  # swept before it had its lock
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_SH)
                if os.fstat(fd).st_nlink:  # else swept as well
                    yield Path(folder)
                    return
            finally:
                os.close(fd)


def _run(call: Sequence[str], stdin: bytes, timeout: float, pid_file: Path, cgroup: str) -> Done:
    """Run *call* to its end or the timeout, and keep at most MAX_OUTPUT of each stream.

    :param cgroup: the environment's cgroup, in which the program runs.
    """
    deadline = time.monotonic() + timeout
    kept = {"stdout": bytearray(), "stderr": bytearray()}
    truncated = timed_out = False
    process = oci_runtime.piped(call)
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
            timed_out = not ready or time.monotonic() >= deadline  # some programs never stop writing
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
                if len(chunk) > room:
                    truncated = True
                    time.sleep((len(chunk) - room) / DROPPED)
        if not timed_out:
            try:
                process.wait(max(deadline - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                timed_out = True
        if timed_out:
            _kill(process, pid_file, cgroup)
        retcode = process.wait()
    return Done(124 if timed_out else retcode, bytes(kept["stdout"]), bytes(kept["stderr"]), truncated, timed_out)


def _feed(stream: IO[bytes], data: bytes) -> bytes:
    """Write as many bytes as the pipe accepts; return the rest (nothing if the reader closed the pipe)."""
    try:
        return data[os.write(stream.fileno(), data) :]
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return b""


def _kill(process: subprocess.Popen[bytes], pid_file: Path, cgroup: str) -> None:
    """Kill the program inside with its process group. The runtime then reaps the program, and ends.

    If the runtime has not started the program yet, its PID is already known. If the runtime has ended, the program has
    ended, too, and another process may have the PID. In this case nothing is killed, and remaining children of the
    program may keep a pipe open.
    """
    deadline, killed = time.monotonic() + _REAPED, False
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            killed = killed or _kill_inside(process, int(pid_file.read_text()[:20]), cgroup)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def _kill_inside(process: subprocess.Popen[bytes], pid: int, cgroup: str) -> bool:
    """Kill *pid* with its process group if the process is in the environment; return whether it was.

    Another process may have this PID by now. So the check uses a pidfd, which always refers to the same process. This
    process is the program as long as the runtime, which waits for the program, has not ended.

    :raises OSError: when there is no such process.
    """
    pidfd = os.pidfd_open(pid)
    try:
        if not processes.within(pid, cgroup) or process.poll() is not None:
            return False
        group = os.getpgid(pid) == pid
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL, None, _PROCESS_GROUP if group else 0)
        except OSError as err:
            if err.errno != errno.EINVAL:
                raise
            # Linux before 6.9 can't signal a group by descriptor. The number stays the program's until it is reaped.
            if process.poll() is None:
                os.killpg(pid, signal.SIGKILL)
        return True
    finally:
        os.close(pidfd)
