"""Texts for terminals: sanitized untrusted texts, and hints for misspelt names. Pure."""

from __future__ import annotations

from collections.abc import Collection

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# ECMA-48: C0 except tab and line feed, DEL, and C1 (U+009B begins a command like ESC [). Unicode: line separators, and
# the characters of UAX 9 that embed, override or isolate directions, which can change the displayed order of a text.
_COMMANDS = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_HARMLESS = {code: REPLACEMENT for code in _COMMANDS if chr(code) not in "\t\n"}


def printable(text: str, kept: str = "", instead: str | None = None) -> str:
    """Return *text* with unprintable characters (control characters, direction marks) escaped like Python's repr.

    :param kept: characters to leave unescaped.
    :param instead: a replacement for each escaped character; None: its escape sequence.
    """
    return "".join(
        one if one.isprintable() or one in kept else repr(one)[1:-1] if instead is None else instead for one in text
    )


def one_word(text: str) -> str:
    """Return *text* as one word of printable ASCII: other characters and blanks are escaped like Python's repr."""
    return printable(text.encode("ascii", "backslashreplace").decode()).replace(" ", "\\x20")


def harmless(text: str) -> str:
    """Return *text* with U+FFFD for each character that controls a terminal or changes the order of characters."""
    return text.translate(_HARMLESS)


def folded(text: str, width: int, first: str = "") -> str:
    """Return *text* with each line that is wider than *width* broken between words; the further lines are indented.

    A word is never broken, so that a path or a digest can still be copied. A line that contains such a long word may be
    wider than *width*.

    :param first: a text that is printed before the first line, and takes a part of that line's width.
    """
    if len(first) + len(text) <= width and "\n" not in text:
        return text
    import textwrap

    lines: list[str] = []
    for line in text.splitlines():
        taken = 0 if lines else len(first)
        if taken + len(line) <= width:
            lines.append(line)
            continue
        indent = " " * (len(line) - len(line.lstrip(" ")))
        broken = textwrap.wrap(
            line.strip(),
            width,
            initial_indent=" " * taken + indent,
            subsequent_indent=indent + "  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines += [broken[0][taken:], *broken[1:]]
    return "\n".join(lines)


def hint(name: str, known: Collection[str], most: int | None = None) -> str:
    """Return the remedy for an unknown name: the nearest known name, or all known names if none is similar.

    :param most: the greatest number of known names to list; None: no limit.
    """
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return f"there are: {', '.join(sorted(known)[:most])}" if known else "there are none yet"
