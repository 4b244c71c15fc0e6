"""This host's Python interpreter, packed so that it runs inside any environment.

An image may have no interpreter, another C library, or only one static program. So this module copies the interpreter,
the shared objects that it loads and the few modules that it needs into one folder. A copy of the host's loader starts
the interpreter. The interpreter uses and changes no file of the image, so the image can't falsify its output. The
module fetches, builds and installs nothing.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netspace.errors import NetspaceError

# Imports the given modules; prints all loaded modules and shared objects, and the interpreter's path.
_LOADED = """
import ctypes, importlib, json, os, sys, sysconfig
for name in sys.argv[1:]:
    importlib.import_module(name)
class Info(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("name", ctypes.c_char_p)]
objects = []
def note(info, size, data):
    if info.contents.name:
        objects.append(os.fsdecode(info.contents.name))
    return 0
ctypes.CDLL(None).dl_iterate_phdr(ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Info), ctypes.c_size_t,
    ctypes.c_void_p)(note), None)
files = {}
for module in list(sys.modules.values()):
    spec = getattr(module, "__spec__", None)
    for file in (getattr(module, "__file__", None), getattr(spec, "cached", None)):
        if file and os.path.exists(file):
            files[file] = module.__name__
print(json.dumps({"files": files, "objects": objects, "program": os.readlink("/proc/self/exe"),
    "lib": sys.platlibdir if hasattr(sys, "platlibdir") else "lib",
    "version": "python%d.%d" % sys.version_info[:2]}))
"""


@dataclass(frozen=True)
class PortableInterpreter:
    """A packed interpreter.

    :param start: the arguments before the script. ``{}`` in them is replaced by the folder where the packed interpreter
        is mounted.
    """

    start: tuple[str, ...]

    def command(self, folder: str, script: str, *arguments: str) -> list[str]:
        """Return the argument vector that runs *script* if the packed interpreter is mounted at *folder*."""
        return [*(part.replace("{}", folder) for part in self.start), "-S", "-s", "-B", script, *arguments]

    @staticmethod
    def variables(folder: str) -> list[str]:
        """Return the interpreter's environment variables."""
        return [f"PYTHONHOME={folder}", "PYTHONDONTWRITEBYTECODE=1", "PYTHONUTF8=1", "PYTHONCOERCECLOCALE=0", "TZ=UTC0"]


def pack(folder: Path, modules: Sequence[str], interpreter: str = "") -> PortableInterpreter:
    """Fill *folder* with an interpreter that can import *modules*.

    :param interpreter: the interpreter to pack; by default, that of this process.
    :raises NetspaceError: when the interpreter can't import the modules, or can't be inspected.
    """
    program = interpreter or sys.executable
    done = subprocess.run(
        [program, "-I", "-S", "-c", _LOADED, *modules],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode != 0:
        raise NetspaceError(f"the interpreter {program} can't be packed: {done.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    library = folder / found["lib"] / found["version"]
    (library / "lib-dynload").mkdir(parents=True)
    (folder / "so").mkdir()
    for file, module in found["files"].items():
        _place(Path(file), module, library)
    loader = ""
    for name in found["objects"]:
        source = Path(name)
        if not source.is_absolute() or not source.exists() or str(source) in found["files"]:
            continue  # the kernel's vdso, or an extension module that was copied already
        shutil.copy(source, folder / "so" / source.name)
        if source.name.startswith(("ld-", "ld.so", "ld64")):
            loader = source.name
    shutil.copy(found["program"], folder / "python")
    if not loader:
        return PortableInterpreter(("{}/python",))  # linked statically
    # glibc's loader always reads this file: with it, an image could load its own code into the interpreter.
    content = (folder / "so" / loader).read_bytes()
    (folder / "so" / loader).write_bytes(content.replace(b"/etc/ld.so.preload\0", b"/dev/ld.so.nothing\0"))
    (folder / "so" / loader).chmod(0o755)
    return PortableInterpreter((f"{{}}/so/{loader}", "--library-path", "{}/so", "{}/python"))


def _place(source: Path, module: str, library: Path) -> None:
    """Copy a module's file to the place where the packed interpreter looks for it."""
    parts = module.split(".")
    if source.suffix == ".so":
        target = library.joinpath("lib-dynload", *parts[:-1], source.name)
    elif source.suffix == ".pyc":
        target = library.joinpath(*source.parts[-(len(parts) + (2 if source.name.startswith("__init__.") else 1)) :])
    else:
        target = library.joinpath(*(parts if source.name == "__init__.py" else parts[:-1]), source.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)  # keeps the time: Python checks compiled modules by it
