"""Text of a program is shown without characters that control a terminal."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from netspace.text import harmless, hint


def test_what_commands_a_terminal_is_replaced() -> None:
    for code in ("\x1b[2J", "\x9b2J", "\a", "\b", "\r", "\0", "\x7f", "\u202e", "\u2066", "\u2069", "\u202a"):
        assert harmless(f"a{code}b") == f"a\ufffd{code[1:]}b"


def test_plain_text_of_any_language_stays() -> None:
    text = "tab\tline\nGr\u00fc\u00dfe \u05e9\u05dc\u05d5\u05dd \u65e5\u672c \u00a0 \U0001f600"
    assert harmless(text) == text


@given(st.text())
def test_a_text_has_no_control_character_but_those_of_lines(text: str) -> None:
    shown = harmless(text)
    assert len(shown) == len(text)
    assert not [one for one in shown if unicodedata.category(one) == "Cc" and one not in "\t\n"]
    assert harmless(shown) == shown


def test_hint_names_a_near_name_or_all_or_says_none() -> None:
    assert hint("oders", ["web", "orders"]) == "did you mean orders?"
    assert hint("till", ["web", "orders"]) == "there are: orders, web"
    assert hint("web", []) == "there are none yet"
