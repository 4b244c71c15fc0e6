"""
Virtual interfaces as states
============================

Every environment has a network namespace that the host owns. By default there is
nothing in it but ``lo``. A declared interface drops everything, both ways, but what
``allow`` names; another environment can never be reached through it.

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

from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from netspace import declared, report  # noqa: E402
from netspace.errors import NetspaceError  # noqa: E402
from netspace.host import Host  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]
    __pillar__: dict[str, Any]

__virtualname__ = "netspace_interface"


def __virtual__() -> str:
    return __virtualname__


def managed(name: str, declaration: dict[str, Any] | None = None) -> dict[str, Any]:
    """
    Every declared environment has its namespace and interface, and there are no others.

    name
        Any text.

    declaration
        The host's declaration. By default, what ``pillar:netspace`` says.
    """
    test = bool(__opts__["test"])
    try:
        wanted = declared.whole(declaration, __pillar__)
        result = Host(declared.layout(__opts__)).converge_interfaces(wanted, whole=True, test=test)
    except NetspaceError as err:
        return report.failure(name, err)
    return report.state(name, result, test=test)


def present(name: str, **kwargs: Any) -> dict[str, Any]:
    """
    An environment's namespace and interface are as declared.

    name
        The environment's name. It need not exist yet.

    kind
        ``none`` (default; ``lo`` alone), ``veth``, ``macvlan``, ``ipvlan``, ``vlan``, ``vxlan``,
        ``bridge`` or ``wireguard``, each with keys of its own: see the page "Interfaces".

    ipv4, ipv6
        For ``veth`` fixed addresses; by default, stable ones out of ``pillar:netspace:network``.
        For the others, which are on somebody's network, an address and the prefix
        (``198.51.100.7/24``); **one of the two must be given**.

    mtu
        In bytes. Defaults to 1500.

    allow
        Exceptions to the default drop: a list of ``{direction: in|out, cidr, protocol:
        tcp|udp|icmp, port}``. ``port`` may be ``first-last``; **without it, every port of
        the protocol** is allowed. Nothing here ever opens another environment.

    publish
        Of ``veth`` and ``tap``: ports of the host that lead to the environment's, for **whoever reaches the host**, and
        no environment: a list of ``[ADDRESS:]PORT:INSIDE[/udp]``, in quotes. By default none.
    """
    test = bool(__opts__["test"])
    try:
        wanted = declared.one_interface(name, kwargs, __pillar__)
        result = Host(declared.layout(__opts__)).converge_interfaces(wanted, test=test)
    except NetspaceError as err:
        return report.failure(name, err)
    return report.state(name, result, test=test, only=name)


def absent(name: str) -> dict[str, Any]:
    """
    An environment has neither interface nor namespace.

    A program that still runs in it keeps an unreachable ``lo``; remove it with
    :py:func:`netspace_environment.absent <netspace.states.netspace_environment.absent>`.

    name
        The environment's name.
    """
    test = bool(__opts__["test"])
    try:
        result = Host(declared.layout(__opts__)).remove_interfaces({name}, test=test)
    except NetspaceError as err:
        return report.failure(name, err)
    return report.state(name, result, test=test, only=name)
