"""The verifier of a fleet: challenges, the appraisal of answers, and the current state of each host.

``Fleet.ask`` makes a challenge for one minion. ``Fleet.judge`` checks its answer, in the one legal order:

0. the host itself answered: its attestation key signed the answer for this challenge (``origin``), or its Salt key did
   (``identity``). No result is made of any other answer (``Unproved``);
1. the answer is one of this protocol (else: ``malformed``);
2. the registrar's books have the attestation key, and its certificate is valid (``Registrar.certified``);
3. the quote is genuine, and for this challenge: this minion, this master, this nonce, and the boot that
   the minion names (``verifier.verify_quote``; ``verify_software`` for a host without a TPM);
4. the policy of the minion's group decides on the level (step 3 calls ``verifier.appraisal``). If the policy has a
   section ``tee``, the report of the host's TEE counts, too (``tee.appraisal``).

The firmware's log changes only at a boot, so it is sent once. ``ask`` names the kept log, and a host that still has
this log answers with its digest. If the kept log was lost meanwhile, ``judge`` raises :class:`LogLost`, and the caller
asks again with ``whole``.

The records of minions lie in a *store* that needs no trust: the verifier signs each record, and ignores records that
others wrote. A minion that does not answer is not judged, and its record stays.

:func:`state` computes a host's state at each read, from the record and the time. So hosts become stale when the
verifier stops. Nothing here talks to a minion, and nothing here imports Salt.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from netspace import files
from netspace.attestation import ear, identity
from netspace.attestation.evidence import Context, Evidence
from netspace.attestation.evidence import parse as parse_evidence
from netspace.attestation.fleet import groups, origin
from netspace.attestation.fleet.groups import Group, Policies
from netspace.attestation.identity import Identities
from netspace.attestation.learning import policy as learning
from netspace.attestation.logs import ima
from netspace.attestation.policy.policy import Policy
from netspace.attestation.refusals import Malformed, Refused, UnknownAttestationKey, WrongSaltKey
from netspace.attestation.registrar.registrar import Registrar, bound_key, key_of
from netspace.attestation.result import SKEW
from netspace.attestation.tee import appraisal as tees
from netspace.attestation.tee.x509 import Trust
from netspace.attestation.tpm.structures import Clock
from netspace.attestation.verifier import appraisal as judge
from netspace.attestation.verifier import quotes, verifier
from netspace.attestation.verifier.appraisal import GoodBoot
from netspace.errors import NetspaceError
from netspace.text import REPLACEMENT, printable

VERSION = 3
MAX_STATE = 256 * 1024
MAX_BOOT = 64
# Maximum number of hosts whose measurement lists are learned at once: each list may have 32 MiB.
MAX_LISTED = 32
ENROL_AGAIN, SPREAD = 3600.0, 11 * 3600.0
# Seconds after which an unchanged boot is judged again: a newer netspace may have other rules.
JUDGE_AGAIN = 24 * 3600.0
UNKNOWN, ENROLLED, TRUSTED, DEGRADED = "unknown", "enrolled", "trusted", "degraded"
STALE, FAILED, REVOKED = "stale", "failed", "revoked"


class Store(Protocol):
    """A store of records. The verifier believes a result only by its signature, and a log only by its digest."""

    def fetch(self, kind: str, key: str) -> dict[str, Any]:
        """Return the data under *kind* and *key*; empty if there is none."""

    def store(self, kind: str, key: str, data: dict[str, Any]) -> None:
        """Save *data* under *kind* and *key*."""


@dataclass(frozen=True)
class Asked:
    """A challenge that waits for its answer. The caller passes answers to the judge until one is the host's own.

    :param log: SHA-256 of the host's boot log that is kept here; None: the host must send its log.
    :param listed: the host must send its whole measurement list, for learning.
    :param host: the registrar's record at the time of the challenge. It names the attestation key that must sign.
    :param signed: the minion's Salt key must sign the answer, too.
    """

    minion: str
    group: Group
    policy: Policy | None
    session: str
    nonce: bytes
    ima_from: int | None
    log: str | None = None
    listed: bool = False
    host: dict[str, Any] | None = None
    signed: bool = False

    def wire(self) -> dict[str, Any]:
        """Return the message to the minion."""
        period = (self.host or {}).get("period")
        return {
            "session": self.session,
            "nonce": self.nonce.hex(),
            "pcrs": list(self.group.pcrs),
            "ima_from": self.ima_from,
            "bootlog": self.log,
            # Older minions don't know these fields, so each is sent only if it is needed.
            **({} if self.policy is None or self.policy.tee is None else {"tee": True}),
            **({"period": period} if period else {}),
            **({"salt": True} if self.signed else {}),
        }

    @property
    def exchange(self) -> dict[str, str]:
        """The part of the challenge that the host's Salt key signs."""
        return identity.exchange(self.session, self.nonce)


