"""Hosts of the lab that are machines: QEMU with UEFI, Secure Boot, and a TPM where the host has one.

QEMU runs in the switch's network namespace, so a machine's two cables end there: ``eth0`` at the switch, and ``eth1``
at nothing but the operator's shell (ssh). Both end with QEMU.
"""

from __future__ import annotations

import functools
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

import machine_home
import machine_image
import tpms
from config import DEVICE, ROOT
from hosts import PATIENCE, Host
from processes import Failed, launch, remembered
from vmlab import image, qemu
from vmlab.flavours import Flavour

MEMORY = 1024
"""Memory of a machine in MiB."""
OVERHEAD = 608
"""Further memory in MiB that QEMU itself needs, most of it for translated code."""
RESERVE = 1024
"""Memory in MiB that is left for the master and this machine's own programs."""
SLOW = 8
"""Factor by which everything in a machine takes longer without KVM."""
DISKS = "disk"
"""A machine's folder for files that survive a power failure."""
LISTENS = "Server listening on"
"""Line that sshd writes to the console once the operator's shell can be reached."""
STAGES = (
    ("BdsDxe: starting", "its kernel starts"),
    (machine_image.CONNECTED, "its services start"),
    (LISTENS, "it is booted"),
)
PROGRAMS = ("qemu-system-x86_64", "qemu-img", "ssh", "ssh-keygen", "mkfs.erofs", "git")


def missing(machines: int) -> str:
    """Return the reason why so many machines can't run here; empty if they can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} missing; sudo {ROOT / 'scripts/provision'} --vm"
    if platform.machine() != "x86_64":
        return f"machines are of x86_64, and this is {platform.machine()}; leave --vm out"
    if not Path("/dev/net/tun").exists():
        return "/dev/net/tun is missing: no cable can be laid to a machine; modprobe tun"
    return too_little(machines, _available())


def too_little(machines: int, available: int) -> str:
    """Return why the memory doesn't suffice; empty if it does.

    :param available: free memory in MiB.
    """
    needed = machines * (MEMORY + OVERHEAD) + RESERVE
    if needed <= available:
        return ""
    return f"{machines} machines need {needed} MiB of memory, and {available} MiB are free; declare fewer hosts"


def _available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    return 0


@functools.cache
def accelerated() -> bool:
    """Return whether this machine's processor can run machines itself (KVM)."""
    words = set(Path("/proc/cpuinfo").read_text().split())
    return bool(words & {"vmx", "svm"}) and os.access("/dev/kvm", os.R_OK | os.W_OK)


def patience() -> float:
    """Return the number of seconds within which a machine boots, or runs a command."""
    return PATIENCE if accelerated() else SLOW * PATIENCE


def command_line(home: Path, disk_image: image.Image, number: int, *, native: bool) -> list[str]:
    """Return QEMU's command. It is meant for the folder *home* and the switch's network namespace.

    :param number: the machine's number in the lab, which its addresses at the cables are made from.
    :param native: whether KVM is used.
    """
    flavour = _flavour(home)
    here = Path()
    shell = f"hostfwd=tcp:127.0.0.1:{machine_home.port(number)}-{machine_image.CONSOLE}:22"
    tail = f"{number >> 8:02x}:{number & 255:02x}"
    return [
        *qemu.board(flavour, processor=qemu.NATIVE if native else qemu.TRANSLATED, memory=MEMORY),
        "-name", home.name,
        # It starts no program, and gains no rights.
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-serial", "file:console",
        "-device", "virtio-serial-pci",
        "-chardev", "file,id=log,path=log,append=on", "-device", "virtserialport,chardev=log,name=log",
        "-netdev", f"tap,id=eth0,ifname={home.name},script=no,downscript=no",
        "-device", f"virtio-net-pci,netdev=eth0,mac=52:54:00:6c:{tail}",
        "-netdev", f"user,id=eth1,restrict=on,ipv6=off,net=169.254.77.0/24,{shell}",
        "-device", f"virtio-net-pci,netdev=eth1,mac=52:54:00:6d:{tail}",
        *qemu.disk(here / DISKS, "root"),
        *_extra("home", "home.tar"),
        *_extra("checkout", "checkout.erofs"),
        *qemu.boot(disk_image, flavour, here / DISKS, machine_image.COMMAND_LINE),
    ]  # fmt: skip


def _flavour(home: Path) -> Flavour:
    return Flavour("lab", tpm=tpms.folder(home).exists(), secure_boot=True)


def _extra(name: str, file: str) -> list[str]:
    drive = f"if=none,id={name},file={file},format=raw,readonly=on"
    return ["-drive", drive, "-device", f"virtio-blk-pci,drive={name},serial={name}"]


