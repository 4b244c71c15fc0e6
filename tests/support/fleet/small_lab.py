"""A fleet of two hosts on one machine: a master and a minion on the first, a minion on the second, a cable between.

Each host is a sandbox (``scripts/sandbox``) with an ``/etc`` of its own, so that both can keep their keys at the usual
place. Nothing of them is left at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support import checkout
from support.waiting import until

ADDRESSES = {"h1": "198.51.100.1", "h2": "198.51.100.2"}
PORTS = {"publish_port": 4505, "ret_port": 4506}
PACKAGES = ("aiormq", "pamqp", "yarl", "multidict", "propcache", "idna", "joserfc", "cryptography", "cffi")
MODULES = ("_cffi_backend.cpython-311-x86_64-linux-gnu.so", "typing_extensions.py")

WEB = """
import asyncio, signal, sys
from netspace_client import Mailbox
async def ask():
    async with Mailbox() as mailbox:
        answer = await mailbox.call("orders", sys.argv[1], timeout=120)
        print(answer.sender, answer.sealed_at is not None, answer.text)
asyncio.run(ask()) if sys.argv[1:] else signal.pause()
"""
ORDERS = """
import asyncio
from netspace_client import Mailbox
async def answer(message):
    return f"{message.sender}, {message.sealed_at is not None}: {message.text}"
async def serve():
    async with Mailbox() as mailbox:
        await mailbox.serve(answer)
