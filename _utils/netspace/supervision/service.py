"""Services: programs to keep running, their status, and the interface of every supervisor."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

from netspace.supervision import process

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Service(NamedTuple):
    """A program to keep running.

    :param name: without the instance: ``broker``, ``forwarder``, ``environment-web``.
    :param command: argument vector, absolute program. The program stays in the foreground. With ``pid_file``, the
        command instead starts another program, writes that program's PID to the file, and exits 0.
    :param variables: all environment variables (none is inherited). Every user of the host can read them, so they must
        not hold a secret.
    :param cleanup: argument vectors of commands (``crun delete --force``) that run after each end. They also run before
        a start, if it isn't certain that they ran after the last end. Their failure is ignored.
    :param reload: argument vector that makes the program re-read its configuration; ``{pid}`` stands for the main
        process.
    :param restart: the ends after which the program is started again.
    :param stop_timeout: seconds from SIGTERM (to the main process) to SIGKILL (to all processes).
    :param user: run as this user (name), else root; not together with ``pid_file``.
    :param after: services that must be started before this one; a start of this service starts them too.
    :param until: files that must exist before the program is started. Until then the service is ``starting``, without a
        time limit. The call that starts the service does not wait for the files.
    :param condemned: a file. If it exists when the service ends, the end counts as a failure even after a long run, so
        that the delay before restarts keeps growing.
    :param log: file of the output on a host without a journal; ``<logs>/<name>.log`` by default.
    :param limits: limits that systemd sets for the service's unit: ``memory`` (bytes), ``cpus``, ``pids``. For an
        environment, the container runtime sets its limits too.
    :param delegate: whether the program creates cgroups below its own, as a container runtime does (implied by
        ``pid_file``). The program gets the subtree, and the supervisor doesn't confine the program.
    :param init: whether the main process is an init. If a signal ends the init's program, the init exits with 128 plus
        the signal's number, like a shell.
    """

    name: str
    command: tuple[str, ...]
    description: str = ""
    variables: Mapping[str, str] = NOTHING
    working_dir: str = "/"
    pid_file: Path | None = None
    cleanup: tuple[tuple[str, ...], ...] = ()
    reload: tuple[str, ...] = ()
    restart: Literal["always", "on-failure", "never"] = "always"
    stop_timeout: float = 10.0
    user: str = ""
    after: tuple[str, ...] = ()
    until: tuple[Path, ...] = ()
    condemned: Path | None = None
    log: Path | None = None
    limits: Mapping[str, float] = NOTHING
    delegate: bool = False
    init: bool = False


State = Literal["running", "starting", "stopped", "failed", "frozen"]


class Status(NamedTuple):
    """The state of a service.

    :param state: ``running``, ``starting`` (also: waiting to be restarted), ``stopped`` (on purpose, or ended without a
        restart), ``failed``, ``frozen`` (a signal has stopped its main process; a start continues it).
    :param pid: main process; 0 if no process runs.
    :param since: time of the last change of state, in seconds since the epoch.
    :param restarts: number of restarts since a start was last requested.
    :param exit: how the last run ended: ``""``, ``exit 3``, ``signal 9``, ``oom``, or ``unknown`` if no supervisor saw
        the end. systemd soon forgets a clean end; the value is then ``""`` again.
    :param oom_kills: number of the service's processes that the OOM killer killed since a start was last requested. If
        systemd ends the whole service because of a kill, this counts as one. Only for a service with its own control
        group.
    """

    state: State
    pid: int = 0
    since: float = 0.0
    restarts: int = 0
    exit: str = ""
    oom_kills: int = 0


class Supervisor(Protocol):
    """A supervisor of services; ``systemd.supervisor`` and ``daemon.client`` implement it.

    Each call is one batch, whatever the number of services: one message, or a few
    ``systemctl`` processes. Errors are returned per service; a call raises only if the
    supervisor itself can't be reached.
    """

    def observe(self, names: Collection[str] | None = None, *, noticed: bool = False) -> dict[str, Status]:
        """Return the status of every defined service, or of *names*, if possible without starting a process.

        :param noticed: whether the OOM kills that the supervisor has noticed are enough; that takes less work. It
            notices one within about a second, or, if it doesn't run, once it runs again.
        """
        ...

    def define(self, services: Sequence[Service]) -> bool:
        """Write the definitions with which services are started, now and at boot; return whether anything changed."""
        ...

    def differing(self, services: Sequence[Service]) -> set[str]:
        """Return the names of those services whose definition on disk differs from the given one. Reads only."""
        ...

    def start(self, names: Collection[str]) -> dict[str, str]:
        """Start the given services that don't run, in parallel, and continue frozen services.

        :return: an error text per failed name.
        """
        ...

    def stop(self, names: Collection[str]) -> dict[str, str]:
        """Stop these services and wait until they have ended; they stay stopped after a reboot."""
        ...

    def reload(self, names: Collection[str]) -> dict[str, str]:
        """Make these services re-read their configuration without a stop."""
        ...

    def remove(self, names: Collection[str]) -> dict[str, str]:
        """Stop these services and remove their units and records."""
        ...

    def attended(self) -> bool:
        """Return whether every running service has a supervisor that restarts it. Reads only."""
        ...

    def attend(self) -> None:
        """Start the supervisor if none is running. If one runs with another version of the library, it loads this one.

        A new supervisor treats a service that ended while no supervisor ran as if it ended now: it may restart the
        service. It starts no other service.
        """
        ...

    def resume(self) -> None:
        """Start and watch all desired services, after a reboot or after the supervisor was killed.

        The call is cheap if the services run already. Under systemd it does nothing.
        """
        ...

    def purge(self) -> None:
        """Stop and remove all services, and delete all files of the supervisor."""
        ...


def looked_at(status: Status) -> Status:
    """Return *status* with the state ``frozen`` if a signal has stopped the running main process; else *status*."""
    if status.state == "running" and process.frozen(status.pid):
        return status._replace(state="frozen")
    return status