@dataclass(frozen=True)
class HostState:
    """A host's current state.

    :param record: the last result that this verifier made; None if there is none.
    """

    minion: str
    state: str
    reason: str
    remedy: str
    group: Group
    record: dict[str, Any] | None
    host: dict[str, Any] | None

    def shown(self, now: float) -> dict[str, Any]:
        """Return the state in the form that a runner returns."""
        record = self.record or {}
        counts = self.state in (TRUSTED, DEGRADED)
        return {
            "state": self.state,
            "level": f"L{record['level']}" if counts else "L0",
            "reason": self.reason,
            "code": record.get("code") if counts or self.state == FAILED else None,
            "remedy": self.remedy,
            "group": self.group.name,
            "minimum": f"L{self.group.minimum}",
            "last_level": f"L{record['level']}" if record else None,
            "policy_version": record.get("version"),
            "tee": (record.get("tee") or None) if counts else None,
            "evidence": record.get("issued"),
            "age": None if not record else int(now - record["issued"]),
            "deadline": None if not record else deadline(record, self.group),
        }


class Fleet:
    """The verifier, with the registrar's books. Its methods take the time as an argument.

    :param master: fingerprint of the master's key.
    :param trust: returns the makers of TEEs that the operator trusts; called only if a policy has a section ``tee``.
    :param identities: Salt keys with which minions sign their answers; None: no key is known.
    """

    def __init__(
        self,
        registrar: Registrar,
        master: str,
        chosen: Sequence[Group],
        store: Store,
        software: str = "",
        trust: Callable[[], Trust] = Trust,
        identities: Identities | None = None,
    ) -> None:
        self.identities = identities
        self.registrar = registrar
        self.signer = ear.signer(registrar.folder, registrar.module)
        self.policies = Policies(registrar.folder, self.signer)
        self._master = master
        self._groups = chosen
        self._store = store
        self._software = software
        self._trust = trust
        self._listed: dict[str, Evidence] = {}

    def group(self, minion: str) -> Group:
        return groups.of(self._groups, minion)

    def named(self, name: str) -> Group:
        """Return the group with this name.

        :raises NetspaceError: when there is none.
        """
        for one in self._groups:
            if one.name == name:
                return one
        raise NetspaceError(f"there is no group {name!r:.80}; there are {', '.join(one.name for one in self._groups)}")

    # -- asking and judging ---------------------------------------------------------
    def certificate_due(self, minion: str, now: float) -> bool:
        """Return whether the minion is enrolled, not revoked, and needs a new certificate before its challenge.

        A certificate is due one hour before it expires, or up to eleven hours earlier, at random. So hosts that were
        enrolled together are not renewed together, and no host's renewals have a rhythm that identifies it.
        """
        host = self.registrar.host(minion)
        chance = key_of(minion) if host is None else host.get("period") or key_of(minion)
        sooner = int(chance[:8], 16) % int(SPREAD)
        return host is not None and "revoked" not in host and host["expires"] < now + ENROL_AGAIN + sooner

    def ask(self, minion: str, *, whole: bool = False, listed: bool = False) -> Asked:
        """Return a challenge for *minion*.

        :param whole: the minion must send its boot log, even if it is kept here.
        :param listed: the minion must send its whole measurement list, for :meth:`learn`.
        :raises Refused: when the policy of its group can't be used.
        """
        group = self.group(minion)
        policy = self.policies.get(group.name)
        host = self.registrar.host(minion)
        first: int | None = None
        before = self.record(minion)
        if policy is not None and policy.ima is not None and host is not None and host["level"] >= 3:
            first = judge.ask_from(policy, _ima(before))
        log = None if whole or before is None else before["log"]
        nonce = secrets.token_bytes(32)
        session, signed = secrets.token_hex(8), self.identities is not None
        return Asked(minion, group, policy, session, nonce, 0 if listed else first, log, listed, host, signed)

    def judge(self, asked: Asked, answer: Any, now: float) -> dict[str, Any]:
        """Judge an answer, save the result, and return its record. Its ``token`` is for the minion.

        :raises Unproved: when nothing proves that the host answered. No result is made then.
        :raises NotEnrolled: when the answer can't be judged, because the host is not enrolled.
        :raises LogLost: when the answer names a boot log that is no longer kept here.
        """
        minion, before = asked.minion, self.record(asked.minion)
        host = self.registrar.host(minion)
        # The result names the boot even if the evidence is refused: the host accepts only a result of this boot.
        boot, evidence = _boot(answer), None
        kept: dict[str, Any] = {
            "clock": None,
            "ima": None,
            "key": None,
            "pcrs": {},
            "base": 0,
            "log": None,
            "systemd": None,
            "tee": {},
            "ek": None if host is None else host["ek"],
            "seen": "",
            "firmware": None,
            "good": None,
        }
        if before is not None and host is not None and _same_tpm(before, host):
            # Refused evidence must not erase the TPM's last clock.
            kept.update({name: before.get(name, kept[name]) for name in ("clock", "key", "seen", "firmware")})
        try:
            boot, evidence, context = self._own(asked, answer, host)
            if host is None:
                found = self._by_software(minion, evidence, context)
                base = found.level
            else:
                key = self.registrar.certified(self._as_asked(asked, host), now)
                base = key.level
                expected = verifier.Expected(
                    context,
                    asked.group.pcrs,
                    _clock(before, host),
                    None,
                    asked.policy,
                    _ima(before),
                    str(kept["seen"]).encode(),
                    _good_boot(before, now),
                )
                found = verifier.verify_quote(evidence, key, expected)
                self._note_firmware(minion, kept["firmware"], found.firmware, now)
            worth = tees.Worth(found.level, found.code, found.reason, found.remedy)
            section = None if asked.policy is None else asked.policy.tee
            worth, told_tee = tees.weighed(evidence, context, section, self._trust, worth, now)
            level, code, reason, remedy = worth.level, worth.code, worth.reason, worth.remedy
            kept.update(
                tee=told_tee,
                clock=None if found.clock is None else list(found.clock),
                ima=None if found.ima is None else _ima_record(found.ima),
                key=found.key,
                seen=boot,
                firmware=None if found.firmware is None else f"{found.firmware:016x}",
                pcrs={str(pcr): value.hex() for pcr, value in sorted(found.pcrs.items())},
                base=base,
                good=_good_record(found.boot, before, now),
            )
        except Refused as err:
            level, code, reason, remedy = 0, err.code, str(err), err.remedy
        reason = printable(reason, "\n", REPLACEMENT)
        if level and evidence is not None:
            kept["log"], kept["systemd"] = self._keep(asked, evidence, before)
            if asked.listed:
                self._listed[minion] = evidence
        version = 0 if asked.policy is None else asked.policy.version
        until = now + asked.group.deadline
        told = ear.AppraisalClaims(
            minion,
            level,
            asked.group.minimum,
            code,
            reason,
            remedy,
            asked.nonce.hex(),
            boot,
            asked.group.name,
            version,
            until,
            kept["tee"],
        )
        record = {
            "v": VERSION,
            "minion": minion,
            "level": level,
            "code": code,
            "reason": reason[:1000],
            "remedy": remedy[:1000],
            "group": asked.group.name,
            "version": version,
            "issued": now,
            "deadline": until,
            "boot": boot,
            "kind": "software" if host is None else "tpm",
            **kept,
        }
        record["token"] = ear.make(self.signer, told, now, self._software)
        self._store.store("state", key_of(minion), {"jws": self.signer.sign(ear.STATE, record)})
        return record

    def _own(self, asked: Asked, answer: Any, host: dict[str, Any] | None) -> tuple[str, Evidence, Context]:
        """Return the boot, the evidence and the context of an answer that a key of the host signed.

        :raises Refused: when the evidence is refused, but the host's Salt key signed the answer.
        :raises NotEnrolled: when the host has a TPM and is not enrolled, but its Salt key signed the answer.
        :raises Unproved: when no key of the host signed the answer.
        :raises LogLost: when the answer names a boot log that is no longer kept here.
        """
        try:
            boot, evidence = _answer(answer)
            context = Context(self._master, asked.minion, asked.session, asked.nonce, binding=boot.encode())
            if host is not None:
                quotes.own_quote(evidence, bound_key(self._as_asked(asked, host)), context)
            else:
                self._check_software(asked, answer, evidence, context)
            return boot, self._with_log(asked, evidence), context
        except NotEnrolled as err:
            if not self._signed(asked, answer):
                raise origin.Unproved(str(err)) from err
            raise
        except Refused as err:
            if isinstance(err, WrongSaltKey) or not self._signed(asked, answer):
                raise origin.unproved(err) from err
            raise

    def _as_asked(self, asked: Asked, host: dict[str, Any]) -> dict[str, Any]:
        """Return the host's record at the time of the challenge, since its certificate may have been renewed meanwhile.

        A revocation or a change of the TPM counts at once, even if the host was enrolled again after the revocation.
        """
        before = asked.host
        if before is None or before["ek"] != host["ek"] or "revoked" in host:
            return host
        if before["serial"] != host["serial"] and self.registrar.is_revoked(before["serial"]):
            return {**before, "revoked": True}
        return before

    def _signed(self, asked: Asked, answer: Any) -> bool:
        """Return whether the host's Salt key signed an answer."""
        try:
            return self.identities is not None and self.identities.answer(asked.minion, asked.exchange, answer)
        except Refused:
            return False

    def _check_software(self, asked: Asked, answer: Any, evidence: Evidence, context: Context) -> None:
        """Check that a host without a TPM uses its pinned software key. If none is pinned, its Salt key must sign.

        :raises NotEnrolled: when the host has a TPM.
        """
        if evidence.kind != "software":
            raise NotEnrolled(
                f"{asked.minion} has a TPM and is not enrolled: netspace_attestation.enroll {asked.minion}"
            )
        pinned = self._pinned(asked.minion)
        if pinned is not None and pinned != evidence.key.hex():
            raise UnknownAttestationKey("a software key, but another than the one that this minion had at first")
        verifier.verify_software(evidence, evidence.key, context)
        if pinned is None and self.identities is not None:
            self.identities.answer(asked.minion, asked.exchange, answer)

    def _note_firmware(self, minion: str, before: str | None, found: int | None, now: float) -> None:
        """Log a change of a TPM's firmware version, which the TPM signs in each quote."""
        if before is not None and found is not None and int(before, 16) != found:
            self.registrar.note("tpm-firmware", {"minion": minion, "old": before, "new": f"{found:016x}"}, now)

    def _by_software(self, minion: str, evidence: Evidence, context: Context) -> verifier.Verified:
        """Verify the evidence of a host without a TPM, and pin its key if none is pinned yet."""
        found = verifier.verify_software(evidence, evidence.key, context)
        if self._pinned(minion) is None:
            files.write_json(self._pin(minion), {"v": 1, "minion": minion, "key": evidence.key.hex()})
        return found

    def _pinned(self, minion: str) -> str | None:
        """Return the pinned software key of a minion, in hex; None if none is pinned."""
        pin = files.read_json(self._pin(minion), files.KEPT)
        return None if pin is None else str(pin.get("key"))

    def release(self, minion: str, now: float) -> dict[str, Any] | None:
        """Forget the TPM or software key of *minion*, and its last result. Return the TPM's record, if any.

        The TPM's clock is forgotten with the last result, since a cleared TPM counts from zero again.

        :raises NetspaceError: when neither a TPM nor a software key is known.
        """
        enrolled, pin = self.registrar.host(minion) is not None, self._pin(minion)
        if not enrolled and not pin.exists():
            raise NetspaceError(f"{minion} is not enrolled, and no software key of it is known: nothing to release")
        # The binding is removed last: after a crash in between, this can be called again.
        self._store.store("state", key_of(minion), {})
        files.remove(pin)
        return self.registrar.release(minion, now) if enrolled else None

    def _pin(self, minion: str) -> Path:
        return self.registrar.folder / "keys" / f"{key_of(minion)}.json"

    def _keep(
        self, asked: Asked, evidence: Evidence, before: Mapping[str, Any] | None
    ) -> tuple[str | None, str | None]:
        """Save the logs of the boot if they are new, and return their digests. The record holds everything else."""
        logs = _logs(evidence)
        known = _digest(logs["log"]), _digest(logs["systemd"])
        # The log that the challenge named and the systemd log of the last record are saved already.
        if logs["log"] is not None and (asked.log, None if before is None else before["systemd"]) != known:
            coded = {name: None if one is None else base64.b64encode(one).decode() for name, one in logs.items()}
            self._store.store("log", key_of(asked.minion), coded)
        return known

    def _log(self, minion: str, digest: str, name: str = "log") -> bytes | None:
        """Return the saved log of a host's boot if it has this digest; else None."""
        try:
            log = base64.b64decode(self._store.fetch("log", key_of(minion)).get(name, ""), validate=True)
        except (TypeError, ValueError):
            return None
        return log if _digest(log) == digest else None

    def _with_log(self, asked: Asked, evidence: Evidence) -> Evidence:
        if evidence.known_log is None:
            return evidence
        if evidence.known_log != asked.log:
            raise Malformed("evidence: bootlog is the digest of a log that was not named to it")
        log = self._log(asked.minion, asked.log)
        if log is None:
            raise LogLost(f"the boot log of {asked.minion} is not kept here any more: it was asked for again")
        return dataclasses.replace(evidence, boot_log=log, known_log=None)

    # -- records and states ---------------------------------------------------------
    def record(self, minion: str) -> dict[str, Any] | None:
        """Return the last result of *minion* that this verifier signed; None if there is none."""
        stored = self._store.fetch("state", key_of(minion))
        try:
            found = ear.opened(stored.get("jws") if stored else None, ear.STATE, [self.signer.jwk], MAX_STATE)
        except Refused:
            return None
        if found.get("v") != VERSION or found.get("minion") != minion:
            return None
        return found

    def standing(self, minion: str, now: float, record: dict[str, Any] | None = None) -> HostState:
        """Return the current state of *minion*.

        :param record: the minion's last result; None: read it from the store.
        """
        record = self.record(minion) if record is None else record
        host, group = self.registrar.host(minion), self.group(minion)
        name, reason, remedy = state(minion, record, host, group, now)
        return HostState(minion, name, reason, remedy, group, record, host)

    def announced(self, standing: HostState) -> str | None:
        """Record a state as announced. Return the state that was announced before; None if it is the same."""
        key = key_of(standing.minion)
        before = str(self._store.fetch("told", key).get("state", UNKNOWN))
        if before == standing.state:
            return None
        self._store.store("told", key, {"state": standing.state, "minion": standing.minion})
        return before

    # -- policies -------------------------------------------------------------------
    def learn(self, minions: Sequence[str], wish: learning.Wish) -> tuple[str, learning.Learned]:
        """Return the group of *minions*, and its policy extended so that it accepts their boots.

        :param wish: the further parts to learn. For IMA, the minions' lists must have been asked for
            (``ask(..., listed=True)``) and judged before.
        :raises NetspaceError: when the minions are of several groups, or one's last evidence can't be learned from.
        """
        if wish.ima and len(minions) > MAX_LISTED:
            raise NetspaceError(f"{len(minions)} hosts: measurement lists are learned from {MAX_LISTED} at a time")
        chosen = {self.group(minion).name for minion in minions}
        if len(chosen) != 1:
            raise NetspaceError(f"hosts of the groups {', '.join(sorted(chosen))}: learn from those of one at a time")
        boots = {}
        for minion in minions:
            record = self.record(minion)
            if record is None or record["level"] == 0:
                why = "it was never attested" if record is None else record["reason"]
                raise NetspaceError(f"{minion}: {why}: nothing is learned from it")
            if record["kind"] != "tpm":
                raise NetspaceError(f"{minion} has no TPM: there is nothing to learn from it")
            if wish.ima:
                evidence, problem = self._listed.get(minion), "its measurement list was not brought"
            else:
                evidence, problem = self._last(record)
            if evidence is None:
                raise NetspaceError(f"{minion}: {problem}: attest it")
            boots[minion] = evidence
        (group,) = chosen
        return group, learning.learn(self.policies.data(group), boots, wish)

    def _last(self, record: Mapping[str, Any]) -> tuple[Evidence | None, str]:
        """Return the evidence of a record (quoted PCRs, logs of the boot), or None and why it is no longer kept."""
        found: dict[str, bytes | None] = {}
        for name in ("log", "systemd"):
            digest = record[name]
            found[name] = None if digest is None else self._log(record["minion"], digest, name)
            if digest is not None and found[name] is None:
                return None, "the logs of its boot are not kept any more"
        pcrs = {int(pcr): bytes.fromhex(value) for pcr, value in record["pcrs"].items()}
        return Evidence("tpm", b"", b"", b"", pcrs, found["log"], found["systemd"]), ""

    def tried(self, minion: str, policy: Policy, *, listed: bool = False) -> dict[str, Any]:
        """Return the level that *policy* would give the host's last evidence: ``{old, new, code, reason}``.

        :param listed: try the rules for IMA, too, on the list that the host just sent. Otherwise only the boot is
            tried, since measurement lists are judged as they arrive and not kept.
        """
        record = self.record(minion)
        if record is None or not record["level"] or record["kind"] != "tpm":
            return _trial(None, None, "evidence-none", "there is no genuine quote of this host")
        old = record["level"] if listed else min(record["level"], 4)
        if listed:
            evidence, problem = self._listed.pop(minion, None), "its measurement list was not brought"
        else:
            evidence, problem = self._last(record)
        if evidence is None:
            return _trial(old, None, "evidence-none", problem)
        if record["base"] < 3:
            return _trial(old, record["base"], record["code"], record["reason"])
        found = judge.appraise(evidence, policy if listed else dataclasses.replace(policy, ima=None), None)
        reason = found.reason if policy.tee is None else f"{found.reason}; its section 'tee' is not tried here"
        return _trial(old, found.level, found.code, reason)


