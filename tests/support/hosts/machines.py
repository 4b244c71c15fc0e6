"""Machines of a fleet: each is a host made of namespaces, with its own ``/etc``, ``/srv`` and Salt.

The machines are on one network, without a route to anything else. On each machine a process reads commands and runs
them. This process executes this same file, inside ``scripts/sandbox``. On each machine, ``ssh NAME COMMAND`` runs a
command on another machine; this stand-in has no other function of ssh. A machine leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = ROOT / ".venv/bin"
SWITCH = "fleet"

# Each has these folders of the machine that the tests run on, and writes to none of them.
_OWN = """
for folder in "$@"; do
    own=/run/own$folder
    mkdir -p "$own/upper" "$own/work"
    mount -t overlay overlay -o "lowerdir=$folder,upperdir=$own/upper,workdir=$own/work" "$folder"
done
# Keys that are made on the machine meanwhile, by other tests, would be those of all these.
mkdir -p /etc/netspace
mount -t tmpfs -o mode=755 own /etc/netspace
"""
_PROGRAM = f'#!/bin/sh\nexec {sys.executable} -ISB {__file__} {{}} "$@"\n'


class Done(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


class Machine:
    """One machine.

    :param doors: folder that all machines of one fleet share; through it they run commands on each other.
    :param own: folders that only this machine sees; its writes there don't reach the real disk.
    """

    def __init__(self, name: str, doors: Path, own: tuple[str, ...]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [str(ROOT / "scripts/sandbox"), sys.executable, "-B", __file__, "obey", str(doors), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.must("bash", "-euc", _OWN, "own", *own)
        self.must("hostname", name)
        self._program("ssh", "login")

    def run(self, *command: str, stdin: str = "") -> Done:
        """Run a command on the machine, and wait for its end."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([list(command), stdin]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"{self.name} has ended"
        return Done(*json.loads(answer))

    def must(self, *command: str, stdin: str = "") -> str:
        """Run a command that has to succeed; return its output."""
        done = self.run(*command, stdin=stdin)
        assert done.code == 0, f"{self.name}: {' '.join(command)}: {done}"
        return done.out

    def write(self, path: str, content: str) -> None:
        self.must("bash", "-euc", 'mkdir -p "$(dirname "$1")"; cat >"$1"', "write", path, stdin=content)

    def read(self, path: str) -> str:
        return self.must("cat", path)

    def warm(self) -> None:
        """Run Salt's commands in forks of one process that has imported Salt, which saves a second for each command."""
        from support.hosts import salt_forks  # inside of a machine, this file is run without the others

        place = Path("/run/salts")
        for name in salt_forks.COMMANDS:
            self.write(f"/run/programs/{name}", salt_forks.program(place, name))
            self.must("chmod", "755", f"/run/programs/{name}")
        self.must("setsid", "--fork", *salt_forks.serving(place))
        self.must("bash", "-euc", f"until [ -S {place} ]; do sleep 0.1; done")

    def _program(self, name: str, what: str) -> None:
        path = f"/run/programs/{name}"
        self.write(path, _PROGRAM.format(what))
        self.must("chmod", "755", path)

    @property
    def process(self) -> int:
        """Return the PID of one of the machine's processes, as seen from outside of the machine."""
        found = self._process.pid
        while below := Path(f"/proc/{found}/task/{found}/children").read_text().split():
            found = int(below[0])
        return found

    def leave(self) -> None:
        """Begin to end the machine, with all its processes."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def end(self) -> None:
        """End the machine as if its power were cut and its disk were lost."""
        self.leave()
        self._process.wait(60)


def plug(switch: Machine, machine: Machine, address: str) -> None:
    """Connect a machine to the network. The first machine is the network's switch."""
    if machine is switch:
        machine.must("ip", "link", "add", SWITCH, "type", "bridge")
        device = SWITCH
    else:
        ends = ("link", "add", machine.name, "netns", str(switch.process), "type", "veth", "peer", "name", "eth0")
        subprocess.run(["ip", *ends, "netns", str(machine.process)], check=True)
        switch.must("ip", "link", "set", machine.name, "master", SWITCH, "up")
        device = "eth0"
    machine.must("ip", "address", "add", f"{address}/24", "dev", device)
    machine.must("ip", "link", "set", device, "up")


# -- inside ------------------------------------------------------------------------


def _environment() -> Mapping[str, str]:
    return {**os.environ, "PATH": f"/run/programs:{PROGRAMS}:{os.environ['PATH']}"}


def obey(doors: str, name: str) -> None:
    """Run each incoming command; answer with its exit code and output."""
    os.environ.update(_environment(), DOORS=doors)
    threading.Thread(target=_serve, args=(Path(doors) / name,), daemon=True).start()
    for line in sys.stdin:
        command, fed = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            done = subprocess.run(command, input=fed.encode(), stdout=out, stderr=err, check=False, cwd="/")
            texts = []
            for stream in (out, err):
                stream.seek(0)
                texts.append(stream.read().decode(errors="replace"))
        print(json.dumps([done.returncode, *texts]), flush=True)


def _serve(door: Path) -> None:
    """Run commands that other machines request, with the files for input and output that come with the requests."""
    door.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(door))
        listener.listen()
        while True:
            asker, _ = listener.accept()
            threading.Thread(target=_answer, args=(asker,), daemon=True).start()


def _answer(asker: socket.socket) -> None:
    with asker:
        command, streams, _, _ = socket.recv_fds(asker, 65536, 3)
        done = subprocess.run(
            ["sh", "-c", command.decode()], stdin=streams[0], stdout=streams[1], stderr=streams[2], cwd="/", check=False
        )
        for stream in streams:
            os.close(stream)
        asker.sendall(bytes([done.returncode & 0xFF]))


def login(name: str, *command: str) -> int:
    """Run a command on the machine *name*. Like ssh, join the command's words for a shell on that machine."""
    return _asked(Path(os.environ["DOORS"]) / name, " ".join(command))


def _asked(door: Path, what: str) -> int:
    with socket.socket(socket.AF_UNIX) as asker:
        asker.connect(str(door))
        socket.send_fds(asker, [what.encode()], [0, 1, 2])
        return asker.recv(1)[0]


ROLES = {"login": login, "obey": obey}

if __name__ == "__main__":
    sys.exit(ROLES[sys.argv[1]](*sys.argv[2:]))
