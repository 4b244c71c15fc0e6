"""The audit's probe as one text, for ``python3 -c`` in an image without netspace."""

from __future__ import annotations

from pathlib import Path

from netspace.environment.audit import attempts, probe

_PACKAGE = "netspace.environment.audit"
_START = """
import importlib.abc, importlib.util, sys

class Sources(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    def find_spec(self, name, path=None, target=None):
        if name in SOURCES or name in PACKAGES:
            return importlib.util.spec_from_loader(name, self, is_package=name in PACKAGES)

    def get_source(self, name):
        return SOURCES.get(name, "")

sys.meta_path.insert(0, Sources())
"""


def text() -> str:
    """Return the probe with the modules that it imports. Their parent packages become empty packages."""
    parts = f"{_PACKAGE}.attempts".split(".")
    packages = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    folder = Path(attempts.__file__).parent
    sources = {
        f"{_PACKAGE}.attempts.{path.stem}": path.read_text()
        for path in sorted(folder.glob("*.py"))
        if path.name != "__init__.py"
    }
    program = Path(probe.__file__).read_text().replace("from __future__ import annotations\n", "", 1)
    head = f"from __future__ import annotations\nSOURCES = {sources!r}\nPACKAGES = {sorted(packages)!r}\n"
    return f"{head}{_START}{program}"
