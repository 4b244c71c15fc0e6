"""A fresh Debian 13 under systemd, whose package cache contains the dependencies of netspace's Debian packages.

The root is made once, in ``.cache/fresh``, from the machine's own package sources. It has the packages that Debian's
installer puts on every machine, and nothing of netspace. A machine that boots it has no network.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from support import checkout
from support.hosts.systemd_host import SystemdHost
from support.pages import commands, steps

CACHE = checkout.ROOT / ".cache/fresh"
PAGE = checkout.ROOT / "docs/installation.md"
IMAGE = checkout.ROOT / ".cache/demo.tar"
"""The demo's image; the declaration has it in the machine's /srv."""
DECLARATION = """\
netspace:
  environments:
    orders:
      image: tar:/srv/demo.tar
      command: [/usr/bin/python3, /demo/orders.py]
    web:
      image: tar:/srv/demo.tar
      command: [/usr/bin/python3, /demo/web.py]
  links:
    - {from: web, to: orders, pattern: request}
"""
# With what Debian's installer puts on every machine, and the machine here calls: iproute2.
INCLUDED = "systemd,systemd-sysv,dbus,iproute2"
# Fetches what the packages depend on into the root's own cache, and installs nothing.
FETCH = 'chroot "$1" sh -c "apt-get -q -y --download-only --no-install-recommends install /srv/*.deb && rm /srv/*.deb"'


def root(*releases: Sequence[Path]) -> Path:
    """Return the root, made if it is missing; its package cache has the dependencies of each of *releases*.

    :raises AssertionError: mmdebstrap can't make the root.
    """
    wanted = hashlib.sha256(f"{INCLUDED}{FETCH}".encode())
    for packages in releases:
        for package in sorted(packages):
            wanted.update(
                subprocess.run(["dpkg-deb", "-f", package, "Depends"], check=True, capture_output=True).stdout
            )
    made = CACHE / wanted.hexdigest()[:16]
    if made.exists():
        return made
    shutil.rmtree(CACHE, ignore_errors=True)
    CACHE.mkdir(parents=True)
    new = CACHE / "new"
    command = ["mmdebstrap", "--mode=root", "--variant=minbase", "--dpkgopt=force-unsafe-io", f"--include={INCLUDED}"]
    for packages in releases:
        command += [f"--customize-hook=copy-in {package} /srv" for package in packages]
        command += [f"--customize-hook={FETCH}"]
    command += ["--skip=cleanup/apt", "--skip=output/dev", "trixie", str(new)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"mmdebstrap makes no root of Debian 13 here: {done.stderr[-2000:]}"
    new.rename(made)
    return made


def put(host: SystemdHost, source: Path, inside: str) -> None:
    """Copy a file or a folder into the machine."""
    target = host.path(inside)
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy(source, target)


def installation() -> list[str]:
    """Return the commands by which docs/installation.md installs the packages and applies a declaration."""
    text = PAGE.read_text().split("\n## From a Debian package\n")[1]
    return commands(steps(text)[0].text)


def install(host: SystemdHost, packages: Sequence[Path], line: str = "") -> None:
    """Copy *packages* into the machine's ``/srv``, and install them from there.

    :param line: the command; by default that of docs/installation.md, with the names of *packages*.
    """
    for package in packages:
        put(host, package, f"/srv/{package.name}")
    names = " ".join(f"/srv/{package.name}" for package in packages)
    line = line or f"apt-get install --no-install-recommends {names}"
    run(host, line.replace("./", "/srv/"))


def run(host: SystemdHost, line: str) -> None:
    """Run a command line in the machine, without questions to the operator."""
    line = line.replace("apt-get ", "apt-get -q -y ", 1)
    host.run("sh", "-c", f"DEBIAN_FRONTEND=noninteractive {line}", timeout=1800)


def told(host: SystemdHost, name: str) -> str:
    """Return the output of an environment's program."""
    return host.run("journalctl", "--no-pager", "-u", f"netspace-environment-{name}").stdout


def units(host: SystemdHost) -> dict[str, str]:
    """Return netspace's running units by name, each with a value that changes at each start of the unit."""
    shown = host.run("systemctl", "list-units", "--plain", "--no-legend", "--state=running", "netspace-*").stdout
    names = [line.split()[0] for line in shown.splitlines()]
    return {name: host.run("systemctl", "show", "-P", "InvocationID", name).stdout.strip() for name in names}
