"""Agent inside a virtual machine: it runs commands, reads and writes files, and sends requests to programs there.

The agent is a separate program that uses only the standard library. The machine starts it at boot with the virtio port
that leads to the driver. Requests and replies are a line of JSON each. Every request runs in a separate thread, so that
a long command doesn't delay other requests. The agent obeys every request, because only the test is at the port's other
end.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import threading
import time
from typing import Any


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Execute one request; return the reply."""
    if "argv" in request:
        try:
            done = subprocess.run(
                request["argv"],
                input=base64.b64decode(request.get("input", "")),
                capture_output=True,
                timeout=request["timeout"],
                cwd="/",
                env={"PATH": os.environ["PATH"], "HOME": "/root", "LANG": "C.UTF-8", **request.get("variables", {})},
            )
        except subprocess.TimeoutExpired as err:
            return {"error": f"no end after {request['timeout']} s", "out": text(err.stdout), "err": text(err.stderr)}
        return {"code": done.returncode, "out": text(done.stdout), "err": text(done.stderr)}
    if "put" in request:
        os.makedirs(os.path.dirname(request["put"]), exist_ok=True)
        with open(request["put"], "wb") as stream:
            os.fchmod(stream.fileno(), request["mode"])
            stream.write(base64.b64decode(request["data"]))
        return {}
    if "get" in request:
        with open(request["get"], "rb") as stream:
            return {"data": base64.b64encode(stream.read()).decode()}
    if "ask" in request:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(request["timeout"])
            stream.connect(request["ask"])
            stream.sendall(request["line"].encode() + b"\n")
            with stream.makefile("rb") as lines:
                return dict(json.loads(lines.readline()))
    if "clock" in request:
        time.clock_settime(time.CLOCK_REALTIME, request["clock"])
    return {}


def text(data: bytes | None) -> str:
    return base64.b64encode(data or b"").decode()


def serve(path: str) -> None:
    """Answer requests that come by the port (a device) at *path*, without end."""
    port = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    lock = threading.Lock()

    def work(line: bytes) -> None:
        try:
            request = json.loads(line)
        except ValueError:
            return  # half a line, from before a reboot
        try:
            reply = answer(request)
        except Exception as err:
            reply = {"error": repr(err)}
        data = memoryview(json.dumps({"id": request.get("id"), **reply}).encode() + b"\n")
        with lock:
            while data:
                data = data[os.write(port, data) :]

    # A line of megabytes comes in thousands of pieces: they are joined once.
    pieces: list[bytes] = []
    while True:
        data = os.read(port, 1 << 20)
        if not data:  # nobody is at the other end
            time.sleep(0.05)
            continue
        pieces.append(data)
        if b"\n" in data:
            *lines, rest = b"".join(pieces).split(b"\n")
            pieces = [rest]
            for line in lines:
                threading.Thread(target=work, args=(line,)).start()


if __name__ == "__main__":
    serve(sys.argv[1])
