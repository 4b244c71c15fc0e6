"""Supervision of programs: by systemd where it is PID 1, else by one process of ours.

``Service`` is a program to run, whoever runs it; ``Supervisor`` is the interface of both
ways, and :func:`select` picks one. Environments, the broker and the forwarder are all services.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from netspace.supervision import process

if TYPE_CHECKING:
    from netspace.layout import Layout


@dataclass(frozen=True)
class Service:
    """A program to keep running.

    :param name: without the instance: ``broker``, ``forwarder``, ``environment-web``.
    :param command: argument vector, absolute program. It stays in the foreground,
        unless ``pid_file`` is given: then it starts the program, leaves its PID
        there and exits 0.
    :param variables: environment variables, complete (nothing is inherited). They can be
        seen by every user of the host: never a secret.
    :param cleanup: argument vectors run after the end, and before a start if it is not
        certain that they were run; their failure is ignored (``crun delete --force``).
    :param reload: argument vector that makes the program re-read its configuration;
        ``{pid}`` stands for the main process.
    :param restart: when to start it again after it ended by itself.
    :param stop_timeout: seconds from SIGTERM (to the main process) to SIGKILL of all of it.
    :param user: run as this user (name), else root; not together with ``pid_file``.
    :param after: services that must be started before; they are started with it.
    :param until: files that must exist before it is started; it is ``starting`` until then, for as long as it takes.
        A call that starts it does not wait for that.
    :param condemned: if this file exists when the service ends, its end counts as a failure, however long it ran: the
        delay before its restart grows on.
    :param log: file of the output on a host without a journal; ``<logs>/<name>.log`` by default.
    :param limits: bounds that the supervisor's own cgroup sets if it has one
        (memory in bytes, cpus, pids); an environment's are set by its runtime, too.
    :param delegate: the program makes cgroups below its own (a container runtime; implied
        by ``pid_file``): it gets the subtree, and is not confined by the supervisor.
    :param init: its main process is an init, which tells the signal that ended its program as a shell does: by
        an exit with 128 and the signal's number.
    """

    name: str
    command: tuple[str, ...]
    description: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
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
    limits: Mapping[str, float] = field(default_factory=dict)
    delegate: bool = False
    init: bool = False


State = Literal["running", "starting", "stopped", "failed", "frozen"]


@dataclass(frozen=True)
class Status:
    """The state of a service.

    :param state: ``running``, ``starting`` (also: waiting to be restarted), ``stopped``
        (on purpose, or ended and not to be restarted), ``failed``, ``frozen`` (its main process is there, and stopped
        by a signal: it does nothing until it is started again).
    :param pid: main process, 0 if there is none.
    :param since: seconds since the epoch of the last change of state.
    :param restarts: number of its restarts since it was last asked to start.
    :param exit: its last end: ``""``, ``exit 3``, ``signal 9``, ``oom``, or ``unknown``
        if its end was not witnessed. systemd soon forgets a clean end: ``""`` again.
    :param oom_kills: number of its processes that the kernel killed for want of memory since it was last asked to
        start; where systemd ends all of it for one, that is one. Only for a service with a control group of its own.
    """

    state: State
    pid: int = 0
    since: float = 0.0
    restarts: int = 0
    exit: str = ""
    oom_kills: int = 0


class Supervisor(Protocol):
    """A supervisor of services; see ``systemd`` and ``direct``.

    Each call is one batch, whatever the number of services: one message, or a few
    ``systemctl``. Errors are returned per service; a call raises only if the
    supervisor itself can't be reached.
    """

    def observe(self, names: Collection[str] | None = None) -> dict[str, Status]:
        """Return the status of every defined service, or of *names*. Starts nothing, and forks nothing if it can."""
        ...

    def define(self, services: Sequence[Service]) -> bool:
        """Write the definitions that start the services, now and at boot; return whether anything changed."""
        ...

    def differing(self, services: Sequence[Service]) -> set[str]:
        """Return those whose definition differs, by a run that was killed or by hand. Reads only."""
        ...

    def start(self, names: Collection[str]) -> dict[str, str]:
        """Start those that don't run, in parallel, and have those that are frozen go on.

        :return: an error text per failed name.
        """
        ...

    def stop(self, names: Collection[str]) -> dict[str, str]:
        """Stop these services and wait until they have ended; they stay stopped over a reboot."""
        ...

    def reload(self, names: Collection[str]) -> dict[str, str]:
        """Make these services re-read their configuration without a stop."""
        ...

    def remove(self, names: Collection[str]) -> dict[str, str]:
        """Stop and forget these services: no unit, no record is left."""
        ...

    def attended(self) -> bool:
        """Return whether a supervisor watches the services: else a service that ends is not started again.

        Reads only.
        """
        ...

    def attend(self) -> None:
        """Have a supervisor watch the services. It follows up those that ended meanwhile, and starts nothing else."""
        ...

    def resume(self) -> None:
        """Have all services that should run be running and watched, after a reboot or the supervisor's own death.

        It costs nothing if they are so already. Under systemd there is nothing to do.
        """
        ...

    def purge(self) -> None:
        """Stop and forget everything, and leave nothing behind but what callers own."""
        ...


def looked_at(status: Status) -> Status:
    """Return *status* as the kernel shows it, too: what is stopped by a signal does not run."""
    if status.state == "running" and process.frozen(status.pid):
        return replace(status, state="frozen")
    return status


def booted() -> bool:
    """Return whether systemd is this machine's PID 1 (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def controllers(root: Path = Path("/sys/fs/cgroup")) -> frozenset[str]:
    """Return the cgroup controllers that can bound something here: ``memory``, ``pids``, ``cpu``...

    A limit whose controller is missing can't be kept by anybody: systemd ignores it silently
    and an OCI runtime refuses to start, so it must be left out, and said.

    :param root: where the cgroup file systems are mounted; only tests set it.
    """
    try:
        return frozenset((root / "cgroup.controllers").read_text().split())
    except FileNotFoundError:  # version 1: a hierarchy for each
        return frozenset(
            name for path in root.glob("*/cgroup.procs") for name in path.parent.name.split(",") if name != "unified"
        )


def select(layout: Layout) -> Supervisor:
    """Return the supervisor for this host: systemd where it is PID 1, else our own process."""
    if booted():
        from netspace.supervision.systemd import Systemd

        return Systemd(layout)
    from netspace.supervision.direct import Direct

    return Direct(layout)


def payload_cgroup(layout: Layout, name: str) -> str:
    """Return the cgroup (from the hierarchy's root) for the program that the service *name* starts detached.

    It is an OCI ``cgroupsPath``. Under systemd it lies in the unit's delegated subtree, so that
    the unit's limits hold for it and the unit's end is its end.
    """
    if booted():
        return f"/{layout.instance}.slice/{layout.service(name)}.service/payload"
    return f"/{layout.instance}/{name}"
