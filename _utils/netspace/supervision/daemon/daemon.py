"""The one supervisor process of a host without systemd: it keeps all services running.

One loop watches every process by its pidfd; there is no thread, no process per service and no polling of processes. The
daemon is a *child subreaper*: programs started detached (``crun run --detach``) become its children, so the daemon gets
their exit status too. Only restarts need the daemon. If the daemon is killed, the services keep running, and the next
daemon adopts them by their traces (see ``definitions``). A second process stands by to take over (see ``standby``),
unless the operator's init restarts the daemon.

Adoption is safe because the supervising process holds the lock file. A forked child shares the lock until it becomes
its program, and it writes its own trace earlier. So a process that gets the lock finds a trace of every existing
process.

The daemon listens on a socket that only root may use, and ends when there is nothing left to watch. It never uses the
network, a declaration or Salt.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from netspace.layout import Layout
from netspace.supervision import definitions, process
from netspace.supervision.daemon import logs, relay
from netspace.supervision.daemon.adopt import Adoption
from netspace.supervision.daemon.children import Children
from netspace.supervision.daemon.ending import Stopper
from netspace.supervision.daemon.log_rotation import Rotation
from netspace.supervision.daemon.loop import Loop
from netspace.supervision.daemon.oom import OomTracker
from netspace.supervision.daemon.presence import hold, lock_path, socket_path
from netspace.supervision.daemon.relay import Relay
from netspace.supervision.daemon.server import Server
from netspace.supervision.daemon.standby import Standby, become_anew
from netspace.supervision.daemon.start import Starter
from netspace.supervision.daemon.units import Unit, Units
from netspace.supervision.turns import Turns

IDLE = 10.0  # seconds with nothing to watch, after which the daemon ends
IDLE_FOR_GOOD = 0.2  # the same seconds if no service is defined
# The daemon's oom_score_adj: the OOM killer chooses it after nearly all other processes, because it restarts them.
PRECIOUS = -900
TURN = 0.5  # seconds between two measurements of environments' use of the processors
DESCRIPTORS = 524288  # systemd's hard limit too: systemd-system.conf(5), DefaultLimitNOFILE


class Daemon:
    """The supervisor, built from its parts; ``run`` returns when there is nothing left to do."""

    def __init__(self, layout: Layout, version: str, foreground: bool) -> None:
        self.layout = layout
        self._stays = foreground  # if it ended when idle, an init would restart it again and again
        self.loop = Loop()
        self.children = Children(self.loop)
        self.units = Units(layout, lambda unit: self.starting.ready(unit))
        self.shortage = OomTracker(self.units, self.loop)
        self.ending = Stopper(
            *(self.units, self.loop, self.children, self.shortage), Relay(self.units, self.loop), self._again
        )
        self.rotation = Rotation(self.units, self.loop)
        self.starting = Starter(self.units, self.loop, self.children, self.ending, self.shortage, self.rotation)
        self.serving = Server(self.units, self.loop, self.starting, self.ending, self.rotation, version)
        self.turns = Turns(f"/{layout.instance}")
        self._idle_since = 0.0
        self._over = False

    def _again(self, unit: Unit) -> None:
        self.starting.enqueue(unit)

    @property
    def renewing(self) -> bool:
        """True if the daemon ended to reload the library."""
        return self.serving.renewing

    def run(self, ready: Callable[[], None], standing: Standby | None) -> None:
        """Adopt the running services, call *ready* once the socket listens, and work until nothing is left to do."""
        process.prctl(process.PR_SET_CHILD_SUBREAPER)
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        self.loop.watch(wake_read, lambda _: self._woken(wake_read))
        if standing is not None:
            standing.begin(self.loop, self.children)
        listener = self.serving.listen(str(socket_path(self.layout)))
        Adoption(self.units, self.loop, self.children, self.starting, self.ending).adopt()
        ready()
        self.rotation.look()
        self._weigh()
        while not self._over and not self.renewing:
            self._turn()
        if standing is not None:
            standing.end()
        self.loop.unwatch(listener.fileno())
        listener.close()
        if not self.renewing:
            # Do this while the lock is held: later, the socket may be a successor's.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(socket_path(self.layout))
            if not definitions.defined(self.layout):
                self._leave_nothing()

    def _weigh(self) -> None:
        """Set the weights of environments, and schedule the next time."""
        self.turns.look(time.monotonic())
        self.loop.after(TURN, self._weigh)

    def _turn(self) -> None:
        self.loop.due()
        self.starting.pump()
        self.loop.wait()
        self.children.reap_if_due()
        if self.ending.sweeping:
            self.ending.sweep()
        if not self.starting.launching:  # a launched program's status may come before its PID file is read
            self.children.forget()
        self._rest()

    def _rest(self) -> None:
        """End the daemon if it has had nothing to watch for a while. The time is shorter if no service is defined."""
        if self.units.active or self.serving.clients or (self._stays and definitions.defined(self.layout)):
            self._idle_since = 0.0
            return
        now = time.monotonic()
        if not self._idle_since:
            self._idle_since = now
        wait = IDLE if definitions.defined(self.layout) else IDLE_FOR_GOOD
        if now - self._idle_since >= wait:
            self._over = True
        else:
            self.loop.after(wait, lambda: None)

    def _woken(self, wake: int) -> None:
        """Handle a signal. SIGTERM ends only the daemon; the next daemon adopts the running services."""
        numbers = os.read(wake, 4096)
        self._over = self._over or signal.SIGTERM in numbers
        if signal.SIGCHLD in numbers:
            self.children.signalled()

    def _leave_nothing(self) -> None:
        """Remove the folders that only a running daemon needs: traces, pipes, and detached programs' cgroups."""
        for directory in (definitions.traces(self.layout), relay.folder(self.layout), *_cgroups(self.layout)):
            with contextlib.suppress(OSError):
                os.rmdir(directory)


