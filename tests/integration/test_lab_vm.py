"""``scripts/lab up --vm``: hosts are machines with UEFI, Secure Boot and TPMs. On request (``NETSPACE_LAB_VM=1``).

Without KVM it takes an hour on two busy processors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from support.hosts.lab import Lab
from support.hosts.lab import lab as lab_of
from support.waiting import until

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not os.environ.get("NETSPACE_LAB_VM"), reason="NETSPACE_LAB_VM is not set"),
]

REACHES = """
import socket, sys
for place in sys.argv[1:]:
    address, port = place.split(":")
    try:
        socket.create_connection((address, int(port)), timeout=10).close()
    except OSError:
        continue
    print(place)
"""
"""Prints each address and port to which a connection can be made."""
PATIENCE = 3600
"""Seconds that a command may take."""
ANSWER = "orders@h2: sealed: thank you, web@h1, for the sealed order of {}"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab_of(tmp_path_factory.mktemp("lab") / "lab", PATIENCE) as made:
        said = made.do("up", "--vm")
        for host in ("h1", "h2"):
            assert f"{host}: its key is accepted by its TPM" in said
        yield made


def test_hosts_are_machines_with_secure_boot(lab: Lab) -> None:
    look = "hostname; ps -p 1 -o comm=; od -An -tu1 -j4 /sys/firmware/efi/efivars/SecureBoot-*; ls /dev/tpmrm0"
    for host in ("h1", "h2"):
        assert lab.do("sh", host, "sh", "-c", look).split() == [host, "systemd", "1", "/dev/tpmrm0"]
    boots = {lab.do("sh", host, "cat", "/proc/sys/kernel/random/boot_id") for host in ("h1", "h2")}
    assert len(boots) == 2
    assert lab.do("sh", "h1", "sh", "-c", "exit 7", code=7) == ""


def test_a_machine_reaches_the_labs_hosts_alone(lab: Lab) -> None:
    # What QEMU itself listens at is the only service beside the lab's hosts: the way to the operator's shell.
    port = 22000 + int((lab.folder / "h1/number").read_text())
    said = lab.do(
        "sh", "h1", "python3", "-c", REACHES, "198.51.100.254:4505", f"169.254.77.2:{port}", "169.254.77.3:53"
    )
    assert said.split() == ["198.51.100.254:4505"]


def test_a_cut_parts_two_machines_and_mend_joins_them(lab: Lab) -> None:
    lab.do("cut", "h1", "master")
    assert not lab.reaches_master("h1") and lab.reaches_master("h2")
    lab.do("mend", "master", "h1")
    assert lab.reaches_master("h1")


def test_pages_lines_carry_a_sealed_request_to_a_measured_host(lab: Lab) -> None:
    join = ("netspace_fleet.join", "h1", "h2", f"timeout={PATIENCE}")
    lab.runner(*join)
    lab.apply()
    assert lab.apply() == 0
    lab.runner(*join)
    until(lambda: lab.asks("3 pears") == ANSWER.format("3 pears"), patience=300)
    levels = {host: lab.salt(host, "netspace_attestation.status")[host]["level"] for host in ("h1", "h2")}
    assert levels == {"h1": "L3", "h2": "L3"}
    # The master reads what the firmware measured, and names a boot that it has learned as good.
    assert {one["level"] for one in lab.runner("netspace_attestation.attest").values()} == {"L3"}
    learned = lab.runner("netspace_attestation.learn", "h2", "sign=True")
    said = "\n".join(learned["diff"])
    assert all(f'"{rule}"' in said for rule in ("kernels", "initrds", "command_lines", "dbx")), said
    assert lab.runner("netspace_attestation.attest")["h2"]["level"] == "L4"


def test_a_machine_that_lost_power_comes_back_with_its_links(lab: Lab) -> None:
    lab.do("kill", "h2")
    assert "h2      198.51.100.2     off" in lab.do("status")
    assert lab.do("start", "h2") is not None
    until(lambda: lab.asks("4 plums") == ANSWER.format("4 plums"), patience=600)
