"""Admission of minions whose Salt keys are pending: the master accepts a key if the host's TPM vouches for it.

The master can't ask a minion with a pending key over Salt's bus. So the minion asks for admission by HTTP
(:mod:`admission_http`). The exchange is an enrolment followed by an attestation: the registrar's credential, a quote,
and the policy of the minion's group. There are two differences:

- The TPM's statements name the pending key. Both sides use :func:`name` in place of the master's fingerprint, so the
  answer to the credential and the quote are valid only for this master and this Salt key. If an attacker asks for its
  own key and passes on the answers of another host's TPM, these answers name the wrong key.
- Only minions in the inventory are admitted.

The master accepts exactly the key that was proved, even if another key is in Salt's folder by then. Imports no Salt.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from netspace.attestation.evidence import key_fingerprint
from netspace.attestation.fleet import rounds
from netspace.attestation.fleet.calls import Again, Answer, Call, Step
from netspace.attestation.fleet.fleet import Fleet
from netspace.attestation.fleet.host_state import TRUSTED, HostState
from netspace.attestation.identity import Identities
from netspace.attestation.refusals import Malformed
from netspace.attestation.registrar import inventory
from netspace.attestation.registrar.enrolment import Pending
from netspace.errors import NetspaceError

MAX_SESSIONS = 64
EACH = 4
"""Highest number of open sessions for one minion's name, so that a stranger can't fill all sessions in this name."""
LIFETIME = 120.0
"""Seconds for one exchange."""
PAUSE = 10.0
"""Seconds after a first refusal in which requests with the same key are rejected. Each further refusal doubles them."""
LONGEST = 640.0
"""The longest pause, in seconds. The last refusal is forgotten this many seconds after the end of its pause."""
FIRST = "enroll"
"""Function of the first call. An answer to it that the pending key did not sign is ignored and leaves no record."""
MAX_KEY = 4096
MAX_NAME = 255

Work = Generator[Step, Answer, HostState]


class NotNow(NetspaceError):
    """Error: the master can't handle this request at this moment. The minion may ask again later."""


@dataclass(frozen=True)
class Claim:
    """A minion's claim that a pending Salt key belongs to it.

    :param key: the key (PEM).
    """

    minion: str
    key: bytes


@dataclass(frozen=True)
class _Refusal:
    """The last refusal of a minion.

    :param key: fingerprint of the refused key. A request with another key, such as that of a reinstalled host, needn't
        wait.
    :param at: time of the refusal, by the desk's clock.
    :param pause: seconds from the refusal until a request with the same key is handled again.
    """

    key: str
    at: float
    pause: float


@dataclass
class _Session:
    """A minion's open session. It is busy while the master prepares the work or handles an answer.

    :param work: the generator that enrols and attests the minion; None until the master has made it.
    """

    claim: Claim
    begun: float
    work: Work | None = None
    call: Call = field(default_factory=lambda: Call(""))
    busy: bool = True


def name(master: str, key: bytes) -> str:
    """Return the verifier's name in the TPM's statements of an admission.

    The name is never a plain fingerprint, so a statement of an admission is never valid in an ordinary attestation.

    :param master: fingerprint of the master's key.
    :param key: the minion's Salt key (PEM).
    """
    return f"admission of {key_fingerprint(key)} by {master}"


def admitting(made: Fleet, ready: rounds.Ready, minion: str, wall: Callable[[], float] = time.time) -> Work:
    """Enrol a minion's TPM and attest it; return its state.

    :param made: a verifier (:class:`Fleet`) whose ``master`` is :func:`name`, and whose ``identities`` have the pending
        key.
    :param ready: returns the object that makes credentials for TPMs; see
        :data:`netspace.attestation.fleet.rounds.Ready`.
    :param wall: the clock, in seconds since the epoch.
    :raises NetspaceError: when the inventory doesn't name the minion, the host can't be enrolled, or nothing proves
        that the host made the answers.
    """
    listed = made.registrar.listed
    if listed is None or minion not in inventory.read(listed).minions:
        raise NetspaceError(f"the inventory does not name {minion:.80}; add its TPM to the master's inventory")

    def begin(minion: str, shown: Any, now: float) -> Pending:
        return ready()(minion, shown, now)  # the makers' roots are read only for an enrolment that the key signed

    yield from rounds.enrolled(made.registrar, minion, lambda: begin, made.identities, wall)
    asked = made.ask(minion, whole=True)

    def take(came: Answer) -> Generator[Step, Answer, Any]:
        yield from ()
        return made.judge(asked, came.value, wall())

    record, came = yield from rounds.heard(Call("answer", "challenges", asked.wire()), take)
    if record is None:
        raise NetspaceError(came.problem or "no answer")
    if made.registrar.host(minion) is None:
        raise NetspaceError(f"the TPM of {minion} was released meanwhile")
    return made.standing(minion, wall(), record)