def _cgroups(layout: Layout) -> list[Path]:
    """Return the folders, in all hierarchies, that held the cgroups of detached programs."""
    root = Path("/sys/fs/cgroup")
    return [root / layout.instance, *root.glob(f"*/{layout.instance}")]


# -- becoming the daemon -----------------------------------------------------------------------
def main(layout: Layout, version: str, foreground: bool = False, lock: int | None = None) -> int:
    """Supervise until there is nothing to do; by default in the background.

    In the background, the caller returns as soon as the daemon listens, or if another supervisor runs already.

    :param foreground: stay in the foreground, for an init that restarts the process when it ends. If another supervisor
        runs, wait for its end.
    :param lock: an inherited descriptor that holds the lock, if this process was the supervisor or the stand-by
        process.
    :return: an exit code.
    """
    layout.run.mkdir(parents=True, exist_ok=True, mode=0o755)
    told, tell = os.pipe()
    if not foreground and lock is None:
        if os.fork():
            os.close(tell)
            with open(told, "rb") as stream:
                word = stream.read()
            if word != b"ready":
                sys.stderr.write(f"the supervisor did not start; see {layout.logs / 'supervisor.log'}\n")
            return int(word != b"ready")
        os.close(told)
        os.setsid()
        # An urgent run may start it. Environments' programs must not be urgent as well, for as long as they run.
        os.setpriority(os.PRIO_PROCESS, 0, max(0, os.getpriority(os.PRIO_PROCESS, 0)))
    return _supervise(layout, version, foreground, tell, lock)


def _supervise(layout: Layout, version: str, foreground: bool, tell: int, held: int | None) -> int:
    os.chdir("/")
    os.umask(0o077)
    _widen()
    process.weigh(PRECIOUS)
    if held is not None:
        os.set_inheritable(held, False)
        lock = held
    else:
        lock = os.open(lock_path(layout), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if foreground:
            fcntl.flock(lock, fcntl.LOCK_EX)
        # Children of a killed predecessor hold the lock a moment longer, until they become their programs.
        for attempt in range(200):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt > 5 and answers(layout):
                    os.write(tell, b"ready")
                    return 0
                time.sleep(0.01)
        else:
            return 1
        hold(lock)
        if not foreground and held is None:
            _detach(layout, keep={lock, tell})
        daemon = Daemon(layout, version, foreground)

        def ready() -> None:
            os.write(tell, b"ready")
            os.close(tell)

        daemon.run(ready, None if foreground else Standby(layout))
        if daemon.renewing:
            become_anew(lock)
        return 0
    finally:
        os.close(lock)


def _widen() -> None:
    """Raise the limit of open descriptors, so that it suffices for any number of services.

    A supervised program gets the usual soft limit (see ``spawn``). The program may raise its limit, as under systemd.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = max(hard, DESCRIPTORS)
    for limit in (enough, hard):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            return


def _detach(layout: Layout, keep: set[int]) -> None:
    """Close inherited descriptors, and redirect output to the daemon's log.

    :param keep: descriptors that stay open.
    """
    log = logs.open_log(layout.logs / "supervisor.log")
    null = os.open("/dev/null", os.O_RDWR)
    for number, target in ((0, null), (1, log), (2, log)):
        os.dup2(target, number)
    for entry in os.listdir("/proc/self/fd"):
        if int(entry) > 2 and int(entry) not in keep:
            with contextlib.suppress(OSError):
                os.close(int(entry))


def answers(layout: Layout) -> bool:
    """Return whether a daemon listens on the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(socket_path(layout)))
        except OSError as err:
            return err.errno == errno.EAGAIN
    return True