class NotEnrolled(NetspaceError):
    """A host that can't be judged, because its TPM is not enrolled."""


class LogLost(NetspaceError):
    """Evidence that names a boot log which is no longer kept here."""


def state(
    minion: str, record: Mapping[str, Any] | None, host: Mapping[str, Any] | None, group: Group, now: float
) -> tuple[str, str, str]:
    """Return a host's state, the reason, and the remedy. Pure.

    :param record: the last result.
    :param host: the registrar's record.
    """
    if host is not None and "revoked" in host:
        return REVOKED, "its certificate was revoked", f"netspace_attestation.enroll {minion}, once it is good again"
    ours = record is not None and (
        record["kind"] == "software" if host is None else record["kind"] == "tpm" and _same_tpm(record, host)
    )
    if record is None or not ours:
        if host is None:
            return (
                UNKNOWN,
                "it is not enrolled, and was not attested",
                (f"netspace_attestation.enroll {minion}, and attest it; attest it at once if it has no TPM"),
            )
        return ENROLLED, "its TPM is known, and it was not attested since", f"netspace_attestation.attest {minion}"
    if record["level"] == 0:
        return FAILED, record["reason"], record["remedy"]
    if record["issued"] > now + SKEW:
        return (
            STALE,
            "its last result is from the future: compare the master's clock",
            (f"netspace_attestation.attest {minion}, once the clock is right"),
        )
    if now > deadline(record, group):
        late = int(now - deadline(record, group))
        return STALE, f"no evidence since its deadline, {late} s ago", f"netspace_attestation.attest {minion}"
    name = TRUSTED if record["level"] >= group.minimum else DEGRADED
    return name, record["reason"], record["remedy"]


