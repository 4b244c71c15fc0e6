"""The values that the work for a minion, the window over many minions and the bus exchange.

The work for one minion is a generator: it yields a :class:`Call` and is resumed with the :class:`Answer`
(:mod:`netspace.attestation.fleet.window`). The bus returns :class:`Sent` for a message and brings each :class:`Reply`.

Pure: this module neither sends nor waits, and has no clock.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

# Lanes of calls: calls that need work by the host, calls for parts of large answers, calls that only send a value.
ASK, PARTS, TELL = "ask", "parts", "tell"


@dataclass(frozen=True)
class Pace:
    """Pace at which the master asks its hosts; from the master's configuration.

    :param concurrency: number of hosts that are asked at one time.
    :param jitter: the longest time, in seconds, for which calls are collected into one message, in addition to
        ``LINGER``.
    :param timeout: seconds that a host may take for one call.
    :param refused: number of refused answers to one call after which the host counts as silent.
    """

    concurrency: int = 32
    jitter: float = 1.0
    timeout: float = 60.0
    refused: int = 64


@dataclass(frozen=True)
class Call:
    """One call of a function on one minion.

    :param each: name of the argument that maps each minion's id to the *value* for that minion; empty if the function
        has no such argument.
    :param common: arguments that are the same for all minions. Calls with different common arguments are sent in
        separate messages.
    :param within: seconds that this call may take, if less than the timeout.
    :param size: bytes that the minion's whole answer will take, in the lane ``parts``.
    """

    function: str
    each: str = ""
    value: Any = None
    common: Mapping[str, Any] = field(default_factory=dict)
    lane: str = ASK
    within: float | None = None
    size: int = 0


@dataclass(frozen=True)
class Answer:
    """An answer to a :class:`Call`.

    :param problem: why there is no answer; empty if there is an answer.
    :param took: seconds from the call to the answer.
    :param silent: no answer came by the deadline.
    :param crowded: the window ended the transfer, because it was slow and other transfers waited for its space. The
        transfer may be tried once more.
    """

    value: Any = None
    problem: str = ""
    took: float = 0.0
    silent: bool = False
    crowded: bool = False


@dataclass(frozen=True)
class Again:
    """Value that the work yields to refuse the last answer as false, and to get the next answer to the same call.

    If the last answer came in parts, the call is the one whose answer announced the parts.
    """


Step = Call | Again
Work = Generator[Step, Answer, None]
Task = tuple[str, Work]


@dataclass(frozen=True)
class Sent:
    """A message that was sent and may still be answered.

    :param job: Salt's job id; each :class:`Reply` to the message has it.
    :param unknown: minions without a key that the master accepted. The message does not reach them.
    """

    job: str
    unknown: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Reply:
    """One minion's answer to one message.

    :param problem: why the minion could not answer; empty if it could.
    """

    job: str
    minion: str
    value: Any
    problem: str = ""
