"""Errors of functions, as an operator reads them: ``salt-call`` prints an error in one line, however long it is."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from netspace import text
from netspace.plugin.tables import WIDTH


def told(opts: Mapping[str, Any], error: object) -> str:
    """Return an error's text. If ``salt-call`` prints it to a terminal, its lines are broken to the terminal's width.

    Programs get the same text as ever, on one line.

    :param opts: the minion's configuration.
    """
    said = str(error)
    if opts.get("__cli") != "salt-call" or sys.stderr is None or not sys.stderr.isatty():
        return said
    return text.folded(said, WIDTH, f"Error running '{opts.get('fun', '')}': ")
