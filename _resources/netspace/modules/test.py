"""``test`` on an environment
==========================

The function ``test.ping`` for a target of type ``netspace``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __resource_funcs__: dict[str, Callable[..., Any]]


def ping() -> bool:
    """Return whether the environment runs and its user can read the file ``environment.json`` inside.

    CLI Example:

    .. code-block:: bash

        salt -C 'T@netspace:shop1-web' test.ping
        salt -C 'T@netspace' test.ping
    """
    found: bool = __resource_funcs__["netspace.ping"]()
    return found
