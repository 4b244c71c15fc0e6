"""Questions of a master's runner to minions: over Salt's bus, to minions with accepted keys, with signed answers.

Imports no Salt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from netspace.attestation import identity
from netspace.attestation.fleet import bus, own_answers
from netspace.attestation.fleet.calls import Pace, Task
from netspace.attestation.fleet.window import Window
from netspace.attestation.refusals import WrongSaltKey
from netspace.errors import NetspaceError
from netspace.plugin import salt_keys

CONCURRENCY, JITTER = 32, 0.2
"""Hosts that are asked at one time, and the most seconds for which questions are collected into one message."""
MAX_REFUSED = 1_000_000
"""The most refused answers to one call: so many that false answers in a minion's name never end the call early."""
ACCEPTED = 60
"""Seconds that the master may take to accept a message."""

Calls = Sequence[tuple[Sequence[str], Mapping[str, Any]]]


class Salt(NamedTuple):
    """Functions and classes of Salt, which the runner imports and passes to this module.

    :param client: ``salt.client.get_local_client``.
    :param refused: ``salt.exceptions.SaltException``.
    :param valid_id: ``salt.utils.verify.valid_id``.
    :param cache: ``salt.cache.Cache``.
    :param known: ``salt.utils.minions.CkMinions``.
    """

    client: Callable[..., AbstractContextManager[Any]]
    refused: type[Exception]
    valid_id: Callable[[Any, str], bool]
    cache: Callable[..., Any]
    known: Callable[[Mapping[str, Any]], Any]


