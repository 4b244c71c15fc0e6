"""Trust in a fleet's hosts, on the master
=======================================

``look`` reads the results of ``netspace_attestation``. It cuts the links of hosts that the master distrusts, restores
the links when the master trusts these hosts again, and tells the minions concerned. A schedule and a reactor call
``look``: see the page on trust in a fleet's hosts.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from netspace.errors import NetspaceError  # noqa: E402
from netspace.fleet import trust_watch  # noqa: E402
from netspace.fleet.declaration import FleetDeclaration  # noqa: E402
from netspace.fleet.trust import HostTrust  # noqa: E402
from netspace.plugin import arguments, master, urgent  # noqa: E402
from netspace.plugin.minions import Minions  # noqa: E402
from netspace.plugin.runner_answers import answer as _answer  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]
    __salt__: dict[str, Any]

log = logging.getLogger(__name__)

__virtualname__ = "netspace_trust"


def __virtual__() -> str:
    return __virtualname__


def look(*hosts: str, timeout: int = 30, **others: object) -> dict[str, Any]:
    """Cut the links of hosts that the master distrusts, and restore the links
    of hosts that it trusts again.

    This concerns hosts that the master judges (``attestation:
    {verifier: master}``). A cut removes all links between the
    distrusted host and other hosts. The function tells the minions
    concerned to revise their links.

    Only the master's own attestation results decide, so it doesn't
    matter who calls this function. Without ``hosts``, it also attests
    hosts again whose result has expired, and again tells the minions
    that did not answer. A host that doesn't answer is distrusted five
    minutes later.

    Return

    - ``hosts``: the number of judged hosts;
    - ``distrusted``: for each distrusted host, ``state``, ``kind``
      (``judged`` or ``expired``), ``code``, ``reason``, ``since``, and
      the host's links that are ``cut`` or only ``reported``;
    - ``asked_again``: for each host whose result has expired, the time
      of expiry;
    - ``waiting``: minions that still have to revise their links, with
      the reason.

    The exit status is 0 if no host is distrusted and no minion waits.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_trust.look
        salt-run netspace_trust.look h2

    hosts
        Names of hosts, or ids of minions. Other names are ignored. By
        default, all hosts.

    timeout
        Seconds to wait for each answer of minions.
    """
    arguments.refuse_others(others)

    def work() -> dict[str, Any]:
        with urgent.urgent() if hosts else contextlib.nullcontext():  # an event has named them
            return trust_watch.look(_declaration(), _Master(timeout), [str(one) for one in hosts])

    return _answer(work, _well)


def status() -> dict[str, Any]:
    """Return the result of the last ``look``. Changes nothing, and asks no
    minion.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_trust.status
    """

    def work() -> dict[str, Any]:
        declaration = _declaration()
        return trust_watch.shown(declaration, {}, trust_watch.judged(declaration))

    return _answer(work, _well)


class _Master:
    """Access to attestation results (runner ``netspace_attestation``), to minions, and to Salt's bus."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout

    def states(self, minions: Collection[str]) -> Mapping[str, HostTrust]:
        found = self._run("states", sorted(minions))
        return {
            minion: HostTrust(
                str(one["state"]),
                str(one["code"] or ""),
                str(one["reason"]),
                int(one["level"][1:]),
                float(one["deadline"] or 0),
            )
            for minion, one in found.items()
        }

    def attest(self, minions: Collection[str]) -> None:
        # A minion can delete its own key, and then counts as silent. If no minion is left, Salt would report an error.
        if known := _minions().accepted(sorted(minions)):
            self._run("attest", known, "list")

    def ask(self, minions: Collection[str], function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return _minions().ask(minions, function, arguments, self._timeout)

    def ask_at_once(self, function: str, calls: Sequence[tuple[Collection[str], Mapping[str, Any]]]) -> dict[str, Any]:
        return _minions().ask_at_once(function, calls, self._timeout)

    def tell(self, event: str, data: Mapping[str, Any]) -> None:
        import salt.utils.event

        log.warning("netspace: %s: %s: %s", data["host"], event, data.get("reason", "its links are restored"))
        with salt.utils.event.get_event("master", opts=__opts__, listen=False) as bus:
            bus.fire_event(dict(data), f"netspace/fleet/{event}")

    @staticmethod
    def _run(function: str, *arguments: Any) -> dict[str, Any]:
        found: dict[str, Any] = __salt__[f"netspace_attestation.{function}"](*arguments)
        if found.get("valid") is False:  # it is a mapping if a minion's id is "valid"
            raise NetspaceError(f"netspace_attestation.{function}: {found.get('reason', found)}")
        return {minion: one for minion, one in found.items() if isinstance(one, dict)}


def _declaration() -> FleetDeclaration:
    return master.declaration(__opts__, import_module)


def _minions() -> Minions:
    return master.minions(__opts__, import_module)


def _well(found: dict[str, Any]) -> bool:
    return not (found["distrusted"] or found["waiting"])
