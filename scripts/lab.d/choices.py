"""The operator's choices at ``lab up``: its arguments, and the hosts that the fleet's file declares."""

from __future__ import annotations

import argparse
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

import config
import yaml
from config import MASTER, MOST
from processes import Failed

NAME = re.compile(r"[a-z][a-z0-9-]{0,13}[a-z0-9]|[a-z]")  # also a network interface's name: 15 bytes
RESERVED = {"master", "maker", "names", "srv", "lab", "lo", "all", "default"}  # folders, interfaces and words of ip(8)


@dataclass(frozen=True)
class Choices:
    """Arguments of ``lab up``.

    :param hosts: number of hosts of the default fleet; None: as in the file, or the default.
    :param tpm: how many hosts have a TPM, from the first on; None: the default.
    :param vm: whether the hosts are machines.
    :param file: the operator's declaration of a fleet.
    """

    hosts: int | None = None
    tpm: int | None = None
    vm: bool = False
    file: Path | None = None

    def default_fleet(self) -> str:
        """Return the declaration of the default fleet."""
        hosts = self.hosts or 2
        return config.default_fleet(hosts, self.tpms(hosts), machines=self.vm)

    def tpms(self, hosts: int) -> int:
        """Return how many of the hosts of a new lab have a TPM.

        :raises Failed: more were asked for than there are hosts.
        """
        if self.tpm is None:
            return hosts if self.vm else 0
        least = 0 if self.vm else 1
        if not least <= self.tpm <= hosts:
            raise Failed(f"up: --tpm {self.tpm} is not between {least} and the number of hosts")
        return self.tpm


def parse(arguments: list[str], fleet: Path) -> Choices:
    """Return the arguments of ``lab up``.

    :param fleet: the lab's own file of the fleet, which exists if the lab isn't new.
    :raises Failed: the arguments don't fit together, or don't fit an existing lab.
    """
    parser = argparse.ArgumentParser(prog="lab up")
    parser.add_argument("--hosts", type=int, metavar="N", help="hosts of the default fleet (default 2)")
    parser.add_argument("--tpm", type=int, metavar="N", help="how many of them have a TPM (default 0; with --vm: all)")
    parser.add_argument("--vm", action="store_true", help="hosts are machines with UEFI and Secure Boot")
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="declaration of a fleet")
    found = parser.parse_args(arguments)
    chosen = Choices(found.hosts, found.tpm, found.vm, found.file)
    if chosen.file and chosen.hosts:
        raise Failed("up: --hosts is for the default fleet; FILE declares its own hosts")
    if chosen.hosts is not None and not 1 <= chosen.hosts <= MOST:
        raise Failed(f"up: --hosts {chosen.hosts} is not between 1 and {MOST}")
    if chosen.tpm is not None and (fleet.exists() or (chosen.file and not chosen.vm)):
        raise Failed(f"up: --tpm is for a new lab with the default fleet; {fleet} or FILE declares its own hosts")
    if not chosen.file:
        chosen.tpms(chosen.hosts or 2)
    if chosen.file and fleet.exists() and chosen.file.resolve() == fleet.resolve():
        chosen = Choices(vm=chosen.vm)  # it is the lab's own
    if chosen.file and fleet.exists() and not fleet.is_symlink():
        raise Failed(f"up: this lab declares its fleet in {fleet}; edit that file, or end the lab: lab down")
    if chosen.hosts and fleet.exists():
        raise Failed(f"up: --hosts is for a new lab; edit {fleet}, or end the lab: lab down")
    return chosen


def declared(text: str, where: str) -> dict[str, str]:
    """Return the address of each host in a fleet's declaration.

    :param where: the declaration's place, for messages.
    """
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise Failed(f"{where}: {err}") from err
    hosts = found.get("hosts") if isinstance(found, dict) else None
    if not isinstance(hosts, dict) or not hosts:
        raise Failed(f"{where}: it declares no hosts; write hosts: {{h1: {{address: 198.51.100.1}}}}")
    if len(hosts) > MOST:
        raise Failed(f"{where}: hosts: {len(hosts)} are too many; a lab has at most {MOST}")
    addresses: dict[str, str] = {}
    for name, host_ in hosts.items():
        address = host_.get("address") if isinstance(host_, dict) else None
        if not isinstance(name, str) or not NAME.fullmatch(name) or name in RESERVED:
            raise Failed(f"{where}: hosts: {name!r} can't be the name of a lab's host; use a short one, such as h1")
        try:
            value = str(ipaddress.ip_address(str(address)))
        except ValueError:
            raise Failed(f"{where}: hosts: {name}: address: {address!r} is not an IP address") from None
        if value in (MASTER, *addresses.values()):
            raise Failed(f"{where}: hosts: {name}: address: {value} is taken; choose another one")
        addresses[name] = value
    return addresses
