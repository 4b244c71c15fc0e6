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


# What the page on runtimes has a row for. Of these, nothing here can run, so no test is named.
UNTRIED = {"Solo5, target hvt", "Solo5, target xen", "Solo5, target virtio", "MirageOS", "rump kernels"}
SYSTEMS = {
    *("unikernels on Xen", "TrustZone (OP-TEE)", "the base: hypervisor", "the base: USB", "the base: microcode"),
    *("the base: network controllers", "the base: disk controllers", "the base: remote management"),
}


def test_each_system_works_by_a_test_or_says_why_not() -> None:
    section = (CHECKOUT / "docs/runtimes.md").read_text().split("## Systems that are named")[1]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|(.*)\|$", section, re.MULTILINE)[1:]
    named = {system: NAMED.findall(tests) for system, _, tests in rows}
    assert set(named) >= SYSTEMS | UNTRIED
    assert {system for system, tests in named.items() if not tests} == UNTRIED
    told = {system: text for system, text, _ in rows}
    assert all("untried" in told[system] or "doesn't work" in told[system] for system in UNTRIED)
