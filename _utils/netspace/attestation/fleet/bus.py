"""The master's side of Salt's bus: messages to minions, and their answers in order of arrival.

One message asks many minions, and one stream of events brings the answers to all open messages. No function here waits
for a job to end, so no minion delays the answers of others. The caller passes in Salt's own client.

**A reply does not prove its sender.** Before a caller acts on a reply, it checks a signature (``origin``,
``own_answers``).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from netspace.attestation.fleet.calls import Reply, Sent
from netspace.errors import NetspaceError
from netspace.text import REPLACEMENT, printable

# Maximum length of a minion's error message, in characters; the rest is cut off.
MAX_PROBLEM = 1000


class Unreachable(NetspaceError):
    """Error: the master did not accept a message."""


class Bus(Protocol):
    """Messages to minions, and their answers.

    The bus also has the clock, so that a simulated bus can have a simulated clock.
    """

    def clock(self) -> float:
        """Return a monotonic clock's time in seconds."""

    def send(self, minions: Collection[str], function: str, arguments: Mapping[str, Any]) -> Sent:
        """Send one message to exactly these minions.

        :raises Unreachable: when the master does not accept the message.
        """

    def receive(self, seconds: float) -> Reply | None:
        """Return the next answer to any message; None if no answer came within *seconds*."""


class SaltBus:
    """Salt's bus.

    :param client: a ``salt.client.LocalClient``, which the caller closes.
    :param module: the execution module whose functions are called.
    :param timeout: seconds that the master may take to accept a message.
    :param refused: the client's exception for a message that the master rejects: ``salt.exceptions.SaltException``.
    """

    def __init__(self, client: Any, module: str, timeout: int, refused: type[Exception]) -> None:
        self._client = client
        self._module = module
        self._timeout = timeout
        self._refused = refused
        self._jobs: set[str] = set()

    def clock(self) -> float:
        return time.monotonic()

    def send(self, minions: Collection[str], function: str, arguments: Mapping[str, Any]) -> Sent:
        # Listen before anything is sent: an answer may come before run_job() returns.
        if not self._client.event.connect_pub(timeout=self._timeout):
            raise Unreachable("the master's event bus can't be reached; is the master running?")
        try:
            made = self._client.run_job(
                list(minions),
                f"{self._module}.{function}",
                kwarg=dict(arguments),
                tgt_type="list",  # a name may look like a pattern
                timeout=self._timeout,
                listen=False,  # else Salt keeps a list of jobs and compares each event with all of them
            )
        except self._refused as err:
            raise Unreachable(f"the master can't be reached: {err}") from err
        job = str(made.get("jid", "")) if isinstance(made, Mapping) else ""
        if not job:
            return Sent("", frozenset(minions))
        self._jobs.add(job)
        # A master of masters doesn't have the keys of minions below its syndics, so it can't know unknown minions.
        if self._client.opts.get("order_masters"):
            return Sent(job)
        return Sent(job, frozenset(minions) - set(made.get("minions") or ()))

    def receive(self, seconds: float) -> Reply | None:
        last = self.clock() + seconds
        while True:
            # Salt reads 0 as "for ever".
            event = self._client.event.get_event(
                wait=max(last - self.clock(), 0.01),
                tag="salt/job/",
                match_type="startswith",
                full=True,
                auto_reconnect=True,
            )
            if event is not None:
                if event["tag"] == "salt/event/exit":  # Salt passes on a Ctrl-C by this event
                    raise KeyboardInterrupt
                reply = self._reply(event)
                if reply is not None:
                    return reply
            if self.clock() >= last:
                return None

    def _reply(self, event: Mapping[str, Any]) -> Reply | None:
        """Return the answer in an event; None if the event is no answer, or belongs to another caller's job."""
        parts = str(event["tag"]).split("/", 4)
        data = event.get("data")
        if len(parts) != 5 or parts[3] != "ret" or parts[2] not in self._jobs or not isinstance(data, Mapping):
            return None
        job, minion = parts[2], parts[4]
        if data.get("id") != minion or "return" not in data:
            return None
        if data.get("retcode"):
            said = printable(str(data["return"])[:MAX_PROBLEM], "\n", REPLACEMENT)
            return Reply(job, minion, None, said or "the minion failed without a message")
        return Reply(job, minion, data["return"])


def hosts(known: Any, target: Any, tgt_type: str) -> list[str]:
    """Return the minions that match a target and whose keys the master accepted.

    From 3008 on, Salt also matches resources that minions claim to manage, such as environments. Resources are left
    out.

    :param known: a ``salt.utils.minions.CkMinions``.
    """
    accepted = known._pki_minions()
    return [minion for minion in known.check_minions(target, tgt_type)["minions"] if minion in accepted]
