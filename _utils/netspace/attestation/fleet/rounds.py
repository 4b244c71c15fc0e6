"""Attestation round: the master challenges all hosts, judges their answers and sends each host its result.

The class :class:`Round` defines the work for one host, from the renewal of its certificate to the transfer of its
result. The :class:`~netspace.attestation.fleet.window.Window` does this work for many hosts at once, each at its own
speed. A round saves notes for the next round in ``rounds.json`` in the registrar's folder: the hosts that did not
answer or were slow, and the lengths of rounds.

A result is valid until its group's ``deadline``. If the configuration has none, :func:`deadline` computes one from the
length of the last rounds.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netspace import files
from netspace.attestation.fleet import transfer
from netspace.attestation.fleet.bus import Bus
from netspace.attestation.fleet.calls import TELL, Again, Answer, Call, Pace, Step, Task, Work
from netspace.attestation.fleet.challenge import Asked
from netspace.attestation.fleet.fleet import Fleet
from netspace.attestation.fleet.host_state import UNKNOWN, HostState
from netspace.attestation.fleet.origin import Unproved
from netspace.attestation.fleet.results import LogLost
from netspace.attestation.fleet.window import Window
from netspace.attestation.identity import Identities
from netspace.attestation.refusals import Malformed, Refused, WrongSaltKey
from netspace.attestation.registrar.enrolment import Pending
from netspace.attestation.registrar.registrar import Registrar
from netspace.errors import NetspaceError
from netspace.text import REPLACEMENT, printable

# Seconds for which a result is valid: the default, and the longest that deadline() computes.
DEADLINE, MOST = 7200.0, 86400.0
# Rounds for which a result must last. Two rounds are needed: a host may be asked at the beginning of one round and at
# the end of the next. The third is a reserve.
ROUNDS = 3.0
# Seconds for which the length of a round is kept.
REMEMBERED = 86400.0

# Makes a credential for a minion's enrolment at a given time: Registrar.begin with the configuration's values.
Begin = Callable[[str, Any, float], Pending]
# Returns a Begin, or raises NetspaceError if the configuration does not allow enrolment. Then no minion is asked.
Ready = Callable[[], Begin]
Asking = Generator[Step, Answer, "Answered"]
Answered = tuple[Any, Answer]
# Handles an answer; raises Unproved, Malformed or WrongSaltKey to wait for another answer.
Take = Callable[[Answer], Generator[Step, Answer, Any]]


class Round:
    """One attestation round.

    :param ready: called before a certificate is renewed.
    :param announce: called with the state of each host, also if the state did not change.
    :param listed: ask hosts for their whole measurement lists.
    :param wall: clock for the times in results, in seconds since the epoch.
    """

    def __init__(
        self,
        made: Fleet,
        ready: Ready,
        announce: Callable[[HostState], None],
        *,
        listed: bool = False,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._fleet, self._ready, self._announce, self._listed, self._wall = made, ready, announce, listed, wall
        self._found: dict[str, dict[str, Any]] = {}
        self._silent: set[str] = set()
        self._slow: set[str] = set()
        self._clock: Callable[[], float] = time.monotonic

    def run(self, minions: Collection[str], bus: Bus, pace: Pace, connected: Collection[str] = ()) -> dict[str, Any]:
        """Attest *minions* in random order, and return a summary for each.

        Hosts that are likely absent are asked after the others, so that waiting for absent hosts delays no other host.

        :param connected: those of the :func:`doubtful` hosts that are connected to the master now. They are asked
            together with the present hosts. If no host is connected in the first round, no host counts as absent.
        :raises NetspaceError: when the master or its results can't be reached.
        """
        folder, self._clock = self._fleet.registrar.folder, bus.clock
        last = _read(folder)
        order = random.sample(list(minions), len(minions))
        # Among the late hosts, slow ones come first: the wait for them then overlaps with all other work.
        behind = [one for one in order if one in last.slow]
        doubted = last.absent - last.slow if last.rounds else frozenset(minions if connected else ())
        away = doubted - set(connected)
        behind += [one for one in order if one in away]
        late = frozenset(behind)
        began = bus.clock()
        Window(bus, pace).run(
            (self._task(minion, pace.timeout) for minion in order if minion not in late),
            (self._task(minion, pace.timeout) for minion in behind),
        )
        now = _Last(frozenset(self._silent), frozenset(self._slow), ((self._wall(), bus.clock() - began),))
        _remember(folder, minions, now)
        return dict(sorted(self._found.items()))

    def _task(self, minion: str, timeout: float) -> Task:
        return minion, self._host(minion, timeout)

    def _host(self, minion: str, timeout: float) -> Work:
        """Do all work for one host: renew its certificate if due, attest it, and send it the result."""
        try:
            due = self._fleet.certificate_due(minion, self._wall())
        except NetspaceError as err:  # a damaged record of one host must not end the round
            said = {"answered": False, "answer": str(err), "enforced": False, "enforcement": ""}
            self._found[minion] = {"state": UNKNOWN, "level": "L0", **said}
            return
        told = ""
        if due:
            told = yield from self._renewed(minion)
        record = None
        if minion not in self._silent:
            record, problem = yield from self._attested(minion, timeout)
            told = problem or told
        now = self._wall()
        standing = self._fleet.standing(minion, now, record)
        self._announce(standing)
        self._found[minion] = {
            **standing.shown(now),
            "answered": record is not None,
            "answer": told,
            "enforced": False,
            "enforcement": "",
        }
        if record is not None:
            yield from self._told(minion, record)

    def _renewed(self, minion: str) -> Generator[Step, Answer, str]:
        """Renew a certificate, and return the problem; empty after success."""
        try:
            yield from enrolled(self._fleet.registrar, minion, self._ready, self._fleet.identities, self._wall)
        except Refused as err:
            return f"its certificate can't be renewed: {err}"  # the host is still judged by the old certificate
        except Silent as err:
            self._silent.add(minion)
            return str(err)
        except NetspaceError as err:
            return str(err)
        return ""

    def _attested(self, minion: str, timeout: float) -> Generator[Step, Answer, tuple[dict[str, Any] | None, str]]:
        """Challenge a host and judge its answer.

        Return the record of the judgement and an empty text, or None and a problem.
        """
        told = ""
        for whole in (False, True):
            try:
                asked = self._fleet.ask(minion, whole=whole, listed=self._listed)
            except Refused as err:
                return None, str(err)
            began = self._clock()
            try:
                record, came = yield from heard(
                    Call("answer", "challenges", asked.wire()), self._judged(asked, timeout)
                )
                if came.silent:
                    self._silent.add(minion)
                if self._clock() - began > 2 * timeout:
                    self._slow.add(minion)
                return record, came.problem or told
            except LogLost as err:
                # The master lost its copy of the boot log, so the next try asks for the log again.
                told = str(err)
            except NetspaceError as err:
                return None, str(err)
        return None, told

    def _judged(self, asked: Asked, timeout: float) -> Take:
        """Return a function that judges an answer to *asked*."""

        def take(first: Answer) -> Generator[Step, Answer, Any]:
            value, came = yield from fetched(first, timeout, self._fleet.registrar.folder)
            if came.silent:
                self._silent.add(asked.minion)
            if came.problem:
                raise Unproved(came.problem)
            return self._fleet.judge(asked, value, self._wall())

        return take

    def _told(self, minion: str, record: Mapping[str, Any]) -> Generator[Step, Answer, None]:
        """Send a host its result, and record whether the host stored it."""
        key = {"key": self._fleet.signer.jwk}
        came = yield Call("accept", "tokens", record["token"], key, TELL)
        reply = came.value if isinstance(came.value, Mapping) else {}
        why = came.problem or printable(str(reply.get("reason", ""))[:200], "\n", REPLACEMENT)
        stored = reply.get("stored") is True
        self._found[minion].update(enforced=stored, enforcement="" if stored else why)


class Silent(NetspaceError):
    """Error: a minion did not answer."""


def enrolled(
    registrar: Registrar,
    minion: str,
    ready: Ready,
    identities: Identities | None,
    wall: Callable[[], float] = time.time,
) -> Generator[Step, Answer, dict[str, Any]]:
    """Bind a minion to its TPM, and return the registrar's record of the minion.

    :param ready: returns the object that makes credentials for TPMs.
    :param identities: checks minions' signatures by their Salt keys; None: signatures are not checked.
    :param wall: the clock, in seconds since the epoch.
    :raises Silent: when the minion does not answer.
    :raises NetspaceError: when the minion can't be enrolled.
    """
    begin, asked = ready(), registrar.request(minion)

    def showing(came: Answer) -> Generator[Step, Answer, Any]:
        yield from ()
        now = wall()
        shown = came.value if identities is None else identities.enrolment(minion, came.value)
        if isinstance(shown, Mapping) and "error" in shown:  # the minion itself reports an error: await no other answer
            if shown.get("period") != asked["period"]:
                raise Malformed("enrolment: not an answer to this call")
            why = printable(str(shown["error"])[:200], "\n", REPLACEMENT)
            raise NetspaceError(f"{minion}: {why}")
        return now, begin(minion, shown, now)

    (now, pending), came = yield from heard(Call("enroll", "asked", asked), showing, (None, None))
    _came(minion, came)

    def opening(came: Answer) -> Generator[Step, Answer, Any]:
        yield from ()
        return came.value if identities is None else identities.activation(pending.context, came.value)

    opened, came = yield from heard(Call("activate", "credentials", pending.wire()), opening)
    _came(minion, came)
    return registrar.finish(pending, opened, now)


def heard(call: Call, take: Take, none: Any = None) -> Asking:
    """Make a call, and pass each answer to *take* until *take* accepts one; return the result and the answer.

    Any minion can send false answers and errors. Such answers are skipped, because they prove nothing about the host.

    :param none: the result if *take* accepts no answer. In this case the answer's ``problem`` has the reason.
    """
    came, why = (yield call), ""
    while not came.silent:
        if came.problem:
            why = why or came.problem
        else:
            try:
                return (yield from take(came)), came
            except (Unproved, Malformed, WrongSaltKey) as err:
                why = str(err)
        came = yield Again()
    return none, dataclasses.replace(came, problem=why or came.problem, silent=not why)


def fetched(came: Answer, timeout: float, folder: Path) -> Asking:
    """Return the value of an answer. If *came* only announces parts, fetch the parts first.

    :param folder: folder for the file in which parts wait.
    :raises Malformed: when the announcement or the parts are malformed.
    """
    if isinstance(came.value, Mapping) and "parts" in came.value:
        return (yield from transfer.fetched(came.value, timeout, folder))
    return came.value, came


@dataclass(frozen=True)
class _Last:
    """Notes of earlier rounds.

    :param absent: minions that did not answer in the last round.
    :param slow: minions whose answer took more than two timeouts.
    :param rounds: end and length of each round of the last day.
    """

    absent: frozenset[str] = frozenset()
    slow: frozenset[str] = frozenset()
    rounds: tuple[tuple[float, float], ...] = ()


def doubtful(folder: Path, minions: Collection[str]) -> frozenset[str]:
    """Return those of *minions* that may be absent, because they did not answer in the last round.

    Before the first round, return all *minions*.

    :param folder: the registrar's folder, which has the notes of earlier rounds.
    """
    last = _read(folder)
    return last.absent & set(minions) if last.rounds else frozenset(minions)


def deadline(folder: Path, now: float) -> float:
    """Return the seconds for which a result is valid if the configuration has no deadline.

    This is three times the longest round of the last day, but at least two hours and at most a day.
    """
    longest = max((took for ended, took in _read(folder).rounds if now - REMEMBERED < ended <= now), default=0.0)
    return min(max(DEADLINE, ROUNDS * longest), MOST)


def _came(minion: str, answer: Answer) -> None:
    if answer.problem:
        raise (Silent if answer.silent else NetspaceError)(f"{minion}: {answer.problem}")


def _remember(folder: Path, minions: Collection[str], found: _Last) -> None:
    """Save the notes of a round over *minions*.

    Notes on other minions stay, since other rounds may cover them.
    """
    ((now, took),) = found.rounds
    with files.locked(folder / "rounds.lock"):
        kept = _read(folder)
        rounds = [one for one in kept.rounds if now - REMEMBERED < one[0] <= now]
        # Only the longest round of each hour is kept.
        if rounds and now - rounds[-1][0] < 3600:
            took = max(took, rounds.pop()[1])
        record = {
            "v": 1,
            "absent": sorted((kept.absent - set(minions)) | found.absent),
            "slow": sorted((kept.slow - set(minions)) | found.slow),
            "rounds": [*rounds, (now, round(took, 1))],
        }
        files.write_json(folder / "rounds.json", record)


def _read(folder: Path) -> _Last:
    """Read the notes of earlier rounds. Rounds work without notes, so unreadable notes are ignored."""
    try:
        data = files.read_json(folder / "rounds.json") or {}
    except NetspaceError:
        return _Last()
    names, rounds = (data.get("absent"), data.get("slow")), data.get("rounds")
    for some in names:
        if not isinstance(some, list) or not all(isinstance(one, str) for one in some):
            return _Last()
    if not isinstance(rounds, list) or not all(_is_round(one) for one in rounds):
        return _Last()
    return _Last(frozenset(data["absent"]), frozenset(data["slow"]), tuple((one[0], one[1]) for one in rounds))


def _is_round(data: Any) -> bool:
    """Return whether a value is ``[end of the round, its length in seconds]``."""
    return isinstance(data, list) and [type(one) in (int, float) for one in data] == [True, True]
