"""Running another program in an environment that runs: how ``exec`` and health's probes get in.

It has the same rights, limits and filter as the environment's own program. Of each stream no
more than a bounded part is kept, and what takes too long is killed inside.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from netspace import files
from netspace.environment import mounts, oci, runtime
from netspace.environment.records import Record
from netspace.errors import NetspaceError
from netspace.layout import Layout

MAX_OUTPUT = 1024 * 1024
_REAPED = 5.0  # seconds that a runtime gets to end after the program it waits for was killed


@dataclass
class Done:
    """How it ended: ``retcode`` is 124 after a timeout."""

    retcode: int
    stdout: bytes
    stderr: bytes
    truncated: bool
    timed_out: bool


def enter(
    layout: Layout, name: str, record: Record, arguments: Sequence[str], timeout: float, stdin: bytes = b""
) -> Done:
    """Run *arguments* in the environment *name*, which runs.

    :raises NetspaceError: when the program can't be run.
    """
    process = oci.process(name, record.spec, record.image.defaults, list(arguments))
    with tempfile.TemporaryDirectory(prefix="exec-", dir=layout.run) as folder:
        scratch = Path(folder)
        pid, log = scratch / "pid", scratch / "log"
        files.write(scratch / "process.json", oci.encode(process))
        call = runtime.beside(layout, name, record.runtime, mounts.table(), scratch)
        done = _run(call, stdin, timeout, pid)
        if not done.timed_out and not pid.exists() and log.exists():
            raise NetspaceError(f"exec in environment {name}: {runtime.complaint(log)}")
        return done


def _run(call: Sequence[str], stdin: bytes, timeout: float, pid_file: Path) -> Done:
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
    return Done(124 if timed_out else retcode, bytes(kept["stdout"]), bytes(kept["stderr"]), truncated, timed_out)


def _feed(stream: IO[bytes], data: bytes) -> bytes:
    """Write what the pipe takes; return what is left (nothing, when nobody reads)."""
    try:
        return data[os.write(stream.fileno(), data) :]
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return b""


def _kill(process: subprocess.Popen[bytes], pid_file: Path) -> None:
    """Kill the program inside with its process group; the runtime then reaps it, and ends.

    The runtime may be about to start it only, and says which it is before it does.
    """
    deadline, killed = time.monotonic() + _REAPED, False
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            if not killed:
                inside = int(pid_file.read_text())
                if os.getpgid(inside) == inside:
                    os.killpg(inside, signal.SIGKILL)
                else:
                    os.kill(inside, signal.SIGKILL)
                killed = True
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
            return
    os.killpg(process.pid, signal.SIGKILL)
