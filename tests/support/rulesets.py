"""nft's list of a ruleset, prepared for the comparison of two lists from one host."""

from __future__ import annotations

import re

_COUNTS = re.compile(r"(?<=\tgc-interval 1h)\n\t\telements = \{[^}]*\}")


def uncounted(listed: str) -> str:
    """Return nft's list without the packets that the rules have counted."""
    return _COUNTS.sub("", listed)
