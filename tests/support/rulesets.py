"""nft's list of a ruleset, prepared for the comparison of two lists from one host."""

from __future__ import annotations

import re

_COUNTS = re.compile(r"(?<=\tgc-interval 1h)\n\t\telements = \{[^}]*\}")
_SIZES = re.compile(r"\t# count \d+$", re.MULTILINE)


def uncounted(listed: str) -> str:
    """Return nft's list without the packets that the rules have counted, and without nft 1.1.7's sizes of sets."""
    return _SIZES.sub("", _COUNTS.sub("", listed))