def deadline(record: Mapping[str, Any], group: Group) -> float:
    """Return the end of a result's validity: the signed deadline, or earlier if the group's deadline is shorter now."""
    return float(min(record["deadline"], record["issued"] + group.deadline))


def _trial(old: int | None, new: int | None, code: str, reason: str) -> dict[str, Any]:
    return {
        "old": None if old is None else f"L{old}",
        "new": None if new is None else f"L{new}",
        "code": code,
        "reason": reason,
    }


def _same_tpm(record: Mapping[str, Any], host: Mapping[str, Any]) -> bool:
    """Return whether a result is of the TPM that the host is enrolled with.

    A result that was made before attestation keys had periods names only the attestation key.
    """
    if "ek" in record:
        return bool(record["ek"] == host["ek"])
    return record["key"] in (None, bound_key(host).fingerprint, host.get("former"))


def _answer(data: Any) -> tuple[str, Evidence]:
    if not isinstance(data, Mapping) or set(data) - {identity.FIELD} != {"boot", "evidence"}:
        raise Malformed("answer: expected boot and evidence")
    boot = _boot(data)
    if not boot:
        raise Malformed("answer: boot is no boot's id")
    return boot, parse_evidence(data["evidence"])


def _boot(data: Any) -> str:
    """Return the boot's id in an answer; empty if there is no valid one."""
    boot = data.get("boot") if isinstance(data, Mapping) else None
    return boot if isinstance(boot, str) and len(boot) <= MAX_BOOT and boot.isprintable() else ""


