"""First program of a lab's host: it mounts the host's disk, restores environments, and keeps the Salt daemon running.

usage: inside.py HOME DAEMON

``scripts/sandbox`` starts it. *HOME* is the host's folder on this machine. *DAEMON* is ``salt-master`` or
``salt-minion``.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import tpms

# What survives a power failure. The sandbox has an empty file system in memory there.
KEPT = ("/var/lib/netspace", "/var/lib/netspace-broker", "/var/log/netspace")
LIBRARY = Path("/var/lib/netspace/lib/current")
CABLE = "eth0"
PATIENCE = 60.0  # seconds for the lab's command to lay the cable
PAUSE = 2.0  # seconds before an ended daemon is started again


def mount_disk(home: Path) -> None:
    """Mount the folders for netspace's files from the host's disk, and a separate ``/etc``."""
    for target in KEPT:
        folder = home / "disk" / Path(target).name
        if not folder.exists():
            folder.mkdir(parents=True, mode=0o700)
        _mount(folder, target)
    etc = home / "disk/etc"
    if not etc.exists():
        aside = home / "disk/etc.new"
        shutil.rmtree(aside, ignore_errors=True)
        subprocess.run(["cp", "--archive", "/etc", str(aside)], check=True)
        shutil.rmtree(aside / "netspace", ignore_errors=True)  # the machine's own
        aside.rename(etc)
    _mount(etc, "/etc")
    # The lab's names of hosts, and no name server: the machine's own can't be reached from here.
    _mount(home.parent / "names", "/etc/hosts")
    resolver = Path("/etc/resolv.conf")  # it may be a link into /run
    resolver.unlink(missing_ok=True)
    resolver.touch()


def _mount(source: Path, target: str) -> None:
    subprocess.run(["mount", "--bind", str(source), target], check=True)


def await_network() -> None:
    """Wait until the host has an address. The lab's command connects the network."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        shown = subprocess.run(["ip", "-brief", "address", "show", "dev", CABLE], capture_output=True, text=True).stdout
        if "/32" in shown or "/128" in shown:
            return
        time.sleep(0.1)


def restore() -> None:
    """Restore the environments that ran before the host's last end, as an init does (docs/supervision.md)."""
    if LIBRARY.exists():
        subprocess.run([sys.executable, "-I", str(LIBRARY), "restore"], stdin=subprocess.DEVNULL, check=False)


def keep_running(command: list[str]) -> None:
    """Start *command*, and start it again whenever it ends. Never returns."""
    while True:
        subprocess.run(command, stdin=subprocess.DEVNULL, check=False)
        time.sleep(PAUSE)


def main() -> None:
    home, daemon = Path(sys.argv[1]), sys.argv[2]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at `lab up` ends no host
    socket.sethostname(home.name)
    Path("/run/salt").mkdir(exist_ok=True)
    mount_disk(home)
    (home / "ready").touch()
    await_network()
    tpms.start(home)
    restore()
    keep_running([str(Path(sys.executable).with_name(daemon)), f"--config-dir={home / 'etc'}"])


if __name__ == "__main__":
    main()
