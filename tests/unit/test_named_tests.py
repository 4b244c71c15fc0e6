"""Pages name tests for their promises: each named test exists, in the named file."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
PAGES = [*(CHECKOUT / "docs").rglob("*.md"), *CHECKOUT.glob("*.md"), *(CHECKOUT / "client").glob("*.md")]
# With "…" at its end: the beginning of a name.
NAMED = re.compile(r"\b(?:(test_\w+)\.py::)?(test_\w+)(\.py)?(…)?")


@cache
def there() -> dict[str, set[str]]:
    """Return the tests in each test file, by the file's name without ``.py``."""
    files = [*(CHECKOUT / "tests").rglob("test_*.py"), *(CHECKOUT / "client" / "tests").rglob("test_*.py")]
    trees = {path.stem: ast.walk(ast.parse(path.read_text())) for path in files}
    assert len(trees) == len(files), "two files have one name"
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {name: {node.name for node in tree if isinstance(node, functions)} for name, tree in trees.items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_each_test_that_a_page_names_is_there(page: Path) -> None:
    everything = set().union(*there().values())
    missing = []
    for file, name, suffix, dots in NAMED.findall(page.read_text()):
        known = there().get(file, set()) if file else everything | set(there())
        if suffix:
            found = name in there()
        elif dots:
            found = any(one.startswith(name) for one in known)
        else:
            found = name in known
        if not found:
            missing.append(f"{file or '?'}::{name}{suffix}")
    assert not missing
