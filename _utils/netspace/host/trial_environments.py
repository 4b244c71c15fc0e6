"""Environments of a trial: ordinary environments that an audit makes for a while, with links, a log and a health check.

The twins of the audit's other parts are not supervised, and the host's services don't know them. To test attacks on
these services, the audit needs ordinary environments. They have the original's limits, system call profile, user and
hardening. Their image has this host's interpreter and a program of netspace (``environment/audit/services.py``). They
have no volume, variable or interface of the original.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from netspace.errors import NetspaceError
from netspace.host import trials
from netspace.spec import parse
from netspace.spec.types import Broker, Declaration, Environment, Health, Link, Runtimes

if TYPE_CHECKING:
    from netspace.environment.audit.interpreter import PortableInterpreter
    from netspace.environment.record import Record
    from netspace.host.host import Host

PROGRAM = "services.py"
_LIBRARY = ("amqp_frames.py",)


class Trial:
    """The environments of a trial, while it lasts; see :meth:`netspace.host.removal.Removal.trial`.

    :param original: the record of the environment whose limits and hardening the trial's environments get.
    :param token: the trial's id, a part of its environments' names.
    """

    def __init__(self, host: Host, original: Record, token: str) -> None:
        from netspace.environment.audit import twin

        if original.spec.kernel is not None:
            raise NetspaceError(
                "a unikernel makes no system calls of the host, so no program of netspace can run in it"
            )
        self.host = host
        self.original = original
        self._root = trials.root(host.layout, token)
        self._interpreter: PortableInterpreter = twin.pack(
            self._root / trials.INSIDE[1:], (*twin.MODULES, "ssl"), (PROGRAM,), _LIBRARY
        )

    def command(self, *arguments: str) -> list[str]:
        """Return the command that runs netspace's program in an environment of the trial, with these arguments."""
        return self._interpreter.command(trials.INSIDE, f"{trials.INSIDE}/{PROGRAM}", *arguments)

    def nothing(self) -> list[str]:
        """Return a command that does nothing, and succeeds."""
        return [self._interpreter.start[0].replace("{}", trials.INSIDE), "--version"]

    def spec(self, *arguments: str, health: Health | None = None) -> Environment:
        """Return the declaration of an environment of the trial; its program gets these arguments."""
        entries = (entry.partition("=") for entry in self._interpreter.variables(trials.INSIDE))
        before, used = self.original.spec, self.original.runtime
        return Environment(
            image=trials.image(self._root),
            command=tuple(self.command(*arguments)),
            env={key: value for key, _, value in entries},
            user=before.user,
            limits=before.limits,
            interface=parse.interface({"kind": "none"}),
            read_only=before.read_only,
            runtime=used.name,
            seccomp=before.seccomp,
            apparmor=before.apparmor,
            image_cache=before.image_cache,
            restart="always",
            stop_timeout=1.0,
            health=health,
            attestation=before.attestation,
        )

    def make(self, environments: Mapping[str, Environment], links: Sequence[Link], broker: Broker) -> None:
        """Make environments, and links between them.

        :raises NetspaceError: when one of them can't be made.
        """
        used = self.original.runtime
        runtimes = Runtimes(settings={used.name: dict(used.settings)})
        declared = Declaration(broker=broker, runtimes=runtimes, environments=dict(environments), links=tuple(links))
        host = self.host
        for converge in (host.converge_interfaces, host.converge_links, host.converge_environments):
            if converge == host.converge_links and not links:
                continue
            result = converge(declared)
            if not result.ok:
                said = [failure.error for failure in result.failures] + [one.message for one in result.plan.refusals]
                raise NetspaceError(f"an environment like the original can't be made: {'; '.join(sorted(set(said)))}")

    def remove(self, *names: str) -> None:
        """Remove environments with their links and mail.

        :raises NetspaceError: when one of them can't be removed.
        """
        result = self.host.remove_environments(names, purge=True)
        if not result.ok:
            said = "; ".join(sorted({failure.error for failure in result.failures}))
            raise NetspaceError(f"an environment of the audit can't be removed: {said}")
