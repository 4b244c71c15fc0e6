"""A round: the master challenges and judges the whole fleet and sends it the results, each host at its own speed.

:class:`Round` has the work of one host, from its certificate to the result that it stores; the
:class:`~netspace.attestation.window.Window` does that work for many hosts at once. A round leaves notes for the next
one in the registrar's folder, ``rounds.json``: the hosts that did not answer, and how long rounds took.

A result counts until its group's ``deadline``. Where the configuration says none, :func:`deadline` makes it long enough
for the rounds so far.
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
from netspace.attestation import fleet, transfer
from netspace.attestation.bus import Bus
from netspace.attestation.enrolment import Pending
from netspace.attestation.fleet import Fleet, Standing
from netspace.attestation.identity import Identities
from netspace.attestation.origin import Unproved
from netspace.attestation.refusals import Malformed, Refused, WrongSaltKey
from netspace.attestation.registrar import Registrar
from netspace.attestation.window import TELL, Again, Answer, Call, Pace, Step, Task, Window, Work
from netspace.errors import NetspaceError
from netspace.text import REPLACEMENT, printable

# Seconds for which a result counts: the default, and the maximum.
DEADLINE, MOST = 7200.0, 86400.0
# A host may be asked at the beginning of one round and at the end of the next; half a round more is a reserve.
ROUNDS = 3.0
# Seconds for which the length of a round is remembered.
REMEMBERED = 86400.0

# Makes a credential for a minion's enrolment, at a time: Registrar.begin, with the configuration's values.
Begin = Callable[[str, Any, float], Pending]
# Returns it; raises NetspaceError where that can't be: then nobody is asked.
Ready = Callable[[], Begin]
Asking = Generator[Step, Answer, "Answered"]
Answered = tuple[Any, Answer]
# Does what is to be done with an answer; raises Unproved where another is to be waited for.
Take = Callable[[Answer], Generator[Step, Answer, Any]]


class Round:
    """One round.

    :param ready: called where a certificate has to be renewed.
    :param announce: reports a state that may have changed.
    :param listed: hosts send their whole measurement lists.
    :param wall: the time that results are made at.
    """

    def __init__(
        self,
        made: Fleet,
        ready: Ready,
        announce: Callable[[Standing], None],
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
        """Attest *minions*, in random order; return a summary of each.

        :param connected: those of the :func:`doubtful` hosts that the master sees now: they are asked like all others.
            Before the first round, all hosts are asked alike where the master sees none.
        :raises NetspaceError: when the master or its results can't be reached.
        """
        folder, self._clock = self._fleet.registrar.folder, bus.clock
        last = _read(folder)
        order = random.sample(list(minions), len(minions))
        # The slow ones first: their time then overlaps with that of all others.
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
        """Do all work of one host."""
        try:
            due = self._fleet.certificate_due(minion, self._wall())
        except NetspaceError as err:  # a damaged record of one host is no reason to judge none
            said = {"answered": False, "answer": str(err), "enforced": False, "enforcement": ""}
            self._found[minion] = {"state": fleet.UNKNOWN, "level": "L0", **said}
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
        """Renew a certificate; return why it was not."""
        try:
            yield from enrolled(self._fleet.registrar, minion, self._ready, self._fleet.identities, self._wall)
        except Refused as err:
            return f"its certificate can't be renewed: {err}"  # judged all the same, by the old one
        except Silent as err:
            self._silent.add(minion)
            return str(err)
        except NetspaceError as err:
            return str(err)
        return ""

    def _attested(self, minion: str, timeout: float) -> Generator[Step, Answer, tuple[dict[str, Any] | None, str]]:
        """Challenge a host and judge its answer; return the record, and what is to be said."""
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
            except fleet.LogLost as err:
                # The master's copy of a boot log is lost, without a fault of the host's: the host sends the log again.
                told = str(err)
            except NetspaceError as err:
                return None, str(err)
        return None, told

    def _judged(self, asked: fleet.Asked, timeout: float) -> Take:
        """Return what judges an answer to *asked*."""

        def take(first: Answer) -> Generator[Step, Answer, Any]:
            value, came = yield from fetched(first, timeout, self._fleet.registrar.folder)
            if came.silent:
                self._silent.add(asked.minion)
            if came.problem:
                raise Unproved(came.problem)
            return self._fleet.judge(asked, value, self._wall())

        return take

    def _told(self, minion: str, record: Mapping[str, Any]) -> Generator[Step, Answer, None]:
        """Tell a host its result, and note whether it enforces it."""
        key = {"key": self._fleet.signer.jwk}
        came = yield Call("accept", "tokens", record["token"], key, TELL)
        reply = came.value if isinstance(came.value, Mapping) else {}
        why = came.problem or printable(str(reply.get("reason", ""))[:200], "\n", REPLACEMENT)
        stored = reply.get("stored") is True
        self._found[minion].update(enforced=stored, enforcement="" if stored else why)


class Silent(NetspaceError):
    """A minion that did not answer."""


def enrolled(
    registrar: Registrar,
    minion: str,
    ready: Ready,
    identities: Identities | None,
    wall: Callable[[], float] = time.time,
) -> Generator[Step, Answer, dict[str, Any]]:
    """Bind a minion to its TPM; return its record.

    :param identities: Salt keys by which minions sign what they show. None: nobody's is known.
    :raises Silent: when it does not answer. *NetspaceError*: when it can't be enrolled.
    """
    begin = ready()

    def showing(came: Answer) -> Generator[Step, Answer, Any]:
        yield from ()
        now = wall()
        return now, begin(minion, came.value if identities is None else identities.enrolment(minion, came.value), now)

    (now, pending), came = yield from heard(Call("enroll", "asked", registrar.request(minion)), showing, (None, None))
    _came(minion, came)

    def opening(came: Answer) -> Generator[Step, Answer, Any]:
        yield from ()
        return came.value if identities is None else identities.activation(pending.context, came.value)

    opened, came = yield from heard(Call("activate", "credentials", pending.wire()), opening)
    _came(minion, came)
    return registrar.finish(pending, opened, now)


def heard(call: Call, take: Take, none: Any = None) -> Asking:
    """Make a call, and do what is to be done with the first answer that is the minion's own.

    Anybody may have made the others, and errors too. They are passed over, and say nothing of the host.

    :param none: returned where there is no such answer, with what was said last, as the answer's ``problem``.
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
    """Return an answer, and fetch it where that comes in parts.

    :param folder: where parts wait.
    :raises Malformed: when the parts are none.
    """
    if isinstance(came.value, Mapping) and "parts" in came.value:
        return (yield from transfer.fetched(came.value, timeout, folder))
    return came.value, came


