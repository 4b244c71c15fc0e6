"""Small disk with a machine's own files: its name, addresses and keys, and its minion's configuration.

It is written each time the machine is switched on. Its content is a tar archive.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import config
import machine_image
import tpms
from processes import run

FIRST_PORT = 22000
"""Port of the first machine's shell in the switch's network namespace."""


def port(number: int) -> int:
    """Return the port at which the shell of a machine is reached."""
    return FIRST_PORT + number


def write(home: Path) -> int:
    """Write the archive of the machine in *home*; return the machine's number."""
    number, lab = _number(home), home.parent
    address = json.loads((lab / "hosts.json").read_text())[home.name]
    _key(lab / "shell_key")
    _key(home / "host_key")
    (home / "known_hosts").write_text(f"{home.name} {(home / 'host_key.pub').read_text()}")
    files = {
        "etc/hostname": f"{home.name}\n".encode(),
        "etc/hosts": (lab / "names").read_bytes(),
        "etc/lab-network": network(address).encode(),
        "etc/ssh/lab_host_key": (home / "host_key").read_bytes(),
        "etc/ssh/lab_authorized": (lab / "shell_key.pub").read_bytes(),
        "etc/salt/minion": json.dumps(minion(home.name), indent=1).encode() + b"\n",
    }
    if (lab / "maker").exists():
        for name in tpms.MAKERS:
            files[f"{tpms.ROOTS[1:]}/{name}"] = (lab / "maker" / name).read_bytes()
    aside = home / "home.new"
    with tarfile.open(aside, "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            entry.mode = 0o600 if name.endswith("_key") else 0o644
            archive.addfile(entry, io.BytesIO(data))
    aside.rename(home / "home.tar")
    return number


def network(address: str) -> str:
    """Return the shell commands that give a machine its address."""
    family, length, more = ("-6", 128, " nodad") if ":" in address else ("-4", 32, "")
    # Every other address is reached by the switch, or not at all.
    return (
        f"ip address replace {address}/{length} dev eth0{more}\n"
        "ip link set eth0 up\n"
        f"ip {family} route replace default dev eth0\n"
    )


def minion(name: str) -> dict[str, object]:
    """Return the configuration of a machine's minion."""
    return {
        **config.plugins(Path(machine_image.CHECKOUT), Path(machine_image.TREE)),
        **config.minion(name),
        # Where QEMU translates, each look at the schedule costs, and so does each question whether the key is accepted.
        "loop_interval": 5,
        "acceptance_wait_time": 15,
        "master_alive_interval": 30,
        "log_level_logfile": "quiet",
        "enable_fqdns_grains": False,
        "enable_gpu_grains": False,
    }


def ssh_options(home: Path) -> list[str]:
    """Return ssh's options for the shell of the machine in *home*."""
    options = {
        "IdentityFile": home.parent / "shell_key",
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": home / "known_hosts",
        "GlobalKnownHostsFile": "none",
        "HostKeyAlias": home.name,
        "StrictHostKeyChecking": "yes",
        "BatchMode": "yes",
        "LogLevel": "ERROR",
        "ServerAliveInterval": 30,
        "ServerAliveCountMax": 20,
        "Port": port(_number(home)),
    }
    return ["-F", "none", *(f"-o{key}={value}" for key, value in options.items())]


def _number(home: Path) -> int:
    """Return the number of the machine in *home*; choose the smallest free one, if it has none."""
    path = home / "number"
    if path.exists():
        return int(path.read_text())
    taken = {int(other.read_text()) for other in home.parent.glob("*/number")}
    free = min(set(range(1, config.MOST + 2)) - taken)
    path.write_text(f"{free}\n")
    return free


def _key(path: Path) -> None:
    if not path.with_name(f"{path.name}.pub").exists():
        path.unlink(missing_ok=True)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(path))
