"""Image of the lab's machines: the image of the tests' machines (``tests/vmlab``), and what a host of a fleet runs.

A machine has two more disks, which are made when it is switched on. ``home`` is a tar archive with the files that
differ between machines, such as the host's name. ``checkout`` has this checkout, read-only.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import yaml
from config import ROOT
from processes import Failed
from vmlab import image
from vmlab.image import Image, Recipe

CACHE = ROOT / ".cache/vm-lab"
CHECKOUT = "/srv/netspace"
CONSOLE = "169.254.77.15"
"""Address of each machine at its second cable. That cable leads to the operator's shell alone."""
COMMAND_LINE = f"{image.COMMAND_LINE} net.ifnames=0"
TREE = "/opt/netspace-tree"
"""Folder in which Salt finds the checkout's resources."""
CONNECTED = "lab: it has its files and cables"
"""Line that a machine writes to its console after HOME_SCRIPT."""
SHELL_PACKAGES = ("openssh-server",)

HOME_SCRIPT = f"""#!/bin/sh -e
# Take what is this machine's own from its disk, and connect it.
tar -C / --no-same-owner -xf /dev/disk/by-id/virtio-home
hostname "$(cat /etc/hostname)"
ip link set lo up
ip address replace {CONSOLE}/24 dev eth1
ip link set eth1 up
. /etc/lab-network
echo "{CONNECTED}"
"""

UNITS = {
    "lab-home.service": r"""[Unit]
Description=What is this machine's own
DefaultDependencies=no
Requires=dev-disk-by\x2did-virtio\x2dhome.device
Requires=sys-subsystem-net-devices-eth0.device sys-subsystem-net-devices-eth1.device
After=dev-disk-by\x2did-virtio\x2dhome.device
After=sys-subsystem-net-devices-eth0.device sys-subsystem-net-devices-eth1.device
Before=network-pre.target network.target basic.target
Wants=network-pre.target network.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/lab-home
StandardOutput=journal+console
StandardError=journal+console

[Install]
WantedBy=basic.target
""",
    "srv-netspace.mount": r"""[Unit]
Description=The checkout

[Mount]
What=/dev/disk/by-id/virtio-checkout
Where=/srv/netspace
Type=erofs
Options=ro

[Install]
WantedBy=local-fs.target
""",
    "lab-shell.service": """[Unit]
Description=The operator's shell
After=lab-home.service

[Service]
RuntimeDirectory=sshd
ExecStart=/usr/sbin/sshd -D -e -f /etc/ssh/lab
KillMode=process
Restart=always
RestartSec=1
StandardOutput=journal+console

[Install]
WantedBy=multi-user.target
""",
    "salt-minion.service": """[Unit]
Description=Salt minion
After=lab-home.service srv-netspace.mount network.target
Requires=srv-netspace.mount

[Service]
ExecStart=/usr/local/bin/salt-minion --log-level=warning
KillMode=process
Restart=always
RestartSec=2
StandardOutput=file:/dev/virtio-ports/log
StandardError=inherit

[Install]
WantedBy=multi-user.target
""",
}

SALT = f"""#!/bin/sh
export PYTHONPATH={image.SITE} PYTHONPYCACHEPREFIX={image.COMPILED}
exec /usr/bin/python3 -c 'import sys; from salt.scripts import @NAME@; @NAME@()' "$@"
"""

SSHD = f"""# The operator's shell, for the holder of the lab's key alone.
ListenAddress {CONSOLE}
HostKey /etc/ssh/lab_host_key
AuthorizedKeysFile /etc/ssh/lab_authorized
PermitRootLogin prohibit-password
AuthenticationMethods publickey
UsePAM no
UseDNS no
X11Forwarding no
AllowTcpForwarding no
PrintMotd no
PrintLastLog no
SetEnv LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=1
"""

PATIENT = """[Manager]
DefaultTimeoutStartSec=900
DefaultTimeoutStopSec=300
DefaultDeviceTimeoutSec=900
"""
"""Settings of systemd with long timeouts, because a machine without KVM is slow."""

# Services of packages that netspace runs itself, by other names.
MASKED = (
    *("rabbitmq-server.service", "epmd.service", "epmd.socket", "haproxy.service"),
    *("ssh.service", "ssh.socket", "sshd-keygen.service"),
)


def packages() -> list[str]:
    """Return the image's Debian packages: those of the tests' machines, of a host with links, and of a shell."""
    listed = yaml.safe_load((ROOT / "states/netspace/packages.yaml").read_text())["host"]
    return [*image.PACKAGES, *(name for name in listed if name not in image.PACKAGES), *SHELL_PACKAGES]


def recipe() -> Recipe:
    return Recipe(CACHE, packages(), furnish, Path(__file__).read_bytes())


def build() -> Image:
    """Return the image; build it if it is missing.

    :raises Failed: a tool failed, or a package can't be fetched.
    """
    try:
        return image.build(recipe())
    except RuntimeError as err:
        raise Failed(f"up: --vm: the machines' image can't be built: {err}") from err


def furnish(root: Path) -> None:
    """Write what makes a root file system a lab's host."""
    units = root / "etc/systemd/system"
    for name, text in UNITS.items():
        (units / name).write_text(text)
        wants = units / f"{text.rstrip().rpartition('WantedBy=')[2]}.wants"
        wants.mkdir(exist_ok=True)
        (wants / name).symlink_to(f"../{name}")
    for name in MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    _program(root / "usr/local/sbin/lab-home", HOME_SCRIPT)
    for program in ("salt-call", "salt-minion"):
        _program(root / "usr/local/bin" / program, SALT.replace("@NAME@", program.replace("-", "_")))
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()  # all machines would have the same
    (root / "etc/ssh/lab").write_text(SSHD)
    for folder in (CHECKOUT, TREE, "/var/log/salt", "/etc/salt", "/etc/systemd/system.conf.d"):
        Path(f"{root}{folder}").mkdir(parents=True, exist_ok=True)
    Path(f"{root}{TREE}/resources").symlink_to(f"{CHECKOUT}/_resources")
    (root / "etc/systemd/system.conf.d/lab.conf").write_text(PATIENT)


def pack_checkout(target: Path) -> None:
    """Write this checkout's files (those that git tracks or would) as a file system that nobody can change."""
    listed = _run("git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = [name for name in listed.split(b"\0") if name and os.path.lexists(ROOT / os.fsdecode(name))]
    packed = _run("tar", "-C", str(ROOT), "--null", "--files-from=-", "--create", stdin=b"\0".join(names))
    aside = target.with_suffix(".new")
    aside.unlink(missing_ok=True)
    _run("mkfs.erofs", "--quiet", "--tar=f", str(aside), stdin=packed)
    aside.rename(target)


def _run(*command: str, stdin: bytes = b"") -> bytes:
    done = subprocess.run(command, input=stdin, capture_output=True)
    if done.returncode:
        raise Failed(f"{command[0]}: {done.stderr.decode(errors='replace').strip()[-500:]}")
    return done.stdout


def _program(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(0o755)
