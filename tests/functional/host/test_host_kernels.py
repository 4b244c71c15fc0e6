"""A unikernel by Salt: declared with an interface, it answers there as far as that is allowed, and stops cleanly."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_kernel
from waiting import until
from whole_host import Salt

from netspace.environment import runtimes
from netspace.host import Host
from netspace.layout import Layout

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]

ADDRESS, HOST = "10.203.7.8", "10.203.0.1/32"
PATIENCE = 120.0


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


def pinged() -> bool:
    """Whether it answers an echo request (RFC 792)."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.settimeout(1)
        head = struct.pack(">BBHHH", 8, 0, 0, 77, 1)
        total = sum(struct.unpack(">4H", head))
        raw.sendto(head[:2] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF) + head[4:], (ADDRESS, 0))
        try:
            for _ in range(100):  # whatever else comes
                packet = raw.recv(200)
                if packet[20] == 0 and packet[24:28] == head[4:] and socket.inet_ntoa(packet[12:16]) == ADDRESS:
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
