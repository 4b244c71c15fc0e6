"""Plans of a fleet on the master's disk. An operator can apply or compare a plan that was shown before."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from netspace import files
from netspace.errors import NetspaceError
from netspace.fleet.hosts import Outcome
from netspace.fleet.planning import plans
from netspace.fleet.planning.plans import HostPlan

MAX_PLANS = 16
"""The number of plans that are kept: those that were made, applied or compared last."""
_MOST = 1 << 30


class HostRecord(msgspec.Struct, frozen=True):
    """The plan of one host, as the master keeps it.

    :param minion: the host's minion.
    :param old: the digest of the host's slice when the plan was made.
    :param new: the digest of the host's slice of the candidate. Without ``apply: planned``, both digests are empty.
    """

    minion: str
    plan: HostPlan
    old: str = ""
    new: str = ""


class PlanRecord(msgspec.Struct, frozen=True):
    """A plan of a fleet, as the master keeps it.

    :param made: when it was made, in seconds since 1970.
    :param generation: the candidate's id; empty without ``apply: planned``.
    :param ends: whether the candidate's declaration no longer has ``apply: planned``.
    :param hosts: the plans of the hosts.
    :param silent: for each host without a plan, the reason.
    :param moves: pairs: an environment whose hosts change, and the reason.
    """

    id: str
    made: float
    generation: str
    ends: bool
    hosts: dict[str, HostRecord]
    silent: dict[str, str]
    moves: tuple[tuple[str, str], ...] = ()
    version: int = 1

    @property
    def plans(self) -> dict[str, HostPlan]:
        return {host: one.plan for host, one in self.hosts.items()}

    def changing(self) -> list[str]:
        """Return the hosts that an apply of the plan would change, sorted."""
        return sorted(host for host, one in self.hosts.items() if one.plan.steps or one.old != one.new)


class _Generation(msgspec.Struct):
    """The part of a stored plan that holds the candidate's id; the rest isn't decoded."""

    generation: str


class Plans:
    """The store of plans in *folder*, which only the master's user can read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, record: PlanRecord) -> None:
        """Store a plan, and keep only the :data:`MAX_PLANS` plans that were used last. The caller holds the lock."""
        path = self._path(record.id)
        files.write(path, msgspec.json.encode(record))
        os.utime(path)
        for old in self._by_use()[MAX_PLANS:]:
            files.remove(old)

    def read(self, name: object) -> PlanRecord:
        """Return a plan by its id.

        :raises NetspaceError: no such plan is kept, or it is damaged.
        """
        if not isinstance(name, str) or not plans.ID.fullmatch(name):
            raise NetspaceError(f"{name!r:.80} is not the id of a plan: use an id that netspace_fleet.plan returned")
        path = self._path(name)
        try:
            found = msgspec.json.decode(files.read(path, _MOST), type=PlanRecord)
            os.utime(path)
        except FileNotFoundError:
            raise NetspaceError(f"{name}: there is no such plan, or it is too old: netspace_fleet.plan") from None
        except (OSError, ValueError) as err:
            raise NetspaceError(f"{path}: {err}; plan again") from err
        return found

    def generations(self) -> set[str]:
        """Return the ids of the candidates to which the kept plans belong."""
        found = {""}
        for path in self._by_use():
            with contextlib.suppress(OSError, ValueError):  # a damaged plan can't be applied
                found.add(msgspec.json.decode(files.read(path, _MOST), type=_Generation).generation)
        return found - {""}

    def _by_use(self) -> list[Path]:
        found = [path for path in self.folder.glob("*.json") if plans.ID.fullmatch(path.stem)]
        return sorted(found, key=lambda path: -path.stat().st_mtime_ns)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def told(record: PlanRecord, *, what: str = "plan") -> dict[str, Any]:
    """Return a plan as plain values, for the output of a Salt function.

    :param what: the key under which the plan's id stands: ``plan`` or ``drift``.
    """
    found = record.plans
    silent = [{"reason": reason, "hosts": list(hosts)} for reason, hosts in plans.by_reason(record.silent)]
    return {
        what: record.id,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.made)),
        "candidate": record.generation,
        "counts": {
            "hosts": len(found) + len(record.silent),
            "change": sum(bool(one.steps) for one in found.values()),
            "same": sum(not one.steps for one in found.values()),
            "redeclared": sum(not one.plan.steps and one.old != one.new for one in record.hosts.values()),
            "without_plan": len(record.silent),
        },
        "changes": [plans.told(entry) for entry in plans.fold(found)],
        "withheld": [
            {"kind": one.kind, "name": one.name, "message": one.message, "hosts": list(hosts)}
            for one, hosts in plans.withheld(found)
        ],
        "without_plan": silent,
        "moves": [{"environment": name, "reason": reason} for name, reason in record.moves],
    }


def applied(record: PlanRecord, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Return the results of applying a plan as plain values, for the output of a Salt function."""
    done = {host: one.reason for host, one in outcomes.items() if one.ok}
    failed = {host: one.reason for host, one in outcomes.items() if not one.ok}
    return {
        "applied": record.id,
        "counts": {"hosts": len(outcomes), "done": len(done), "failed": len(failed)},
        "done": [{"reason": reason, "hosts": list(hosts)} for reason, hosts in plans.by_reason(done)],
        "failed": [{"reason": reason, "hosts": list(hosts)} for reason, hosts in plans.by_reason(failed)],
    }


def compared(first: PlanRecord, second: PlanRecord) -> dict[str, Any]:
    """Return the differences between two plans as plain values, for the output of a Salt function."""
    found = plans.compare(first.plans, second.plans)
    return {
        "plans": [first.id, second.id],
        "dropped": [plans.told(entry) for entry in found.dropped],
        "added": [plans.told(entry) for entry in found.added],
        "without_plan": list(found.without),
        "with_plan": list(found.with_plan),
        "redeclared": list(found.redeclared),
    }
