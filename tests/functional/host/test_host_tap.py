"""Kind ``tap``, seen from inside: a program without capabilities can use the environment's device, and no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.hosts.whole_host import Salt, python
from support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]

# Asks for its gateway's MAC as an Ethernet station would, again and again until it is told, then idles: the kernel
# hands packets to a tap once its link watcher has seen that someone holds it, which may be after the first question.
ATTACH = """
import fcntl, os, select, signal, struct, sys
device = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", b"tap0", 0x1002))
mac, own, gateway = bytes.fromhex(sys.argv[1]), bytes(map(int, sys.argv[2].split("."))), bytes([10, 203, 0, 1])
for _ in range(60):
    os.write(device, b"\\xff" * 6 + mac + bytes.fromhex("08060001080006040001") + mac + own + bytes(6) + gateway)
    while select.select([device], [], [], 1)[0]:
        answer = os.read(device, 2000)
        if answer[12:14] == b"\\x08\\x06" and answer[28:32] == gateway:
            print("the gateway is at", answer[22:28].hex(), flush=True)
            signal.pause()
print("no gateway has answered")
"""

MORE = """
import errno, fcntl, os, struct, sys
try:
    device = os.open("/dev/net/tun", os.O_RDWR)
except OSError as err:
    sys.exit(f"no device: {errno.errorcode[err.errno]}")
for name in (b"tap1", b"tun0", b"eth0", b"tap%d"):
    for flags in (0x1002, 0x1001):
        try:
            fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", name, flags))
        except OSError as err:
            print(name.decode(), errno.errorcode[err.errno])
        else:
            print(name.decode(), "MADE")
print(sorted(os.listdir("/sys/class/net")) if os.path.isdir("/sys/class/net") else "no sysfs")
"""


def declared(image: Path, script: list[str], **more: Any) -> dict[str, Any]:
    guest = {
        "image": f"tar:{image}",
        "command": script,
        "stop_timeout": 2,
        "interface": {"kind": "tap", "ipv4": "10.203.7.7", "allow": []},
        **more,
    }
    plain = {
        "image": f"tar:{image}",
        "command": python("signal.pause()"),
        "stop_timeout": 2,
        "interface": {"kind": "veth"},
    }
    return {"environments": {"guest": guest, "plain": plain}}


def wait_logged(salt: Salt, text: str, times: int = 1) -> None:
    def is_there() -> bool:
        return json.dumps(salt("netspace_environment.logs", "guest")).count(text) >= times

    until(is_there, f"guest has not written {text!r} {times} times", pause=0.1)


def test_a_stack_of_its_own_finds_its_gateway(salt: Salt, image: Path) -> None:
    from netspace.interface import endpoints

    mac = endpoints.mac("netspace", "guest").replace(":", "")
    script = python(ATTACH, mac, "10.203.7.7")
    salt.declare(declared(image, script))
    salt("state.apply", "netspace")
    wait_logged(salt, "the gateway is at")
    tried = salt("netspace_environment.exec", "guest", json.dumps(["/usr/bin/python3", "-c", MORE]))
    assert "MADE" not in json.dumps(tried) and json.dumps(tried).count("EPERM") + json.dumps(tried).count("EINVAL") == 8
    refused = json.dumps(
        salt("netspace_environment.exec", "plain", json.dumps(["/usr/bin/python3", "-c", MORE]), check=False)
    )
    assert "no device: ENOENT" in refused
    again = salt("state.apply", "netspace")
    assert not any(one["changes"] for one in again.values()), again
    assert salt("netspace.drift")["differences"] == []
    # Another user of the same environment: the device is that user's after the restart.
    salt.declare(declared(image, script, user=2000))
    changed = salt("state.apply", "netspace")
    assert any(one["changes"] for one in changed.values())
    wait_logged(salt, "the gateway is at", times=2)
