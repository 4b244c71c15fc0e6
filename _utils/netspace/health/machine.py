"""From what probes found to whether an environment is healthy. Pure: times come in, a judgement goes out."""

from __future__ import annotations

from typing import Literal

import msgspec

from netspace.spec.types import Health

Name = Literal["starting", "healthy", "unhealthy"]
SOON = 1.0  # seconds between two probes of one that just started
DETAIL = 200  # characters that are kept of what a failed probe said


class Judgement(msgspec.Struct, frozen=True):
    """What is thought of one process.

    :param failures: probes that failed in a row.
    :param detail: what the last failed one said.
    """

    state: Name = "starting"
    failures: int = 0
    detail: str = ""


def allowance(health: Health) -> float:
    """Seconds that one has from its start until it must have been healthy once."""
    return health.start_period + health.retries * health.interval


def judge(before: Judgement, health: Health, passed: bool | None, detail: str, age: float) -> Judgement:
    """Return what to think after a probe.

    One that starts has its allowance, however many probes fail in it. One that was healthy is
    unhealthy after ``retries`` failures in a row; one success makes either healthy. What can't be
    known changes nothing but what is said.

    :param passed: None where that can't be known.
    :param age: seconds since the process started, or since that could not be known.
    """
    if passed:
        return Judgement("healthy")
    if passed is None:
        return msgspec.structs.replace(before, detail=detail[:DETAIL])
    after = msgspec.structs.replace(before, failures=before.failures + 1, detail=detail[:DETAIL])
    if before.state == "starting":
        return msgspec.structs.replace(after, state="unhealthy") if age >= allowance(health) else after
    return msgspec.structs.replace(after, state="unhealthy") if after.failures >= health.retries else after


def pause(now: Judgement, health: Health) -> float:
    """Seconds until the next probe: one that starts is looked at more often, so that nobody waits for long."""
    return min(health.interval, SOON) if now.state == "starting" else health.interval
