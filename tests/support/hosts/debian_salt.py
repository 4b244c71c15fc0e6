"""Salt of a given series in a venv of Debian's own Python, which also runs in a fresh Debian 13 without network."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import yaml

from netspace import REQUIREMENTS
from support import checkout
from support.hosts import fresh_host
from support.hosts.systemd_host import SystemdHost

PLACE = "/opt/salt"
CONFIGURATION = {
    "file_client": "local",
    "enable_fqdns_grains": False,
    "enable_gpu_grains": False,
    "file_roots": {"base": ["/srv/salt", "/usr/share/netspace/file_root"]},
    "pillar_roots": {"base": ["/srv/pillar"]},
}
CALL = "import sys; from salt.scripts import salt_call; sys.argv[0] = 'salt-call'; salt_call()"


def venv(series: str) -> Path:
    """Return the venv with the packages that netspace's library needs; make it in ``.cache`` if it is missing.

    :param series: such as ``3008.*``.
    """
    made = checkout.ROOT / f".cache/debian-salt-{series.rstrip('.*')}"
    ready = made / ".ready"
    if not ready.exists():
        shutil.rmtree(made, ignore_errors=True)
        subprocess.run(["/usr/bin/python3", "-m", "venv", made], check=True)
        wanted = [f"salt=={series}", *REQUIREMENTS.values()]
        pip = [made / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", "--prefer-binary"]
        subprocess.run([*pip, *wanted], check=True, stdin=subprocess.DEVNULL)
        ready.touch()
    return made


def place(host: SystemdHost, series: str) -> None:
    """Install Salt of this series as the machine's ``salt-call``, in place of any earlier one, like an upgrade."""
    shutil.rmtree(host.path(PLACE), ignore_errors=True)
    fresh_host.put(host, venv(series), PLACE)
    command = host.path("/usr/local/bin/salt-call")
    command.write_text(f'#!/bin/sh\nexec {PLACE}/bin/python -c "{CALL}" --retcode-passthrough "$@"\n')
    command.chmod(0o755)


def configure(host: SystemdHost, pillar: str = "") -> None:
    """Configure a minion without a master; its pillar is the text *pillar*, if given."""
    contents = {"/etc/salt/minion": yaml.safe_dump(CONFIGURATION)}
    if pillar:
        contents["/srv/pillar/top.sls"] = yaml.safe_dump({"base": {"*": ["netspace"]}})
        contents["/srv/pillar/netspace.sls"] = pillar
    for path, text in contents.items():
        host.path(path).parent.mkdir(parents=True, exist_ok=True)
        host.path(path).write_text(text)


def call(host: SystemdHost, *arguments: str) -> str:
    """Run ``salt-call`` in the machine; return its output.

    :raises AssertionError: the call failed, or a state did.
    """
    done = host.run("salt-call", *arguments, timeout=1200, check=False)
    assert done.returncode == 0, f"{arguments}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout
