"""Virtual interfaces as states
============================

Every environment has a network namespace that the host owns. By default it holds only ``lo``. A declared interface
drops all packets in both directions, except those that match a rule of ``allow``. It never reaches another environment.

.. code-block:: yaml

    interfaces:
      netspace_interface.managed

    orders:
      netspace_interface.present:
        - kind: veth
        - allow:
          - {direction: out, cidr: 198.51.100.0/24, port: 443}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from netspace.errors import NetspaceError  # noqa: E402
from netspace.host.host import Host  # noqa: E402
from netspace.plugin import apply_progress, arguments, editions, failure_log, state_return  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]
    __salt__: dict[str, Any]
    __pillar__: dict[str, Any]

__virtualname__ = "netspace_interface"
__running__: Mapping[str, Mapping[str, Any]] = {}  # while a state runs, Salt sets it: the results of earlier states


def __virtual__() -> str:
    return __virtualname__


def _host() -> Host:
    return Host(arguments.layout(__opts__), **apply_progress.hooks(__opts__, __salt__))


def managed(name: str, declaration: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ensure that every declared environment has its namespace and interface,
    and that there are no others.

    The result has a row for each environment, with its own result,
    comment and changes. The state's own changes only have the names of
    changed environments. ``netspace.rows`` in the minion's
    configuration limits the number of rows (default 100).

    name
        Any text.

    declaration
        The host's declaration. Defaults to ``pillar:netspace``.
    """
    test = bool(__opts__["test"])
    try:
        most = arguments.rows(__opts__)
        if declaration is None:
            editions.check(__opts__, __pillar__, note=not test)
        wanted = arguments.whole(declaration, __pillar__)
        result = _host().converge_interfaces(wanted, whole=True, test=test)
    except NetspaceError as err:
        return state_return.failure(name, err, __running__)
    state = state_return.rows(name, result, "interface", wanted.environments, test=test, most=most)
    failure_log.tell(state)
    return state


def present(name: str, **kwargs: Any) -> dict[str, Any]:
    """Ensure that an environment's namespace and interface are as declared.

    name
        The environment's name. The environment need not exist yet.

    kind
        ``none`` (default; ``lo`` alone), ``veth``, ``macvlan``,
        ``ipvlan``, ``vlan``, ``vxlan``, ``bridge`` or ``wireguard``,
        each with its own keys: see the page "Interfaces".

    ipv4, ipv6
        For ``veth``, fixed addresses. By default, stable addresses from
        the networks in ``pillar:netspace:network``. For kinds on an
        external network, an address with its prefix length
        (``198.51.100.7/24``); **``ipv4`` or ``ipv6`` is required**.

    mtu
        In bytes. Defaults to 1500.

    allow
        Exceptions to the default drop: a list of ``{direction: in|out,
        cidr, protocol: tcp|udp|icmp, port}``. ``port`` may be
        ``first-last``; **without** ``port``, **every port of the
        protocol** is allowed. No rule ever allows connections to
        another environment.

    publish
        For ``veth`` and ``tap``: ports of the host that are forwarded
        to ports of the environment, for **everybody who reaches the
        host** except other environments: a list of
        ``[ADDRESS:]PORT:INSIDE[/udp]``, in quotes. By default none.
    """
    test = bool(__opts__["test"])
    try:
        wanted = arguments.one_interface(name, kwargs, __pillar__)
        result = _host().converge_interfaces(wanted, test=test)
    except NetspaceError as err:
        return state_return.failure(name, err, __running__)
    return state_return.state(name, result, test=test, only=name)


def absent(name: str) -> dict[str, Any]:
    """Ensure that an environment has neither interface nor namespace.

    A program that still runs in the namespace keeps only its loopback
    interface, which nobody else can reach. To end the program too,
    remove the environment with ``netspace_environment.absent``.

    name
        The environment's name.
    """
    test = bool(__opts__["test"])
    try:
        result = _host().remove_interfaces({name}, test=test)
    except NetspaceError as err:
        return state_return.failure(name, err, __running__)
    return state_return.state(name, result, test=test, only=name)
