"""Test that every netspace command in the documentation's pages exists and accepts the page's arguments."""

from __future__ import annotations

import ast
import re
import shlex

import pytest
from support import checkout

from netspace.attestation.verifier import boot_rules

PAGES = sorted((checkout.ROOT / "docs").glob("attestation-*.md"))
FILES = {"salt-run": "_runners/netspace_attestation.py", "salt": "_modules/netspace_attestation.py"}


def commands() -> list[tuple[str, list[str]]]:
    """Return every call of netspace in the pages' shell blocks: the program, the function's name and its arguments."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.partition(" > ")[0], comments=True)
                names = [at for at, word in enumerate(words) if word.startswith("netspace_attestation.")]
                if names:
                    found.append((words[0], words[names[0] :]))
    return found


def parameters(program: str) -> dict[str, list[str]]:
    tree = ast.parse((checkout.ROOT / FILES[program]).read_text())
    return {one.name: [each.arg for each in one.args.args] for one in tree.body if isinstance(one, ast.FunctionDef)}


def test_the_pages_have_commands() -> None:
    assert len(commands()) > 15


@pytest.mark.parametrize(
    ("program", "words"), commands(), ids=lambda one: " ".join(one) if isinstance(one, list) else one
)
def test_a_command_of_the_pages_exists(program: str, words: list[str]) -> None:
    known = parameters(program)
    name = words[0].partition(".")[2]
    assert name in known, f"there is no {words[0]}"
    given = [word for word in words[1:] if not word.startswith("--") and word not in ("json", "yaml")]
    named = [word.partition("=")[0] for word in given if re.match(r"[a-z_]+=", word)]
    assert set(named) <= set(known[name]), (named, known[name])
    assert len(given) <= len(known[name])


def test_page_and_verifier_tell_what_proves_each_pcr() -> None:
    page = (
        (checkout.ROOT / "docs/attestation-policy.md").read_text().split("### What proves what")[1].split("\n### ")[0]
    )
    firsts = [row.split("|")[1] for row in page.splitlines() if row.startswith("|")]
    heads = [row[:9] for row in (boot_rules.__doc__ or "").split("=\nPCR")[1].splitlines()]
    for cells in (firsts, heads):
        assert {int(one) for cell in cells for one in re.findall(r"\d+", cell)} == set(range(16))


def test_each_level_is_said_to_prove_and_to_leave_something() -> None:
    page = (checkout.ROOT / "docs/trust-levels.md").read_text().split("## What root can still do")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in row.split("|")] for row in page.splitlines() if re.match(r"\| L\d", row)]
    assert [row[1] for row in rows] == [f"L{number}" for number in range(6)]
    assert all(row[2] and row[3] for row in rows)
