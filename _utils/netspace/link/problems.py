"""Problems of links as typed values: a stable code, a severity, a subject, and a cause. Pure.

A problem may be the consequence of another one: if the forwarder is down, no environment reaches the broker. Such a
problem names its cause in ``depends_on``. :func:`causes` leaves consequences out, so a dead broker counts as one
problem. Programs compare codes; texts may change.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Literal, NamedTuple, cast

Severity = Literal["error", "warning"]
Code = Literal[
    "authority-ends",
    "bindings-flooded",
    "broker-down",
    "broker-exposed",
    "broker-silent",
    "certificates-due",
    "cut-off",
    "dead-letters",
    "dead-letters-full",
    "disk-alarm",
    "entrance-shut",
    "forwarder-down",
    "guard-down",
    "host-unreachable",
    "link-down",
    "link-missing",
    "mail-parked",
    "mailbox-full",
    "mailbox-missing",
    "mailbox-unread",
    "memory-alarm",
    "node-down",
    "peer-down",
    "renewer-down",
    "seal-keys",
]
"""``docs/links.md`` explains each code."""

_WARNINGS: frozenset[Code] = frozenset(
    {
        "authority-ends",
        "bindings-flooded",
        "broker-exposed",
        "certificates-due",
        "cut-off",
        "dead-letters",
        "dead-letters-full",
        "guard-down",
        "mail-parked",
        "mailbox-full",
        "mailbox-unread",
        "renewer-down",
        "seal-keys",
    }
)
"""Codes of problems that hinder no message yet. All others are errors: messages don't pass now."""


class Problem(NamedTuple):
    """One problem of links.

    :param code: a stable identifier, for programs.
    :param text: the problem and its remedy, for an operator.
    :param subject: the environment, link, host or node that has the problem; empty: it concerns all links.
    :param depends_on: the :attr:`key` of the problem that causes this one; empty if none does.
    """

    code: Code
    text: str
    subject: str = ""
    depends_on: str = ""

    @property
    def severity(self) -> Severity:
        return "warning" if self.code in _WARNINGS else "error"

    @property
    def key(self) -> str:
        """The problem's identity: code and subject (``mailbox-full:orders``), without a number that may change."""
        return f"{self.code}:{self.subject}" if self.subject else self.code

    def row(self) -> dict[str, str]:
        """Return the problem as plain values, as Salt's functions return it."""
        return {
            "code": self.code,
            "severity": self.severity,
            "subject": self.subject,
            "depends_on": self.depends_on,
            "text": self.text,
        }


def causes(problems: Iterable[Problem]) -> list[Problem]:
    """Return the problems whose cause is not itself among *problems*, in their original order."""
    listed = list(problems)
    keys = {one.key for one in listed}
    return [one for one in listed if one.depends_on not in keys]


def broker(state: str, detail: str) -> list[Problem]:
    """Return the problem of a broker in this state (``broker.access.BrokerState``); none if it runs."""
    if state in ("running", "absent"):
        return []
    return [Problem("broker-down", f"the broker is {state}{': ' + detail if detail else ''}; links are unknown")]


def forwarder(state: str | None, silent: str) -> list[Problem]:
    """Return the problem of the forwarder.

    :param state: the state of its service; None if there is none.
    :param silent: why its process forwards nothing; empty if it does.
    """
    if state != "running":
        return [Problem("forwarder-down", "the forwarder doesn't run: environments can't reach the broker")]
    if silent:
        text = f"the forwarder doesn't do its work ({silent}): environments can't reach the broker; apply again"
        return [Problem("forwarder-down", text)]
    return []


def host_peer(state: str | None) -> list[Problem]:
    """Return the problem of the host's own peer, which answers requests to the host.

    :param state: the state of its service; None if there is none.
    """
    if state == "running":
        return []
    text = f"the host's peer is {state or 'missing'}: nobody answers environments' requests to the host; apply again"
    return [Problem("peer-down", text)]


def entrance(environment: str, text: str) -> Problem:
    """Return the problem that programs of *environment* can't reach the broker."""
    return Problem("entrance-shut", text, environment, "forwarder-down")


def across(link: str, state: str, why: str, host: str = "") -> Problem:
    """Return the problem of a link to another host.

    :param state: ``missing`` (the link isn't on the other broker), ``unknown`` or ``stalled``.
    :param host: the other host, if the reason is that it can't be asked; else empty.
    """
    code: Code = "link-missing" if state == "missing" else "link-down"
    return Problem(code, f"{link}: {why}", link, f"host-unreachable:{host}" if host else "")


def hosts(unreachable: Iterable[tuple[str, str]]) -> list[Problem]:
    """Return one problem for each host that can't be asked.

    :param unreachable: pairs: a host's name, and why it can't be asked. Only the first reason of a host is reported.
    """
    first: dict[str, str] = {}
    for host, why in unreachable:
        first.setdefault(host, why)
    return [
        Problem("host-unreachable", f"{host}'s broker can't be asked: {why}; links to it are unknown", host)
        for host, why in sorted(first.items())
    ]


def cause_keys(rows: Iterable[Mapping[str, str]]) -> list[str]:
    """Return the sorted keys of the problems in *rows* that no other row causes.

    If the results for two times are equal, no new problem has come between them.
    """
    return sorted({one.key for one in causes(map(from_row, rows))})


def from_row(row: Mapping[str, str]) -> Problem:
    """Return the problem that a row describes (see :meth:`Problem.row`)."""
    return Problem(cast(Code, row["code"]), row["text"], row["subject"], row["depends_on"])


def rows(problems: Collection[Problem]) -> list[dict[str, str]]:
    """Return *problems* as rows of plain values. ``depends_on`` is empty if the cause is not among *problems*."""
    keys = {one.key for one in problems}
    return [one.row() if one.depends_on in keys else one._replace(depends_on="").row() for one in problems]


def told(problems: Collection[Problem]) -> dict[str, object]:
    """Return *problems* in two forms: the causes' texts, for an operator, and all problems as rows, for programs."""
    return {"problems": [one.text for one in causes(problems)], "findings": rows(problems)}
