"""Commands of Salt (not its daemons), each run as a fork of one process that has already imported Salt.

Imports take most of the processor time of a command. ``salt_forks.py serve SOCKET`` is the process with the imports.
``salt_forks.py ask SOCKET PROGRAM ARGUMENT...`` takes the place of a command: it lets a fork run the command with the
same folder, environment variables and streams, and ends with the command's exit code. If the process with the imports
doesn't run, ``ask`` executes the command itself. Each fork reads configuration, plugins and netspace's library again.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

COMMANDS = {"salt": "salt_main", "salt-call": "salt_call", "salt-run": "salt_run", "salt-key": "salt_key"}
"""Functions of ``salt.scripts``, by command."""
DAEMONS = ("salt-master", "salt-minion")
LARGEST = 1 << 18  # bytes of a request
NO_ANSWER = 70  # exit code of a command whose fork ended without one


def program(place: Path, name: str) -> str:
    """Return the text of a shell script that takes the place of a command of Salt.

    :param place: socket of the process that has imported Salt.
    :param name: the command, such as ``salt-call``.
    """
    return f'#!/bin/sh\nexec {sys.executable} -ISB {__file__} ask {place} {name} "$@"\n'


def write(folder: Path, place: Path) -> None:
    """Write to *folder* the script of :func:`program` for each command of Salt."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in COMMANDS:
        (folder / name).write_text(program(place, name))
        (folder / name).chmod(0o755)


def serving(place: Path) -> list[str]:
    """Return the command of the process that has imported Salt."""
    return [sys.executable, __file__, "serve", str(place)]


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Path]:
    """Run the process with the imports during the context; yield the folder with the scripts.

    The folder also has links to Salt's daemons.
    """
    place = folder / "socket"
    assert len(str(place)) < 100, "unix(7)"
    write(folder, place)
    for name in DAEMONS:
        (folder / name).symlink_to(Path(sys.executable).with_name(name))
    server = subprocess.Popen(serving(place), stdin=subprocess.DEVNULL)
    try:
        yield folder
    finally:
        server.kill()
        server.wait()


# -- the program of a command --------------------------------------------------------


def ask(place: str, name: str, *arguments: str) -> int:
    """Let a fork run the command; return the command's exit code."""
    with socket.socket(socket.AF_UNIX) as asker:
        try:
            asker.connect(place)
        except (FileNotFoundError, ConnectionRefusedError):
            command = [str(Path(sys.executable).with_name(name)), *arguments]
            os.execv(command[0], command)
        request = {"words": [name, *arguments], "variables": dict(os.environ), "folder": os.getcwd()}
        message = json.dumps(request).encode()
        assert len(message) < LARGEST, "too large for a request"
        # The length comes first, because a stream has no bounds of messages.
        socket.send_fds(asker, [len(message).to_bytes(4, "big")], [0, 1, 2])
        asker.sendall(message)
        answer = asker.recv(1)
        return answer[0] if answer else NO_ANSWER


# -- the process that has imported Salt -----------------------------------------------


def serve(place: str) -> None:
    """Run each requested command in a fork. If the script that requested it ends early, kill the fork."""
    del sys.path[0]  # this file's folder
    import salt.cli.key
    import salt.cli.run
    import salt.cli.salt
    import salt.client
    import salt.daemons.masterapi
    import salt.key
    import salt.minion
    import salt.netapi
    import salt.output
    import salt.output.highstate
    import salt.output.nested
    import salt.runner
    import salt.scripts
    import salt.state
    import salt.utils.gitfs
    import salt.utils.jinja  # noqa: F401

    assert "netspace" not in sys.modules, "each command imports the library that it finds"
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for forks
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as waiting:
        listener.bind(f"{place}.new")
        listener.listen()
        os.rename(f"{place}.new", place)  # where it is, it answers
        waiting.register(listener, selectors.EVENT_READ)
        while True:
            for ready, _ in waiting.select():
                if ready.fileobj is not listener:
                    _forget(waiting, ready)
                    continue
                asker, _ = listener.accept()
                try:
                    request, streams = _received(asker)
                except (OSError, ValueError):
                    asker.close()
                    continue
                if (child := os.fork()) == 0:
                    waiting.close()
                    listener.close()
                    _become(asker, request, streams)
                for stream in streams:
                    os.close(stream)
                with contextlib.suppress(ProcessLookupError):  # it has ended already
                    waiting.register(asker, selectors.EVENT_READ, os.pidfd_open(child))


def _forget(waiting: selectors.BaseSelector, ready: selectors.SelectorKey) -> None:
    """Drop the connection of a script that has ended, and kill its fork if the fork still runs."""
    waiting.unregister(ready.fileobj)
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(ready.data, signal.SIGKILL)
    os.close(ready.data)
    ready.fileobj.close()  # type: ignore[union-attr]


def _received(asker: socket.socket) -> tuple[dict[str, object], Sequence[int]]:
    length, streams, _, _ = socket.recv_fds(asker, 4, 3)
    left, message = int.from_bytes(length, "big"), b""
    while len(message) < left:
        if not (part := asker.recv(left - len(message))):
            raise ValueError("it ends early")
        message += part
    return json.loads(message), streams


def _become(asker: socket.socket, request: dict[str, object], streams: Sequence[int]) -> NoReturn:
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        code = _run(**request)  # type: ignore[arg-type]
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        asker.sendall(bytes([code & 0xFF]))
        os._exit(0)


def _run(words: list[str], variables: dict[str, str], folder: str) -> int:
    import salt.scripts

    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.path[:0] = [path for path in variables.get("PYTHONPATH", "").split(":") if path]
    sys.argv = words
    getattr(salt.scripts, COMMANDS[words[0]])()
    return 0


if __name__ == "__main__":
    sys.exit({"ask": ask, "serve": serve}[sys.argv[1]](*sys.argv[2:]))
