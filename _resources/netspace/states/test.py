"""
``test`` states in an environment
=================================

A state that does nothing, for requisites.
"""

from __future__ import annotations

from typing import Any


def nop(name: str, **kwargs: Any) -> dict[str, Any]:
    """
    Do nothing, and succeed.

    name
        Any text.
    """
    return {"name": name, "result": True, "changes": {}, "comment": "Nothing to do."}
