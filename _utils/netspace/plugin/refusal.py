"""Error texts of execution functions. ``salt-call`` prints an error in one line; here it is broken for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from netspace import text
from netspace.plugin.tables import WIDTH

_INDENT = "  "


def told(opts: Mapping[str, Any], error: object) -> str:
    """Return an error's text, with line breaks if ``salt-call`` prints it to a terminal.

    A program gets the text in one line.

    :param opts: the minion's configuration.
    """
    said = str(error)
    if opts.get("__cli") != "salt-call" or sys.stderr is None or not sys.stderr.isatty():
        return said
    label, first = f"Error running '{opts.get('fun', '')}': ", said.partition(" ")[0]
    if len(_INDENT + first) <= WIDTH < len(label + first):  # a path that fits a line of its own alone
        return f"\n{_INDENT}{text.folded(said, WIDTH, _INDENT)}"
    return text.folded(said, WIDTH, label)
