"""Kind ``attestation``: observe, plan and apply the attestation of this host.

This kind has the object ``host``. Its only step, apart from its removal, is ``appraise``, which is planned if there is
no valid result. The plan can't predict the level. The outcome of the step has the change of level. On a host that keeps
a ledger of runs, there is the object ``ledger``, too.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from netspace import files
from netspace.attestation import result
from netspace.attestation.minion import settings
from netspace.attestation.result import Result
from netspace.attestation.tpm.tcti import device_path
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.plan import Outcome, Plan, Refusal, Step

if TYPE_CHECKING:
    from netspace.spec.types import Attestation

KIND = "attestation"
NAME = "host"
LEDGER = "ledger"


@dataclass(frozen=True)
class Observed:
    """The last result, and the facts that decide whether it is still valid.

    :param problem: why the recorded result can't be read; empty if no result is recorded or the result can be read.
    :param sources: current fingerprint of the files that the result's settings name.
    :param present: whether the folder of the attestation's records exists.
    :param ledger: path of the TPM that vouches for the ledger of runs; empty: a software key does; None: there is no
        ledger.
    """

    result: Result | None
    problem: str
    boot: str
    now: float
    sources: str
    present: bool
    ledger: str | None = None


class Attestations:
    """The kind's operations (see :class:`netspace.plan.Reconciler`), for a :class:`netspace.spec.types.Attestation`."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def observe(self) -> Observed:
        """Read the result, the boot's id, and the sizes and times of files. Needs no TPM and no ``cryptography``."""
        found: Result | None = None
        problem = ""
        try:
            found = result.load(self.layout)
        except NetspaceError as err:
            problem = str(err)
        return Observed(
            found,
            problem,
            result.boot_id(self.layout),
            time.time(),
            settings.sources(self.layout, found.settings) if found else "",
            self.layout.records(KIND).exists(),
            self._ledger(),
        )

    def _keeps_ledger(self) -> bool:
        """Return whether the host keeps a ledger of runs. Imports nothing, since most hosts keep none."""
        return (self.layout.records(KIND) / "ledger.json").exists()

    def _ledger(self) -> str | None:
        if not self._keeps_ledger():
            return None
        from netspace.ledger import setting

        try:
            found = setting.setting(self.layout)
        except NetspaceError:
            return None  # it is set up again
        return None if found is None else str(found.tpm or "")

    @staticmethod
    def plan(desired: Attestation, observed: Observed, remove: Collection[str] = ()) -> Plan:
        """Plan an appraisal if there is no valid result.

        :param remove: with ``{"host"}``, plan to delete the result, the pinned TPM and the software key.
        """
        if NAME in remove:
            return Plan([Step(KIND, NAME, "remove")] if observed.present else [])
        found = Attestations._appraisal(desired, observed)
        return msgspec.structs.replace(found, steps=[*found.steps, *_ledger_steps(desired, observed)])

    @staticmethod
    def _appraisal(desired: Attestation, observed: Observed) -> Plan:
        chosen = settings.of(desired)
        # If the master judges, the host's own result must not count, even where the policy is off.
        if desired.policy == "off" and desired.verifier != settings.MASTER:
            return Plan()
        reason = _due(chosen, observed)
        if reason:
            return Plan([Step(KIND, NAME, "appraise", reason=reason, data=chosen)])
        assert observed.result is not None
        if desired.verifier == settings.MASTER:
            gone = result.invalid(observed.result, observed.boot, observed.now) if observed.result.level else ""
            return Plan(notes=[f"attestation: {gone}; {settings.ASK}"] if gone else [])
        return Plan(notes=[f"attestation: {observed.result.reason}"] if observed.result.fallback else [])

    @staticmethod
    def again(observed: Observed) -> Plan:
        """Plan an appraisal with the settings of the recorded result, if that result is no longer valid."""
        if observed.result is None:
            return Plan(refusals=[Refusal(KIND, NAME, observed.problem)] if observed.problem else [])
        reason = _due(observed.result.settings, observed)
        work = dict(observed.result.settings)
        return Plan([Step(KIND, NAME, "appraise", reason=reason, data=work)] if reason else [])

    def apply(self, steps: Sequence[Step]) -> list[Outcome]:
        """Run the steps. An appraisal's outcome has the changes ``level`` and ``appraised``, and the level's reason."""
        return [self._applied(step) for step in steps]

    def _applied(self, step: Step) -> Outcome:
        if step.name == LEDGER:
            return self._set_up(step)
        return self._remove(step) if step.action == "remove" else self._appraise(step)

    def _set_up(self, step: Step) -> Outcome:
        from netspace.attestation.minion import run_ledger

        try:
            if step.action == "remove":
                run_ledger.remove(self.layout)
            else:
                run_ledger.set_up(self.layout, step.data)
        except (NetspaceError, OSError) as err:
            return Outcome(step, f"the ledger of runs: {err}")
        return Outcome(step)

    def restore(self) -> list[Outcome]:
        """Appraise again after a reboot, with the settings of the recorded result, if an appraisal is due."""
        return self.apply(self.again(self.observe()).steps)

    def status(self) -> dict[str, Any]:
        """Return the status for an operator: level, reason, remedy, times (seconds since the epoch), TPM, TEE."""
        trust = result.trust(self.layout)
        observed = self.observe()
        found = observed.result
        counts = found is not None and (found.level == 0 or not result.invalid(found, observed.boot, observed.now))
        ledger = self._shown_ledger() if self._keeps_ledger() else {}
        return {
            "level": trust.name,
            "verifier": trust.verifier,
            "reason": trust.reason,
            "remedy": found.remedy if found is not None and counts else _renew(found),
            "issued": found.issued if found else None,
            "expires": found.expires if found else None,
            "fallback": found.fallback if found else False,
            "tpm": dict(found.tpm) if found else {},
            "tee": dict(found.tee) if found else {},
            **({"ledger": ledger} if ledger else {}),
        }

    def _shown_ledger(self) -> dict[str, Any]:
        from netspace.attestation.minion import run_ledger

        return run_ledger.shown(self.layout)

    def _appraise(self, step: Step) -> Outcome:
        from netspace.attestation.minion import self_appraisal

        chosen: Mapping[str, Any] = step.data
        before = self.observe().result
        try:
            judged = self_appraisal.waiting if chosen.get("verifier") == settings.MASTER else self_appraisal.appraise
            after, error = judged(self.layout, chosen), ""
        except (NetspaceError, OSError) as err:
            after, error = self_appraisal.failed(self.layout, chosen, str(err)), str(err)
        # Saved after a failure, too: an older and better result must not stay in force.
        result.save(self.layout, after)
        done = msgspec.structs.replace(step, changes=_changes(before, after), reason=after.reason)
        return Outcome(done, error)

    def _remove(self, step: Step) -> Outcome:
        from netspace.attestation.minion import run_ledger

        folder = self.layout.records(KIND)
        try:
            run_ledger.remove(self.layout)
            for name in (
                "result.json",
                "pin.json",
                "key.json",
                "tpm.lock",
                "master.json",
                "master.lock",
                "answer.json",
            ):
                files.remove(folder / name)
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
        except (NetspaceError, OSError) as err:
            return Outcome(step, f"{folder}: {err}")
        return Outcome(step)


