"""A host as part of a fleet
=========================

The master's runner ``netspace_fleet`` calls these functions, for ``plan``, ``apply``, ``drift`` and rollouts. It calls
them through ``netspace_link.signed_answer``, so that this minion's signature proves who answered. See the page on
fleets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from salt.exceptions import CommandExecutionError  # noqa: E402

from netspace.errors import NetspaceError  # noqa: E402
from netspace.host import cuts  # noqa: E402
from netspace.host.host import Host  # noqa: E402
from netspace.plugin import apply_progress, arguments, own_pillar, refusal  # noqa: E402
from netspace.plugin.fileserver import SaltFiles  # noqa: E402
from netspace.spec.types import Declaration  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]
    __grains__: dict[str, Any]
    __pillar__: dict[str, Any]
    __salt__: dict[str, Any]


__virtualname__ = "netspace_fleet"
__outputter__ = dict.fromkeys(("plan", "apply", "ailing"), "netspace")

_SUBJECTS = ("health", "trust")


def __virtual__() -> str:
    return __virtualname__


def plan(generation: str = "", applied: bool = False) -> dict[str, Any]:
    """Return the steps of an apply on this host. Changes nothing.

    Returns ``digest`` (of the whole plan), ``declared`` (digest of the
    declaration), ``steps`` and ``withheld`` (things that the plan
    omits, for example for lack of trust). If the plan is longer than
    512 KiB, ``brief`` is true and the steps have no ``changes``.

    CLI Example:

    .. code-block:: bash

        salt h1 netspace_fleet.plan

    generation
        The id of a version of the master's declaration that is not yet
        in force. Defaults to the version in force.

    applied
        Compare the host with the last applied declaration, not with
        pillar. Then a manual change on the host gives a step, and a new
        declaration gives none.
    """
    from netspace.fleet.planning import plans

    try:
        host, minion = _host(), arguments.minion(__opts__)
        if applied:
            found = plans.host_plan(minion, None, host.drift())
        else:
            section, wanted = _section(generation)
            plan = host.diff(wanted)
            found = plans.host_plan(minion, section, plan, host.kept_messages(plan))
        return plans.plain(found)
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def apply(generation: str = "", expected: list[str] | None = None) -> dict[str, Any]:
    """Apply the declaration to this host, if the resulting plan is an expected
    one.

    The plan is computed and applied under the same lock. If the plan
    isn't expected, this function fails, and changes nothing. Returns
    ``applied`` (whether every step succeeded), ``withheld`` (the number
    of things that the plan omits, for example for lack of trust),
    ``steps`` (the number of steps done) and ``reason``.

    CLI Example:

    .. code-block:: bash

        salt h1 netspace_fleet.apply

    generation
        The id of a version of the master's declaration that is not yet
        in force. Defaults to the version in force.

    expected
        Digests of acceptable plans. By default, any plan is applied.
    """
    from netspace.fleet.planning import plans

    try:
        minion, (section, wanted) = arguments.minion(__opts__), _section(generation, note=True)
        some = None if expected is None else frozenset(map(str, expected))
        result = _host().apply_planned(
            wanted, None if some is None else lambda found: plans.host_plan(minion, section, found).digest in some
        )
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err
    if result.outcomes:
        arguments.tell_targets(__salt__, __opts__, __pillar__)
    return plans.outcome(result)


def prepare(generation: str = "", gate: list[str] | None = None) -> list[str]:
    """Build the images for a later apply; return the reasons why this host
    isn't ready for that apply.

    Running programs go on unchanged.

    CLI Example:

    .. code-block:: bash

        salt h1 netspace_fleet.prepare

    generation
        The id of a version of the master's declaration that is not yet
        in force. Defaults to the version in force.

    gate
        The list ``[trust]`` (default) or ``[]``. With ``trust``, the
        result also has the declared environments for which the host
        lacks trust.
    """
    try:
        _, wanted = _section(generation)
        return _host().prepare(wanted, trusted="trust" in _gate(gate))
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def ailing(gate: list[str] | None = None) -> list[str]:
    """Return the reasons why this host isn't well. Changes nothing.

    The reasons are unhealthy environments, and environments for which
    the host lacks trust.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_fleet.ailing
        salt '*' netspace_fleet.ailing gate='[health]'

    gate
        A list of the checks to make: ``health``, ``trust``, or both
        (the default).
    """
    try:
        return _host().ailing(health="health" in _gate(gate), trusted="trust" in _gate(gate))
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def _gate(words: list[str] | None) -> tuple[str, ...]:
    return _SUBJECTS if words is None else tuple(map(str, words))


def _host() -> Host:
    return Host(
        arguments.layout(__opts__),
        remote=SaltFiles(__salt__, __opts__),
        **apply_progress.hooks(__opts__, __salt__),
    )


def _section(generation: str, *, note: bool = False) -> tuple[dict[str, Any], Declaration]:
    """Return this host's declaration from the master, as it is written and parsed.

    :param note: whether it is applied now.

    :raises NetspaceError: when the master declares nothing for this host.
    """
    import salt.pillar
    from salt.exceptions import SaltException

    asked = cuts.clock()
    try:
        section = own_pillar.fetch(__opts__, __grains__, salt.pillar.get_pillar, generation, note=note)
    except SaltException as err:
        raise NetspaceError(f"the master gave no pillar: {err}") from err
    if section is None:
        raise NetspaceError("nothing is declared for this host")
    wanted = arguments.whole(section, {})
    cuts.heard(arguments.layout(__opts__), wanted.links, asked)
    return dict(section), wanted
