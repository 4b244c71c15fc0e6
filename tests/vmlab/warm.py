"""Server for calls of Salt inside a virtual machine. Salt is set up once, and each call is a fork, like a minion's job.

This is a separate program. On an emulated machine, importing and setting up Salt takes most of a call. The program
listens on the socket that is its argument. A request is a line of JSON with function and arguments of a ``salt-call``;
the reply is a line with its exit code and output. Each call compiles the pillar again; grains stay as at the first
call.
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
import salt.pillar
import salt.state
import salt.utils.gitfs
import salt.utils.jinja

DECLARED = {"environments": {"some": {"image": "dir:/", "command": ["/bin/true"]}}}


def prepared() -> salt.cli.caller.BaseCaller:
    """Return a ``salt-call`` that is set up but hasn't been called yet."""
    sys.argv = ["salt-call"]  # that is who it says it is
    parser = salt.cli.call.SaltCall()
    parser.parse_args(["--out=json", "--retcode-passthrough", "test.ping"])
    caller = salt.cli.caller.Caller.factory(parser.config)
    # Loads what each call would.
    caller.minion.functions["state.apply"]("netspace", test=True, pillar={"netspace": DECLARED})
    return caller


def call(caller: salt.cli.caller.BaseCaller, function: str, *arguments: str) -> None:
    """Call *function*, write its return, and end."""
    minion = caller.minion
    opts = minion.opts
    pillar = salt.pillar.get_pillar(
        opts, opts["grains"], opts["id"], opts["saltenv"], pillarenv=opts.get("pillarenv")
    ).compile_pillar()
    opts["pillar"] = pillar
    for loader in (minion.functions, minion.functions._dunder_salt):
        loader.pack["__pillar__"] = pillar
        loader.pack["__context__"].clear()
    minion.executors.pack["__context__"].clear()
    caller.opts.update(fun=function, arg=list(arguments))
    caller.run()


def answer(caller: salt.cli.caller.BaseCaller, request: list[str]) -> dict[str, object]:
    """Make the requested call in a child; return the reply."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            call(caller, *request)
            sys.exit(0)
        _, status = os.waitpid(child, 0)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(base64.b64encode(stream.read()).decode())
    return {"code": os.waitstatus_to_exitcode(status), "out": texts[0], "err": texts[1]}


def serve(path: str) -> None:
    """Answer requests on the socket *path* without end."""
    caller = prepared()
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
                lines.write(json.dumps(answer(caller, json.loads(lines.readline()))).encode() + b"\n")
            os._exit(0)
        stream.close()


if __name__ == "__main__":
    serve(*sys.argv[1:])
