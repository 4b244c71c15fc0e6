"""Keeping programs running: under systemd where it is PID 1, else by one process of ours.

``Service`` is what is to run, whoever runs it; ``Supervisor`` is what both ways
offer. Environments, the broker and the forwarder are all services.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol


@dataclass(frozen=True)
class Service:
    """One program to keep running.

    :param name: without the instance: ``broker``, ``forwarder``, ``environment-web``.
    :param command: argument vector, absolute program. It stays in the foreground,
        unless ``pid_file`` is given: then it starts the program, leaves its PID
        there and exits 0.
    :param variables: environment variables, complete (nothing is inherited).
    :param cleanup: argument vectors run before a start and after the end, whose failure
        is ignored (``crun delete --force``).
    :param reload: argument vector that makes the program re-read its configuration;
        ``{pid}`` stands for the main process.
    :param restart: when to start it again after it ended by itself.
    :param stop_timeout: seconds from SIGTERM to SIGKILL of the whole group.
    :param user: run as this user (name), else root.
    :param after: services that must be started before.
    :param log: file the output goes to where there is no journal.
    :param limits: bounds that the supervisor's own cgroup sets where it has one
        (memory in bytes, cpus, pids); an environment's are set by its runtime too.
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
    log: Path | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    delegate: bool = False


@dataclass(frozen=True)
class Status:
    """What a service is doing.

    :param state: ``running``, ``starting`` (also: waiting to be restarted), ``stopped``
        (on purpose, or ended and not to be restarted), ``failed``.
    :param pid: main process, 0 where there is none.
    :param since: seconds since the epoch of the last change of state.
    :param restarts: how often it was restarted since it was last asked to start.
    :param exit: how it last ended: ``""``, ``exit 3``, ``signal 9``, ``oom``.
    """

    state: Literal["running", "starting", "stopped", "failed"]
    pid: int = 0
    since: float = 0.0
    restarts: int = 0
    exit: str = ""


class Supervisor(Protocol):
    """What keeps services running; see ``systemd`` and ``direct``.

    Each call is one batch, whatever the number of services: one message, one
    ``systemctl``. Errors are returned per service; a call raises only where the
    supervisor itself can't be reached.
    """

    def observe(self) -> dict[str, Status]:
        """Every defined service's status. Starts nothing, forks nothing where it can be helped."""
        ...

    def define(self, services: Sequence[Service]) -> bool:
        """Write what is needed to start them now and at boot; return whether anything changed."""
        ...

    def start(self, names: Collection[str]) -> dict[str, str]:
        """Start those that don't run (in parallel); per failed name an error text."""
        ...

    def stop(self, names: Collection[str]) -> dict[str, str]:
        """Stop them and wait until they are gone; stays stopped over a reboot."""
        ...

    def reload(self, names: Collection[str]) -> dict[str, str]:
        """Have them re-read their configuration without a stop."""
        ...

    def remove(self, names: Collection[str]) -> dict[str, str]:
        """Stop and forget them: no unit, no record is left."""
        ...
