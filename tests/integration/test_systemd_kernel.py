"""A unikernel as a unit of a real systemd: answers, its console in the journal, restart, stop and removal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.environments import tiny_kernel
from support.hosts.systemd_host import SystemdHost
from support.hosts.systemd_salt import Inside, listed, look, show, until
from support.hosts.whole_host import Salt, all_true, changes

from netspace.environment import runtimes

pytestmark = [pytest.mark.systemd, pytest.mark.root]

ADDRESS, HOST = "10.203.7.8", "10.203.0.1/32"
UNIT = "netspace-environment-tiny"
PATIENCE = 120.0

ECHO = """
import socket, sys
asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asking.settimeout(1)
asking.sendto(b"hello", (sys.argv[1], 7))
sys.exit(asking.recv(100) != b"hello")
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if error := runtimes.look("qemu", {}).error:
        pytest.skip(f"qemu: {error}")
    return tiny_kernel.build(tmp_path_factory.mktemp("kernel") / "tiny")


@pytest.fixture
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdHost]:
    with SystemdHost(tmp_path_factory.mktemp("machine")) as one:
        yield one


@pytest.fixture
def salt(machine: SystemdHost, tmp_path: Path) -> Salt:
    return Inside(tmp_path, machine)


def declared(kernel: Path) -> dict[str, Any]:
    allow = [{"direction": "in", "cidr": HOST, "protocol": "udp", "port": 7}]
    tiny = {
        "kernel": str(kernel),
        "args": [f"ip={ADDRESS}"],
        "limits": {"memory": "128M", "pids": 32},
        "interface": {"kind": "tap", "ipv4": ADDRESS, "allow": allow},
        "restart": "on-failure",
        "stop_timeout": 60,
    }
    return {"environments": {"tiny": tiny}}


def answered(machine: SystemdHost) -> bool:
    return machine.run(sys.executable, "-c", ECHO, ADDRESS, check=False).returncode == 0


def journal(machine: SystemdHost) -> list[str]:
    return machine.run("journalctl", "--unit", UNIT, "--output", "cat").stdout.splitlines()


def test_it_answers_is_started_again_and_stops_cleanly(machine: SystemdHost, salt: Salt, kernel: Path) -> None:
    before = look(machine)
    all_true(salt.apply(declared(kernel)))
    until(lambda: answered(machine), "no answer", patience=PATIENCE)
    settled = salt.apply(declared(kernel))
    all_true(settled)
    assert changes(settled) == {}

    # Its unit is the tender and nothing else; the console is the unit's journal.
    pid = show(machine, UNIT, "MainPID")
    assert listed(machine, UNIT) == [pid]
    assert "qemu" in machine.path(f"/proc/{pid}/cmdline").read_text()
    assert journal(machine).count(f"kernel: started: /kernel ip={ADDRESS}") == 1
    assert "kernel: ready" in salt("netspace_environment.logs", "tiny")

    machine.run("kill", "-9", pid)
    until(lambda: show(machine, UNIT, "MainPID") not in ("0", pid), "not started again")
    until(lambda: answered(machine), "no answer after it was killed", patience=PATIENCE)
    assert salt("netspace_environment.list")["tiny"]["restarts"] == 1
    assert journal(machine).count("kernel: ready") == 2

    # It ends by SIGTERM, within its deadline: SIGKILL would be "signal 9", and no success.
    assert salt("netspace_environment.stop", "tiny") is True
    assert (show(machine, UNIT, "ActiveState"), show(machine, UNIT, "Result")) == ("inactive", "success")
    stopped = salt("netspace_environment.list")["tiny"]
    assert (stopped["state"], stopped["exit"]) == ("stopped", "exit 0")
    assert machine.run("pgrep", "qemu", check=False).stdout == ""
    assert not answered(machine)
    assert salt("netspace_environment.start", "tiny") is True
    until(lambda: answered(machine), "no answer after a new start", patience=PATIENCE)

    removed = salt("netspace.teardown")
    assert removed["result"] is True, removed
    assert look(machine) == before
