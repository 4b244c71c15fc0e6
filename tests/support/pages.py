"""Pages of the documentation, as a list of steps for their reader.

A page's fenced blocks are its steps, in order:

- ``sh``: commands, which must succeed.
- ``text``: lines that the preceding commands have printed, in this order; ``...`` matches anything.
- any other block with the first line ``# /a/path``: the content of that file. With ``# in /a/path``, each line replaces
  the line of that file with the same words before ``=``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (in )?(/\S+)\n")


class Step(NamedTuple):
    """One block.

    :param kind: ``sh``, ``text``, ``file``, ``edit``.
    :param path: the path of the file; empty for other kinds.
    """

    kind: str
    path: str
    text: str


def steps(text: str) -> list[Step]:
    """Return the steps of a page, or of a part of one."""
    found = []
    for indent, language, body in _FENCE.findall(text):
        content = re.sub(rf"^{indent}", "", body, flags=re.MULTILINE)
        if language in ("sh", "text"):
            found.append(Step(language, "", content))
        elif named := _FILE.match(content):
            inside = named[1] is not None
            found.append(Step("edit" if inside else "file", named[2], content[named.end() :] if inside else content))
    return found


def commands(text: str) -> list[str]:
    """Return the command lines of a block; a line that ends with a backslash continues on the next."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def edited(content: str, lines: str) -> str:
    """Replace each line in *content* that begins like one of *lines*.

    :raises ValueError: no line, or more than one line, begins like it.
    """
    for line in lines.splitlines():
        beginning = line.partition("=")[0]
        content, count = re.subn(
            rf"^{re.escape(beginning)}=.*$", lambda _, line=line: line, content, flags=re.MULTILINE
        )
        if count != 1:
            raise ValueError(f"{count} lines begin with {beginning!r}")
    return content


def lacking(wanted: str, printed: str) -> str | None:
    """Return the first line of *wanted* that *printed* lacks after the preceding lines; None if all are there."""
    left = [line.strip() for line in printed.splitlines()]
    for line in wanted.splitlines():
        if not line.strip():
            continue
        pattern = re.compile(".*".join(re.escape(part) for part in line.strip().split("...")))
        at = next((number for number, one in enumerate(left) if pattern.fullmatch(one)), None)
        if at is None:
            return line
        left = left[at + 1 :]
    return None


def page(path: Path) -> list[Step]:
    """Return the steps of a page's file."""
    return steps(path.read_text())