class Machine(Host):
    """One machine of the lab. Its files are those of a host; ``disk/`` has its disk and its firmware's variables."""

    shares_kernel = False
    tcti = DEVICE

    def __init__(self, home: Path) -> None:
        super().__init__(home, "salt-minion")

    def init(self) -> int:
        """Return QEMU's PID; 0 if the machine is off, or its cable isn't there yet."""
        pid = self.sandbox()
        return pid if pid and self._plugged() else 0

    def state(self) -> str:
        return "off" if not self.sandbox() else "on" if self.booted() else f"on: {self.stage()}"

    def start(self, lock: int) -> None:
        """Switch the machine on, and wait until its cable ends at the switch. It boots after that."""
        launched = None if self.sandbox() else self._launch(lock)
        deadline = time.monotonic() + PATIENCE
        while not self._plugged():
            ended = not self.sandbox() and (launched is None or launched.poll() is not None)
            if ended or time.monotonic() > deadline:
                said = (self.home / "qemu.log").read_text(errors="replace").strip()[-500:]
                raise Failed(f"{self.name}: QEMU did not start: {said}")
            time.sleep(0.05)

    def _launch(self, lock: int) -> subprocess.Popen[bytes]:
        self._end_tpm()
        disks, made = self.home / DISKS, machine_image.build()
        disks.mkdir(mode=0o700, exist_ok=True)
        if not (disks / "root.qcow2").exists():
            qemu.overlay(made.root, "raw", disks / "root.new")
            (disks / "root.new").rename(disks / "root.qcow2")
        qemu.firmware_variables(disks)
        image.esp_with(made, machine_image.COMMAND_LINE, disks / "esp.img")
        number = machine_home.write(self.home)
        machine_image.pack_checkout(self.home / "checkout.erofs")
        (self.home / "console").unlink(missing_ok=True)
        if tpms.folder(self.home).exists():
            self._start_tpm(lock)
        inside = ["nsenter", f"--target={self._switch()}", "--net", "--", "env", f"--chdir={self.home}"]
        with (self.home / "qemu.log").open("wb") as output:
            command = command_line(self.home, made, number, native=accelerated())
            return launch(self.home / "pid", [*inside, *command], lock, output)

    def _plugged(self) -> bool:
        """Return whether the machine's cable ends at the switch."""
        show = ["nsenter", f"--target={self._switch()}", "--net", "ip", "link", "show", "dev", self.name]
        return bool(self.sandbox()) and subprocess.run(show, capture_output=True).returncode == 0

    def _switch(self) -> int:
        return remembered(self.home.parent / "switch.pid")

    def _start_tpm(self, lock: int) -> None:
        path = self.home / DISKS / "tpm.sock"
        path.unlink(missing_ok=True)
        command = ["env", f"--chdir={self.home}", "swtpm", "socket", "--tpm2", "--tpmstate", "dir=tpm/state"]
        command += ["--ctrl", f"type=unixio,path={DISKS}/tpm.sock"]
        with (self.home / "tpm.log").open("wb") as output:
            launched = launch(self.home / "tpm.pid", command, lock, output)
        deadline = time.monotonic() + PATIENCE
        while not path.exists():
            if launched.poll() is not None or time.monotonic() > deadline:
                said = (self.home / "tpm.log").read_text(errors="replace").strip()[-500:]
                raise Failed(f"{self.name}: its TPM did not start: {said}")
            time.sleep(0.02)

    def _end_tpm(self) -> None:
        _end(self.home / "tpm.pid", f"{self.name}: its TPM")

    def kill(self) -> None:
        """Cut the machine's power. What has reached its disk stays."""
        _end(self.home / "pid", self.name)
        self._end_tpm()

    # -- boot --------------------------------------------------------------------------
    def stage(self) -> str:
        """Return how far the machine's boot has come, in words."""
        said, reached = self._console(), "its firmware runs"
        for mark, words in STAGES:
            reached = words if mark in said else reached
        return reached

    def booted(self) -> bool:
        """Return whether the operator's shell is there."""
        return LISTENS in self._console()

    def _console(self) -> str:
        try:
            return (self.home / "console").read_text(errors="replace")
        except OSError:
            return ""

    # -- inside ------------------------------------------------------------------------
    def enter(self, command: Sequence[str]) -> NoReturn:
        """Replace this process by *command* on the machine, as root, with this terminal."""
        if not self.sandbox():
            raise Failed(f"{self.name}: it is off; start it: lab start {self.name}")
        await_boot([self])
        terminal = ["-t"] if sys.stdin.isatty() and sys.stdout.isatty() else []
        # sshd joins the words and passes them to a shell.
        words = [] if list(command) == ["bash"] else [shlex.join(command)]
        ssh = ["ssh", *terminal, *machine_home.ssh_options(self.home), "--", "root@127.0.0.1", *words]
        os.execvp("nsenter", ["nsenter", f"--target={self._switch()}", "--net", "--", *ssh])  # noqa: S606

    def run(self, *command: str, timeout: float = 0.0) -> subprocess.CompletedProcess[str]:
        return super().run(*command, timeout=timeout or patience())


def await_boot(machines: Iterable[Machine]) -> None:
    """Wait until each machine is booted; print the progress from time to time.

    :raises Failed: a machine ended or doesn't come up.
    """
    waiting, began = [one for one in machines if not one.booted()], time.monotonic()
    said = began
    while waiting:
        for one in waiting:
            if not one.sandbox():
                raise Failed(f"{one.name}: it went off while it booted; see {one.home}/console and qemu.log")
        now = time.monotonic()
        if now - began > patience():
            late = waiting[0]
            raise Failed(f"{late.name}: it is not up within {patience():.0f} s; see {late.home}/console")
        if now - said >= 15:
            said = now
            for one in waiting:
                print(f"  {one.name}: {one.stage()} ({now - began:.0f} s)", file=sys.stderr, flush=True)
        time.sleep(0.2)
        waiting = [one for one in waiting if not one.booted()]


def _end(path: Path, what: str) -> None:
    """Kill the process whose PID is in *path*, and wait for its end."""
    pid = remembered(path)
    if pid:
        subprocess.run(["kill", "-KILL", str(pid)], check=False)
    deadline = time.monotonic() + PATIENCE
    while remembered(path):
        if time.monotonic() > deadline:
            raise Failed(f"{what}: process {pid} does not end; end it by hand, then repeat the command")
        time.sleep(0.02)
    path.unlink(missing_ok=True)
