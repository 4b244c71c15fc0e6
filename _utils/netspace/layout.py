"""Layout of netspace on a host: the definition of every path and system-wide name.

All names contain the *instance* (``netspace`` unless configured otherwise). By this name, netspace recognizes its own
objects and can remove them. This module never accesses the disk.
"""

from __future__ import annotations

import hashlib
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

from netspace.patterns import pattern

INSTANCE = pattern(r"[a-z][a-z0-9]{0,15}")
_BESIDE = "-NEXT"
TAP = "tap0"  # the name of an environment's tap device
# In place of it for a kernel in a domain of Xen: the link that the kind ``tap`` filters, and its peer, which leads to
# the domain's device.
DOMAIN_LINK, DOMAIN_PEER = "xen0", "xen1"
DOMAIN = 2**32 - 1  # the owner of such a link, where a tap device's owner is a user; no user has this number


@lru_cache(maxsize=16384)
def below(folder: Path, name: str) -> Path:
    """Return ``folder / name``. The result is cached, because each run needs the same paths many times."""
    return folder / name


class _Place(NamedTuple):
    instance: str
    root: Path


class Layout(_Place):
    """The paths and names of one netspace instance on one host.

    :param instance: prefix of every system-wide name.
    :param root: directory that stands for ``/``; only unit tests set it.
    """

    def __new__(cls, instance: str = "netspace", root: Path = Path("/")) -> Layout:
        if not INSTANCE.fullmatch(instance):
            raise ValueError(f"instance {instance!r}: expected a letter, then up to 15 of a-z and 0-9")
        return super().__new__(cls, instance, root)

    # -- persistent: survives a reboot --------------------------------------
    @cached_property
    def state(self) -> Path:
        """Folder of records, images, writable layers and credentials; 0700, owned by root."""
        return self.root / "var/lib" / self.instance

    @cached_property
    def images(self) -> Path:
        """Folder of content-addressed images: ``sha256-<hex>.erofs`` or ``sha256-<hex>/``."""
        return self.state / "images"

    @cached_property
    def library(self) -> Path:
        """Folder of the library's copy. Units run the copy, so that they need no Salt cache."""
        return self.state / "lib"

    @cached_property
    def lock(self) -> Path:
        """Lock file (flock); a process holds its lock while it changes this instance."""
        return self.state / "lock"

    @cached_property
    def broker(self) -> Path:
        """Folder of the RabbitMQ node's data, log and configuration.

        The folder isn't below ``state``, because only root may enter ``state``.
        """
        return self.root / f"var/lib/{self.instance}-broker"

    @cached_property
    def logs(self) -> Path:
        return self.root / "var/log" / self.instance

    def records(self, kind: str) -> Path:
        """Return the folder of applied objects' records, one JSON file per object: ``<state>/<kind>/<name>.json``."""
        return below(self.state, kind)

    @cached_property
    def layers(self) -> Path:
        """Folder of the environments' writable layers, one folder per environment."""
        return self.state / "layers"

    def environment(self, name: str) -> Path:
        """Return the environment's own persistent folder (overlay upper and work)."""
        return below(self.layers, name)

    def volumes(self, name: str) -> Path:
        """Return the folder of the environment's volumes, except those that are folders of the host.

        Each volume is one file, and stays after the environment's removal.
        """
        return below(self._volumes, name)

    @cached_property
    def _volumes(self) -> Path:
        return self.state / "volumes"

    # -- volatile: gone after a reboot, rebuilt from the records ------------
    @cached_property
    def run(self) -> Path:
        return self.root / "run" / self.instance

    def bundle(self, name: str) -> Path:
        """Return the folder of an environment's OCI bundle, with config.json, rootfs, inside/ and users."""
        return below(self._bundles, name)

    @cached_property
    def _bundles(self) -> Path:
        return self.run / "environments"

    def inside(self, name: str) -> Path:
        """Return the folder that the environment sees as ``/run/netspace`` (bind-mounted, read-only)."""
        return below(self.bundle(name), "inside")

    def users(self, name: str) -> Path:
        """Return the path of the file on which the environment's user namespace is mounted."""
        return below(self.bundle(name), "users")

    @cached_property
    def identities(self) -> Path:
        """Folder of the keys by which environments log in; only root can read it, and it exists in memory only."""
        return self.run / "identities"

    def identity(self, name: str) -> Path:
        """Return the folder of one environment's keys, below :attr:`identities`."""
        return self.identities / name

    @cached_property
    def opened_secrets(self) -> Path:
        """Folder of opened secrets, one folder per environment; only root can read it, and it exists in memory only."""
        return self.run / "secrets"

    @cached_property
    def apparmor(self) -> Path:
        """Folder of the texts of AppArmor profiles, one file per profile with the profile's name."""
        return self.state / "apparmor"

    def disks(self, name: str) -> Path:
        """Return the folder of the mount points of an environment's bounded file systems.

        Before you remove the folder, unmount the file systems in it. Never delete it recursively.
        """
        return below(self._disks, name)

    @cached_property
    def _disks(self) -> Path:
        return self.run / "disks"

    @cached_property
    def inits(self) -> Path:
        """Folder of the init program, process 1 of environments with ``init``: one copy per version."""
        return self.run / "init"

    # -- system-wide names ---------------------------------------------------
    def beside(self, name: str) -> str:
        """Return the name of an environment's second instance during an update.

        This name contains capitals, which no environment's name does.
        """
        return f"{name}{_BESIDE}"

    def whose(self, name: str) -> str:
        """Return the environment of an instance.

        :param name: the environment's name, or the name of its second instance (:meth:`beside`).
        """
        return name.removesuffix(_BESIDE)

    def netns_name(self, name: str) -> str:
        return f"{self.instance}-{self.whose(name)}"

    @cached_property
    def _namespaces(self) -> Path:
        return self.root / "run/netns"

    def netns(self, name: str) -> Path:
        """Return the path of the environment's network namespace, in the folder of ``ip netns``."""
        return below(self._namespaces, self.netns_name(name))

    def mac(self, name: str) -> str:
        """Return the MAC of an environment's interface: locally administered, unicast, derived from a hash."""
        digest = hashlib.sha256(f"mac/{self.instance}/{name}".encode()).digest()
        return bytes([digest[0] & 0xFC | 0x02, *digest[1:6]]).hex(":")

    @property
    def nft_table(self) -> str:
        """The name of netspace's nftables table, family inet."""
        return self.instance

    def service(self, name: str) -> str:
        """Return the name of a supervised service, without a suffix: ``netspace-broker``."""
        return f"{self.instance}-{name}"
