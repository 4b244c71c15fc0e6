"""Runner of a program beside the bridge. It forwards signals and, as process 1 of a container, reaps orphans."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence

HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


async def run(command: Sequence[str]) -> int:
    """Run *command* until it ends; return its exit status, or 128 plus the number of the signal that ended it.

    :raises OSError: *command* can't be started.
    """
    loop = asyncio.get_running_loop()
    received: asyncio.Queue[signal.Signals] = asyncio.Queue()
    # Before the program starts, so that a signal during its start is passed on too.
    for number in HANDED_ON:
        loop.add_signal_handler(number, received.put_nowait, number)
    tasks: list[asyncio.Task[None]] = []
    try:
        process = await asyncio.create_subprocess_exec(*command)
        tasks.append(asyncio.create_task(_hand_on(process, received)))
        if os.getpid() == 1:
            tasks.append(asyncio.create_task(_reap(process.pid)))
        status = await process.wait()
    finally:
        for task in tasks:
            task.cancel()
        for number in HANDED_ON:
            loop.remove_signal_handler(number)
    return status if status >= 0 else 128 - status


async def _hand_on(process: asyncio.subprocess.Process, received: asyncio.Queue[signal.Signals]) -> None:
    """Forward to *process* each signal that this process receives."""
    while True:
        number = await received.get()
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)


async def _reap(own: int) -> None:
    """Reap orphans, for ever. Orphans become children of process 1 when their parent ends.

    :param own: the PID of the program, which asyncio reaps.
    """
    while True:
        await asyncio.sleep(1.0)
        for pid in _zombies():
            if pid != own:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)


def _zombies() -> list[int]:
    """Return the children of this process that have ended and have not been waited for (proc_pid_stat(5))."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{name}/stat") as stream:
                    state, parent = stream.read().rpartition(")")[2].split()[:2]
                if state == "Z" and int(parent) == os.getpid():
                    found.append(int(name))
    return found
