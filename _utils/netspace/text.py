"""Text that others chose, made fit for a terminal. Pure."""

from __future__ import annotations

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# ECMA-48: C0 and DEL but for tab and line feed, and C1, of which U+009B begins a command as ESC [ does. Unicode UAX 9:
# what embeds, overrides and isolates directions, so that a text reads otherwise than it is; separators of lines.
_COMMANDS = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_HARMLESS = {code: REPLACEMENT for code in _COMMANDS if chr(code) not in "\t\n"}


def printable(text: str, kept: str = "", instead: str | None = None) -> str:
    """Escape characters that aren't printable (controls, marks of direction) as Python does, except those *kept*.

    :param instead: what stands in their place; absent: their escape sequences.
    """
    return "".join(
        one if one.isprintable() or one in kept else repr(one)[1:-1] if instead is None else instead for one in text
    )


def harmless(text: str) -> str:
    """*text* with U+FFFD for each character that would command a terminal, or change the order of other characters."""
    return text.translate(_HARMLESS)
