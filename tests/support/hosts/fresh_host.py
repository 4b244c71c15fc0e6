"""A fresh Debian 13 under systemd, whose package cache holds what netspace's Debian packages depend on.

The root is made once, in ``.cache/fresh``, from the machine's own package sources; it has the packages that Debian's
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
    """Return the root, made if need be; what the packages of each of *releases* depend on is in its cache.

    :raises AssertionError: mmdebstrap can't make it.
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
    """Run a command line in it, as an operator would who is asked nothing."""
    line = line.replace("apt-get ", "apt-get -q -y ", 1)
    host.run("sh", "-c", f"DEBIAN_FRONTEND=noninteractive {line}", timeout=1800)


def told(host: SystemdHost, name: str) -> str:
    """Return what an environment's program has written."""
    return host.run("journalctl", "--no-pager", "-u", f"netspace-environment-{name}").stdout


def units(host: SystemdHost) -> dict[str, str]:
    """Return netspace's running units; by name what is another after each start of it."""
    shown = host.run("systemctl", "list-units", "--plain", "--no-legend", "--state=running", "netspace-*").stdout
    names = [line.split()[0] for line in shown.splitlines()]
    return {name: host.run("systemctl", "show", "-P", "InvocationID", name).stdout.strip() for name in names}