@dataclass(frozen=True)
class _Last:
    """The notes of earlier rounds.

    :param absent: minions that did not answer the last time.
    :param slow: minions whose answer took more than two timeouts.
    :param rounds: when each round of the last day ended, and how long it took.
    """

    absent: frozenset[str] = frozenset()
    slow: frozenset[str] = frozenset()
    rounds: tuple[tuple[float, float], ...] = ()


def doubtful(folder: Path, minions: Collection[str]) -> frozenset[str]:
    """Return the *minions* that may be absent: those that did not answer the last time.

    Before the first round, these are all *minions*.

    :param folder: the registrar's.
    """
    last = _read(folder)
    return last.absent & set(minions) if last.rounds else frozenset(minions)


def deadline(folder: Path, now: float) -> float:
    """Return the seconds for which a result counts where the configuration says nothing.

    These are two hours, or up to a day where a round of the last day took more than 40 minutes.
    """
    longest = max((took for ended, took in _read(folder).rounds if now - REMEMBERED < ended <= now), default=0.0)
    return min(max(DEADLINE, ROUNDS * longest), MOST)


def _came(minion: str, answer: Answer) -> None:
    if answer.problem:
        raise (Silent if answer.silent else NetspaceError)(f"{minion}: {answer.problem}")


def _remember(folder: Path, minions: Collection[str], found: _Last) -> None:
    """Save the findings of a round over *minions*. Another round may be running, over other hosts."""
    ((now, took),) = found.rounds
    with files.locked(folder / "rounds.lock"):
        kept = _read(folder)
        rounds = [one for one in kept.rounds if now - REMEMBERED < one[0] <= now]
        # The longest of each hour says enough.
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
    """Read the notes of earlier rounds. They only make rounds quicker, so unreadable notes count as absent."""
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
    """Return whether a value is ``[when the round ended, seconds that it took]``."""
    return isinstance(data, list) and [type(one) in (int, float) for one in data] == [True, True]