asyncio.run(serve())
"""
OBEY = """
import json, subprocess, sys
for line in sys.stdin:
    done = subprocess.run(json.loads(line), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    print(json.dumps([done.returncode, done.stdout]), flush=True)
"""
PRIVATE_ETC = """
mkdir /run/etc /run/etc.work && mount -t overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/etc.work etc /etc
"""


def image(path: Path, folder: Path) -> None:
    """Write an image with the programs ``/usr/bin/web`` and ``/usr/bin/orders``: this Python, and netspace-client."""
    assert (checkout.ROOT / ".cache/demo.tar").exists(), "run scripts/demo-image"
    path.write_bytes((checkout.ROOT / ".cache/demo.tar").read_bytes())
    site = Path(next(one for one in sys.path if one.endswith("site-packages")))
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    home = Path(sys.base_prefix)

    def kept(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        parts = info.name.split("/")
        if any(part.startswith("config-") for part in parts):
            return None  # what only a build needs
        info.uid = info.gid = 0
        return None if {"site-packages", "test", "idlelib", "ensurepip", "__pycache__", "tests"} & set(parts) else info

    with tarfile.open(path, "a") as archive:
        archive.add(os.path.realpath(home / "bin/python3"), "./opt/python/bin/python3")
        archive.add(home / "lib" / version, f"./opt/python/lib/{version}", filter=kept)
        for shared in (home / "lib").glob("libpython3*.so.1.0"):
            archive.add(shared, f"./opt/python/lib/{shared.name}")
        for name in PACKAGES:
            archive.add(site / name, f"./opt/site/{name}", filter=kept)
            for metadata in site.glob(f"{name}-*.dist-info"):
                archive.add(metadata, f"./opt/site/{metadata.name}")
        for name in MODULES:
            if (site / name).exists():
                archive.add(site / name, f"./opt/site/{name}")
        archive.add(checkout.ROOT / "client/src/netspace_client", "./opt/site/netspace_client", filter=kept)
        for name, text in (("web", WEB), ("orders", ORDERS)):
            (folder / name).write_text(f"import signal; signal.signal(15, lambda *_: exit(0))\n{text}")
            archive.add(folder / name, f"./opt/{name}.py")
            script = folder / f"{name}.sh"
            where = "LD_LIBRARY_PATH=/opt/python/lib PYTHONHOME=/opt/python PYTHONPATH=/opt/site"
            script.write_text(f'#!/bin/sh\n{where} exec /opt/python/bin/python3 /opt/{name}.py "$@"\n')
            script.chmod(0o755)
            archive.add(script, f"./usr/bin/{name}")


class LabHost:
    """One host, with a process that runs commands in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [str(checkout.ROOT / "scripts/sandbox"), sys.executable, "-B", "-c", OBEY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.run("sh", "-ec", PRIVATE_ETC)

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command there; return what it prints."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"{self.name} ended"
        code, output = json.loads(answer)
        assert code == 0 or not check, (self.name, command, code, output)
        return str(output)

    def start(self, log: Path, *command: str) -> None:
        """Start a daemon there, which ends with the host."""
        self.run("sh", "-c", f'exec setsid "$0" "$@" >{log} 2>&1 </dev/null &', *command)

    def process(self) -> int:
        """Return the number, as seen from outside, of one of the host's processes."""
        found = self._process.pid
        while below := Path(f"/proc/{found}/task/{found}/children").read_text().split():
            found = int(below[0])
        return found

    def end(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(120)


class Lab:
    """The two hosts, with the master's configuration and files in *folder*."""

    def __init__(self, folder: Path, fleet: str) -> None:
        self.folder = folder
        self.hosts: dict[str, LabHost] = {}
        self.served = folder / "served"
        (self.served / "images").mkdir(parents=True)
        self.declare(fleet)

    def declare(self, fleet: str) -> None:
        (self.served / "fleet.yaml").write_text(fleet)

    def up(self, after: contextlib.ExitStack) -> None:
        """Start the hosts, and wait until both minions answer."""
        for name in ADDRESSES:
            self.hosts[name] = LabHost(name)
            after.callback(self.hosts[name].end)
        first, second = (str(host.process()) for host in self.hosts.values())
        veth = ["type", "veth", "peer", "name", "cable", "netns", second]
        subprocess.run(["ip", "link", "add", "cable", "netns", first, *veth], check=True)
        for name, address in ADDRESSES.items():
            self.hosts[name].run("ip", "address", "add", f"{address}/24", "dev", "cable")
            self.hosts[name].run("ip", "link", "set", "cable", "up")
        self._configure()
        self.hosts["h1"].start(self.folder / "master.out", *self._command("salt-master", "master"))
        for name, host in self.hosts.items():
            host.start(self.folder / f"{name}.out", *self._command("salt-minion", name))
        until(lambda: set(self.asked("*", "test.ping", "-t", "5")) == set(ADDRESSES), patience=600)

    def _configure(self) -> None:
        common = {"user": "root", "enable_gpu_grains": False, "log_level_logfile": "warning", **PORTS}
        master = {
            **common, "root_dir": str(self.folder / "m"), "interface": ADDRESSES["h1"], "auto_accept": True,
            "worker_threads": 3, "timeout": 300, "fileserver_list_cache_time": 0,
            "file_roots": {"base": [str(self.served), str(checkout.ROOT / "file_root")]},
            "fileserver_followsymlinks": True, "pillar_roots": {"base": [str(self.folder / "pillar")]},
            "runner_dirs": [str(checkout.ROOT / "_runners")], "utils_dirs": [str(checkout.ROOT / "_utils")],
            "pillar_dirs": [str(checkout.ROOT / "_pillar")], "outputter_dirs": [str(checkout.ROOT / "_output")],
            "ext_pillar": [{"netspace": "salt://fleet.yaml"}],
            "netspace.fleet": {"folder": str(self.folder / "kept")},
            "netspace.link": {"root": str(self.folder / "root")},
        }  # fmt: skip
        self._write("master", master)
        for name in ADDRESSES:
            minion = {
                **common, "root_dir": str(self.folder / name), "id": name, "master": ADDRESSES["h1"],
                "master_port": PORTS["ret_port"], "enable_fqdns_grains": False, "acceptance_wait_time": 1,
                "request_channel_timeout": 120, "return_retry_tries": 10, "auth_timeout": 120, "auth_tries": 60,
                "master_tries": -1,
            }  # fmt: skip
            self._write(name, minion)

    def _write(self, name: str, configuration: dict[str, Any]) -> None:
        folder = self.folder / f"etc-{name}"
        folder.mkdir()
        (folder / ("master" if name == "master" else "minion")).write_text(json.dumps(configuration))

    def _command(self, script: str, name: str, *words: str) -> list[str]:
        return [
            sys.executable,
            str(Path(sys.executable).parent / script),
            "-c",
            str(self.folder / f"etc-{name}"),
            *words,
        ]

    def asked(self, target: str, *words: str) -> dict[str, Any]:
        """Call a function of minions by the master; return their answers."""
        command = self._command("salt", "master", "--out=json", "--static", "--log-level=error", target, *words)
        output = self.hosts["h1"].run(*command, check=False)
        try:
            found: dict[str, Any] = json.loads(output)
        except ValueError:
            return {}
        return {name: value for name, value in found.items() if value is not False}

    def call(self, target: str, *words: str) -> Any:
        """Call a function of one minion; return its answer."""
        found = self.asked(target, *words)
        assert target in found, (target, words, found)
        return found[target]

    def runner(self, *words: str) -> Any:
        """Call a runner of the master."""
        command = self._command("salt-run", "master", "--out=json", "--log-level=error", *words)
        output = self.hosts["h1"].run(*command, check=False)
        return json.loads(output[output.index("{") :])

    def apply(self, name: str) -> int:
        """Apply a host's pillar; return how many things changed."""
        found = self.call(name, "state.apply", "netspace")
        assert isinstance(found, dict), found
        wrong = [one["comment"] for one in found.values() if one["result"] is not True]
        assert not wrong, wrong
        return sum(len(one["changes"]) for one in found.values())


@contextlib.contextmanager
def lab(folder: Path, fleet: str) -> Iterator[Lab]:
    """Make the lab; *folder* has a short path, because Salt's sockets lie in there (unix(7): 107 bytes)."""
    with contextlib.ExitStack() as after:
        made = Lab(folder, fleet)
        image(made.served / "images/shop.tar", folder)
        made.up(after)
        yield made
