"""Machines of a fleet: each is a host of its own made of namespaces, with an ``/etc``, ``/srv`` and Salt of its own.

They lie on one network, and have no route to anything else. What a machine is told to run runs there, by a process that
reads commands: this file again, inside ``scripts/sandbox``. Nothing of a machine stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ROOT / ".venv/bin"
SWITCH = "fleet"

# Each has these folders of the machine that the tests run on, and writes to none of them.
_OWN = """
for folder in "$@"; do
    own=/run/own$folder
    mkdir -p "$own/upper" "$own/work" "$folder"
    mount -t overlay overlay -o "lowerdir=$folder,upperdir=$own/upper,workdir=$own/work" "$folder"
done
"""


class Done(NamedTuple):
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str


class Machine:
    """One machine.

    :param own: folders that it has for itself: what is written there is not on the disk of whoever runs the tests.
    """

    def __init__(self, name: str, own: tuple[str, ...]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [str(ROOT / "scripts/sandbox"), str(PROGRAMS / "python"), "-B", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.must("bash", "-euc", _OWN, "own", *own)
        self.must("hostname", name)

    def run(self, *command: str, stdin: str = "") -> Done:
        """Run a command there, and wait for its end. Salt's commands are forks: Salt is imported once."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([list(command), stdin]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"{self.name} has ended"
        return Done(*json.loads(answer))

    def must(self, *command: str, stdin: str = "") -> str:
        """Run a command that has to succeed; return what it printed."""
        done = self.run(*command, stdin=stdin)
        assert done.code == 0, f"{self.name}: {' '.join(command)}: {done}"
        return done.out

    def write(self, path: str, content: str) -> None:
        self.must("bash", "-euc", 'mkdir -p "$(dirname "$1")"; cat >"$1"', "write", path, stdin=content)

    @property
    def process(self) -> int:
        """The number, as seen here, of one of its processes."""
        found = self._process.pid
        while below := Path(f"/proc/{found}/task/{found}/children").read_text().split():
            found = int(below[0])
        return found

    def end(self) -> None:
        """End it, with all that runs there."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(60)
        finally:
            self._process.kill()


def connect(machines: Mapping[str, Machine], addresses: Mapping[str, str]) -> None:
    """Give each an address on one network, whose switch is the first one."""
    first, *others = machines.values()
    first.must("ip", "link", "add", SWITCH, "type", "bridge")
    first.must("ip", "link", "set", SWITCH, "up")
    first.must("ip", "address", "add", f"{addresses[first.name]}/24", "dev", SWITCH)
    for machine in others:
        plug(first, machine, addresses[machine.name])


def plug(switch: Machine, machine: Machine, address: str) -> None:
    """Join a machine to the others."""
    ends = ("link", "add", machine.name, "netns", str(switch.process), "type", "veth", "peer", "name", "eth0")
    subprocess.run(["ip", *ends, "netns", str(machine.process)], check=True)
    switch.must("ip", "link", "set", machine.name, "master", SWITCH, "up")
    machine.must("ip", "address", "add", f"{address}/24", "dev", "eth0")
    machine.must("ip", "link", "set", "eth0", "up")


def obey() -> None:
    """Inside: run each command that comes; answer with how it ended and what it printed."""
    sys.path.insert(0, str(PROGRAMS.resolve()))
    os.environ["PATH"] = f"{PROGRAMS}:{os.environ['PATH']}"
    for line in sys.stdin:
        command, fed = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            done = subprocess.run(command, input=fed.encode(), stdout=out, stderr=err, check=False, cwd="/")
            texts = []
            for stream in (out, err):
                stream.seek(0)
                texts.append(stream.read().decode(errors="replace"))
        print(json.dumps([done.returncode, *texts]), flush=True)


if __name__ == "__main__":
    obey()
