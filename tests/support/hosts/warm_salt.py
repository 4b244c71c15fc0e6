"""``salt-call`` that imports Salt only once for all calls of a test run: see ``salt_server``."""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import sys
import time
from pathlib import Path

SERVER = Path(__file__).with_name("salt_server.py")
LARGEST = 200 * 1024  # bytes of a call; the kernel's bound for a message


class WarmSalt:
    """A server of calls, which starts with the first call.

    :param cold: the command for a call without the server: ``scripts/salt-call``.
    :param home: the folder for the server's configuration.
    """

    def __init__(self, cold: Path, home: Path) -> None:
        self._cold = cold
        self._home = home
        self._connection: socket.socket | None = None
        self._server: subprocess.Popen[bytes] | None = None

    def run(self, *arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """Run ``salt-call`` with these arguments.

        :raises subprocess.TimeoutExpired: the call isn't done within *timeout* seconds; the call continues.
        """
        if self._connection is None:
            self._start()
        assert self._connection is not None
        request = {"arguments": arguments, "variables": dict(os.environ), "folder": os.getcwd()}
        message = json.dumps(request).encode()
        assert len(message) < LARGEST, "too large for a message"
        pipes = [os.pipe() for _ in ("output", "errors", "exit code")]
        try:
            socket.send_fds(self._connection, [message], [write for _, write in pipes])
        finally:
            for _, write in pipes:
                os.close(write)
        try:
            out, err, code = _read([read for read, _ in pipes], time.monotonic() + timeout)
        except TimeoutError:
            raise subprocess.TimeoutExpired(arguments, timeout) from None
        finally:
            for read, _ in pipes:
                os.close(read)
        return subprocess.CompletedProcess(arguments, int(code), out.decode(), err.decode())

    def _start(self) -> None:
        # It writes the configuration.
        subprocess.run([self._cold, "--out=quiet", "test.ping"], check=True, capture_output=True)
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGEST)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, SERVER, str(theirs.fileno()), str(self._home / "etc")], pass_fds=[theirs.fileno()]
            )

    def end(self) -> None:
        if self._connection is not None and self._server is not None:
            self._connection.close()
            self._connection = None
            self._server.wait(timeout=60)


def _read(descriptors: list[int], deadline: float) -> list[bytes]:
    """Read all descriptors to their ends."""
    found = dict.fromkeys(descriptors, b"")
    with selectors.DefaultSelector() as waiting:
        for descriptor in descriptors:
            waiting.register(descriptor, selectors.EVENT_READ)
        while waiting.get_map():
            ready = waiting.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                part = os.read(key.fd, 1 << 16)
                found[key.fd] += part
                if not part:
                    waiting.unregister(key.fd)
    return list(found.values())
