"""TPM commands for the ledger's NV index, without libtss2.

Importing tpm2-pytss takes longer than starting an environment. So the few commands are written and read here (TPM 2.0
Library, Part 3, 31). :mod:`netspace.ledger.nv_public` has the properties of the index.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from netspace.errors import NetspaceError
from netspace.ledger.nv_public import ATTRIBUTES, INDEX, SIZE, WRITTEN, public

OWNER = 0x40000001
# TPM_CC (Part 2, 6.5.2)
_UNDEFINE, _DEFINE, _NV_EXTEND, _READ, _READ_PUBLIC = 0x122, 0x12A, 0x136, 0x14E, 0x169
_SESSIONS, _NO_SESSIONS, _PASSWORD = 0x8002, 0x8001, 0x40000009
_MOST = 4096
# TPM_RC that ask for the same command again: TPM_RC_RETRY, TPM_RC_YIELDED, TPM_RC_TESTING.
_AGAIN = {0x922, 0x908, 0x90A}
# TPM_RC_HANDLE for the first handle, TPM_RC_NV_UNINITIALIZED.
_NO_INDEX, _NOT_WRITTEN = 0x18B, 0x14A

Send = Callable[[bytes], bytes]


class IndexFailure(NetspaceError):
    """Error: the TPM refused a command, or does not answer.

    :param code: the TPM's code; 0 if the TPM did not answer.
    """

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def opened(path: Path, timeout: float) -> Iterator[Send]:
    """Open the TPM at *path*, and yield a function that sends a command and returns the response.

    :param path: a device, or the socket of a software TPM.
    :param timeout: seconds for all commands.
    :raises IndexFailure: when the TPM can't be opened.
    """
    deadline = time.monotonic() + timeout
    try:
        if stat.S_ISSOCK(path.stat().st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
                channel.settimeout(timeout)
                channel.connect(str(path))
                channel.setblocking(False)
                yield lambda command: _asked(channel.fileno(), command, deadline)
            return
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            yield lambda command: _asked(fd, command, deadline)
        finally:
            os.close(fd)
    except OSError as err:
        raise IndexFailure(f"the TPM at {path}: {err}") from err


def _asked(fd: int, command: bytes, deadline: float) -> bytes:
    os.write(fd, command)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    answer = b""
    while len(answer) < 10 or len(answer) < int.from_bytes(answer[2:6], "big"):
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise IndexFailure("the TPM does not answer")
        part = os.read(fd, _MOST)
        answer += part
        if not part or len(answer) > _MOST:
            raise IndexFailure("the TPM ended the connection, or its answer is too long")
    return answer


def _command(send: Send, code: int, handles: tuple[int, ...], password: bytes | None, parameters: bytes = b"") -> bytes:
    """Send one command, and return the parameters of the response.

    :param password: authorization value of the first handle; None: the command needs no authorization.
    :raises IndexFailure: when the TPM refuses the command.
    """
    body = b"".join(handle.to_bytes(4, "big") for handle in handles)
    if password is not None:
        session = struct.pack(">IHBH", _PASSWORD, 0, 0, len(password)) + password
        body += len(session).to_bytes(4, "big") + session
    body += parameters
    tag = _NO_SESSIONS if password is None else _SESSIONS
    raw = struct.pack(">HII", tag, 10 + len(body), code) + body
    for pause in (0.002, 0.02, 0.2, 1.0, None):
        answer = send(raw)
        result = int.from_bytes(answer[6:10], "big")
        if result not in _AGAIN or pause is None:
            break
        time.sleep(pause)
    if result:
        raise IndexFailure(f"the TPM refuses command {code:x} with {result:x}", result)
    if password is None:
        return answer[10:]
    size = int.from_bytes(answer[10:14], "big")
    return answer[14 : 14 + size]


def attributes(send: Send) -> int | None:
    """Return the attributes of the index; None if there is no index.

    :raises IndexFailure: when the index is not one that this module defines.
    """
    try:
        answer = _command(send, _READ_PUBLIC, (INDEX,), None)
    except IndexFailure as err:
        if err.code == _NO_INDEX:
            return None
        raise
    area = answer[2 : 2 + int.from_bytes(answer[:2], "big")]
    found = int.from_bytes(area[6:10], "big") if len(area) == 14 else 0
    if area != public(found) or found & ~WRITTEN != ATTRIBUTES:
        raise IndexFailure(f"NV index {INDEX:08x} has other properties than netspace's; find out who defined it")
    return found


def define(send: Send, auth: bytes) -> None:
    """Define the index with the authorization value *auth*. The owner's authorization value must be empty."""
    area = public()
    _command(send, _DEFINE, (OWNER,), b"", struct.pack(">H", len(auth)) + auth + struct.pack(">H", len(area)) + area)


def undefine(send: Send) -> None:
    _command(send, _UNDEFINE, (OWNER, INDEX), b"")


def extend(send: Send, auth: bytes, digest: bytes) -> None:
    # Both handles are the index: it authorizes its own extension.
    _command(send, _NV_EXTEND, (INDEX, INDEX), auth, struct.pack(">H", len(digest)) + digest)


def read(send: Send, auth: bytes) -> bytes | None:
    """Return the value of the index; None if it was not extended since the TPM's last reset."""
    try:
        answer = _command(send, _READ, (INDEX, INDEX), auth, struct.pack(">HH", SIZE, 0))
    except IndexFailure as err:
        if err.code == _NOT_WRITTEN:
            return None
        raise
    return answer[2:]
