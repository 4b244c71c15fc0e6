"""Calls of minions' functions whose answers count only if the minion itself made them.

Salt's bus does not prove who answered: a minion can fire an event that looks like another minion's answer, and return a
job in another minion's name. So neither the bus nor the job cache proves an answer (``identity``). Each call has a
nonce, and the minion signs its answer to the call with its Salt key. The master skips an answer without this signature,
and goes on waiting for the genuine answer. Minions sign errors, too.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from netspace.attestation import identity
from netspace.attestation.fleet.bus import Bus
from netspace.attestation.fleet.calls import Again, Call, Reply, Work
from netspace.attestation.refusals import Refused
from netspace.errors import NetspaceError
from netspace.text import REPLACEMENT, printable

MODULE, FUNCTION = "netspace_link", "signed_answer"
"""The execution module's function that a call goes to."""

SIGNED = frozenset(
    {
        "grains.get",
        "netspace.explain",
        "netspace.glance",
        "netspace_attestation.host_key",
        "netspace_attestation.secret_key",
        "netspace_fleet.ailing",
        "netspace_fleet.apply",
        "netspace_fleet.plan",
        "netspace_fleet.prepare",
        "netspace_link.authority_adopt",
        "netspace_link.authority_request",
        "netspace_link.public_key",
        "netspace_link.seal_adopt",
        "netspace_link.seal_bundles",
        "netspace_trust.revise",
    }
)
"""The functions that a minion calls for ``signed_answer``. The master may also call each of them directly."""

MAX_PROBLEM = 1000
NONCE = 32  # bytes


Calls = Sequence[tuple[Collection[str], Mapping[str, Any]]]
"""Calls of one function: pairs of minions, and the arguments of the call to them."""


def ask(bus: Bus, identities: identity.Identities, function: str, calls: Calls, timeout: float) -> dict[str, Any]:
    """Send all calls to their minions, and return the proved answers that arrive within *timeout* seconds.

    No call waits for the answers to another one. Salt's own call isn't used, because it waits as long as a minion
    reports that its job still runs. One minion could delay all others.

    :param function: one of :data:`SIGNED`.
    :param calls: each minion is in one call. The messages are sent in this order.
    :return: by minion: the answer, or a ``NetspaceError`` if the call couldn't be sent, if the minion failed, or if
        only unproved answers came in its name.
    :raises NetspaceError: the first call can't be sent.
    """
    waiting: dict[tuple[str, str], Mapping[str, Any]] = {}
    found = dict[str, Any]()
    for number, (minions, arguments) in enumerate(calls):
        asked = call(function, arguments)
        try:
            sent = bus.send(minions, FUNCTION, {"asked": asked})
        except NetspaceError as err:
            if number == 0:
                raise
            found |= dict.fromkeys(minions, err)
            continue
        waiting |= {(sent.job, minion): asked for minion in minions if minion not in sent.unknown}
    unproved: dict[str, str] = {}
    last = bus.clock() + timeout
    while waiting and bus.clock() < last:
        reply = bus.receive(last - bus.clock())
        if reply is None or (reply.job, reply.minion) not in waiting:
            continue
        try:
            found[reply.minion] = _own(identities, waiting[reply.job, reply.minion], reply)
        except Refused as err:
            unproved[reply.minion] = reply.problem or str(err)
            continue
        del waiting[reply.job, reply.minion]
    for _, minion in waiting:
        if minion in unproved:
            found[minion] = _nobody(minion, unproved[minion])
    return found


def work(
    identities: identity.Identities,
    asked: Mapping[str, Any],
    minion: str,
    heard: Callable[[str, Any], None],
) -> Work:
    """Do the work of one call to one minion, for a :class:`~netspace.attestation.fleet.window.Window`.

    :param asked: the call, from :func:`call`.
    :param heard: called once with the minion and its proved answer; or with a ``NetspaceError``, if the minion failed
        or did not answer.
    """
    unproved = ""
    answer = yield Call(FUNCTION, common={"asked": dict(asked)})
    while not answer.silent:
        try:
            heard(minion, _own(identities, asked, Reply("", minion, answer.value, answer.problem)))
            return
        except Refused as err:
            unproved = answer.problem or str(err)
        answer = yield Again()
    heard(minion, _nobody(minion, unproved) if unproved else NetspaceError(answer.problem))


def call(function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call with a new nonce."""
    return {"function": function, "arguments": dict(arguments), "nonce": secrets.token_hex(NONCE)}


def _nobody(minion: str, unproved: str) -> NetspaceError:
    return NetspaceError(
        f"nothing proves that this answer is the minion's own ({unproved}); synchronise the minion "
        f"(salt {minion} saltutil.sync_all), or find out which minion answers in its name"
    )


def _own(identities: identity.Identities, asked: Mapping[str, Any], reply: Reply) -> Any:
    """Return the answer in a reply, or the error that the reply reports.

    :raises Refused: when nothing proves that the minion itself made the reply.
    """
    identities.call(reply.minion, asked, reply.value)
    if "error" in reply.value:
        said = printable(str(reply.value["error"])[:MAX_PROBLEM], "\n", REPLACEMENT)
        return NetspaceError(said or "the minion failed without a message")
    return reply.value.get("answer")


def answer(
    asked: Any,
    functions: Mapping[str, Callable[..., Any]],
    master: str,
    minion: str,
    key: Callable[[], bytes],
) -> dict[str, Any]:
    """Call the function that a master asks for, and return the signed answer or the signed error.

    :param asked: the master's call, as :func:`call` makes it.
    :param functions: the minion's functions, by name.
    :param master: fingerprint of the master's key.
    :param minion: this minion's id.
    :param key: returns the minion's Salt key (PEM).
    :raises NetspaceError: when *asked* is malformed, its function isn't in :data:`SIGNED`, or the answer can't be
        signed.
    """
    if not isinstance(asked, Mapping) or set(asked) != {"function", "arguments", "nonce"}:
        raise NetspaceError("asked: expected function, arguments and nonce; install the same netspace on the master")
    name, given = asked["function"], asked["arguments"]
    if name not in SIGNED or not isinstance(given, Mapping):
        raise NetspaceError(f"{name!r:.80} is not one of the functions whose answers are signed; call it directly")
    told: dict[str, Any]
    try:
        told = {"answer": functions[name](**given)}
        message = identity.called(master, minion, asked, told)
    except Exception as err:  # the master ignores an unsigned failure, and would wait until its time limit
        told = {"error": str(err) or type(err).__name__}
        message = identity.called(master, minion, asked, told)
    return {**told, identity.FIELD: identity.sign(key(), message)}
