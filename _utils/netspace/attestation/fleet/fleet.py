"""The verifier of a fleet: makes challenges, and appraises the answers.

``Fleet.ask`` makes a challenge for one minion. ``Fleet.judge`` checks the answer, in the only allowed order:

0. the host itself answered: its attestation key (``origin``) or its Salt key (``identity``) signed the answer to this
   challenge. The verifier makes no result of any other answer (``Unproved``);
1. the answer follows this protocol (if not: ``malformed``);
2. the registrar's records have the attestation key, and its certificate is valid (``Registrar.certified``);
3. the quote is genuine, and answers this challenge: this minion, this master, this nonce, and the boot that the minion
   names (``verifier.verify_quote``; ``verify_software`` for a host without a TPM);
4. the policy of the minion's group decides on the level (step 3 calls ``verifier.appraisal``). If the policy has a
   section ``tee``, the report of the host's TEE counts, too (``tee.appraisal``).

The firmware's log changes only at a boot, so the host sends the log once. ``ask`` names the log that the master keeps.
If the host's log is the same, the host sends only the digest. If the master lost its copy in the meantime, ``judge``
raises ``LogLost``, and the caller asks again with ``whole``.

A minion that does not answer is not judged, and its last result stays (``results``). The minion's state is computed
from the last result and the time (``host_state``). This module sends no messages, and does not import Salt.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from netspace import files
from netspace.attestation import ear, host_appraisal, identity, token_key
from netspace.attestation.evidence import Context, Evidence
from netspace.attestation.evidence import parse as parse_evidence
from netspace.attestation.fleet import groups, ledgers, origin, result_fields, results
from netspace.attestation.fleet.challenge import Asked
from netspace.attestation.fleet.groups import Group
from netspace.attestation.fleet.host_state import HostState, state
from netspace.attestation.fleet.policies import Policies
from netspace.attestation.fleet.results import Results, Store
from netspace.attestation.identity import Identities
from netspace.attestation.learning import policy as learning
from netspace.attestation.policy.policy import Policy
from netspace.attestation.refusals import Malformed, Refused, TokenKeyOld, UnknownAttestationKey, WrongSaltKey
from netspace.attestation.registrar.host_record import bound_key, key_of
from netspace.attestation.registrar.registrar import Registrar
from netspace.attestation.tee import appraisal as tees
from netspace.attestation.tee.x509 import Trust
from netspace.attestation.verifier import appraisal as judge
from netspace.attestation.verifier import quote_checks, verifier
from netspace.errors import NetspaceError
from netspace.text import REPLACEMENT, printable

MAX_BOOT = 64
# Maximum number of hosts whose measurement lists are learned at once: each list may have 32 MiB.
MAX_LISTED = 32
ENROL_AGAIN, SPREAD = 3600.0, 11 * 3600.0


class Fleet:
    """The verifier, with the registrar's records. Its methods take the time as an argument.

    :param master: fingerprint of the master's key.
    :param trust: returns the makers of TEEs that the operator trusts; called only if a policy has a section ``tee``.
    :param identities: Salt keys with which minions sign their answers; None: the verifier knows no Salt key.
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
        self.results = Results(store, self.signer)
        self._master = master
        self._groups = chosen
        self._software = software
        self._trust = trust
        self._listed: dict[str, Evidence] = {}

    def group(self, minion: str) -> Group:
        return groups.of(self._groups, minion)

    def named(self, name: str) -> Group:
        """Return the group with this name.

        :raises NetspaceError: when there is no such group.
        """
        for one in self._groups:
            if one.name == name:
                return one
        raise NetspaceError(f"there is no group {name!r:.80}; there are {', '.join(one.name for one in self._groups)}")

    # -- asking and judging ---------------------------------------------------------
    def certificate_due(self, minion: str, now: float) -> bool:
        """Return whether the minion needs a new certificate before its challenge.

        Only enrolled minions that aren't revoked need a certificate. A certificate is due at a random time between
        twelve hours and one hour before it expires. So the certificates of hosts that were enrolled together are not
        renewed together, and the times of renewals do not identify a host.
        """
        host = self.registrar.host(minion)
        chance = key_of(minion) if host is None else host.get("period") or key_of(minion)
        sooner = int(chance[:8], 16) % int(SPREAD)
        return host is not None and "revoked" not in host and host["expires"] < now + ENROL_AGAIN + sooner

    def ask(self, minion: str, *, whole: bool = False, listed: bool = False) -> Asked:
        """Return a challenge for *minion*.

        :param whole: the minion must send its boot log, even if the master keeps a copy.
        :param listed: the minion must send its whole measurement list, for :meth:`learn`.
        :raises Refused: when the policy of the minion's group can't be used.
        """
        group = self.group(minion)
        policy = self.policies.get(group.name)
        host = self.registrar.host(minion)
        first: int | None = None
        before = self.results.record(minion)
        if policy is not None and policy.ima is not None and host is not None and host["level"] >= 3:
            first = judge.ask_from(policy, result_fields.ima_state(before))
        log = None if whole or before is None else before["log"]
        nonce = secrets.token_bytes(32)
        session, signed = secrets.token_hex(8), self.identities is not None
        runs = None
        if policy is not None and policy.environments is not None:
            runs = ledgers.position(ledgers.before(before, lambda: self.results.runs(minion)))
        return Asked(minion, group, policy, session, nonce, 0 if listed else first, log, listed, host, signed, runs)

    def judge(self, asked: Asked, answer: Any, now: float) -> dict[str, Any]:
        """Judge an answer, save the result, and return its record. The record's ``token`` is for the minion.

        :param asked: the challenge that was sent to the host.
        :raises Unproved: when nothing proves that the host answered. Then no result is made.
        :raises NotEnrolled: when the answer can't be judged, because the host is not enrolled.
        :raises LogLost: when the answer names a boot log that the master no longer has.
        """
        minion, before = asked.minion, self.results.record(asked.minion)
        host = self.registrar.host(minion)
        # The result names the boot even if the evidence is refused: the host accepts only a result of this boot.
        boot, evidence, key_shown = _boot(answer), None, None
        kept, runs, signer = result_fields.of_refused(before, host), ledgers.Told(), None
        try:
            boot, evidence, context, key_shown = self._own(asked, answer, host)
            _check_new(key_shown, boot, before)
            if host is None:
                found = self._by_software(minion, evidence, context)
                base = found.level
            else:
                key = self.registrar.certified(self._as_asked(asked, host), now)
                base = key.level
                expected = verifier.Expected(
                    context,
                    asked.group.pcrs,
                    result_fields.clock(before, host),
                    None,
                    asked.policy,
                    result_fields.ima_state(before),
                    str(kept["seen"]).encode(),
                    result_fields.good_boot(before, now),
                )
                found = verifier.verify_quote(evidence, key, expected)
                signer = None if found.clock is None else (key.key, found.clock)
                self._note_firmware(minion, kept["firmware"], found.firmware, now)
            worth = tees.Worth(found.level, found.code, found.reason, found.remedy)
            section = None if asked.policy is None else asked.policy.tee
            worth, told_tee = tees.weighed(evidence, context, section, self._trust, worth, now)
            known = ledgers.before(before, lambda: self.results.runs(minion))
            worth, runs = ledgers.weighed(evidence, context, signer, asked, known, worth)
            level, code, reason, remedy = worth.level, worth.code, worth.reason, worth.remedy
            kept.update(result_fields.of_verified(found, boot, base, told_tee, before, now))
            if key_shown is not None:
                kept["token_key"] = [key_shown.thumbprint, boot]
            if runs.record is not None:
                kept["ledger"] = runs.record
                self.results.keep_runs(minion, runs.runs)
        except Refused as err:
            level, code, reason, remedy, key_shown = 0, err.code, str(err), err.remedy, None
        reason = printable(reason, "\n", REPLACEMENT)
        if level and evidence is not None:
            kept["log"], kept["systemd"] = self.results.keep_logs(asked, evidence, before)
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
            "" if key_shown is None else key_shown.thumbprint,
            "" if key_shown is None else self._word(asked, level, boot, key_shown, version, (now, until)),
            runs.ledger,
            runs.environments,
        )
        record = {
            "v": results.VERSION,
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
        self.results.save(record)
        return record

    def _word(
        self, asked: Asked, level: int, boot: str, key: token_key.Shown, version: int, times: tuple[float, float]
    ) -> str:
        """Return the host appraisal: the verifier's signed statement on a host and its token key, for third parties."""
        policy = (asked.group.name, version)
        return host_appraisal.make(self.signer, asked.minion, level, boot, key.jwk, policy, *times)

    def _own(
        self, asked: Asked, answer: Any, host: dict[str, Any] | None
    ) -> tuple[str, Evidence, Context, token_key.Shown | None]:
        """Return the boot, evidence, context and token key (if any) in an answer that a key of the host signed.

        :param asked: the challenge that was sent to the host.
        :raises Refused: when the host's Salt key signed the answer, but the evidence is refused.
        :raises NotEnrolled: when the host's Salt key signed the answer, but the host has a TPM and is not enrolled.
        :raises Unproved: when no key of the host signed the answer.
        :raises LogLost: when the answer names a boot log that the master no longer has.
        """
        try:
            boot, evidence, key = _answer(answer)
            thumbprint = "" if key is None else key.thumbprint
            runs = evidence.ledger.binding() if evidence.kind == "software" and evidence.ledger is not None else b""
            context = Context(
                self._master, asked.minion, asked.session, asked.nonce, runs, boot.encode(), key=thumbprint
            )
            if host is not None:
                quote_checks.own_quote(evidence, bound_key(self._as_asked(asked, host)), context)
            else:
                self._check_software(asked, answer, evidence, context)
            if key is not None:
                token_key.check(key, context)
            return boot, self.results.with_log(asked, evidence), context, key
        except NotEnrolled as err:
            if not self._signed(asked, answer):
                raise origin.Unproved(str(err)) from err
            raise
        except Refused as err:
            if isinstance(err, WrongSaltKey) or not self._signed(asked, answer):
                raise origin.unproved(err) from err
            raise

    def _as_asked(self, asked: Asked, host: dict[str, Any]) -> dict[str, Any]:
        """Return the host's record at the time of the challenge, since the certificate may have been renewed later.

        A revocation or change of the TPM after the challenge counts at once, even if the host was enrolled again.
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
        """Check that a host without a TPM uses its pinned software key.

        If no key is pinned, the host's Salt key must sign.

        :raises NotEnrolled: when the host has a TPM.
        """
        if evidence.kind != "software":
            raise NotEnrolled(
                f"{asked.minion} has a TPM and is not enrolled; run netspace_attestation.enroll {asked.minion}"
            )
        pinned = self._pinned(asked.minion)
        if pinned is not None and pinned != evidence.key.hex():
            raise UnknownAttestationKey("the software key differs from the first key of this minion")
        verifier.verify_software(evidence, evidence.key, context)
        if pinned is None and self.identities is not None:
            self.identities.answer(asked.minion, asked.exchange, answer)

    def _note_firmware(self, minion: str, before: str | None, found: int | None, now: float) -> None:
        """Log a change of a TPM's firmware version. The TPM signs the version in each quote."""
        if before is not None and found is not None and int(before, 16) != found:
            self.registrar.note("tpm-firmware", {"minion": minion, "old": before, "new": f"{found:016x}"}, now)

    def _by_software(self, minion: str, evidence: Evidence, context: Context) -> verifier.Verified:
        """Verify the evidence of a host without a TPM, and pin its key if none is pinned yet."""
        found = verifier.verify_software(evidence, evidence.key, context)
        if self._pinned(minion) is None:
            files.write_json(self._pin(minion), {"v": 1, "minion": minion, "key": evidence.key.hex()})
        return found

    def _pinned(self, minion: str) -> str | None:
        """Return the pinned software key of a minion, in hex; None if no key is pinned."""
        pin = files.read_json(self._pin(minion), files.KEPT)
        return None if pin is None else str(pin.get("key"))

    def release(self, minion: str, now: float) -> dict[str, Any] | None:
        """Forget the TPM or software key of *minion*, and its last result. Return the TPM's record, if any.

        The last result contains the TPM's last clock, which is forgotten too, since a cleared TPM's clock starts at
        zero again.

        :raises NetspaceError: when neither a TPM nor a software key of the minion is known.
        """
        enrolled, pin = self.registrar.host(minion) is not None, self._pin(minion)
        if not enrolled and not pin.exists():
            raise NetspaceError(f"{minion} is not enrolled, and no software key of it is known: nothing to release")
        # The binding is removed last: after a crash in between, this can be called again.
        self.results.forget(minion)
        files.remove(pin)
        return self.registrar.release(minion, now) if enrolled else None

    def _pin(self, minion: str) -> Path:
        return self.registrar.folder / "keys" / f"{key_of(minion)}.json"

    # -- states ---------------------------------------------------------------------
    def standing(self, minion: str, now: float, record: dict[str, Any] | None = None) -> HostState:
        """Return the current state of *minion*.

        :param record: the minion's last result; None: read it from the store.
        """
        record = self.results.record(minion) if record is None else record
        host, group = self.registrar.host(minion), self.group(minion)
        name, reason, remedy = state(minion, record, host, group, now)
        return HostState(minion, name, reason, remedy, group, record, host)

    # -- policies -------------------------------------------------------------------
    def learn(self, minions: Sequence[str], wish: learning.Wish) -> tuple[str, learning.Learned]:
        """Return the group of *minions*, and its policy extended so that it accepts their boots.

        :param wish: options of learning. For IMA, ask the minions for their lists (``ask(..., listed=True)``) and judge
            the answers first.
        :raises NetspaceError: when the minions are of several groups, or the last evidence of a minion can't be used.
        """
        if wish.ima and len(minions) > MAX_LISTED:
            raise NetspaceError(
                f"{len(minions)} hosts: measurement lists can be learned from at most {MAX_LISTED} hosts at a time"
            )
        chosen = {self.group(minion).name for minion in minions}
        if len(chosen) != 1:
            raise NetspaceError(
                f"hosts of the groups {', '.join(sorted(chosen))}: learn from the hosts of one group at a time"
            )
        boots = {}
        for minion in minions:
            record = self.results.record(minion)
            if record is None or record["level"] == 0:
                why = "the host was never attested" if record is None else record["reason"]
                raise NetspaceError(f"{minion}: {why}; attest this host successfully first")
            if record["kind"] != "tpm":
                raise NetspaceError(f"{minion}: the host has no TPM, so nothing can be learned; leave it out")
            if wish.ima:
                evidence, problem = self._listed.get(minion), "the host sent no measurement list"
            else:
                evidence, problem = self.results.evidence(record)
            if evidence is None:
                raise NetspaceError(f"{minion}: {problem}; attest this host")
            boots[minion] = evidence
        (group,) = chosen
        return group, learning.learn(self.policies.data(group), boots, wish)

    def tried(self, minion: str, policy: Policy, *, listed: bool = False) -> dict[str, Any]:
        """Return the level that *policy* would give the host's last evidence: ``{old, new, code, reason}``.

        :param listed: also try the rules for IMA, on the list that the host just sent. Otherwise only the rules for the
            boot are tried, since measurement lists are not kept.
        """
        record = self.results.record(minion)
        if record is None or not record["level"] or record["kind"] != "tpm":
            return _trial(None, None, "evidence-none", "this host has sent no genuine quote")
        old = record["level"] if listed else min(record["level"], 4)
        if listed:
            evidence, problem = self._listed.pop(minion, None), "the host sent no measurement list"
        else:
            evidence, problem = self.results.evidence(record)
        if evidence is None:
            return _trial(old, None, "evidence-none", problem)
        if record["base"] < 3:
            return _trial(old, record["base"], record["code"], record["reason"])
        found = judge.appraise(evidence, policy if listed else dataclasses.replace(policy, ima=None), None)
        reason = found.reason if policy.tee is None else f"{found.reason}; its section 'tee' is not tried here"
        return _trial(old, found.level, found.code, reason)


class NotEnrolled(NetspaceError):
    """Error: a host can't be judged, because its TPM is not enrolled."""


def _trial(old: int | None, new: int | None, code: str, reason: str) -> dict[str, Any]:
    return {
        "old": None if old is None else f"L{old}",
        "new": None if new is None else f"L{new}",
        "code": code,
        "reason": reason,
    }


def _check_new(key: token_key.Shown | None, boot: str, before: Mapping[str, Any] | None) -> None:
    """Check that a host made a new token key in this boot.

    :raises TokenKeyOld: when the host had this key already in an earlier boot. A genuine host keeps the key only in
        memory, so somebody has copied it.
    """
    last = None if before is None else before.get("token_key")
    if key is not None and last and last[0] == key.thumbprint and last[1] != boot:
        raise TokenKeyOld("the host showed the token key of an earlier boot")


def _answer(data: Any) -> tuple[str, Evidence, token_key.Shown | None]:
    if not isinstance(data, Mapping) or set(data) - {identity.FIELD, token_key.FIELD} != {"boot", "evidence"}:
        raise Malformed("answer: expected boot and evidence")
    boot = _boot(data)
    if not boot:
        raise Malformed("answer: boot: expected the id of a boot")
    key = token_key.parse(data[token_key.FIELD]) if token_key.FIELD in data else None
    return boot, parse_evidence(data["evidence"]), key


def _boot(data: Any) -> str:
    """Return the boot's id in an answer; empty if the answer has no valid id."""
    boot = data.get("boot") if isinstance(data, Mapping) else None
    return boot if isinstance(boot, str) and len(boot) <= MAX_BOOT and boot.isprintable() else ""
