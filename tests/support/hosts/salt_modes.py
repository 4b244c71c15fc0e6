"""Salt with netspace, installed in each of the ways that an operator may choose."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from netspace import REQUIREMENTS
from support import checkout
from support.returns import times_without_text

# Run by the interpreter under test: what Salt's loaders make of netspace.
LOAD = """
import json, sys
import salt.config, salt.loader
opts = salt.config.minion_config(sys.argv[1])
opts["grains"] = salt.loader.grains(opts)
utils = salt.loader.utils(opts)
functions = salt.loader.minion_mods(opts, utils=utils)
loaders = {
    "_modules": functions,
    "_states": salt.loader.states(opts, functions, utils, None),
    # The master's side has a configuration and, synced by its own saltutil, a cache of its own.
    "_runners": salt.loader.runner(salt.config.master_config(sys.argv[2]), utils),
    "_beacons": salt.loader.beacons(opts, functions),
    "_engines": salt.loader.engines(opts, functions, {}, utils),
    "_pillar": salt.loader.pillars(opts, functions),
    # A minion's return is shown by the master, and by salt-call.
    "_output": [
        f"{name}.output"
        for name in salt.loader.outputters(opts)
        if name in salt.loader.outputters(salt.config.master_config(sys.argv[2]))
    ],
}
found = {folder: [name for name in loader if name.startswith("netspace")] for folder, loader in loaders.items()}
reason, inside = "", []
if hasattr(salt.loader, "resource"):
    # As a minion looks for targets: with nothing but the configuration.
    found["_resources"] = [name for name in salt.loader.resource(opts) if name.startswith("netspace")]
    inside = sorted(salt.loader.resource_modules(opts, "netspace", utils=utils, context={}))
import netspace
if not inside and (folders := netspace.loader_dirs().get("resources")):
    resources = salt.loader.LazyLoader(folders, opts, tag="resources", pack={"__context__": {}})
    assert "netspace.ping" not in resources
    reason = resources.missing_fun_string("netspace.ping")
told = {"plugins": found, "library": netspace.__file__, "grains": opts["grains"], "reason": reason, "inside": inside}
json.dump(told, sys.stdout)
"""


@dataclass(frozen=True)
class Salt:
    """A Salt without a master: an interpreter and a configuration."""

    python: Path
    config: Path
    source: Path
    library: Path
    programs: Path | None = None
    """Folder of Salt's commands (:mod:`support.hosts.salt_forks`); None: each command is a new Python."""

    def call(self, *arguments: str) -> tuple[Any, str]:
        """Run ``salt-call``; return the function's value, and the log."""
        done = self._run("salt-call", "--out", "json", *arguments)
        assert done.stdout, done.stderr
        returned = json.loads(done.stdout)["local"]
        assert not list(times_without_text(arguments[0], returned)), arguments
        return returned, done.stderr

    def fails(self, *arguments: str) -> str:
        """Run ``salt-call`` and expect a failure; return its output and the log."""
        done = self._run("salt-call", *arguments)
        assert done.returncode != 0, done.stdout
        return done.stdout + done.stderr

    def run(self, *arguments: str) -> tuple[Any, int]:
        """Run ``salt-run``; return the runner's value, and the exit status."""
        done = self._run("salt-run", "--out", "json", *arguments)
        assert done.stdout, done.stderr
        returned = json.loads(done.stdout)
        assert not list(times_without_text(arguments[0], returned)), arguments
        return returned, done.returncode

    def _run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        if self.programs is not None:
            command = [str(self.programs / name)]
        else:
            script = name.replace("-", "_")
            code = f"import sys; from salt.scripts import {script} as run; sys.argv[0] = '{name}'; run()"
            command = [str(self.python), "-c", code]
        return subprocess.run(
            [*command, "-c", str(self.config.parent), *arguments], capture_output=True, text=True, check=False, cwd="/"
        )

    def load(self) -> dict[str, Any]:
        """Return the functions that Salt's loaders find, and the library's location."""
        done = subprocess.run(
            [str(self.python), "-c", LOAD, str(self.config), str(self.config.with_name("master"))],
            capture_output=True, text=True, check=False, cwd="/",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        loaded: dict[str, Any] = json.loads(done.stdout)
        return loaded


def configure(folder: Path, source: Path | None) -> Path:
    """Write a masterless configuration, with *source* (if given) as file_roots."""
    folder.mkdir(parents=True)
    settings: dict[str, Any] = {
        "id": "modes",
        "root_dir": str(folder),
        "conf_file": str(folder / "minion"),
        "file_client": "local",
        "log_file": str(folder / "log"),
        "enable_fqdns_grains": False,
        "enable_gpu_grains": False,
        "file_roots": {"base": [str(source)] if source else []},
        "pillar_roots": {"base": []},
    }
    (folder / "minion").write_text(yaml.safe_dump(settings))
    master = {**settings, "conf_file": str(folder / "master"), "user": getpass.getuser()}
    (folder / "master").write_text(yaml.safe_dump(master))
    (folder / "var/cache/salt/master/proc").mkdir(parents=True)  # as a master makes it when it starts
    return folder / "minion"


def scratch(folder: Path) -> Path:
    """Make a venv with the same packages as this one; return its interpreter. Nothing is downloaded."""
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    python = folder / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "lib" / version / "site-packages" / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def bare(folder: Path) -> Path:
    """Make a venv with Salt, but without the Python packages that netspace needs; return its interpreter.

    Files are hard links where possible. So nothing is downloaded, and little is written. The linked files include
    Salt's compiled modules, so that a process without ``PYTHONPYCACHEPREFIX`` needn't compile them.
    """
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    target = folder / "lib" / version / "site-packages"

    def link(source: str, destination: str) -> None:
        try:
            os.link(source, destination)
        except OSError:
            shutil.copy2(source, destination)

    installed = sysconfig.get_path("purelib")
    needed = shutil.ignore_patterns(*(f"{name}*" for name in REQUIREMENTS if name != "cryptography"))  # Salt needs it

    def unwanted(folder: str, names: list[str]) -> set[str]:
        """Leave out whole packages, but not modules of Salt with the same names, such as ``salt.utils.dns``."""
        ours = needed(folder, names) if folder == installed else set()
        return ours | shutil.ignore_patterns("netspace*")(folder, names)

    shutil.copytree(installed, target, dirs_exist_ok=True, ignore=unwanted, copy_function=link)
    return folder / "bin" / "python"


def pip_install(python: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    done = subprocess.run([*command, "--no-build-isolation", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def build(mode: str, folder: Path, programs: Path | None = None) -> Salt:
    """Make a Salt that has netspace by *mode*: ``sync``, ``pip`` or ``editable``.

    :param programs: see :class:`Salt`; for ``sync`` only, because the other modes have a Python of their own.
    """
    source = checkout.copy(folder / "source")
    if mode == "sync":
        config = configure(folder / "salt", source)
        salt = Salt(Path(sys.executable), config, source, folder / "salt/var/cache/salt/minion/extmods/utils", programs)
        synced, _ = salt.call("saltutil.sync_all")
        assert "utils.netspace.__init__" in synced["utils"], synced
        synced, _ = salt.run("saltutil.sync_all")
        assert "runners.netspace_attestation" in synced["runners"], synced
        return salt
    python = scratch(folder / "venv")
    pip_install(python, *(["--editable"] if mode == "editable" else []), str(source))
    library = source / "_utils" if mode == "editable" else folder / "venv"
    return Salt(python, configure(folder / "salt", None), source, library)
