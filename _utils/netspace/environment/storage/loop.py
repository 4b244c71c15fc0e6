"""Loop devices (loop(4), linux/loop.h): a file as a block device, for as long as it is mounted.

The device bypasses the host's page cache (direct I/O), so an environment is charged for the memory and the disk I/O of
all that it reads and writes. Nothing here mounts a device, or reads the file's content.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from netspace.errors import NetspaceError

CONTROL = Path("/dev/loop-control")

_SET_CAPACITY = 0x4C07
_CONFIGURE = 0x4C0A
_CTL_GET_FREE = 0x4C82
_AUTOCLEAR = 4
_DIRECT_IO = 16
_ATTEMPTS = 100
_RELEASED = 2.0  # seconds allowed to the kernel for releasing an unmounted file system


def backing_file(device: str) -> str:
    """Return the path of the file behind a loop device (such as ``/dev/loop0``).

    :raises OSError: when the device has no file.
    """
    return Path(f"/sys/block/{device[5:]}/loop/backing_file").read_text().rstrip("\n")


def notice_size(device: str) -> None:
    """Let a loop device take on the present size of its file."""
    with open(device, "rb", buffering=0) as stream:
        fcntl.ioctl(stream, _SET_CAPACITY, 0)


def attach(file: Path) -> tuple[str, int]:
    """Return a new loop device on *file*, and an open descriptor of the device.

    The kernel frees the device once it is neither open nor mounted.
    """
    backing = os.open(file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        _claim(file, backing)
        config = bytearray(304)  # struct loop_config: fd, block_size, struct loop_info64 (lo_flags at 52), reserved
        struct.pack_into("=II", config, 0, backing, 0)
        struct.pack_into("=I", config, 8 + 52, _AUTOCLEAR | _DIRECT_IO)
        for _ in range(_ATTEMPTS):
            with CONTROL.open("rb") as control:
                device = f"/dev/loop{fcntl.ioctl(control, _CTL_GET_FREE)}"
            handle = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(handle, _CONFIGURE, config)
            except OSError as err:
                os.close(handle)
                if err.errno != errno.EBUSY:  # another process took it first
                    raise
            else:
                return device, handle
        raise OSError(errno.EBUSY, "no loop device is free")
    finally:
        os.close(backing)


def _claim(file: Path, backing: int) -> None:
    """Lock *file* for one loop device: two independent mounts of one ext4 would destroy it.

    The device keeps its file open, and with it the lock. It does so as long as any process has a file open in a mount
    of the device, even after netspace has unmounted it.

    :raises NetspaceError: when another device still holds the lock.
    """
    deadline = time.monotonic() + _RELEASED
    while True:
        try:
            fcntl.flock(backing, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                break
        time.sleep(0.01)
    device = next((name for name, path in _backing_files() if path == str(file)), "a loop device")
    raise NetspaceError(
        f"{file} is still in use by {device}: a process outside of the environment has a file or folder "
        "in it open; end that process (a backup? a shell?) and apply again"
    )


def _backing_files() -> Iterator[tuple[str, str]]:
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # the device was just freed
            yield f"/dev/{path.parts[3]}", path.read_text().rstrip("\n")
