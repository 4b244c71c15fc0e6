"""One virtual machine: switch it on, run commands in it, cut its power, save and resume it.

A machine writes only to its folder, never to the image from which it began. A resumed machine is ready within a second,
with its TPM.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import queue
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmlab import image as images
from vmlab import qemu
from vmlab.flavours import Flavour
from vmlab.image import Image

# Emulated, and on a machine that does other things: everything may take long.
PATIENCE = 240.0


@dataclass(frozen=True)
class Done:
    """The result of a command."""

    code: int
    out: str
    err: str


class Machine:
    """A machine of one flavour; the context manager switches it off.

    :param folder: folder for the machine's disk, its firmware's variables and its TPM. The machine uses existing files
        in this folder (of a clone, or of an earlier run).
    :param command_line: the kernel's command line.
    :param tpm: state of a TPM as it leaves the factory; if absent, a blank TPM.
    """

    def __init__(
        self,
        image: Image,
        flavour: Flavour,
        folder: Path,
        *,
        command_line: str = images.COMMAND_LINE,
        tpm: Path | None = None,
    ) -> None:
        self.image = image
        self.flavour = flavour
        self.folder = folder
        self.command_line = command_line
        self.tpm = tpm
        self._processes: list[subprocess.Popen[bytes]] = []
        self._qmp: socket.socket | None = None
        self._port: socket.socket | None = None
        self._replies: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._numbers = itertools.count(1)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    # -- power ---------------------------------------------------------------------
    def on(self, *, saved: Path | None = None) -> None:
        """Boot, or resume from the memory in *saved*; return when the machine is up."""
        self._prepare()
        command = self._command()
        if saved is not None:
            command += ["-incoming", f"file:{saved}"]
        if self.flavour.tpm:
            self._start_tpm()
        self._spawn("qemu", command)
        self._qmp = self._connect("qmp")
        self._await_greeting()
        if saved is not None:
            while self.qmp("query-migrate").get("status") not in ("completed", "failed"):
                time.sleep(0.02)
            self.qmp("cont")
        self._attach()
        if saved is None:
            self.wait()
        else:
            self._until_answer()
            self._ask({"clock": time.time()}, 30)

    def wait(self) -> None:
        """Wait until the agent answers and systemd has started all its units."""
        self._until_answer()
        self.run("systemctl", "is-system-running", "--wait", check=False, timeout=PATIENCE)

    def reboot(self) -> None:
        """Reboot in an orderly way, and wait until the machine is up again."""
        before = self.run("cat", "/proc/sys/kernel/random/boot_id").out
        self._told("reboot")
        deadline = time.monotonic() + PATIENCE
        while True:
            self._until_answer()
            with contextlib.suppress(RuntimeError):
                if self.run("cat", "/proc/sys/kernel/random/boot_id", timeout=5).out != before:
                    break
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.flavour.name} doesn't come back from a reboot: {self.console()}")
            time.sleep(0.2)
        self.wait()

    def cut(self) -> None:
        """Cut the power. Data that has reached the disk stays."""
        for stream in (self._qmp, self._port):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.shutdown(socket.SHUT_RDWR)
                stream.close()
        self._qmp = self._port = None
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        self._processes.clear()

    def off(self) -> None:
        """Switch off in an orderly way."""
        self._told("poweroff")
        self._processes[-1].wait(PATIENCE)
        self.cut()

    def _told(self, what: str) -> None:
        """Make systemd reboot or switch off (*what*) in half a second, once the agent inside has answered."""
        self.sh(f"(sleep 0.5; exec systemctl --no-block {what}) >/dev/null 2>&1 </dev/null &")

    def save(self, folder: Path) -> None:
        """Write memory and disk to *folder*, for :meth:`clone`, and switch off."""
        folder.mkdir(parents=True, exist_ok=True)
        self.run("sync")
        self.qmp("stop")
        self.qmp("migrate", uri=f"file:{folder / 'memory'}")
        while (status := self.qmp("query-migrate").get("status")) != "completed":
            if status == "failed":
                raise RuntimeError(f"{self.flavour.name} can't be saved: {self.qmp('query-migrate')}")
            time.sleep(0.05)
        self.qmp("quit")
        self._processes[-1].wait(30)
        self.cut()
        for name in ("disk.qcow2", "vars.fd", "esp.img"):
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, folder / name)
        if self.flavour.tpm:
            shutil.copytree(self.folder / "tpm", folder / "tpm", dirs_exist_ok=True)

    @classmethod
    def clone(cls, image: Image, flavour: Flavour, saved: Path, folder: Path) -> Machine:
        """Return a machine that resumes from a saved one. It doesn't change the saved files."""
        folder.mkdir(parents=True)
        qemu.overlay(saved / "disk.qcow2", "qcow2", folder / "disk.qcow2")
        for name in ("vars.fd", "esp.img"):
            if (saved / name).exists():
                shutil.copyfile(saved / name, folder / name)
        if flavour.tpm:
            shutil.copytree(saved / "tpm", folder / "tpm")
        machine = cls(image, flavour, folder)
        try:
            machine.on(saved=saved / "memory")
        except BaseException:
            machine.cut()
            raise
        return machine

    # -- inside -----------------------------------------------------------------------
    def run(
        self,
        *argv: str,
        check: bool = True,
        timeout: float = 120,
        stdin: str = "",
        variables: Mapping[str, str] | None = None,
    ) -> Done:
        """Run a command as root.

        :raises AssertionError: the command failed, and *check* is set; the error has the command's output.
        :raises RuntimeError: the command didn't end, or the machine doesn't answer.
        """
        request = {
            "argv": argv,
            "timeout": timeout,
            "input": base64.b64encode(stdin.encode()).decode(),
            "variables": dict(variables or {}),
        }
        reply = self._ask(request, timeout + 30)
        if "error" in reply:
            raise RuntimeError(f"{argv}: {reply['error']}: {_text(reply.get('out'))} {_text(reply.get('err'))}")
        done = Done(reply["code"], _text(reply["out"]), _text(reply["err"]))
        if check and done.code:
            raise AssertionError(f"{argv} exited {done.code}\n{done.out}\n{done.err}")
        return done

    def ask(self, path: str, line: str, timeout: float = 300) -> dict[str, Any] | None:
        """Send a line to a socket inside; return the answer, a line of JSON, or None if no program listens there."""
        reply = self._ask({"ask": path, "line": line, "timeout": timeout}, timeout + 30)
        if "error" not in reply:
            return reply
        if reply["error"].startswith(("FileNotFoundError", "ConnectionRefusedError")):
            return None
        raise RuntimeError(f"{path}: {reply['error']}")

    def sh(self, script: str, *, check: bool = True, timeout: float = 120) -> str:
        """Run a shell script; return its output without the last newline."""
        return self.run("sh", "-c", script, check=check, timeout=timeout).out.rstrip("\n")

    def put(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        raw = data.encode() if isinstance(data, str) else data
        reply = self._ask({"put": path, "mode": mode, "data": base64.b64encode(raw).decode()}, PATIENCE)
        if "error" in reply:
            raise RuntimeError(f"{path}: {reply['error']}")

    def get(self, path: str) -> bytes:
        reply = self._ask({"get": path}, 120)
        if "error" in reply:
            raise RuntimeError(f"{path}: {reply['error']}")
        return base64.b64decode(reply["data"])

    def console(self) -> str:
        """Return the end of the machine's output on the serial console."""
        with contextlib.suppress(OSError):
            return (self.folder / "console").read_text(errors="replace")[-3000:]
        return ""

    def qmp(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send QEMU a command by its machine protocol (QMP); return the answer."""
        assert self._qmp is not None
        self._qmp.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            message = json.loads(self._qmp_lines.readline())
            if "return" in message:
                result: dict[str, Any] = message["return"]
                return result
            if "error" in message:
                raise RuntimeError(f"QEMU: {command}: {message['error']['desc']}")

    # -- parts ------------------------------------------------------------------------
    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "disk.qcow2").exists():
            qemu.overlay(self.image.root, "raw", self.folder / "disk.qcow2")
        if self.flavour.tpm and not (self.folder / "tpm").exists():
            if self.tpm is None:
                (self.folder / "tpm").mkdir()
            else:
                shutil.copytree(self.tpm, self.folder / "tpm")
        if self.flavour.secure_boot:
            qemu.firmware_variables(self.folder)
            images.esp_with(self.image, self.command_line, self.folder / "esp.img")

    def _command(self) -> list[str]:
        path = self.folder
        return [
            *qemu.board(self.flavour),
            "-nic", "none",
            "-qmp", f"unix:{path}/qmp,server=on,wait=off",
            "-serial", f"file:{path}/console",
            "-device", "virtio-serial-pci",
            "-chardev", f"socket,id=agent,path={path}/agent,server=on,wait=off",
            "-device", "virtserialport,chardev=agent,name=agent",
            *qemu.disk(path, "disk"),
            *qemu.boot(self.image, self.flavour, path, self.command_line),
        ]  # fmt: skip

    def _start_tpm(self) -> None:
        (self.folder / "tpm.sock").unlink(missing_ok=True)
        self._spawn("swtpm", ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.folder / 'tpm'}",
                              "--ctrl", f"type=unixio,path={self.folder / 'tpm.sock'}"])  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while not (self.folder / "tpm.sock").exists():
            self._check(deadline)

    def _spawn(self, name: str, command: Sequence[str]) -> None:
        log = (self.folder / f"{name}.log").open("ab")
        with log:
            # Whoever tests may be killed: then the machine goes with it.
            self._processes.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            )

    def _check(self, deadline: float) -> None:
        for process in self._processes:
            if process.poll() is not None:
                logs = "".join((self.folder / f"{name}.log").read_text()[-1000:] for name in ("swtpm", "qemu")
                               if (self.folder / f"{name}.log").exists())  # fmt: skip
                raise RuntimeError(f"{self.flavour.name} ended: {logs}")
        if time.monotonic() > deadline or "Kernel panic" in self.console():
            raise RuntimeError(f"{self.flavour.name} doesn't answer: {self.console()}")
        time.sleep(0.02)

    def _connect(self, name: str) -> socket.socket:
        deadline = time.monotonic() + PATIENCE
        while True:
            stream = socket.socket(socket.AF_UNIX)
            try:
                stream.connect(str(self.folder / name))
            except OSError:
                stream.close()
                self._check(deadline)
            else:
                return stream

    def _await_greeting(self) -> None:
        assert self._qmp is not None
        self._qmp_lines = self._qmp.makefile("rb")
        self._qmp_lines.readline()
        self.qmp("qmp_capabilities")

    def _attach(self) -> None:
        port = self._port = self._connect("agent")

        def read() -> None:
            with port.makefile("rb") as lines:
                while True:
                    try:
                        line = lines.readline()
                    except (OSError, ValueError):
                        return
                    if not line:
                        return
                    with contextlib.suppress(ValueError, KeyError):
                        reply = json.loads(line)
                        self._replies[reply["id"]].put(reply)

        threading.Thread(target=read, daemon=True).start()

    def _ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        assert self._port is not None, "it is off"
        number = next(self._numbers)
        replies = self._replies[number] = queue.SimpleQueue()
        try:
            self._port.sendall(b"\n" + json.dumps({"id": number, **request}).encode() + b"\n")
            return replies.get(timeout=timeout)
        except queue.Empty:
            raise RuntimeError(f"{self.flavour.name} doesn't answer within {timeout} s: {self.console()}") from None
        finally:
            del self._replies[number]

    def _until_answer(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._ask({}, 1)
            except RuntimeError:
                self._check(deadline)
            else:
                return


def _text(data: str | None) -> str:
    return base64.b64decode(data or "").decode(errors="replace")


def checkout(machine: Machine, target: str = "/srv/netspace") -> None:
    """Copy the checkout's files (tracked by git, or not ignored) into the machine."""
    root = str(images.CHECKOUT)
    listed = subprocess.run(
        ["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
    ).stdout
    names = [name for name in listed.split(b"\0") if name and os.path.lexists(os.path.join(root, os.fsdecode(name)))]
    packed = subprocess.run(
        ["tar", "-C", root, "--null", "-T", "-", "-cz"], input=b"\0".join(names), check=True, capture_output=True
    ).stdout
    unpack(machine, packed, target)


def unpack(machine: Machine, packed: bytes, target: str) -> None:
    """Unpack a compressed tar archive into a folder of the machine."""
    archive = "/var/tmp/packed.tar.gz"
    machine.put(archive, packed)
    machine.sh(f"mkdir -p {target} && tar -C {target} -xzf {archive} && rm {archive}", timeout=600)
