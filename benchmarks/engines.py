"""Podman, Docker and Incus as peers of the benchmarks, each with all its files in a scratch folder.

An engine that is missing, or doesn't work on this host, raises :class:`Missing` with the reason. Nothing here measures.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

SERVER_SECONDS = 30
# A program that ends at SIGTERM, so that no engine waits for its own time-out.
IDLE = '#!/bin/sh\ntrap "exit 0" TERM PWR INT\nwhile :; do sleep 1000 & wait; done\n'
# Podman would take /sbin/init for systemd, and send another signal.
PROGRAM, PROGRAM_OF_INCUS = "bin/idle", "sbin/init"
NETWORK, GATEWAY = "10.222.0.0/16", "10.222.0.1/16"


class Missing(Exception):
    """Error with the reason why an engine can't be measured here."""


def run(command: Sequence[str], data: bytes | None = None, variables: Mapping[str, str] | None = None) -> bytes:
    """Run *command*, and return its output.

    :raises Missing: when it fails.
    """
    done = subprocess.run(command, input=data or b"", capture_output=True, env={**os.environ, **(variables or {})})
    if done.returncode:
        raise Missing(f"{' '.join(command[:6])}: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return done.stdout


def add_program(root: Path) -> None:
    """Add the idle program to the image's files in *root*."""
    for name in (PROGRAM, PROGRAM_OF_INCUS):
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(IDLE)
        path.chmod(0o755)


class Engine:
    """A container manager.

    :param folder: its scratch folder.
    :param root: the folder with the image's files.
    """

    name = ""
    programs: Sequence[str] = ()

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder / self.name
        self.root = root
        self.server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the engine's server, if the engine has one, and import the image.

        :raises Missing: when it doesn't work here.
        """
        for program in self.programs:
            if not shutil.which(program) and not Path(program).exists():
                raise Missing(f"{self.name}: {program} is not installed")
        self.folder.mkdir(parents=True)
        self.prepare()

    def prepare(self) -> None:
        raise NotImplementedError

    def once(self, network: str) -> None:
        """Make a container that runs ``true``, wait until it ends, and remove it.

        :param network: ``none`` or ``bridge``.
        """
        raise NotImplementedError

    def create(self, name: str, number: int, ports: Sequence[int]) -> None:
        """Start an idle container with a network; the host publishes its *ports*.

        :param number: a small number that no other container has.
        """
        raise NotImplementedError

    def remove(self, name: str) -> None:
        raise NotImplementedError

    def reload(self) -> bool:
        """Reload the firewall; return False if the engine has no command for that."""
        return False

    def stop(self) -> None:
        """End the engine's server; the sandbox's end removes the rest."""
        if self.server is not None:
            self.server.send_signal(signal.SIGTERM)
            self.server.wait(60)

    def _serve(self, command: Sequence[str], ready: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
        log = self.folder / "log"
        with log.open("wb") as output:
            self.server = subprocess.Popen(
                command, stdout=output, stderr=output, env={**os.environ, **(variables or {})}
            )
        until = time.monotonic() + SERVER_SECONDS
        while time.monotonic() < until and self.server.poll() is None:
            done = subprocess.run(ready, capture_output=True, env={**os.environ, **(variables or {})})
            if done.returncode == 0:
                return
            time.sleep(0.1)
        raise Missing(f"{self.name}: its server doesn't start: {log.read_text(errors='replace')[-300:]}")


class _Command(Engine):
    """Podman and Docker, whose commands take the same arguments."""

    def _base(self) -> list[str]:
        raise NotImplementedError

    def _import(self) -> None:
        archive = run(["tar", "-C", str(self.root), "-c", "."])
        run([*self._base(), "import", "-", "bench"], archive)

    def once(self, network: str) -> None:
        run([*self._base(), "run", "--rm", "--network", network, "bench", "/bin/true"])

    def create(self, name: str, number: int, ports: Sequence[int]) -> None:
        published = [word for port in ports for word in ("-p", f"{port}:{port}")]
        run([*self._base(), "run", "-d", "--name", name, "--network", "bridge", *published, "bench", f"/{PROGRAM}"])

    def remove(self, name: str) -> None:
        run([*self._base(), "rm", "-f", name])


class Podman(_Command):
    name = "podman"
    programs = ("podman",)

    def prepare(self) -> None:
        # Podman's default network has 250 addresses; this one has enough for all containers.
        networks = self.folder / "networks"
        networks.mkdir()
        bridge = {"subnet": NETWORK, "gateway": GATEWAY.partition("/")[0]}
        (networks / "podman.json").write_text(
            json.dumps(
                {
                    "name": "podman",
                    "id": "0" * 64,
                    "driver": "bridge",
                    "network_interface": "podman0",
                    "created": "2026-01-01T00:00:00Z",
                    "subnets": [bridge],
                    "ipv6_enabled": False,
                    "internal": False,
                    "dns_enabled": False,
                    "ipam_options": {"driver": "host-local"},
                }
            )
        )
        self._import()

    def _base(self) -> list[str]:
        keep = ["--root", f"{self.folder}/root", "--runroot", f"{self.folder}/run", "--storage-driver", "overlay"]
        places = ["--tmpdir", f"{self.folder}/tmp", "--network-config-dir", f"{self.folder}/networks"]
        return ["podman", *keep, *places, "--cgroup-manager", "cgroupfs"]

    def reload(self) -> bool:
        run([*self._base(), "network", "reload", "--all"])
        return True

    def stop(self) -> None:
        subprocess.run([*self._base(), "rm", "-fa", "-t", "0"], capture_output=True)
        subprocess.run(["umount", "-R", "-l", str(self.folder / "root/overlay")], capture_output=True)


class Docker(_Command):
    name = "docker"
    programs = ("docker", "dockerd")

    def prepare(self) -> None:
        # Docker's default is a proxy process for each published port. Without these processes it is faster.
        self._serve(
            [
                *("dockerd", "-H", f"unix://{self.folder}/docker.sock", "--data-root", f"{self.folder}/data"),
                *("--exec-root", f"{self.folder}/exec", "--pidfile", f"{self.folder}/pid"),
                *("--userland-proxy=false", "--bip", GATEWAY),
            ],
            [*self._base(), "version"],
        )
        self._import()

    def _base(self) -> list[str]:
        return ["docker", "-H", f"unix://{self.folder}/docker.sock"]


class Incus(Engine):
    name = "incus"
    programs = ("incus", "/usr/libexec/incus/incusd")

    def prepare(self) -> None:
        self._variables = {"INCUS_DIR": str(self.folder / "state"), "HOME": str(self.folder)}
        (self.folder / "state").mkdir()
        server = ["/usr/libexec/incus/incusd", "--group", "root"]
        self._serve(server, ["incus", "query", "/1.0"], self._variables)
        for words in (
            ("storage", "create", "default", "dir"),
            ("network", "create", "bench0", f"ipv4.address={GATEWAY}", "ipv6.address=none", "ipv4.nat=false"),
            ("profile", "device", "add", "default", "root", "disk", "path=/", "pool=default"),
            ("profile", "device", "add", "default", "eth0", "nic", "network=bench0", "name=eth0"),
        ):
            self._incus(*words)
        image = self.folder / "image"
        shutil.copytree(self.root, image / "rootfs", symlinks=True)
        for name in ("dev", "proc", "sys", "etc", "run", "tmp", "root", "var"):
            (image / "rootfs" / name).mkdir(exist_ok=True)
        (image / "metadata.yaml").write_text(
            f"architecture: {os.uname().machine}\ncreation_date: 1767225600\nproperties: {{description: bench}}\n"
        )
        run(["tar", "-C", str(image), "-czf", f"{self.folder}/image.tar.gz", "metadata.yaml", "rootfs"])
        self._incus("image", "import", f"{self.folder}/image.tar.gz", "--alias", "bench")

    def _incus(self, *words: str, data: bytes | None = None) -> None:
        run(["incus", "--quiet", *words], data, self._variables)

    def once(self, network: str) -> None:
        if network == "none":
            raise Missing("incus: launched with its network alone")
        self._incus("launch", "bench", "once")
        self._incus("exec", "once", "--", "/bin/true")
        self._incus("delete", "-f", "once")

    def create(self, name: str, number: int, ports: Sequence[int]) -> None:
        address = f"10.222.{1 + number // 250}.{1 + number % 250}"
        devices: dict[str, dict[str, str]] = {
            "eth0": {"type": "nic", "network": "bench0", "name": "eth0", "ipv4.address": address}
        }
        for port in ports:
            devices[f"port{port}"] = {
                "type": "proxy",
                "nat": "true",
                "listen": f"tcp:{GATEWAY.partition('/')[0]}:{port}",
                "connect": f"tcp:{address}:{port}",
            }
        # JSON is YAML.
        self._incus("launch", "bench", name, data=json.dumps({"devices": devices}).encode())

    def remove(self, name: str) -> None:
        self._incus("delete", "-f", name)

    def stop(self) -> None:
        subprocess.run(
            ["incus", "admin", "shutdown", "--timeout", "20"],
            capture_output=True,
            env={**os.environ, **getattr(self, "_variables", {})},
        )
        if self.server is not None:
            self.server.kill()
            self.server.wait(60)


ENGINES: Mapping[str, type[Engine]] = {one.name: one for one in (Podman, Docker, Incus)}
