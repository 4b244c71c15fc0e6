"""Program of the exhaustion audit: takes units of the kernel's pools, and holds them.

In the attacking twin, the program takes all units that it can get. In the neighbour twin, and as root on the host, it
takes a small share.

It needs only the standard library (Python 3.10 or newer), ``pools.py`` and ``storms.py``. It reads requests from
standard input, one JSON object per line. It answers each request with one line, ``{"taken": number, "ended": text}``:

``{"take": pool, "aim": [address]}``
    Take units until the kernel refuses one, and hold them. ``ended`` is the name of the error, or ``killed`` if the
    kernel killed a process that took units. ``ended`` is empty if the kernel refused nothing before the pool's ``most``
    units, :data:`PATIENCE` or :data:`CHILDREN` was reached.
``{"share": pool}``
    Take at most :data:`SHARE` units, and release them.
``{"storm": name}``
    Put the load of this storm (``storms.py``) on the host until ``drop``.
``{"drop": true}``
    Release everything.
``{"echo": true}``
    Only answer.

At the end of its standard input, the program releases everything and exits. Its argument is the folder in which it
makes files.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import resource
import select
import signal
import struct
import sys
import time
from contextlib import ExitStack

from netspace.environment.audit.pools import POOLS, Place, Pool, Taker
from netspace.environment.audit.storms import STORMS

SHARE = 16
PATIENCE = 20.0  # seconds for one take, even on a busy machine
CHILDREN = 24  # processes that take units, one after the other: some bounds are per process, not per user
WORKERS = 8  # processes of a storm


class Program:
    """The program's state: the processes that hold the taken units."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.holders: list[int] = []
        self.hold, self.release = os.pipe()

    def answer(self, request: dict[str, object]) -> tuple[int, str]:
        """Execute a request; return the number of units taken, and the reason why no more were taken."""
        if "take" in request:
            wanted, aim = POOLS[str(request["take"])], request.get("aim")
            given = tuple(str(address) for address in aim) if isinstance(aim, list) else ()
            return self._take(wanted, wanted.most, CHILDREN, given)
        if "share" in request:
            return self._share(POOLS[str(request["share"])])
        if "storm" in request:
            return self._storm(str(request["storm"]))
        if "drop" in request:
            self.drop()
        return 0, ""

    def drop(self) -> None:
        """Release all units that were taken."""
        self.close()
        self.hold, self.release = os.pipe()

    def close(self) -> None:
        """Release everything, and end the child processes."""
        os.close(self.release)
        for pid in self.holders:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        os.close(self.hold)
        self.holders = []

    def _share(self, wanted: Pool) -> tuple[int, str]:
        if wanted.brief:
            taken = 0
            for taken in range(SHARE):
                found, ended = _briefly(wanted, Place(self.folder, self.hold))
                if not found:
                    return taken, ended
            return taken + 1, ""
        answer = self._take(wanted, SHARE, 1, ())
        self.drop()
        return answer

    def _take(self, wanted: Pool, most: int, children: int, aim: tuple[str, ...]) -> tuple[int, str]:
        deadline = time.monotonic() + PATIENCE
        taken, ended = 0, ""
        for _ in range(children):
            found, ended = self._child(wanted, most - taken, deadline, aim)
            if ended == "killed" and found:
                # The kernel has released the killed process's units: take nearly as many again, so that others feel the
                # lack.
                kept, _ = self._child(wanted, found - found // 8, deadline + PATIENCE, aim)
                return taken + kept, ended
            taken += found
            if found == 0 or taken >= most or time.monotonic() > deadline:
                break
        return taken, ended

    def _child(self, wanted: Pool, most: int, deadline: float, aim: tuple[str, ...]) -> tuple[int, str]:
        """Take units in one more child process; return their number, and the reason why no more were taken.

        :param most: the number of units to take at most.
        :param deadline: the monotonic time at which to stop.
        :param aim: addresses to which packets are sent.
        """
        count = mmap.mmap(-1, 8)  # in shared memory, the count outlives a killed process
        reader, writer = os.pipe()
        try:
            pid = os.fork()
        except OSError as err:
            os.close(reader)
            os.close(writer)
            return 0, name_of(err)
        if pid == 0:
            os.close(self.release)
            os.close(reader)
            _hold(wanted.take, Place(self.folder, self.hold, aim), most, deadline, count, writer)
        os.close(writer)
        self.holders.append(pid)
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()) + 2)
        told = os.read(reader, 64).decode() if ready else ""
        os.close(reader)
        if not told:
            os.kill(pid, signal.SIGKILL)
        ended = told.strip() if told else "killed" if ready else "it hangs"
        return struct.unpack_from("=q", count)[0], ended

    def _storm(self, name: str) -> tuple[int, str]:
        for started in range(WORKERS):
            try:
                pid = os.fork()
            except OSError as err:
                return started, name_of(err)
            if pid == 0:
                os.close(self.release)
                while not select.select([self.hold], [], [], 0)[0]:
                    with contextlib.suppress(OSError):
                        STORMS[name](self.folder)
                os._exit(0)
            self.holders.append(pid)
        return WORKERS, ""


def name_of(error: OSError) -> str:
    """Return an error's symbolic name."""
    return errno.errorcode.get(error.errno or 0, str(error))


def _briefly(wanted: Pool, place: Place) -> tuple[int, str]:
    """Take one unit and release it; return the number of taken units (1 or 0), and the name of the error, if any."""
    try:
        with ExitStack() as after:
            wanted.take(place, after)()
    except OSError as err:
        return 0, name_of(err)
    return 1, ""


def _hold(taker: Taker, place: Place, most: int, deadline: float, count: mmap.mmap, writer: int) -> None:
    """Take units until the kernel refuses one, report the reason, hold the units until the release, and exit.

    :param count: shared memory for the number of taken units.
    :param writer: the pipe for the reason.
    """
    # If memory runs out, let the kernel kill this process, not its parent.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as stream:
        stream.write("1000")
    with contextlib.suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ended, taken, after = "", 0, ExitStack()
    try:
        take = taker(place, after)
        while taken < most and time.monotonic() < deadline:
            take()
            taken += 1
            struct.pack_into("=q", count, 0, taken)
    except OSError as err:
        ended = name_of(err)
    except MemoryError:
        ended = "ENOMEM"
    os.write(writer, f"{ended}\n".encode())
    os.read(place.hold, 1)
    with contextlib.suppress(OSError):
        after.close()
    os._exit(0)


def main() -> None:
    program = Program(sys.argv[1])
    for line in sys.stdin:
        taken, ended = program.answer(json.loads(line))
        print(json.dumps({"taken": taken, "ended": ended}), flush=True)
    program.close()


if __name__ == "__main__":
    main()
