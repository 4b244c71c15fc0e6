"""The library's modules, their imports, and CONTRIBUTING.md's table of packages.

``python tests/support/library_modules.py`` writes that table.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "_utils" / "netspace"
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- packages: begin -->\n", "<!-- packages: end -->\n"


def modules() -> dict[str, Path]:
    """Return the file of each module, by the module's name below ``netspace``; a package is named after its folder."""
    found = {}
    for path in LIBRARY.rglob("*.py"):
        parts = path.relative_to(LIBRARY).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__") or "netspace"] = path
    return found


def imports(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Return the modules that each module imports, including lazy imports and imports for type checking."""
    return {name: set(_imported(path, files)) - {name} for name, path in files.items()}


def _imported(path: Path, files: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").partition(".")[0] != "netspace":
            continue
        package = (node.module or "").removeprefix("netspace").removeprefix(".")
        for name in node.names:
            full = f"{package}.{name.name}" if package else name.name
            yield full if full in files else package or "netspace"


def docstring(path: Path) -> str:
    """Return a module's docstring."""
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def table() -> str:
    """Return the table of packages, from the first sentences of their docstrings."""
    rows = ["| package | content |", "|---|---|"]
    for name, path in sorted(modules().items()):
        if path.name == "__init__.py" and name != "netspace":
            first = docstring(path).partition("\n")[0].replace("``", "`").replace("|", "\\|")
            rows.append(f"| `{name.replace('.', '/')}/` | {first} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + table() + END + after)


if __name__ == "__main__":
    main()
