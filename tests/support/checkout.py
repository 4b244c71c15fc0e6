"""Copies of the parts of this checkout that Salt syncs and pip installs. A test may change a copy."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PLUGIN_FOLDERS = (
    "_modules", "_states", "_grains", "_runners", "_pillar", "_beacons", "_engines", "_resources", "_output",
)  # fmt: skip
_UNWANTED = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")


def copy(target: Path) -> Path:
    """Copy plugins, library and packaging to *target*; return *target*."""
    for folder in (*PLUGIN_FOLDERS, "_utils"):
        shutil.copytree(ROOT / folder, target / folder, ignore=_UNWANTED)
    (target / "resources").symlink_to("_resources")
    for folder in ("states", "file_root"):
        shutil.copytree(ROOT / folder, target / folder, symlinks=True, ignore=_UNWANTED)
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, target / file)
    return target


def in_place() -> dict[str, Any]:
    """Return a minion's configuration by which it uses the checkout's plugins where they are.

    So no sync is needed, which would take 20 s of processor time for each minion.
    """
    folders = {"module_dirs": "_modules", "states_dirs": "_states", "grains_dirs": "_grains", "utils_dirs": "_utils"}
    return {
        **{key: [str(ROOT / folder)] for key, folder in folders.items()},
        "autoload_dynamic_modules": False,
    }


def with_example_kind(target: Path) -> Path:
    """Copy the library to *target*, with the example of an interface kind from CONTRIBUTING.md; return *target*."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    code = text[text.index("## Add an interface kind") :].split("```python\n")[1].split("```")[0]
    shutil.copytree(ROOT / "_utils", target, ignore=_UNWANTED)
    (target / "netspace/interface/kinds/dummy.py").write_text(code)
    return target


def plugins(folder: str) -> dict[str, set[str]]:
    """Return the plugins in *folder*, by Salt's names for them, with their public functions."""
    return {_name(path): _functions(path) for path in sorted((ROOT / folder).glob("*.py")) if path.stem != "__init__"}


def _name(path: Path) -> str:
    named = re.search(r'^__virtualname__ = "(\w+)"$', path.read_text(), re.MULTILINE)
    return named[1] if named else path.stem


def _functions(path: Path) -> set[str]:
    aliases: dict[str, str] = {}
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            names.add(node.name)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__func_alias__":
            aliases = ast.literal_eval(node.value)
    return {aliases.get(name, name) for name in names}
