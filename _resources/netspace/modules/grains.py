"""``grains`` of an environment
============================

The grains of a target of type ``netspace``: ``id``, ``minion``, ``environment``, ``image``, ``image_digest``,
``trust``, ``interface``, ``ipv4``, ``ipv6``, and from its image's ``os-release``: ``os``, ``os_id``, ``osrelease``,
``oscodename``, ``osfullname``. The last five are claims of the image and prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from salt.utils.data import traverse_dict_and_list

if TYPE_CHECKING:
    __resource_funcs__: dict[str, Callable[..., Any]]


def items() -> dict[str, Any]:
    """
    Return all grains of the environment.

    CLI Example:

    .. code-block:: bash

        salt -C 'T@netspace:shop1-web' grains.items
    """
    found: dict[str, Any] = __resource_funcs__["netspace.grains"]()
    return found


def item(*names: str) -> dict[str, Any]:
    """Return some grains of the environment. The value of a missing grain is empty.

    CLI Example:

    .. code-block:: bash

        salt -C 'T@netspace:shop1-web' grains.item os trust:level

    names
        The grains, with ``:`` between the keys of nested ones.
    """
    found = items()
    return {name: traverse_dict_and_list(found, name, "") for name in names}


def get(key: str, default: Any = "") -> Any:
    """
    Return one grain of the environment.

    CLI Example:

    .. code-block:: bash

        salt -C 'T@netspace:shop1-web' grains.get trust:level

    key
        The grain, with ``:`` between the keys of nested ones.

    default
        The value to return if there is no such grain.
    """
    return traverse_dict_and_list(items(), key, default)


def ls() -> list[str]:
    """
    Return the names of the environment's grains.

    CLI Example:

    .. code-block:: bash

        salt -C 'T@netspace:shop1-web' grains.ls
    """
    return sorted(items())
