"""Kind ``tap`` from within: the environment's program, without any capability, has its device and no other."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from whole_host import Salt, python

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]

# Asks for its gateway's MAC as an Ethernet station would, then idles.
ATTACH = """
import fcntl, os, select, signal, struct, sys
device = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", b"tap0", 0x1002))
mac, own, gateway = bytes.fromhex(sys.argv[1]), bytes(map(int, sys.argv[2].split("."))), bytes([10, 203, 0, 1])
os.write(device, b"\\xff" * 6 + mac + bytes.fromhex("08060001080006040001") + mac + own + bytes(6) + gateway)
while select.select([device], [], [], 5)[0]:
    answer = os.read(device, 2000)
    if answer[12:14] == b"\\x08\\x06" and answer[28:32] == gateway:
        print("the gateway is at", answer[22:28].hex(), flush=True)
        break
signal.pause()
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


def logged(salt: Salt, text: str, times: int = 1) -> bool:
    for _ in range(100):
        if json.dumps(salt("netspace_environment.logs", "guest")).count(text) >= times:
            return True
        time.sleep(0.1)
    return False


def test_a_stack_of_its_own_finds_its_gateway(salt: Salt, image: Path) -> None:
    from netspace.interface import ends

    mac = ends.mac("netspace", "guest").replace(":", "")
    script = python(ATTACH, mac, "10.203.7.7")
    salt.declare(declared(image, script))
    salt("state.apply", "netspace")
    assert logged(salt, "the gateway is at"), salt("netspace_environment.logs", "guest")
    tried = salt("netspace_environment.exec", "guest", json.dumps(["/usr/bin/python3", "-c", MORE]))
    assert "MADE" not in json.dumps(tried) and json.dumps(tried).count("EPERM") + json.dumps(tried).count("EINVAL") == 8
    refused = json.dumps(
        salt("netspace_environment.exec", "plain", json.dumps(["/usr/bin/python3", "-c", MORE]), check=False)
    )
    assert "no device: ENOENT" in refused
    again = salt("state.apply", "netspace")
    assert not any(one["changes"] for one in again.values()), again
    # Another user of the same environment: the device is that user's after the restart.
    salt.declare(declared(image, script, user=2000))
    changed = salt("state.apply", "netspace")
    assert any(one["changes"] for one in changed.values())
    assert logged(salt, "the gateway is at", times=2), salt("netspace_environment.logs", "guest")
