"""Regular expressions in targets for minions are limited before they are used."""

from __future__ import annotations

import pytest

from netspace.errors import NetspaceError
from netspace.spec import minion_terms, regex_work


@pytest.mark.parametrize(
    "expression",
    ["web[0-9]+$", "web.*-.*-[0-9]+", "(web|db)[0-9]{1,3}", "([a-z]+-)?x", "(?!test).*", "(a|b){3}", ".*", "(?i)web",
     "(web|db)-\\1", "[ab]*"],
)  # fmt: skip
def test_expressions_that_hosts_are_named_by_are_taken(expression: str) -> None:
    assert regex_work.refused(expression) == ""
    assert minion_terms.expand(f"E@{expression}", "on", {}) == [f"E@{expression}"]


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("(a+)+b", "is repeated"),
        ("(a|ab)*c", "is repeated"),
        ("(?:a?){30}a{30}", "is repeated"),
        ("((a{1,9}){1,9}){1,9}b", "is repeated"),
        ("a*a*a*a*b", "more than 1000000 ways"),
        ("(" * 3000 + ")" * 3000, "longer than"),
        ("(", "unterminated"),
    ],
)
def test_an_expression_without_a_bound_is_refused(expression: str, reason: str) -> None:
    assert reason in regex_work.refused(expression)
    with pytest.raises(NetspaceError, match="E@"):
        minion_terms.expand(f"E@{expression}", "on", {})
    with pytest.raises(NetspaceError, match="E@"):
        minion_terms.expand("N@racks", "on", {"racks": ["h1", f"E@{expression}"]})
