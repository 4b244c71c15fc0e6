"""``scripts/lab``, as tests use it: commands of the lab, and all remains that it could leave."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support import checkout
from support.hosts import salt_forks
from support.hosts.whole_host import unfolded
from support.returns import times_without_text
from support.waiting import until

LAB = checkout.ROOT / "scripts/lab"
MASTER_PORT = "/dev/tcp/198.51.100.254/4505"


SALTS = Path("/run/salts")  # on the master


class Lab:
    """A lab, which may not be up.

    :param programs: folder with commands of Salt, which :meth:`warm` makes faster.
    :param patience: seconds that a command may take; machines whose processor is emulated need more.
    """

    def __init__(self, folder: Path, programs: Path | None = None, patience: int = 900) -> None:
        self.folder = folder
        self.patience = patience
        self.fleet = folder / "fleet.yaml"
        self.environment = {**os.environ, "NETSPACE_LAB": str(folder)}
        if programs is not None:
            salt_forks.write(programs, SALTS)
            # With the folder of Salt's own commands in the path, the lab puts no other one before it.
            self.environment["PATH"] = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"

    def warm(self) -> None:
        """Run Salt's commands on the master as forks of one process that has imported Salt, until the master is off."""
        start = 'setsid --fork "$@" </dev/null >/dev/null 2>&1; until [ -S "$0" ]; do sleep 0.1; done'
        self.do("sh", "master", "bash", "-euc", start, str(SALTS), *salt_forks.serving(SALTS))

    def do(self, *arguments: str, code: int = 0) -> str:
        """Run a command of the lab; return its output on stdout and stderr."""
        done = subprocess.run(
            [LAB, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
            timeout=self.patience,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def salt(self, target: str, *arguments: str) -> dict[str, Any]:
        printed = self.do("salt", "--out=json", "--static", f"--timeout={self.patience * 2 // 3}", target, *arguments)
        answer: dict[str, Any] = json.loads(printed)
        assert not list(times_without_text(arguments[0], answer)), arguments
        return answer

    def answering(self) -> set[str]:
        """Return the minions that answer soon. A minion that isn't connected yet never gets the question."""
        command = [LAB, "salt", "--out=json", "--static", "--timeout=10", "*", "test.ping"]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=self.environment, timeout=900
        )
        return {minion for minion in ("h1", "h2") if f'"{minion}": true' in done.stdout}

    def reaches_master(self, name: str) -> bool:
        command = f"timeout 3 bash -c '<{MASTER_PORT}' && echo reached || echo cut"
        return self.do("sh", name, "bash", "-c", command).splitlines()[-1] == "reached"

    def runner(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        printed = self.do("salt-run", "--out=json", *arguments, code=code)
        answer: dict[str, Any] = json.JSONDecoder().raw_decode(printed[printed.index("{") :])[0]
        assert not list(times_without_text(arguments[0], answer)), arguments
        return answer

    def apply(self) -> int:
        """Apply the pillar of both hosts; return the number of changes."""
        states = [state for host in self.salt("*", "state.apply", "netspace").values() for state in host.values()]
        failed = [unfolded(state["comment"]) for state in states if state["result"] is not True]
        assert not failed, "\n".join(failed)
        return sum(len(state["changes"]) for state in states)

    def apply_failures(self, host: str) -> list[str]:
        """Apply the pillar of one host; return the comments of the states that failed."""
        (states,) = self.salt(host, "state.apply", "netspace").values()
        return [unfolded(state["comment"]) for state in states.values() if state["result"] is False]

    def asks(self, text: str) -> str:
        """Return the output of ``web`` on h1 for a request to ``orders``."""
        found = self.salt("h1", "netspace_environment.exec", "web", f"/usr/bin/web {text}")["h1"]
        return str(found["stdout"] or found["stderr"]).strip()


def traces() -> list[str]:
    """Return all that a lab could leave on this machine."""
    groups = sorted(str(path) for path in Path("/sys/fs/cgroup").rglob("netspace-sandbox-*") if path.is_dir())
    ours = "lab.d/inside|ifname=h1,|dir=tpm/state"  # namespaces, machines, and machines' TPMs
    commands = (["ip", "netns"], ["ip", "-o", "link"], ["findmnt", "-rno", "TARGET"], ["pgrep", "-f", ours])
    return [*groups, *(subprocess.run(command, capture_output=True, text=True).stdout for command in commands)]


@contextlib.contextmanager
def lab(folder: Path, patience: int = 900) -> Iterator[Lab]:
    """A lab that isn't up yet. After the test it is taken down, and nothing of it may be left.

    :param patience: seconds that a command may take.
    """
    before, made = traces(), Lab(folder, folder.with_name("programs"), patience)
    try:
        yield made
    finally:
        made.do("down")
    assert not made.folder.exists()
    with contextlib.suppress(AssertionError):
        until(lambda: traces() == before)
    assert traces() == before
