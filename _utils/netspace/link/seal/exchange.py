"""Exchange of bundles (``bundle``) between the hosts of a fleet. Does no I/O itself: callers pass functions for it.

The machine that carries the bundles need not be trusted. If two minions claim the same host name, neither minion gets
the bundles for that host, since at least one of them must not have these. The conflict is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Answers = Mapping[str, Any]
"""The result of each minion, or an exception."""

ROUNDS = 2
"""Rounds of an exchange. It needs two: a host seals for a peer only after the peer confirmed the host's endorser."""


def exchange(ask: Callable[[], Answers], hand: Callable[[str, Sequence[str]], Any]) -> dict[str, Any]:
    """Collect the bundles of all hosts and deliver each to the host for which it is meant.

    :param ask: returns the results of ``netspace_link.seal_bundles``, by minion.
    :param hand: runs ``netspace_link.seal_adopt`` on one minion; returns its result, or an exception.
    :return: ``exchanged``: for each host, the other hosts whose bundle was new to it; and ``problems``: texts for an
        operator.
    """
    heard: dict[str, set[str]] = {}
    problems: list[str] = []
    for _ in range(ROUNDS):
        minions, bundles, problems = _sorted(ask())
        news = False
        for host, texts in sorted(bundles.items()):
            told = hand(minions[host], texts)
            if not isinstance(told, dict):
                problems.append(f"{minions[host]}: {told}"[:1000])
                continue
            new = {str(other) for other, whether in told.items() if whether}
            heard.setdefault(host, set()).update(new)
            news = news or bool(new)
        if not news:
            break
    return {"exchanged": {host: sorted(others) for host, others in heard.items() if others}, "problems": problems}


def _sorted(answers: Answers) -> tuple[dict[str, str], dict[str, list[str]], list[str]]:
    """Return the minion of each host, the bundles for each host, and the problems with the answers."""
    problems, said = [] if answers else ["no minion answers"], {}
    for minion, answer in sorted(answers.items()):
        if isinstance(answer, dict) and isinstance(answer.get("bundles"), dict):
            if answer["bundles"]:
                said[minion] = answer
        else:
            problems.append(f"{minion}: {answer}"[:1000])
    minions: dict[str, str] = {}
    claimed: dict[str, list[str]] = {}
    for minion, answer in said.items():
        claimed.setdefault(str(answer.get("host")), []).append(minion)
    for host, claiming in claimed.items():
        if len(claiming) == 1:
            minions[host] = claiming[0]
        else:
            problems.append(
                f"{', '.join(claiming)}: each claims to be the host {host}; correct broker:host of all but one"
            )
    bundles: dict[str, list[str]] = {}
    for minion in sorted(minions.values()):
        for other, text in sorted(said[minion]["bundles"].items()):
            if other in minions and isinstance(text, str):
                bundles.setdefault(other, []).append(text)
            else:
                problems.append(f"{minion}: has sealed links with {other}, for which no minion answers, or several")
    return minions, bundles, problems
