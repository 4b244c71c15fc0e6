"""The words of docstrings and messages: rules that a script can check."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("_*", "benchmarks", "client", "contrib", "examples", "scripts", "tests")
LIBRARY = ("_*", "client/src", "contrib", "scripts")
RIDDLE = re.compile(r"(What|Who|Whose|Which|How|Why|Where|There|Then|So|They|These|Those|None|Such|Whoever)\b")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MESSAGE = re.compile(
    r"(?<!there )\b(is|are) no (?!longer\b|remedy\b)"  # "it is not a text": what was expected stays a noun
    r"|(\{\}|\d) are possible"  # "at most N are accepted"
    r"|\bit comes again\b|\bothers can\b"
)
DEVICE = re.compile(r"(?<![\w`.*:-])(?<!symbolic )(?<!:param )links?\b(?![-`_:]|\.\w|, like|\) ->| layer)")
"""The word link, unless it is a parameter, a symbolic link or a link layer."""


def _trees(folders: tuple[str, ...]) -> Iterator[tuple[str, ast.Module]]:
    for folder in folders:
        for top in ROOT.glob(folder):
            for path in sorted(top.rglob("*.py")):
                yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def _docstrings(folders: tuple[str, ...]) -> Iterator[tuple[str, ast.AST, str]]:
    """Yield each docstring with its place (file and line) and its node."""
    for name, tree in _trees(folders):
        for node in ast.walk(tree):
            if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
                yield f"{name}:{getattr(node, 'lineno', 1)}", node, text


def _messages(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield each text of a module that is not a docstring, with its line; ``{}`` stands for an inserted value."""
    left_out = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            left_out |= {id(part) for part in node.values}
            yield (
                node.lineno,
                "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values),
            )
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out:
            yield node.lineno, node.value


def test_no_docstring_begins_with_a_question() -> None:
    found, seen = [], 0
    for place, _, text in _docstrings(FOLDERS):
        seen += 1
        if RIDDLE.match(text):
            found.append(f"{place}: {text.splitlines()[0]}")
    assert seen > 3000
    assert not found, "\n".join(found)


def test_first_verb_agrees_with_the_result() -> None:
    """A docstring begins with "Return" only if the function returns a value, and not if it yields values."""
    found, seen = [], 0
    for place, node, text in _docstrings(FOLDERS):
        if isinstance(node, FUNCTIONS) and node.returns is not None:
            seen += 1
            result = ast.unparse(node.returns)
            if text.startswith("Return ") and (result == "None" or result.startswith("Iterator[")):
                found.append(f"{place}: {node.name} -> {result}: {text.splitlines()[0]}")
    assert seen > 3000
    assert not found, "\n".join(found)


def test_messages_are_in_whole_words() -> None:
    found, seen = [], 0
    for name, tree in _trees(LIBRARY):
        for line, text in _messages(tree):
            if len(text.split()) > 2 and "\n" not in text:
                seen += 1
                if MESSAGE.search(text):
                    found.append(f"{name}:{line}: {text}")
    assert seen > 3000
    assert not found, "\n".join(found)


def test_link_never_means_a_network_device() -> None:
    """A link joins two environments (docs/glossary.md), so the kernel's links are called network devices."""
    folders = ("_utils/netspace/interface", "_utils/netspace/netlink")
    found = [f"{place}: {text.splitlines()[0]}" for place, _, text in _docstrings(folders) if DEVICE.search(text)]
    assert not found, "\n".join(found)
