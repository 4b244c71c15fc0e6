"""Configuration of the lab's master and minions, and the default fleet, which is used without an operator's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tpms import ROOTS, TCTI

ROOT = Path(__file__).resolve().parents[2]
MASTER = "198.51.100.254"
"""Address of the master (RFC 5737)."""
ADMISSION = 4507
"""Port at which the master takes applications of minions whose keys are pending."""
DEVICE = "device:/dev/tpmrm0"
"""The TPM of a host that is a machine."""
SLOW = 300
"""Seconds within which a machine answers, even if QEMU translates its code because there is no KVM."""
PCRS = (*range(10), 11, 12)
"""PCRs with measurements of a machine's boot, up to the kernel's command line and the boot loader's files."""
MOST = 200
"""Hosts of a lab at most: addresses of one /24."""


def default_fleet(hosts: int, tpms: int = 0, *, machines: bool = False) -> str:
    """Return the declaration of *hosts* hosts: two environments with a sealed link, on the first and the last host.

    :param tpms: how many of the hosts have a TPM, from the first on. The last host's environment demands its host's
        TPM, if that host has one.
    :param machines: whether the hosts are machines.
    """
    tpm = f', attestation: {{tpm: "{DEVICE if machines else TCTI}", roots: {ROOTS}}}'
    demands = ", attestation: {policy: require, minimum: L3}" if tpms == hosts else ""
    addresses = "\n".join(
        f"  h{number}: {{address: 198.51.100.{number}{tpm if number <= tpms else ''}}}"
        for number in range(1, hosts + 1)
    )
    image = "tar:salt://images/shop.tar"
    return f"""\
# The fleet of the lab. Change it, then apply.
hosts:
{addresses}
environments:
  web:    {{on: h1, image: {image}, command: [/usr/bin/web]}}
  orders: {{on: h{hosts}, image: {image}, command: [/usr/bin/orders]{demands}}}
links:
  - {{from: web, to: orders, pattern: request, seal: true}}
"""


def plugins(checkout: Path, tree: Path) -> dict[str, list[str]]:
    """Return the configuration with which Salt uses the plugins of a checkout directly.

    :param tree: folder with a link to the checkout's resources, ``resources``.
    """
    folders = {
        "module_dirs": "_modules",
        "resources_dirs": "_resources",
        "states_dirs": "_states",
        "grains_dirs": "_grains",
        "runner_dirs": "_runners",
        "pillar_dirs": "_pillar",
        "beacons_dirs": "_beacons",
        "engines_dirs": "_engines",
        "outputter_dirs": "_output",
        "utils_dirs": "_utils",
    }
    found = {key: [str(checkout / folder)] for key, folder in folders.items()}
    found["module_dirs"].append(str(tree))
    return found


def _common(home: Path, role: str) -> dict[str, Any]:
    tree = home / "tree"
    tree.mkdir(exist_ok=True)
    if not (tree / "resources").is_symlink():
        (tree / "resources").symlink_to(ROOT / "_resources")
    return {
        "user": "root",
        "root_dir": str(home),
        "pki_dir": str(home / "pki"),
        "cachedir": str(home / "cache"),
        "sock_dir": "/run/salt",  # each host has a /run of its own; names of sockets must be short
        "pidfile": f"/run/salt-{role}.pid",
        "log_file": str(home / "log"),
        "log_level_logfile": "warning",
        "enable_fqdns_grains": False,
        "enable_gpu_grains": False,
        **plugins(ROOT, tree),
    }


REACTOR = """\
look:
  runner.netspace_trust.look:
    - arg: [{{ data['minion'] | tojson }}]
    - kwarg: {}
"""
"""Reaction to a change of a host's trust: its links are cut or restored at once."""


def minion(name: str) -> dict[str, object]:
    """Return the part of a minion's configuration that hosts and machines of a lab have in common."""
    return {
        "id": name,
        "master": MASTER,
        "autoload_dynamic_modules": False,
        "acceptance_wait_time": 2,
        "master_alive_interval": 10,
        "recon_default": 500,
        "recon_max": 2000,
        "beacons": {"netspace_trust": [{"interval": 60}]},
    }


def write_minion(home: Path) -> None:
    """Write the configuration of the minion whose folder is *home*."""
    _write(home, "minion", minion(home.name))


def write_master(home: Path, served: Path, fleet: Path, others: list[str] | None, *, machines: bool) -> None:
    """Write the configuration of the master.

    :param served: folder whose files every minion may fetch: images, and the operator's own states.
    :param fleet: file of the fleet's declaration, outside of that folder, because no minion may see the whole fleet.
    :param others: the hosts without a TPM, if some hosts have one; None: no host has a TPM.
    :param machines: whether the hosts are machines, which measure their boot.
    """
    reactor = home / "trust.sls"
    reactor.write_text(REACTOR)
    more = {
        "interface": "0.0.0.0",  # noqa: S104 -- the lab's network leads nowhere
        "auto_accept": others is None,  # nobody but the lab's hosts reaches this master
        "file_roots": {"base": [str(ROOT / "states"), str(served)]},
        "pillar_roots": {"base": [str(served / "pillar")]},
        "worker_threads": 3,
        "timeout": SLOW if machines else 60,  # many hosts share one machine
        "gather_job_timeout": SLOW // 2 if machines else 30,
        "ext_pillar": [{"netspace": str(fleet)}],
        "netspace.fleet": {"folder": str(home / "fleet")},
        "netspace.link": {"root": str(home / "root")},
        # Hosts without a TPM reach L1.
        "netspace.attestation": {
            "folder": str(home / "attestation"),
            "timeout": SLOW if machines else 60,
            "jitter": 0,
            "groups": [{"name": "default", "minimum": "L1", **({"pcrs": PCRS} if machines else {})}],
            **({} if others is None else {"inventory": str(home / "tpms"), "roots": str(home / "tpm-roots")}),
        },
        "reactor": [{"netspace/attestation/*/*": [str(reactor)]}],
        "reactor_refresh_interval": 86400,  # by default, Salt loads all runners again if no event came for a minute
    }
    if others is not None:
        accepted = home / "accepted"
        accepted.write_text("".join(f"{name}\n" for name in others))
        accepted.chmod(0o600)
        more["autosign_file"] = str(accepted)
        more["engines"] = [{"netspace_admission": {"address": MASTER, "port": ADMISSION}}]
    _write(home, "master", more)


def _write(home: Path, role: str, more: dict[str, Any]) -> None:
    (home / "etc").mkdir(exist_ok=True)
    (home / "etc" / role).write_text(json.dumps(_common(home, role) | more, indent=1) + "\n")
