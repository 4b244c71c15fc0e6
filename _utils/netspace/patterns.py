"""Regular expressions that are compiled when they are first used. Pure.

A process that imports the library would compile sixty of them, which takes 5 ms, and use a few.
"""

from __future__ import annotations

import re
from typing import Any, AnyStr, Generic, cast


class _Pattern(Generic[AnyStr]):
    """A regular expression with the attributes of ``re.Pattern``, but its compiled form is made for the first of them.

    :param pattern: the expression.
    :param flags: as for ``re.compile``.
    """

    def __init__(self, pattern: AnyStr, flags: int) -> None:
        self.pattern: AnyStr = pattern
        self._flags = flags

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copy and pickle ask for such names; a compiled expression has none of use
            raise AttributeError(name)
        found = getattr(re.compile(self.pattern, self._flags), name)
        setattr(self, name, found)  # so the next use costs what it costs with re.Pattern
        return found


def pattern(text: AnyStr, flags: int = 0) -> re.Pattern[AnyStr]:
    """Return the regular expression *text*. A mistake in it is an error at its first use."""
    return cast("re.Pattern[AnyStr]", _Pattern(text, flags))
