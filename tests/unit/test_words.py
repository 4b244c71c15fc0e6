"""Docstrings begin with a verb in the imperative, or with the noun that the thing is, never with a pronoun."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("_*", "benchmarks", "client", "contrib", "examples", "scripts", "tests")
RIDDLE = re.compile(r"(What|Who|Whose|Which|How|Why|Where|There|Then|So|They|These|Those|None)\b")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def test_no_docstring_begins_with_a_question() -> None:
    files = [path for folder in FOLDERS for top in ROOT.glob(folder) for path in top.rglob("*.py")]
    found, seen = [], 0
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            text = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
            seen += text is not None
            if text and RIDDLE.match(text):
                found.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}: {text.splitlines()[0]}")
    assert seen > 3000
    assert not found, "\n".join(found)
