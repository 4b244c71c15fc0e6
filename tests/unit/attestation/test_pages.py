"""Every command that the pages tell an operator to type exists, with these arguments."""

from __future__ import annotations

import ast
import re
import shlex

import pytest
from support import checkout

PAGES = sorted((checkout.ROOT / "docs").glob("attestation-*.md"))
FILES = {"salt-run": "_runners/netspace_attestation.py", "salt": "_modules/netspace_attestation.py"}


def commands() -> list[tuple[str, list[str]]]:
    """Return every call of ours in the pages' shell blocks: the program, and the words from the function's name on."""
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
