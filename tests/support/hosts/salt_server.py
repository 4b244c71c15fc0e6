"""Server for ``salt-call`` without its imports: a process that has imported everything forks a child for each call.

This is a separate program, which :class:`support.hosts.warm_salt.WarmSalt` starts: ``salt_server.py DESCRIPTOR
CONFIG``. DESCRIPTOR is a socket. Each message on it is a call: JSON with arguments, variables and folder, and
descriptors for the call's output, errors and exit code. The child does all that ``salt-call`` does after its imports:
it reads configuration, grains, pillar and modules again. Imports take two thirds of a call's time.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import sys
from typing import NoReturn

LARGEST = 1 << 20


def learn(config: str) -> None:
    """Import the modules that a ``state.apply`` imports.

    A child process runs a ``state.apply`` to find the names of these modules.
    """
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        silent = os.open(os.devnull, os.O_RDWR)
        for descriptor in (1, 2):
            os.dup2(silent, descriptor)
        with contextlib.suppress(BaseException):
            call(config, ["--out=json", "state.apply", "netspace", "test=True"])
        names = [
            name for name in sys.modules if name.partition(".")[0] in ("salt", "netspace") and "loaded" not in name
        ]
        with os.fdopen(write, "w") as stream:
            json.dump(names, stream)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        names = json.load(stream)
    os.waitpid(child, 0)
    for name in sorted(names):
        with contextlib.suppress(Exception):  # a module of Salt's that only its loader can import
            importlib.import_module(name)


def call(config: str, arguments: list[str]) -> None:
    import salt.scripts

    sys.argv = ["salt-call", f"--config-dir={config}", *arguments]
    salt.scripts.salt_call()


def answer(config: str, message: bytes, descriptors: list[int]) -> None:
    """Make one call in a child, and write its exit code."""
    out, err, code = descriptors
    child = os.fork()
    if child == 0:
        os.close(code)
        _become(config, message, out, err)
    os.close(out)
    os.close(err)
    _, status = os.waitpid(child, 0)
    os.write(code, str(os.waitstatus_to_exitcode(status)).encode())


def _become(config: str, message: bytes, out: int, err: int) -> NoReturn:
    status = 1
    try:
        for number, descriptor in ((1, out), (2, err)):
            os.dup2(descriptor, number)
            os.close(descriptor)
        request = json.loads(message)
        os.environ.clear()
        os.environ.update(request["variables"])
        os.chdir(request["folder"])
        call(config, request["arguments"])
        status = 0
    except SystemExit as err_:
        status = err_.code if isinstance(err_.code, int) else 1
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def serve(connection: socket.socket, config: str) -> None:
    """Answer calls until the other end is closed."""
    learn(config)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for who answers
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, LARGEST, 3)
        if not message:
            return
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            connection.close()
            answer(config, message, descriptors)
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
