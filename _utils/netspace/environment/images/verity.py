"""fs-verity: the kernel checks each block of an image's file whenever it is read.

With fs-verity, reading fails if a byte on disk has changed after the mount, so a damaged program is never run. Not
every kernel and file system has fs-verity. Without it, netspace still hashes the image's content before each mount.
Sources: Documentation/filesystems/fsverity.rst and linux/fsverity.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

ENABLE = 0x40806685  # _IOW('f', 133, struct fsverity_enable_arg)
MEASURE = 0xC0046686  # _IOWR('f', 134, struct fsverity_digest)
SHA256 = 1
_VERSION = 1
_BLOCK = 4096
# version, hash_algorithm, block_size, salt_size, salt_ptr, sig_size, reserved, sig_ptr, reserved[11]
_ENABLE_ARG = struct.Struct("=IIIIQIIQ11Q")
# digest_algorithm, digest_size, digest
_DIGEST = struct.Struct("=HH32s")
_ABSENT = {
    errno.ENOTTY: "the kernel or the file system has no fs-verity",
    errno.EOPNOTSUPP: "the kernel lacks CONFIG_FS_VERITY, or the file system lacks its feature 'verity'",
    errno.ENODATA: "the file has no fs-verity digest",
}


def request() -> bytes:
    """Return the ioctl argument that enables fs-verity: SHA-256, blocks of 4096 bytes, no salt, no signature."""
    return _ENABLE_ARG.pack(_VERSION, SHA256, _BLOCK, 0, 0, 0, 0, 0, *([0] * 11))


def answer(buffer: bytes) -> str:
    """Return ``sha256:<hex>`` from the kernel's answer to a request for a file's digest.

    :raises ValueError: when the digest's algorithm is not SHA-256.
    """
    algorithm, size, digest = _DIGEST.unpack(buffer)
    if (algorithm, size) != (SHA256, 32):
        raise ValueError(f"fs-verity with the unknown algorithm {algorithm} ({size} bytes)")
    return f"sha256:{digest.hex()}"


def enable(path: Path) -> str:
    """Enable fs-verity, so that the kernel refuses all changes of a file. No process may have it open for writing.

    :return: why the kernel can't enable fs-verity; empty after success.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.ioctl(fd, ENABLE, request())
    except OSError as err:
        return "" if err.errno == errno.EEXIST else _why(err)
    finally:
        os.close(fd)
    return ""


def measure(path: Path) -> tuple[str, str]:
    """Return the file's fs-verity digest, or an empty text and why there is none."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        buffer = bytearray(_DIGEST.pack(0, 32, b""))
        fcntl.ioctl(fd, MEASURE, buffer)
        return answer(bytes(buffer)), ""
    except (OSError, ValueError) as err:
        return "", _why(err)
    finally:
        os.close(fd)


def _why(err: Exception) -> str:
    number = err.errno if isinstance(err, OSError) else None
    return _ABSENT.get(number, str(err)) if number is not None else str(err)
