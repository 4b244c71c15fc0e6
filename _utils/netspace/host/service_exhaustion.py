"""Exhaustion audit of the host's services: how long one environment's attacks on a service make others wait.

This is the third part of the audit, after pools and storms. It makes temporary environments (``trial_environments``).
The *neighbour* sends requests to a second environment over a link. A third one, the attacker, tries to disturb each
service of the host that environments use; each such attack is a *way*. Before and during each attack, the audit times
six operations: answers to the neighbour, the neighbour's restart, the time until it is healthy, an ``exec`` in it, an
apply that makes one more environment, and reading a log.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec

from netspace.environment.audit import pools, storms
from netspace.errors import NetspaceError
from netspace.host.exhaustion import Row, slower
from netspace.spec.types import Broker, Health, Link, LocalBroker
from netspace.text import hint

if TYPE_CHECKING:
    from netspace.host.host import Host
    from netspace.host.trial_environments import Trial

GOALS: Mapping[str, float] = {"answer": 2.0, **dict.fromkeys(("exec", "apply", "restart", "health", "logs"), 1.5)}
_ANSWERS = 200
_TIMES = 3
_PATIENCE = 60.0  # seconds for one operation; what takes longer has failed
_BEGUN = 1.5  # seconds until the third environment is in full swing
_EXECS = 4  # programs that an operator runs at the same time
_PROBE = 5.0  # seconds of a health check that never ends
_TAKEN = re.compile(r"taken (\d{1,15})")
_Answers = Annotated[list[Annotated[float, msgspec.Meta(ge=0, le=1000)]], msgspec.Meta(min_length=1, max_length=1000)]


class Way(NamedTuple):
    """One attack on a service of the host.

    :param program: the arguments of the attacker's program (``services.py``).
    :param linked: whether the attack needs a link, and so a broker.
    :param check: the arguments of the program of the attacker's health check; none: it has no check.
    :param run: the arguments of the programs that an operator runs in the attacker by ``exec``.
    """

    program: tuple[str, ...]
    linked: bool = False
    check: tuple[str, ...] = ()
    run: tuple[str, ...] = ()


def _by_link(way: str) -> Way:
    return Way(("worst", way), linked=True)


WAYS: dict[str, Way] = {
    "forwarder: connections": _by_link("connections"),
    "forwarder: handshakes": _by_link("handshakes"),
    "forwarder: unfinished handshakes": _by_link("halves"),
    "broker: log-ins": _by_link("reconnects"),
    "broker: frames before a login": _by_link("strangers"),
    "broker: messages": _by_link("messages"),
    "broker: small messages": _by_link("small"),
    "broker: transactions": _by_link("transactions"),
    "broker: unfinished messages": _by_link("unfinished"),
    "broker: channels": _by_link("channels"),
    "broker: channels that end at once": _by_link("brief"),
    "broker: consumers": _by_link("consumers"),
    "broker: bindings": _by_link("bindings"),
    "broker: questions": _by_link("questions"),
    "broker: sessions of AMQP 1.0": _by_link("sessions"),
    "broker: empty frames": _by_link("frames"),
    "broker: TLS records of one byte": _by_link("records"),
    "log: lines without end": Way(("worst", "lines")),
    "health: checks that never end": Way(("hold",), check=("hold",)),
    "health: checks that write without end": Way(("hold",), check=("endless",)),
    "supervisor: programs that end at once": Way(("end",)),
    "exec: programs that never end": Way(("hold",), run=("hold",)),
    "exec: output without end": Way(("hold",), run=("endless",)),
}

# One `exec` of an operator, in a process of its own: where modules are, instance, environment, seconds, command.
_EXEC = """
import json, sys
where, instance, name, seconds, *command = sys.argv[1:]
sys.path = json.loads(where)
from netspace.host.host import Host
from netspace.layout import Layout
Host(Layout(instance)).operations.exec(name, command, timeout=float(seconds))
"""


def judge(
    name: str, taken: int, alone: Mapping[str, float], meanwhile: Mapping[str, float], wrong: Sequence[str] = ()
) -> Row:
    """Return the row of an attack, from the seconds that each operation took before and during the attack. Pure.

    :param taken: how often the attacker succeeded, as far as that can be counted.
    :param wrong: the operations of others that failed or had to be repeated.
    """
    goals = {what: goal for what, goal in GOALS.items() if what in alone}
    told, slow = slower(alone, meanwhile, goals)
    return Row(
        name=name,
        group="services",
        outcome="leak" if wrong else "slow" if slow else "held",
        detail="; ".join([f"succeeded {taken} times", told, *wrong]),
        taken=taken,
        seconds={what: [round(alone[what], 6), round(meanwhile[what], 6)] for what in goals},
    )


def chosen(only: str | Collection[str]) -> set[str]:
    """Return the names of rows that an operator chose: pools, storms and attacks on services.

    :raises NetspaceError: when there is no row of such a name.
    """
    known = [*pools.POOLS, *storms.STORMS, *WAYS]
    wanted = [only] if isinstance(only, str) else [str(one) for one in only]
    for one in wanted:
        if one not in known:
            raise NetspaceError(f"only: there is no row {one}; {hint(one, known)}")
    return set(wanted)


def exhaust(host: Host, name: str, only: Collection[str] | None = None) -> list[Row]:
    """Try each chosen attack on a service of the host.

    :param name: the environment whose limits and hardening the temporary environments get.
    :param only: names in :data:`WAYS`, the attacks to try; None: all.
    :return: a row for each attack. An attack that needs a broker is ``skipped`` on a host without netspace's own
        broker.
    :raises NetspaceError: the environment doesn't exist, or the temporary ones can't be made.
    """
    from netspace.host.trial_environments import Trial

    ways = [way for way in WAYS if only is None or way in only]
    if not ways:
        return []
    record = host.operations.known([name])[name]
    if reason := host.withheld({name: record.spec}).get(name):
        raise NetspaceError(f"environment {name} must not run now: {reason}")
    token = secrets.token_hex(4)
    names = _Names(*(f"audit-{token}-{role}" for role in _Names._fields))
    with host.trial(token, names):
        stage = _Stage(host, Trial(host, record, token), names)
        stage.begin()
        return [stage.row(way) for way in ways]


class _Names(NamedTuple):
    """Names of the audit's environments.

    :param asks: the neighbour, which sends requests.
    :param answers: the environment that answers the neighbour.
    :param worst: the attacker.
    :param sink: the receiver of the attacker's link, which reads nothing.
    :param more: an environment that is made and removed to time an apply.
    """

    asks: str
    answers: str
    worst: str
    sink: str
    more: str


class _Stage:
    """The audit's environments, and the measurements."""

    def __init__(self, host: Host, trial: Trial, names: _Names) -> None:
        self._host, self._trial, self._names = host, trial, names
        recorded = host._linked()
        self._broker: Broker = recorded.broker or LocalBroker()
        # A broker that hosts share is beyond this host, and an audit doesn't start a broker.
        self._linked = bool(recorded.links) and isinstance(self._broker, LocalBroker)
        self._failed: list[str] = []

    def begin(self) -> None:
        """Make the neighbour, and the environment that answers it."""
        names, trial = self._names, self._trial
        check = Health(exec=tuple(trial.nothing()), interval=0.5, start_period=_PATIENCE)
        made = {names.asks: trial.spec("hold", health=check)}
        links = []
        if self._linked:
            made[names.answers] = trial.spec("serve")
            links = [Link(source=names.asks, target=names.answers, pattern="request")]
        trial.make(made, links, self._broker)
        self._host.operations.wait([names.asks], _PATIENCE)
        if self._linked and self._answers(1) >= _PATIENCE:
            raise NetspaceError(f"a copy of the environment can't use its link: it gets no {self._failed[-1]}")

    def row(self, name: str) -> Row:
        """Try an attack; return its row."""
        way, names, trial = WAYS[name], self._names, self._trial
        if way.linked and not self._linked:
            return Row(name=name, group="services", outcome="skipped", detail="no broker of netspace's own runs here")
        self._failed = []
        before, alone = self._services(), self._times(names.asks)
        failed_before, self._failed = self._failed, []
        check = None
        if way.check:
            check = Health(
                exec=tuple(trial.command(*way.check)), interval=0.1, timeout=_PROBE, retries=1000, start_period=3600
            )
        made = {names.worst: trial.spec(*way.program, health=check)}
        links = []
        if way.linked:
            made[names.sink] = trial.spec("hold")
            links = [Link(source=names.worst, target=names.sink, pattern="request")]
        trial.make(made, links, self._broker)
        with self._operator(way):
            time.sleep(_BEGUN)
            meanwhile = self._times(names.worst)
            taken = self._taken(way)
            ended = [service for service, pid in self._services().items() if before.get(service, pid) != pid]
            trial.remove(*made)
        failed = [f"{one} failed" for one in self._failed if one not in failed_before]
        return judge(name, taken, alone, meanwhile, [*failed, *(f"the {one} was restarted" for one in ended)])

    @contextlib.contextmanager
    def _operator(self, way: Way) -> Iterator[None]:
        """Run the operator's ``exec`` of the attack, if it has one, while the body of the ``with`` statement runs.

        The body must end it, by removing the attacker.
        """
        if not way.run:
            yield
            return
        layout = self._host.layout
        where = json.dumps([one for one in sys.path if one])
        command = [sys.executable, "-I", "-c", _EXEC, where, layout.instance, self._names.worst, str(_PATIENCE)]
        command += self._trial.command(*way.run)
        quiet = subprocess.DEVNULL
        running = [subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet) for _ in range(_EXECS)]
        try:
            yield
            for process in running:  # the attacker was removed, so the exec ends, and tidies up
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_PATIENCE)
        finally:
            for process in running:
                process.kill()
                process.wait()

    def _taken(self, way: Way) -> int:
        """Return how often the attacker succeeded, as far as that can be counted."""
        if way.run:
            return _EXECS
        name = self._names.worst
        if way.program[0] == "worst":
            # The attacker itself wrote this number. So it only shows that the attack was tried.
            said = "\n".join(str(line) for line in self._host.operations.logs(name, lines=5000)["lines"])
            return max((int(found) for found in _TAKEN.findall(said)), default=0)
        inspected = self._host.operations.inspect(name)
        return int(inspected["check"]["failures"]) if way.check else int(inspected["restarts"])

    def _services(self) -> dict[str, int]:
        """Return the process id of each running service that others depend on."""
        from netspace.environment.container import oci_runtime

        names = self._names
        services = ("broker", "forwarder", "health", oci_runtime.service_name(names.answers))
        found = self._host.supervisor.observe(services)
        return {service: status.pid for service, status in found.items() if status.pid}

    def _times(self, logged: str) -> dict[str, float]:
        """Return the seconds of each operation: the 99th percentile of answers, the median of the others.

        :param logged: the environment whose log is read.
        """
        operations, names, trial = self._host.operations, self._names, self._trial
        found: dict[str, list[float]] = {what: [] for what in GOALS if what != "answer"}
        for _ in range(_TIMES):
            found["apply"].append(self._timed("apply", self._more))
            trial.remove(names.more)
            found["restart"].append(self._timed("restart", self._restart))
            found["health"].append(self._timed("health", lambda: operations.wait([names.asks], _PATIENCE)))
            for _ in range(_TIMES):  # an exec is short, so its time varies most
                found["exec"].append(
                    self._timed("exec", lambda: operations.exec(names.asks, trial.nothing(), timeout=_PATIENCE))
                )
            found["logs"].append(self._timed("logs", lambda: operations.logs(logged)))
        told = {what: median(seconds) for what, seconds in found.items()}
        return {"answer": self._answers(_ANSWERS), **told} if self._linked else told

    def _timed(self, what: str, act: Callable[[], object]) -> float:
        began = time.monotonic()
        try:
            act()
        except NetspaceError as err:
            self._failed.append(f"{what} ({err})")
        return time.monotonic() - began

    def _more(self) -> None:
        self._trial.make({self._names.more: self._trial.spec("hold")}, (), self._broker)

    def _restart(self) -> None:
        # Not by ``operations``: these take the lock, which the trial holds.
        kind, name = self._host.environments, self._names.asks
        errors = {**kind.stop([name]), **kind.start([name])}
        if wrong := "; ".join(filter(None, errors.values())):
            raise NetspaceError(wrong)

    def _answers(self, number: int) -> float:
        """Return the 99th percentile of the times, in seconds, until the neighbour gets an answer."""
        command = self._trial.command("ask", str(number))
        done = self._host.operations.exec(self._names.asks, command, timeout=_PATIENCE)
        try:
            taken = sorted(msgspec.json.decode(done["stdout"], type=_Answers))
        except msgspec.DecodeError:
            said = (str(done["stderr"]).strip().splitlines() or ["nothing"])[-1]
            self._failed.append(f"answer ({said:.200})")
            return _PATIENCE
        return taken[int(len(taken) * 0.99)]
