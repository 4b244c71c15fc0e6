"""A unikernel, applied by Salt: it answers at its interface as its rules permit, and stops cleanly."""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.environments import solo5_kernel, tiny_kernel
from support.hosts.whole_host import Salt
from support.waiting import until

from netspace.environment import runtimes
from netspace.host.host import Host
from netspace.layout import Layout
from netspace.supervision.daemon import relay

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]

ADDRESS, HOST = "10.203.7.8", "10.203.0.1/32"
PATIENCE = 120.0
SOLO5 = os.environ.get("NETSPACE_SOLO5", "")  # a folder with solo5-spt and Solo5's own test kernels


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if error := runtimes.look("qemu", {}).error:
        pytest.skip(f"qemu: {error}")
    return tiny_kernel.build(tmp_path_factory.mktemp("kernel") / "tiny")


def declared(kernel: Path) -> dict[str, Any]:
    allow = [
        {"direction": "in", "cidr": HOST, "protocol": "icmp"},
        {"direction": "in", "cidr": HOST, "protocol": "udp", "port": 7},
    ]
    return {
        "environments": {
            "tiny": {
                "kernel": str(kernel),
                "args": [f"ip={ADDRESS}"],
                "limits": {"memory": "128M", "pids": 32, "cpus": 0.2},  # it never sleeps
                "interface": {"kind": "tap", "ipv4": ADDRESS, "allow": allow},
                "restart": "never",
                "stop_timeout": 60,
            }
        }
    }


@pytest.fixture
def asker() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(1)
        yield asking


def answered(asking: socket.socket, text: bytes) -> bool:
    try:
        asking.sendto(text, (ADDRESS, 7))
        return asking.recv(100) == text
    except OSError:  # too late, or a message that nobody is there
        return False


