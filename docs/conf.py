"""Configuration of Sphinx: a page for each Salt module, from its docstrings, and the pages beside this file.

The plugins are documented under the names that pip installs (``netspace.modules.netspace_link``), from their folders in
this repository.
"""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "_utils"), str(ROOT / "docs")]

import declared_keys  # noqa: E402

import netspace  # noqa: E402

project = "netspace"
copyright = "the netspace authors; Apache-2.0"
version = release = netspace.__version__

extensions = ["sphinx.ext.autodoc", "myst_parser"]
exclude_patterns = ["_build"]
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
html_extra_path = ["declaration.schema.json", "environment.schema.json"]
html_theme = "furo"
html_static_path = ["style"]
html_css_files = ["site.css"]
html_title = f"netspace {version}"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

TITLES = {
    "modules": "Execution modules",
    "states": "State modules",
    "grains": "Grains",
    "runners": "Runners",
    "pillar": "External pillar",
    "beacons": "Beacons",
    "engines": "Engines",
    "output": "Outputs",
    "resources": "Resources",
    "resources/netspace/modules": "Execution modules in an environment",
    "resources/netspace/states": "State modules in an environment",
}


def _make_importable(kind: str, package: str) -> None:
    spec = ModuleSpec(package, None, is_package=True)
    spec.submodule_search_locations = [str(ROOT / f"_{kind}")]
    sys.modules[spec.name] = module_from_spec(spec)


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _reference(folder: Path) -> None:
    """Write a page for each plugin and an index of them; remove pages of plugins that are gone."""
    index = ["Salt modules", "============", ""]
    pages = set()
    for kind, title in TITLES.items():
        package = f"netspace.{kind.replace('/', '.')}"
        _make_importable(kind, package)
        names = sorted(path.stem for path in (ROOT / f"_{kind}").glob("*.py") if path.stem != "__init__")
        if not names:
            continue
        index += [title, "-" * len(title), "", ".. toctree::", ""]
        for name in names:
            module = f"{package}.{name}"
            index.append(f"   {module}")
            pages.add(folder / f"{module}.rst")
            _write(folder / f"{module}.rst", f".. automodule:: {module}\n   :members:\n")
        index.append("")
    _write(folder / "index.rst", "\n".join(index))
    for path in folder.glob("netspace.*.rst"):
        if path not in pages:
            path.unlink()


def _interfaces(path: Path) -> None:
    """Write a page with the keys of each kind of interface."""
    from netspace.interface import kinds

    lines = ["Interface kinds", "===============", ""]
    for spec in kinds.specs():
        kind = str(spec.__struct_config__.tag)
        lines += [kind, "-" * len(kind), "", f".. autoclass:: {spec.__module__}.{spec.__name__}", ""]
    _write(path, "\n".join(lines))


_interfaces(Path(__file__).parent / "reference" / "interfaces.rst")
_reference(Path(__file__).parent / "reference")


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", declared_keys.signature)
    app.connect("autodoc-process-docstring", declared_keys.docstring)
