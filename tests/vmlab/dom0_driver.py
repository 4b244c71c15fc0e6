"""The library in a dom0, as one process that the test asks for what an operator would do: a line of JSON each.

A command of its own for each would pay seconds for imports, as QEMU translates all code.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from typing import Any

from netspace import supervision
from netspace.host.host import Host
from netspace.layout import Layout
from netspace.spec import parse

PATH = "/run/driver"
HEARD: dict[int, socket.socket] = {}


def applied(declaration: dict[str, Any], *, test: bool = False) -> dict[str, Any]:
    """Apply a declaration; return the steps, errors and refusals."""
    declared = parse.declaration(declaration)
    host = Host(Layout())
    kinds = [host.converge_interfaces, host.converge_environments]
    # What isn't declared any more ends before its namespace does.
    results = [one(declared, whole=True, test=test) for one in (kinds if declared.environments else kinds[::-1])]
    return {
        "steps": [f"{step.kind} {step.name} {step.action}" for result in results for step in result.plan.steps],
        "errors": [outcome.error for result in results for outcome in result.outcomes if outcome.error],
        "refused": [refusal.message for result in results for refusal in result.plan.refusals],
    }


def answer(request: dict[str, Any]) -> Any:
    host = Host(Layout())
    match request:
        case {"apply": declaration}:
            return applied(declaration, test=bool(request.get("test")))
        case {"operation": name, "arguments": arguments}:
            return getattr(host.operations, name)(*arguments)
        case {"list": _}:
            return host.environments.list()
        case {"drift": _}:
            return [
                f"{step.kind} {step.name} {step.action}: {step.reason} {step.changes}" for step in host.drift().steps
            ]
        case {"attend": _}:
            return supervision.select(Layout()).attend()
        case {"hear": port}:
            heard = HEARD[port] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            heard.bind(("", port))
            heard.setblocking(False)
            return None
        case {"heard": port}:
            found = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    text, (address, _) = HEARD[port].recvfrom(100)
                    found.append([address, text.decode()])
            return found
        case {"udp": text, "to": address, "port": port}:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stream:
                stream.settimeout(2)
                try:
                    stream.sendto(text.encode(), (address, port))
                    return stream.recv(100).decode()
                except OSError as err:
                    return type(err).__name__
    raise ValueError(request)


def serve() -> None:
    """Answer requests without end, one after the other."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(PATH)
        listener.listen()
        while True:
            stream, _ = listener.accept()
            with stream, stream.makefile("rwb") as lines:
                try:
                    told = {"result": answer(json.loads(lines.readline()))}
                except Exception as err:
                    told = {"failed": f"{type(err).__name__}: {err}"}
                lines.write(json.dumps(told, default=str).encode() + b"\n")


if __name__ == "__main__":
    os.setsid()
    sys.stdout.flush()
    serve()