def pinged(address: str = ADDRESS) -> bool:
    """Send an echo request (RFC 792); return whether it is answered."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.settimeout(1)
        head = struct.pack(">BBHHH", 8, 0, 0, 77, 1)
        total = sum(struct.unpack(">4H", head))
        raw.sendto(head[:2] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF) + head[4:], (address, 0))
        try:
            for _ in range(100):  # whatever else comes
                packet = raw.recv(200)
                if packet[20] == 0 and packet[24:28] == head[4:] and socket.inet_ntoa(packet[12:16]) == address:
                    return True
        except OSError:
            pass
        return False


def test_it_answers_on_its_interface_and_stops(salt: Salt, kernel: Path, asker: socket.socket) -> None:
    salt.declare(declared(kernel))
    applied = salt("state.apply", "netspace")
    assert all(one["result"] for one in applied.values()), applied
    until(pinged, "no answer to a ping", patience=PATIENCE)
    until(lambda: answered(asker, b"hello"), "no answer to a datagram", patience=PATIENCE)
    with pytest.raises(PermissionError):  # the filter of the host's own
        asker.sendto(b"hello", (ADDRESS, 9))
    again = salt("state.apply", "netspace")
    assert not any(one["changes"] for one in again.values()), again
    assert salt("netspace.drift")["differences"] == []

    # What an operator does is the library's own from here on: a call of Salt's takes seconds.
    host = Host(Layout())
    told = host.operations.inspect("tiny")
    assert (told["state"], told["runtime"]) == ("running", "qemu")
    shown = host.operations.logs("tiny")["lines"]
    assert f"kernel: started: /kernel ip={ADDRESS}" in shown
    assert any(line.startswith("disk: environment.json {") for line in shown), shown
    assert host.operations.stop(["tiny"]) == {"tiny": ""}
    told = host.environments.list()["tiny"]
    assert (told["state"], told["exit"]) == ("stopped", "exit 0")
    assert not pinged()
    assert host.operations.start(["tiny"]) == {"tiny": ""}
    until(lambda: answered(asker, b"hello"), "no answer after a new start", patience=PATIENCE)
    # And by itself, as it is told to.
    until(lambda: answered(asker, b"stop") or not pinged(), patience=PATIENCE)
    until(lambda: host.environments.list()["tiny"]["state"] == "stopped", "it did not end", patience=PATIENCE)
    assert host.environments.list()["tiny"]["exit"] == "exit 0"


# -- solo5-spt, which no distribution has --------------------------------------------------


@pytest.fixture
def stand_in() -> Iterator[Path]:
    folder = Path("/run/stand-in")
    folder.mkdir()
    yield solo5_kernel.stand_in(folder / "solo5-spt")
    shutil.rmtree(folder)


def test_a_tender_that_is_called_as_solo5_has_its_devices_and_no_more(
    salt: Salt, stand_in: Path, asker: socket.socket, tmp_path: Path
) -> None:
    """A stand-in for solo5-spt gets its arguments, disk, interface, confinement and stop signal, and no other files."""
    devices = [(solo5_kernel.NETWORK, b"service"), (solo5_kernel.BLOCK, b"storage")]
    (tmp_path / "tiny").write_bytes(solo5_kernel.elf([solo5_kernel.FIRST, *devices]))
    declaration = declared(tmp_path / "tiny")
    tiny = declaration["environments"]["tiny"]
    tiny |= {"runtime": "solo5", "args": [f"ip={ADDRESS}", "two words"]}
    declaration["runtimes"] = {"solo5": {"program": str(stand_in)}}
    salt.declare(declaration)
    applied = salt("state.apply", "netspace")
    assert all(one["result"] for one in applied.values()), applied
    host = Host(Layout())
    until(lambda: pinged() and answered(asker, b"hello"), "no answer", patience=PATIENCE)
    with pytest.raises(PermissionError):  # the filter of the host's own
        asker.sendto(b"hello", (ADDRESS, 9))
    shown = host.operations.logs("tiny")["lines"]
    assert shown[:3] == ["tender: 120 MiB for /kernel", f"argument: ip={ADDRESS}", "argument: two words"]
    assert shown[3].startswith("disk: environment.json {")
    assert shown[4:] == ["disk: written", "net: tap0, mtu 1500", "tender: ready"]

    # What it wrote is in a copy of its own: what it is handed at its next start is as it was.
    told = host.operations.inspect("tiny")
    pid = told["pid"]
    output = str(relay.pipe(Layout(), "environment-tiny"))
    opened = sorted(os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir())
    assert [one for one in opened if not one.startswith("pipe:")] == [
        *("/dev/net/tun", "/run/disk/handout.tar", *[output] * 2, "anon_inode:[eventpoll]"),
    ]
    status = Path(f"/proc/{pid}/status").read_text()
    assert set(re.findall(r"Cap\w+:\s*(\w+)", status)) == {"0" * 16}
    assert re.search(r"^Seccomp:\s*2$", status, re.MULTILINE)
    assert sorted(os.listdir(f"/proc/{pid}/root/tender")) == ["lib", "solo5-spt"]
    assert host.operations.restart(["tiny"]) == {"tiny": ""}
    until(lambda: answered(asker, b"hello"), "no answer after a new start", patience=PATIENCE)
    again = host.operations.logs("tiny")["lines"]
    assert again == shown * 2

    # It knows no signal, so it is killed at once; and it ends by itself, as its guest does.
    assert host.operations.stop(["tiny"]) == {"tiny": ""}
    assert host.environments.list()["tiny"]["exit"] == "signal 9"
    assert host.operations.start(["tiny"]) == {"tiny": ""}
    until(lambda: answered(asker, b"hello"), "no answer after a new start", patience=PATIENCE)
    until(lambda: answered(asker, b"stop") or not pinged(), patience=PATIENCE)
    until(lambda: host.environments.list()["tiny"]["state"] == "stopped", "it did not end", patience=PATIENCE)
    assert host.environments.list()["tiny"]["exit"] == "exit 0"


def test_a_solo5_kernel_answers_on_its_interface(salt: Salt) -> None:
    if not SOLO5:
        pytest.skip("NETSPACE_SOLO5 names no folder with solo5-spt and test_net.spt")
    address = "10.0.0.2"  # is in the kernel
    tiny = {
        "kernel": f"{SOLO5}/test_net.spt",
        "limits": {"memory": "64M", "cpus": 0.2},
        "interface": {
            "kind": "tap",
            "ipv4": address,
            "allow": [{"direction": "in", "cidr": "10.0.0.1/32", "protocol": "icmp"}],
        },
        "stop_timeout": 1,
    }
    salt.declare(
        {
            "network": {"ipv4": "10.0.0.0/24"},
            "runtimes": {"kernels": "solo5", "solo5": {"program": f"{SOLO5}/solo5-spt"}},
            "environments": {"tiny": tiny},
        }
    )
    applied = salt("state.apply", "netspace")
    assert all(one["result"] for one in applied.values()), applied
    until(lambda: pinged(address), "no answer to a ping", patience=PATIENCE)
    assert Host(Layout()).operations.stop(["tiny"]) == {"tiny": ""}
    assert not pinged(address)
