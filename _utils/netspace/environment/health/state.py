"""Judgement of an environment's health from the results and times of its probes. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

from netspace.spec.types import Health

Name = Literal["starting", "healthy", "unhealthy"]
SOON = 1.0  # seconds between two probes of a starting environment
DETAIL = 200  # the most characters that are kept of a failed probe's text


class Judgement(msgspec.Struct, frozen=True):
    """The judgement on the health of one process.

    :param failures: number of probes that failed in a row.
    :param detail: the text of the last failed probe.
    """

    state: Name = "starting"
    failures: int = 0
    detail: str = ""


def allowance(health: Health) -> float:
    """Return the seconds after its start within which an environment must become healthy."""
    return health.start_period + health.retries * health.interval


def judge(before: Judgement, health: Health, passed: bool | None, detail: str, age: float) -> Judgement:
    """Return the judgement after a probe.

    A starting environment becomes unhealthy only after its :func:`allowance`, regardless of the number of failed
    probes. A healthy environment becomes unhealthy after ``retries`` failures in a row. One success makes an
    environment healthy. A probe without a result changes only the text.

    :param before: the judgement before the probe.
    :param passed: None if the probe has no result.
    :param age: seconds since the process started, or since the last probe without a result.
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
    """Return the seconds until the next probe.

    A starting environment is probed more often, so that environments that wait for it can start soon.
    """
    return min(health.interval, SOON) if now.state == "starting" else health.interval