def _ledger_steps(desired: Attestation, observed: Observed) -> list[Step]:
    """Return the steps that set up or remove the ledger of runs."""
    wanted = str(device_path(desired.tpm or "") or "") if desired.ledger else None
    if wanted == observed.ledger:
        return []
    change = {"proved_by": {"old": _by(observed.ledger), "new": _by(wanted)}}
    if wanted is None:
        return [Step(KIND, LEDGER, "remove", change)]
    return [Step(KIND, LEDGER, "create" if observed.ledger is None else "change", change, data=desired.tpm)]


def _by(tpm: str | None) -> str | None:
    return None if tpm is None else tpm or "a software key"


def _due(chosen: Mapping[str, Any], observed: Observed) -> str:
    """Return why an appraisal is due; empty when no appraisal is due."""
    if observed.problem:
        return observed.problem
    found = observed.result
    if found is None:
        return "the host was never appraised"
    if chosen.get("verifier") == settings.MASTER:
        # No appraisal here can renew this result: only the master can. An expired result counts as none until then.
        pinned = set(found.settings.get("verifier_keys") or ()) <= set(chosen.get("verifier_keys") or ())
        if pinned and found.settings.get("verifier") == settings.MASTER:
            return ""
        return "the master is to judge this host, by the keys that are declared"
    changed = sorted(key for key in chosen.keys() | found.settings.keys() if chosen.get(key) != found.settings.get(key))
    if changed:
        return f"changed since the last appraisal: {', '.join(changed)}"
    if found.sources != observed.sources:
        return "the TPM, its roots or the references changed since the last appraisal"
    return result.invalid(found, observed.boot, observed.now)


def _renew(found: Result | None) -> str:
    master = found is not None and found.settings.get("verifier") == settings.MASTER
    return settings.ASK if master else "apply the attestation"


def _changes(before: Result | None, after: Result) -> dict[str, dict[str, Any]]:
    """Return the changes by an appraisal: always the time, and the level if the level differs."""
    changes: dict[str, dict[str, Any]] = {}
    old = f"L{before.level}" if before else None
    if old != f"L{after.level}":
        changes["level"] = {"old": old, "new": f"L{after.level}"}
    changes["appraised"] = {"old": _time(before.issued) if before else None, "new": _time(after.issued)}
    return changes


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
