"""Text of netspace's functions
============================

Shows a return that is a text as the text itself, without the minion's name, indentation or colours. So the text can go
into a file or to another program:

.. code-block:: bash

    salt-call --out=netspace_text netspace.metrics
    salt-run --out=netspace_text netspace_fleet.graph format=dot | dot -Tsvg > fleet.svg

Salt's own output for this purpose, ``newline_values_only``, does not exist any more in Salt 3008. Salt's ``nested``
output shows all returns that are not texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from netspace.text import printable  # noqa: E402

if TYPE_CHECKING:
    __salt__: dict[str, Any]

__virtualname__ = "netspace_text"


def __virtual__() -> str:
    return __virtualname__


def output(ret: Any, **kwargs: Any) -> str:
    """
    Return the text.

    ret
        The return of one function, by minion; or the return of a runner. The texts of several minions follow one
        another.
    """
    texts = [ret] if isinstance(ret, str) else list(ret.values()) if isinstance(ret, dict) else []
    if texts and all(isinstance(one, str) for one in texts):
        # Another host's return must not command the terminal.
        return "\n".join(printable(one.removesuffix("\n"), "\n\t", "?") for one in texts)
    return str(__salt__["nested"](ret, **kwargs))
