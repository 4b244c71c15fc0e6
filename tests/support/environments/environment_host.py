"""Environments for tests, and shorthands to declare, apply and inspect them. Needs root and a sandbox."""

from __future__ import annotations

import ctypes
import os
import shutil
import threading
from pathlib import Path
from typing import Any

from netspace import supervision
from netspace.environment import runtimes, user_ids
from netspace.environment.container import seccomp_file, unikernel
from netspace.environment.desired import DesiredEnvironment
from netspace.environment.operations import Operations
from netspace.environment.reconciler import Environments
from netspace.environment.storage import mounts
from netspace.layout import Layout
from netspace.plan import Outcome, Plan
from netspace.spec import parse
from support import checkout

# Ends at once when told to: process 1 of a pid namespace gets no signal that it doesn't catch.
STAY = "trap 'exit 0' TERM; while :; do sleep 0.05; done"
CLONE_NEWNET = 0x40000000


def shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


class Host:
    """Environments, operations on them, and shorthands to declare and apply."""

    def __init__(self, image: Path) -> None:
        self.layout = Layout()
        self.image = image
        self.supervisor = supervision.select(self.layout)
        self.kind = Environments(self.layout, self.supervisor)
        self.settings: dict[str, dict[str, Any]] = {}  # of runtimes
        self.operations = Operations(self.layout, self.supervisor, lambda specs: {})

    def desired(
        self, name: str, *, files: dict[str, bytes] | None = None, state: str = "running", **keys: Any
    ) -> DesiredEnvironment:
        usual = {} if "kernel" in keys else {"image": f"dir:{self.image}", "command": shell(STAY)}
        declared = {**usual, **keys}
        handed = {"environment.json": b"{}\n"} if files is None else files
        spec = parse.environment(name, declared)
        profile = seccomp_file.look(spec.seccomp)
        named = spec.runtime or (runtimes.DEFAULT if spec.kernel is None else "qemu")
        runtime = runtimes.look(named, self.settings.get(named, {}))
        if spec.kernel is not None:
            handed = {unikernel.DISK: unikernel.disk(handed)}
        return DesiredEnvironment(spec, handed, {"links": sorted(handed)}, state, profile, runtime)  # type: ignore[arg-type]

    def plan(self, desired: dict[str, DesiredEnvironment], remove: Any = ()) -> Plan:
        return self.kind.plan(desired, self.kind.observe(), remove)

    def apply(self, desired: dict[str, DesiredEnvironment], remove: Any = ()) -> dict[str, Outcome]:
        for name in desired:
            self.namespace(name)
        outcomes = self.kind.apply(self.plan(desired, remove).steps)
        return {outcome.step.name: outcome for outcome in outcomes}

    def run(self, name: str, **keys: Any) -> DesiredEnvironment:
        """Start one environment; fail if it doesn't run."""
        desired = self.desired(name, **keys)
        for outcome in self.apply({name: desired}).values():
            assert outcome.error == "", outcome.error
        return desired

    def sh(self, name: str, script: str, **options: Any) -> str:
        """Run a script inside an environment; return the script's output."""
        done = self.operations.exec(name, shell(script), **options)
        return str(done["stdout"] + done["stderr"]).strip()

    def pid(self, name: str) -> int:
        return int(self.kind.list()[name]["pid"])

    def namespace(self, name: str) -> None:
        """Make a network namespace with only ``lo``, as the interface kind does."""
        path = self.layout.netns(name)
        if os.path.ismount(path):
            return
        path.parent.mkdir(exist_ok=True)
        path.touch()

        def make() -> None:
            assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) == 0
            mounts.mount("/proc/thread-self/ns/net", path, "none", mounts.BIND)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()

    def clear(self) -> None:
        errors = {name: outcome.error for name, outcome in self.apply({}, self.kind.names()).items() if outcome.error}
        assert errors == {}
        self.kind.purge()
        shutil.rmtree(self.layout.volumes(""), ignore_errors=True)
        self.supervisor.purge()
        namespaces = self.layout.netns("x").parent
        if namespaces.is_dir():
            for path in namespaces.glob(f"{self.layout.instance}-*"):
                mounts.unmount(path)
                path.unlink()

    def traces(self) -> dict[str, list[str]]:
        """Return all remains that netspace could leave on this host."""
        own = self.layout.instance
        folders = (
            self.layout.run / "environments",
            self.layout.state / "layers",
            self.layout.records("environments"),
            self.layout.logs,
        )
        return {
            "mounts": sorted(
                target
                for target in mounts.table()
                if f"/{own}/" in target and "/images" not in target and not target.startswith(f"{checkout.ROOT}/")
            ),
            "files": sorted(str(path) for folder in folders for path in folder.rglob("*")),
            "cgroups": sorted(str(path) for path in Path("/sys/fs/cgroup").glob(f"*/{own}/*") if path.is_dir()),
            "processes": sorted(
                entry for entry in os.listdir("/proc") if entry.isdigit() and _uid(entry) >= user_ids.FIRST
            ),
        }


def _uid(pid: str) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except FileNotFoundError:
        return -1
