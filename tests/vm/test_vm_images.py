"""Images on a kernel and a file system with fs-verity: the kernel checks each block whenever it is read."""

from __future__ import annotations

import pytest
from support.hosts.whole_host import all_true
from vmlab.lab import ROOTFS, STAY, Salt
from vmlab.machine import Machine

pytestmark = pytest.mark.vm

# Something to look for on the disk, over many blocks.
PATTERN = b"no other file of this machine has this in it " * 4000
# Flip a bit of one block of the file on the disk itself, as a failing disk does; nothing is left cached.
FLIP = """
import os, sys
wanted = b"no other file of this machine has this in it " * 90
os.remove(sys.argv[1])
os.sync()
with open("/dev/vda", "r+b", 0) as disk:
    end, at, found = disk.seek(0, 2), 0, []
    while at < end:
        disk.seek(at)
        place = disk.read((4 << 20) + len(wanted)).find(wanted)
        if place >= 0:
            found.append(at + place)
        at += 4 << 20
    for place in found:
        disk.seek(place + 20000)
        byte = disk.read(1)
        disk.seek(place + 20000)
        disk.write(bytes([byte[0] ^ 1]))
    os.fsync(disk.fileno())
print(len(found))
"""


def test_a_bit_that_flips_on_the_disk_is_refused_at_the_read(plain: Machine, salt: Salt) -> None:
    plain.put(f"{ROOTFS}/pattern", PATTERN)
    environment = {"image": f"dir:{ROOTFS}", "command": ["/bin/sh", "-c", STAY]}
    all_true(salt.apply({"environments": {"web": environment}}))
    (digest,) = salt("netspace_image.list")
    known = salt("netspace_image.inspect", digest)
    assert known["verity"].startswith("sha256:"), known
    assert known["unpacked"] is None
    assert salt("netspace_image.verify") == {digest: "ok"}

    def read() -> dict[str, object]:
        return salt("netspace_environment.exec", "web", '["sh", "-c", "cat /pattern | wc -c"]')

    assert read()["stdout"].strip() == str(len(PATTERN))
    plain.put("/root/flip.py", FLIP)
    found = plain.sh(f"python3 /root/flip.py {ROOTFS}/pattern && echo 3 >/proc/sys/vm/drop_caches")
    assert int(found.split()[0]) >= 1
    after = read()
    assert after["stdout"].strip() != str(len(PATTERN)), after
    assert "error" in str(after["stderr"]).lower()
    (told,) = salt("netspace_image.verify", check=False).values()
    assert "can't be read" in told
