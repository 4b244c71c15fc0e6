"""A fresh Debian 13 with systemd: the package is installed, ten lines are applied, two environments talk."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import checkout
from support.hosts.systemd_host import SystemdHost
from support.pages import commands, steps
from support.waiting import until

pytestmark = [pytest.mark.systemd, pytest.mark.root]

CACHE = checkout.ROOT / ".cache/fresh"
IMAGE = checkout.ROOT / ".cache/demo.tar"
PAGE = checkout.ROOT / "docs/installation.md"
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


@pytest.fixture(scope="session")
def fresh(packages: list[Path]) -> Path:
    """Return a root of Debian 13 with systemd; its cache has the packages on which netspace's package depends."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is not installed")
    control = (checkout.ROOT / "debian/control").read_bytes()
    root = CACHE / hashlib.sha256(control + f"{INCLUDED}{FETCH}".encode()).hexdigest()[:16]
    if root.exists():
        return root
    shutil.rmtree(CACHE, ignore_errors=True)
    CACHE.mkdir(parents=True)
    made = CACHE / "new"
    command = ["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={INCLUDED}"]
    command += [f"--customize-hook=copy-in {package} /srv" for package in packages]
    command += [f"--customize-hook={FETCH}", "--skip=cleanup/apt", "--skip=output/dev", "trixie", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        shutil.rmtree(made, ignore_errors=True)
        pytest.skip(f"mmdebstrap makes no root of Debian 13 here: {done.stderr[-500:]}")
    made.rename(root)
    return root


@pytest.fixture(scope="module")
def host(fresh: Path) -> Iterator[SystemdHost]:
    disk = Path("/var/tmp") / f"netspace-fresh-{os.getpid()}"
    disk.mkdir(mode=0o755)
    try:
        with SystemdHost(disk, fresh) as machine:
            yield machine
    finally:
        shutil.rmtree(disk)


def put(host: SystemdHost, source: Path, inside: str) -> None:
    host.path(inside).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, host.path(inside))


def told(host: SystemdHost, name: str) -> str:
    return host.run("journalctl", "--no-pager", "-u", f"netspace-environment-{name}").stdout


@pytest.fixture(scope="module")
def installed(host: SystemdHost, packages: list[Path]) -> Callable[[str], float]:
    """Install the packages and apply the declaration; return a clock that began before that."""
    began = time.monotonic()
    marks: dict[str, float] = {}
    for package in packages:
        put(host, package, f"/srv/{package.name}")
    put(host, IMAGE, "/srv/demo.tar")
    host.path("/etc/netspace").mkdir()
    host.path("/etc/netspace/declaration.yaml").write_text(DECLARATION)
    text = PAGE.read_text().split("\n## From a Debian package\n")[1]
    for line in commands(steps(text)[0].text):
        command = line.replace("./", "/srv/").replace("apt-get install", "apt-get -q -y install")
        host.run("sh", "-c", f"DEBIAN_FRONTEND=noninteractive {command}", timeout=1800)
        marks[line.split()[0]] = time.monotonic() - began
    until(lambda: "thank you" in told(host, "web"), 300)
    marks["talking"] = time.monotonic() - began
    load = os.getloadavg()[0]
    print(f"\nfrom nothing: {', '.join(f'{name} {at:.0f} s' for name, at in marks.items())} (load {load:.0f})")
    return marks.__getitem__


@pytest.mark.usefixtures("installed")
def test_two_environments_talk_from_ten_lines(host: SystemdHost) -> None:
    assert len(DECLARATION.splitlines()) == 10
    assert "from web: 1 apples" in told(host, "orders")
    assert host.run("netspace", "plan", "/etc/netspace/declaration.yaml", check=False).returncode == 0


@pytest.mark.usefixtures("installed")
def test_no_service_runs_that_netspace_did_not_start(host: SystemdHost) -> None:
    shown = host.run("systemctl", "list-units", "--plain", "--no-legend", "--type=service", "--state=running").stdout
    running = {line.split()[0] for line in shown.splitlines()}
    assert not {"rabbitmq-server.service", "haproxy.service", "epmd.service"} & running
    assert {"netspace-environment-web.service", "netspace-environment-orders.service"} <= running
    enabled = host.run("systemctl", "is-enabled", "netspace-apply.service", check=False).stdout.strip()
    assert enabled == "disabled"


@pytest.mark.usefixtures("installed")
def test_removed_package_leaves_environments_running(host: SystemdHost) -> None:
    before = host.run("systemctl", "show", "-P", "MainPID", "netspace-environment-web").stdout
    host.run("apt-get", "-q", "-y", "remove", "netspace", timeout=600)
    assert host.run("systemctl", "show", "-P", "MainPID", "netspace-environment-web").stdout == before
    assert "web" in told(host, "web")