class Desk:
    """All open admissions of a master. Several threads may call the methods.

    :param master: fingerprint of the master's key.
    :param pending: returns the pending key of a minion (PEM); None if there is none.
    :param begin: returns the work for a claim (:func:`admitting`).
    :param accept: accepts exactly the key of a claim. It raises NetspaceError if another key is pending at that time.
    :param tell: called with each verdict: the claim, and the reason for a refusal (empty if the claim is accepted).
    """

    def __init__(
        self,
        master: str,
        pending: Callable[[str], bytes | None],
        begin: Callable[[Claim], Work],
        accept: Callable[[Claim], None],
        tell: Callable[[Claim, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._master, self._pending, self._begin, self._accept, self._tell = master, pending, begin, accept, tell
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: dict[str, _Session] = {}
        self._refused: dict[str, _Refusal] = {}

    def open(self, data: Any) -> dict[str, Any]:
        """Begin an admission: return ``session``, the fingerprint of the ``master``, and the first ``call``.

        :param data: ``minion`` and ``key`` (PEM).
        :raises NotNow: when too many sessions are open, or the minion was refused a moment ago.
        :raises NetspaceError: when *data* is malformed, the key isn't pending, or the minion can't be admitted.
        """
        if not isinstance(data, dict) or set(data) != {"minion", "key"}:
            raise NetspaceError("admission: expected a mapping with minion and key")
        minion, key = data["minion"], data["key"]
        if not isinstance(minion, str) or not 0 < len(minion) <= MAX_NAME or not isinstance(key, str):
            raise NetspaceError("expected a minion's id and its Salt key")
        if len(key) > MAX_KEY:
            raise NetspaceError(f"the key is longer than {MAX_KEY} characters")
        claim = Claim(minion, key.encode())
        with self._lock:
            self._tidy()
            self._hear(claim)
            of_it = sum(one.claim.minion == minion for one in self._sessions.values())
            if of_it >= EACH or len(self._sessions) >= MAX_SESSIONS:
                raise NotNow("too many admissions are open at this moment; ask again later")
            session = secrets.token_hex(16)
            found = self._sessions[session] = _Session(claim, self._clock())
        try:  # the lock is released, so that other requests don't wait while files are read
            found.work, found.call = self._begun(claim)
        except BaseException:
            with self._lock:
                self._sessions.pop(session, None)
            raise
        found.busy = False
        call = found.call
        return {"session": session, "master": self._master, "call": _wire(call)}

    def _begun(self, claim: Claim) -> tuple[Work, Call]:
        """Return the work for a claim, and its first call.

        :raises NetspaceError: when the claimed key isn't pending, or the minion can't be admitted.
        """
        found = self._pending(claim.minion)
        if found is None or key_fingerprint(found) != key_fingerprint(claim.key):
            raise NetspaceError(f"this key of {claim.minion:.80} isn't pending; start the minion, or see salt-key -L")
        work = self._begin(claim)
        try:
            call = next(work)
        except StopIteration as err:
            raise NetspaceError("the admission ended before the master's first call; see the master's log") from err
        if not isinstance(call, Call):
            raise NetspaceError("the admission ended before the master's first call; see the master's log")
        return work, call

    def _hear(self, claim: Claim) -> None:
        """Check that a claim's key wasn't refused a moment ago; the caller holds the lock.

        :raises NotNow: when the key was refused, and its pause isn't over.
        """
        last = self._refused.get(claim.minion)
        if last is None or (left := last.at + last.pause - self._clock()) <= 0:
            return
        if key_fingerprint(claim.key) == last.key:
            raise NotNow(f"{claim.minion:.80} was refused a moment ago; ask again in {left:.0f} s")

    def known(self, session: str) -> bool:
        """Return whether a session is open. The HTTP service asks this before it reads the session's next message."""
        with self._lock:
            self._tidy()
            return session in self._sessions

    def step(self, session: str, value: Any) -> dict[str, Any]:
        """Handle a minion's answer to the last call; return ``call`` (the next one), ``accepted`` or ``refused``.

        :raises NotNow: when the session is over, or the master still handles the session's last message.
        """
        with self._lock:
            found = self._sessions.get(session)
            if found is None or found.busy:
                raise NotNow("this session is over; begin again")
            self._hear(found.claim)
            found.busy = True
        proved = found.call.function != FIRST
        try:
            if not proved:
                # Anybody who knows the public key can send invalid answers, or answers copied from another session.
                # These must neither fill the log nor make the minion wait. If the key signed the answer for this
                # session, the answer is the minion's own, so an error in it counts as a refusal.
                self._signed(found, value)
                proved = True
            state = self._stepped(found, value)
        except NetspaceError as err:
            self._over(session, found.claim, str(err) if proved else None)
            return {"refused": str(err), "code": getattr(err, "code", "")}
        except BaseException:
            self._over(session, found.claim, None)
            raise
        if state is None:
            found.busy = False
            return {"call": _wire(found.call)}
        self._over(session, found.claim, "")
        return {"accepted": True, "level": state.shown(time.time())["level"]}

    def _signed(self, session: _Session, value: Any) -> None:
        """Check that the holder of the pending key signed the first answer, for the call of this session.

        :raises Refused: when the signature is missing or wrong, or the answer is to another session's call.
        """
        claim = session.claim
        master = name(self._master, claim.key)
        shown = Identities(master, lambda minion: claim.key).enrolment(claim.minion, value)
        if shown.get("period") != session.call.value["period"]:
            raise Malformed("enrolment: not an answer to this session's call; begin again")

    def _stepped(self, session: _Session, value: Any) -> HostState | None:
        """Resume the work with an answer. Return the state of an admitted host; None if another call follows.

        :raises NetspaceError: when the host isn't admitted.
        """
        assert session.work is not None
        try:
            call = session.work.send(Answer(value))
            while isinstance(call, Again):  # a session has only one sender, so no other answer will come
                call = session.work.send(Answer(silent=True))
        except StopIteration as done:
            state: HostState = done.value
            if state.state != TRUSTED:
                raise NetspaceError(f"{session.claim.minion} is {state.state}: {state.reason}") from None
            self._accept(session.claim)
            return state
        session.call = call
        return None

    def _over(self, session: str, claim: Claim, refused: str | None) -> None:
        """End a session.

        :param refused: the reason for which the minion is refused; empty if it is accepted; None if the session ended
            without a verdict.
        """
        with self._lock:
            self._sessions.pop(session, None)
            if refused:
                key, last = key_fingerprint(claim.key), self._refused.get(claim.minion)
                pause = min(2 * last.pause, LONGEST) if last is not None and last.key == key else PAUSE
                self._refused[claim.minion] = _Refusal(key, self._clock(), pause)
            elif refused is not None:
                self._refused.pop(claim.minion, None)
        if refused is not None:
            self._tell(claim, refused)

    def _tidy(self) -> None:
        """Forget expired sessions and refusals; the caller holds the lock."""
        now = self._clock()
        old = [name for name, one in self._sessions.items() if now - one.begun > LIFETIME and not one.busy]
        for one in old:
            del self._sessions[one]
        self._refused = {minion: one for minion, one in self._refused.items() if now - one.at < one.pause + LONGEST}


def _wire(call: Call) -> dict[str, Any]:
    return {"function": call.function, "value": call.value}


def replied(reply: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Return the call in a master's reply; None if the reply is a verdict.

    :raises NetspaceError: when the reply is neither a call nor a verdict.
    """
    call = reply.get("call")
    if isinstance(call, dict) and set(call) == {"function", "value"} and isinstance(call["function"], str):
        return call["function"], call["value"]
    if reply.get("accepted") is True or isinstance(reply.get("refused"), str):
        return None
    raise NetspaceError("the master's reply is neither a call nor a verdict")
