"""Arguments of Salt functions: each function accepts its parameters under each supported Salt."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from netspace.plugin import arguments

ROOT = Path(__file__).parents[3]
FUNCTIONS = [
    (file.name, node)
    for folder in ("_modules", "_runners", "_states")
    for file in sorted((ROOT / folder).glob("*.py"))
    for node in ast.parse(file.read_text()).body
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
]


def test_options_behind_names_are_reached_from_salt_3006() -> None:
    behind = [(file, node) for file, node in FUNCTIONS if node.args.kwonlyargs]
    assert behind
    # Salt 3006 looks at ordinary parameters, and at ``**others`` (salt.minion.load_args_and_kwargs).
    unreached = [f"{file}: {node.name}" for file, node in behind if node.args.kwarg is None]
    assert not unreached
    unchecked = [f"{file}: {node.name}" for file, node in behind if "refuse_others" not in ast.unparse(node)]
    assert not unchecked


def test_others_that_salt_did_not_add_are_refused() -> None:
    arguments.refuse_others({"__pub_fun": "netspace_environment.exec"})
    with pytest.raises(TypeError, match="unknown arguments: pruge, tiemout"):
        arguments.refuse_others({"tiemout": 3, "pruge": True, "__pub_jid": "1"})
