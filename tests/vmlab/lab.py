"""Snapshots of booted machines, and clones of them: a fresh machine within a second."""

from __future__ import annotations

import base64
import fcntl
import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.attestation.software_tpm import Factory, manufacture
from support.hosts import whole_host

from vmlab import image as images
from vmlab.flavours import FLAVOURS
from vmlab.machine import Machine, checkout

MINION = """\
id: vm
file_client: local
file_roots: {base: [/srv/netspace/states]}
pillar_roots: {base: [/srv/pillar]}
module_dirs: [/srv/netspace/_modules]
states_dirs: [/srv/netspace/_states]
grains_dirs: [/srv/netspace/_grains]
utils_dirs: [/srv/netspace/_utils]
beacons_dirs: [/srv/netspace/_beacons]
outputter_dirs: [/srv/netspace/_output]
autoload_dynamic_modules: false
enable_fqdns_grains: false
enable_gpu_grains: false
cython_enable: false
enable_zip_modules: false
"""


# In a machine: its TPM maker's certificates; a root with busybox and a folder that all may write to.
ROOTS = "/etc/tpm-roots"
ROOTFS = "/srv/image"
# Where Salt is listening there.
WARM = "/run/warm-salt"
BUSYBOX = "sh sleep cat head tr dd touch ls mkdir wc seq kill true false id"


class Lab:
    """The machines of a test run.

    :param folder: folder of the clones, which is removed after the run.
    :param shared: folder of the snapshots; test runs at the same time share it.
    """

    def __init__(self, folder: Path, shared: Path) -> None:
        self.folder = folder
        self.shared = shared
        self.image = images.build()
        self._clones = 0

    @functools.cached_property
    def factory(self) -> Factory:
        """The maker of the machines' TPMs."""
        folder = self.shared / "factory"
        self._once(folder, manufacture)
        return Factory(folder)

    def machine(self, flavour: str) -> Machine:
        """Return a new machine, switched off."""
        tpm = self.factory.state if FLAVOURS[flavour].tpm else None
        return Machine(self.image, FLAVOURS[flavour], self._new(flavour), tpm=tpm)

    def clone(self, flavour: str) -> Machine:
        """Return a booted machine with the checkout and a ready Salt."""
        saved = self.shared / flavour
        self._once(saved, functools.partial(self._boot, flavour))
        return Machine.clone(self.image, FLAVOURS[flavour], saved, self._new(flavour))

    def _boot(self, flavour: str, saved: Path) -> None:
        print(f"vm: booting {flavour}", file=sys.stderr, flush=True)
        with self.machine(flavour) as first:
            first.on()
            furnish(first)
            if first.tpm is not None:
                for path in self.factory.roots.iterdir():
                    first.put(f"{ROOTS}/{path.name}", path.read_bytes())
            warm_up(first)
            first.save(saved)
        shutil.rmtree(first.folder)

    def _once(self, folder: Path, make: Callable[[Path], object]) -> None:
        """Let *make* fill a folder once. A second caller waits for the first."""
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.with_suffix(".made").exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                folder.with_suffix(".made").touch()

    def _new(self, flavour: str) -> Path:
        self._clones += 1
        return self.folder / f"{flavour}-{self._clones}"


def furnish(machine: Machine) -> None:
    """Put the checkout and a masterless Salt's configuration into a running machine."""
    machine.put("/etc/salt/minion", MINION)
    machine.put("/srv/pillar/top.sls", "base: {'*': [declared]}\n")
    machine.put("/srv/pillar/declared.sls", "{}\n")
    machine.sh(
        f"mkdir -p {ROOTFS}/bin {ROOTFS}/data && chmod 1777 {ROOTFS}/data && cp /usr/bin/busybox {ROOTFS}/bin/ && "
        f"for name in {BUSYBOX}; do ln -s busybox {ROOTFS}/bin/$name; done"
    )
    checkout(machine)


def warm_up(machine: Machine) -> None:
    """Set up Salt in a running machine; return when it can be called."""
    about = {"PYTHONPATH": images.SITE, "PYTHONPYCACHEPREFIX": images.COMPILED, "HOME": "/root", "LANG": "C.UTF-8"}
    variables = " ".join(f"--setenv={name}={value}" for name, value in about.items())
    unit = f"--unit=warm-salt --collect --quiet {variables}"
    machine.sh(
        f"rm -f {WARM}; systemd-run {unit} /usr/bin/python3 /srv/netspace/tests/vmlab/warm.py {WARM} && "
        f"until [ -S {WARM} ]; do systemctl is-active -q warm-salt || exit 1; sleep 0.2; done",
        timeout=900,  # with as much load on the machine as CI makes
    )


SUPPORT = "/srv/netspace/tests/support/environments"


def program(machine: Machine, name: str, *arguments: str, timeout: float = 600) -> list[Any]:
    """Run one of the tests' programs in a machine, by the machine's Python; return the JSON of each output line.

    :param name: the program's name below ``tests/support/environments``.
    """
    command = ("/usr/bin/python3", f"{SUPPORT}/{name}.py", *arguments)
    variables = {"PYTHONPATH": images.SITE, "PYTHONPYCACHEPREFIX": images.COMPILED}
    done = machine.run(*command, timeout=timeout, variables=variables)
    return [json.loads(line) for line in done.out.splitlines()]


def told(machine: Machine, name: str) -> list[str]:
    """Return the lines that an environment's program printed, from the machine's journal."""
    return machine.sh(f"journalctl -q -o cat -t netspace-environment-{name}").splitlines()


# Without a loop: what starts a program ten times a second keeps a machine busy that is translated.
STAY = "trap 'exit 0' TERM; sleep 1000000 & wait"


def environment(script: str, **keys: Any) -> dict[str, Any]:
    """Return an environment that runs a shell script once."""
    return {
        "image": f"dir:{ROOTFS}",
        "command": ["/bin/sh", "-c", script],
        "restart": "never",
        "stop_timeout": 1,
        **keys,
    }


class Salt(whole_host.Salt):
    """Masterless Salt in a machine, for calls like an operator's. The command ``salt-call`` is there, too."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def declare(self, declaration: dict[str, Any]) -> None:
        self.machine.put("/srv/pillar/declared.sls", "#!json\n" + json.dumps({"netspace": declaration}))

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        reply = self.machine.ask(WARM, json.dumps(arguments))
        if reply is None:  # the machine was booted since
            warm_up(self.machine)
            reply = self.machine.ask(WARM, json.dumps(arguments))
        assert reply is not None
        out, err = (base64.b64decode(reply[stream]).decode(errors="replace") for stream in ("out", "err"))
        return subprocess.CompletedProcess(["salt-call", *arguments], reply["code"], out, err)