class Minions:
    """All minions of a master.

    :param opts: the master's configuration.
    """

    def __init__(self, opts: Mapping[str, Any], salt: Salt) -> None:
        self._opts, self._salt = opts, salt

    def targeted(self, target: str | Sequence[str], tgt_type: str) -> list[str]:
        """Return the minions that match a Salt target and whose keys the master accepted.

        :param tgt_type: Salt's type of the target, such as ``glob`` or ``list``.
        """
        return bus.hosts(self._salt.known(self._opts), target, tgt_type)

    def accepted(self, minions: Collection[str]) -> list[str]:
        """Return those of the given minions whose keys the master accepted.

        On a master of masters, minions without a key stay in the result: a lower master (syndic) may have accepted
        them. Unlike :meth:`targeted`, this method fails if a key can't be read, and doesn't count the key as missing.

        :raises NetspaceError: a key can't be read.
        """
        found = list[str]()
        for minion in minions:
            try:
                self._key(minion)
            except WrongSaltKey:
                continue
            except (OSError, self._salt.refused) as err:
                raise NetspaceError(f"{minion}: its accepted key can't be read: {err}") from err
            found.append(minion)
        return found

    def ask(
        self, minions: Collection[str], function: str, arguments: Mapping[str, Any], timeout: float
    ) -> dict[str, Any]:
        """Return each minion's signed answer by its name; the value is an error if the minion failed.

        A minion that doesn't answer in time is missing from the result.

        :param function: the execution function to call, one of :data:`own_answers.SIGNED`.
        :param timeout: seconds to wait for all answers.
        :raises NetspaceError: Salt can't send the question.
        """
        return self.ask_at_once(function, [(minions, arguments)], timeout)

    def ask_at_once(self, function: str, calls: own_answers.Calls, timeout: float) -> dict[str, Any]:
        """Like :meth:`ask`, with other arguments for other minions. No minion waits for another one's answer.

        :param calls: pairs: minions, and the arguments of the call to them. Each minion is in one call. The messages
            are sent in this order.
        """
        minions = [minion for some, _ in calls for minion in some]
        if not minions:
            return {}
        with self._bus(minions, own_answers.MODULE, timeout) as salt_bus:
            return own_answers.ask(salt_bus, self._identities(), function, calls, timeout)

    def each(self, function: str, calls: Calls, timeout: float, heard: Callable[[str, Any], None]) -> None:
        """Call a function on many minions. No minion waits for another one's answer.

        This implements :class:`netspace.fleet.planning.planner.Minions`.
        """
        minions = [minion for some, _ in calls for minion in some]
        if not minions:
            return
        identities = self._identities()

        def tasks() -> Iterator[Task]:
            for some, arguments in calls:
                asked = own_answers.call(function, arguments)
                for minion in some:
                    yield minion, own_answers.work(identities, asked, minion, heard)

        with self._bus(minions, own_answers.MODULE, ACCEPTED) as salt_bus:
            Window(salt_bus, Pace(CONCURRENCY, JITTER, timeout, MAX_REFUSED)).run(tasks())

    def tell(self, function: str, minions: Collection[str]) -> None:
        """Call a function on minions, and don't wait for their answers."""
        module, _, name = function.partition(".")
        with self._bus(minions, module, ACCEPTED) as salt_bus:
            salt_bus.send(minions, name, {})

    def _identities(self) -> identity.Identities:
        return identity.Identities(salt_keys.master(self._opts), self._key)

    def _key(self, minion: str) -> bytes | None:
        return salt_keys.accepted(self._opts, minion, self._salt.valid_id, self._salt.cache)

    @contextlib.contextmanager
    def _bus(self, minions: Collection[str], module: str, timeout: float) -> Iterator[bus.SaltBus]:
        try:
            with self._salt.client(mopts=self._opts) as client:
                yield bus.SaltBus(client, module, int(timeout), self._salt.refused)
        except self._salt.refused as err:
            raise NetspaceError(f"{', '.join(list(minions)[:5])}: can't be asked: {err}") from err

    def asked(self, minion: str, function: str, arguments: Mapping[str, Any], timeout: float) -> Any:
        """Return the signed answer of one minion.

        :raises NetspaceError: the minion failed, or did not answer in time.
        """
        if not self.accepted([minion]):
            raise NetspaceError(f"{minion}: the master hasn't accepted its key; compare it, then salt-key -a {minion}")
        answers = self.ask([minion], function, arguments, timeout)
        if minion not in answers:
            raise NetspaceError(
                f"{minion} did not answer {function} within {timeout} s; look whether its minion runs. If another "
                f"machine took its place, salt-key -d {minion}, and accept the new key"
            )
        answer = answers[minion]
        if isinstance(answer, NetspaceError):
            raise NetspaceError(f"{minion}: {function}: {answer}")
        return answer


class OneMinion:
    """One minion that joins a fleet, with the runners that enroll and attest it.

    :param runners: the master's runners, by name.
    """

    def __init__(self, minions: Minions, minion: str, timeout: float, runners: Mapping[str, Any]) -> None:
        self._minions, self._minion, self._timeout, self._runners = minions, minion, timeout, runners

    def call(self, function: str, **arguments: Any) -> Any:
        return self._minions.asked(self._minion, function, arguments, self._timeout)

    def attest(self) -> str:
        for function, arguments in (("enroll", (self._minion,)), ("attest", ([self._minion], "list"))):
            found = self._runners[f"netspace_attestation.{function}"](*arguments)
            if "error" in found:
                raise NetspaceError(f"netspace_attestation.{function}: {found['error']}")
        standing = found.get(self._minion)
        if not isinstance(standing, dict) or "level" not in standing:
            raise NetspaceError(f"netspace_attestation.attest: {self._minion} did not answer")
        return str(standing["level"])


def forget_tpm(runners: Mapping[str, Any], minion: str) -> None:
    """Release the TPM or software key by which a minion was attested, if there is one.

    :param runners: the master's runners, by name.
    :raises NetspaceError: the runner can't release it.
    """
    found = runners["netspace_attestation.release"](minion)
    error = str(found.get("error", ""))
    if error and not error.endswith("nothing to release"):
        raise NetspaceError(f"netspace_attestation.release {minion}: {error}")
