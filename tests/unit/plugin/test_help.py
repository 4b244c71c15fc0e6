"""The help of functions and states, as Salt prints it (``sys.doc``, ``salt-run -d``), fits a terminal."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
FILES = [path for folder in ("_modules", "_runners", "_states") for path in (REPOSITORY / folder).glob("netspace*.py")]
COLUMNS = 80
INDENT = " " * 8  # Salt's own output puts this before each line of a docstring
ROLE = re.compile(r":[a-z:]+:`")


@pytest.mark.parametrize("path", sorted(FILES), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_help_of_a_function_fits_eighty_columns(path: Path) -> None:
    shown = [
        (node.name, INDENT + line)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
        for line in (ast.get_docstring(node, clean=False) or "").splitlines()
    ]
    assert shown
    assert not [(name, line) for name, line in shown if len(line) > COLUMNS]


@pytest.mark.parametrize("path", sorted(FILES), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_help_of_a_function_has_no_role_of_sphinx(path: Path) -> None:
    module = ast.parse(path.read_text())
    public = [one for one in module.body if isinstance(one, ast.FunctionDef) and not one.name.startswith("_")]
    shown = [(getattr(one, "name", path.stem), ast.get_docstring(one) or "") for one in (module, *public)]
    assert not [(name, found) for name, text in shown for found in ROLE.findall(text)]  # a terminal shows it as it is
