"""What calls Salt inside a virtual machine: imported once, each call a fork of it, as a minion's jobs are.

A program of its own. On a machine that is translated, importing Salt takes as long as half of a call. It listens
on the socket that is its argument; a request is a line of JSON, the arguments of a ``salt-call``, and the reply
another: how it ended and what it wrote.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import sys
import tempfile

# With what every call imports sooner or later.
import salt.cli.call
import salt.cli.caller
import salt.fileserver
import salt.output.highstate
import salt.scripts
import salt.state
import salt.utils.gitfs
import salt.utils.jinja


def call(arguments: list[str]) -> dict[str, object]:
    """Run ``salt-call`` with *arguments* in a child."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = ["salt-call", *arguments]
            salt.scripts.salt_call()
            sys.exit(0)
        _, status = os.waitpid(child, 0)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(base64.b64encode(stream.read()).decode())
    return {"code": os.waitstatus_to_exitcode(status), "out": texts[0], "err": texts[1]}


def serve(path: str) -> None:
    """Answer for ever."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen()
    os.rename(f"{path}.new", path)  # where it is, it answers
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for who answers
    while True:
        stream, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            with stream, stream.makefile("rwb") as lines:
                lines.write(json.dumps(call(json.loads(lines.readline()))).encode() + b"\n")
            os._exit(0)
        stream.close()


if __name__ == "__main__":
    serve(sys.argv[1])
