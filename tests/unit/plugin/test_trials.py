"""Tables of settings, attempts and pools, and long lines and errors wrapped to a terminal's width."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from netspace.host import weaknesses
from netspace.plugin import refusal, tables, trials, views

SCREEN = views.Screen(0.0, tables.plain)
WEAK = {
    "name": "kernel.kptr_restrict",
    "outcome": "weak",
    "found": "0",
    "expected": "1 or 2",
    "matters": "environments",
    "why": "A program can read where the kernel lies. " * 5,
    "remedy": "set it " * 30 + "END",
}
REFUSED = {"name": "mount", "group": "files", "outcome": "refused", "detail": "EPERM"}
BROKEN = {"name": "ptrace", "group": "processes", "outcome": "succeeded", "detail": "read the memory of process 1"}


def lines(data: object) -> list[str]:
    found = views.render(data, SCREEN)
    assert found is not None and all(len(line) <= 80 and line.isprintable() for line in found), found
    return found


def test_setting_is_shown_with_its_whole_remedy() -> None:
    good = {**WEAK, "name": "kernel.yama", "outcome": "good", "remedy": ""}
    found = lines([good, WEAK])
    assert [line.split()[0] for line in found if not line.startswith("    ")] == ["NAME", WEAK["name"], "kernel.yama"]
    assert "found 0, expected 1 or 2" in found[2] and found[-2].endswith("END") and found[-1].split()[-1] == "good"


def test_settings_of_this_host_are_shown_whole() -> None:
    rows: list[dict[str, Any]] = [row._asdict() for row in weaknesses.look()]
    found = lines(rows)
    assert not [line for line in found if line.endswith("...")]
    for row in rows:
        if row["remedy"]:
            assert "".join(row["remedy"].split()) in "".join("".join(found).split())


def test_attempt_that_succeeded_comes_first_with_its_detail() -> None:
    found = lines([REFUSED, BROKEN])
    assert found[1].split() == ["ptrace", "processes", "succeeded"] and found[2].split()[0] == "read"
    assert found[3].split() == ["mount", "files", "refused"] and len(found) == 4
    summary = lines({"comment": "ISOLATION IS BROKEN: 1 refused", "rows": [BROKEN], "refused": 1})
    assert summary[0].strip() == "ISOLATION IS BROKEN: 1 refused" and "ptrace" in summary[2]
    assert lines({"comment": "all attempts were refused", "rows": []})[0].strip().startswith("all attempts")


@pytest.mark.parametrize(
    "data",
    [[], [{"name": "x"}], [{"name": "x", "outcome": "weak", "detail": []}, 7], {"comment": "x", "rows": [7]}, ["a"]],
)
def test_other_forms_are_left_to_salt(data: object) -> None:
    assert not trials.known(data)
    assert views.render(data, SCREEN) is None


def test_hostile_row_is_shown_harmless() -> None:
    for value in ("\x1b[2J" * 200, {"a": 1}, None, 10**400, "x" * 10_000):
        lines([{**dict.fromkeys((*WEAK, "detail"), value), "outcome": "weak"}])


def test_wide_line_is_broken_where_it_begins() -> None:
    digest = "sha256:" + "0" * 90
    shown = tables.narrow(f"local:\n    why:\n        {'many words ' * 12}\n        {digest}\n{' ' * 60}{'deep ' * 9}")
    found = shown.splitlines()
    assert found[:2] == ["local:", "    why:"] and found[-2].strip() == digest and found[-1].count("deep") == 9
    assert len(found) == 6 and all(line.startswith(("        many", "        words")) for line in found[2:4])
    assert max(map(len, found[:4])) <= 80


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_error_is_broken_only_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    opts = {"__cli": "salt-call", "fun": "netspace_environment.logs"}
    error = ValueError("there is no environment wep; did you mean web? " + "more words " * 9)
    assert refusal.told(opts, error) == str(error)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert refusal.told({**opts, "__cli": "salt-minion"}, error) == str(error)
    shown = f"Error running '{opts['fun']}': {refusal.told(opts, error)}".splitlines()
    assert len(shown) > 2 and all(len(line) <= 80 for line in shown) and len(shown[0]) > 60
    assert " ".join(" ".join(shown).split()) == f"Error running '{opts['fun']}': {' '.join(str(error).split())}"


def test_error_with_a_long_path_begins_on_its_own_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    opts = {"__cli": "salt-call", "fun": "netspace.metrics"}
    error = f"/srv/{'x' * 50}.prom: there is no folder /srv; make it, or install the collector first"
    shown = f"Error running '{opts['fun']}': {refusal.told(opts, error)}".splitlines()
    assert all(len(line.rstrip()) <= 80 for line in shown) and shown[1].startswith("  /srv/x")
    assert " ".join(" ".join(shown).split()) == f"Error running '{opts['fun']}': {error}"


def test_error_of_one_long_word_is_told_whole_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    path = "/srv/" + "x" * 90
    assert refusal.told({"__cli": "salt-call", "fun": "f"}, f"{path}: not there") == f"{path}:\n  not there"