def _clock(record: Mapping[str, Any] | None, host: Mapping[str, Any]) -> Clock | None:
    """Return the last clock of the host's TPM; None if it is unknown, or if the result is of another TPM."""
    if record is None or record["clock"] is None or not _same_tpm(record, host):
        return None
    return Clock(*record["clock"])


def _ima(record: Mapping[str, Any] | None) -> ima.State | None:
    kept = None if record is None else record["ima"]
    if kept is None:
        return None
    refused = None if kept["refused"] is None else (kept["refused"][0], kept["refused"][1])
    first, second = kept["boot"]
    return ima.State(kept["lines"], bytes.fromhex(kept["value"]), (first, second), kept["policy"], refused)


def _ima_record(found: ima.State) -> dict[str, Any]:
    return {**dataclasses.asdict(found), "value": found.value.hex()}


def _good_boot(record: Mapping[str, Any] | None, now: float) -> GoodBoot | None:
    """Return the good boot in a result; None once a day has passed, since a newer netspace may have other rules."""
    kept = None if record is None else record.get("good")
    if not kept or not 0 <= now - kept["since"] < JUDGE_AGAIN:
        return None
    return GoodBoot(kept["identity"], frozenset(kept["proved"]))


def _good_record(good: GoodBoot | None, before: Mapping[str, Any] | None, now: float) -> dict[str, Any] | None:
    if good is None:
        return None
    since = before["good"]["since"] if before is not None and good == _good_boot(before, now) else now
    return {"identity": good.identity, "proved": sorted(good.proved), "since": since}


def _logs(evidence: Evidence) -> dict[str, bytes | None]:
    """Return the logs of a boot. systemd's log is left out without the firmware's, since it proves nothing alone."""
    return {
        "log": evidence.boot_log,
        "systemd": None if evidence.boot_log is None else evidence.systemd_log,
    }


def _digest(log: bytes | None) -> str | None:
    return None if log is None else hashlib.sha256(log).hexdigest()
