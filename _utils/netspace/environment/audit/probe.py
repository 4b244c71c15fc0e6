"""Program of the audit: tries to break out of an environment, from *inside* it.

The program needs only the standard library (Python 3.9 or newer) and the package ``attempts``. It uses ``pika`` if the
image has it. It reads one JSON object from standard input, makes each attempt of ``attempts`` once, with a time limit,
and prints a JSON list of rows ``{name, group, outcome, detail}``. *outcome* is ``refused`` (good), ``succeeded``
(isolation is broken) or ``skipped`` (there is no target).

The input names the targets. The program skips attempts whose target is absent::

    {"peer": {"addresses": [...], "port": 7000, "mailbox": "mailbox.x", "link": "link.x.y", "account": "env.x",
              "marker": "text in the peer's files", "locked": "/path", "touched": "/path",
              "shm_key": 4711, "abstract": "name of a socket"},
     "host": {"addresses": [...], "port": 22, "broker_ports": [...]},
     "outside": {"addresses": [...], "port": 80},
     "limits": {"memory": bytes, "pids": 64, "files": 1024, "tmp": bytes, "shm": bytes, "disk": bytes}}

``{"skip": "why"}`` in place of a target gives the reason for its absence.

An attempt exceeds a limit only slightly, and does the host no harm if it succeeds.

With the argument ``victim``, the program is the peer, the target of another twin's attempts: it holds a lock, opens a
file again and again, keeps the marker in a file and in memory, and listens. It prints ``ready`` and then runs until it
is killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
import select
import signal
import socket
import sys
import time
from typing import Any

from netspace.environment.audit.attempts import (
    broker,
    clocks,
    devices,
    files,
    kernel,
    locks,
    namespaces,
    network,
    processes,
    resources,
)
from netspace.environment.audit.attempts.attempt import ATTEMPTS, Attempt, Refused, Skip, syscall

# Each of them adds its attempts to the table.
_LOADED = (files, locks, processes, namespaces, kernel, devices, network, broker, clocks, resources)
GROUPS = ("files", "locks", "memory", "processes", "namespaces", "kernel", "devices", "network", "broker", "time",
          "resources")  # fmt: skip


def run(target: dict[str, Any]) -> list[dict[str, str]]:
    """Run all attempts, each in a separate process, so that no attempt influences the next."""
    return [
        {"name": name, "group": group, **isolated(function, target)}
        for group, name, function in sorted(ATTEMPTS, key=lambda entry: GROUPS.index(entry[0]))
    ]


def isolated(function: Attempt, target: dict[str, Any]) -> dict[str, str]:
    """Run one attempt in a child process, for at most 15 seconds."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        # If memory runs out, let the kernel kill this process, not its parent.
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as stream:
            stream.write("1000")
        os.write(writer, json.dumps(one(function, target)).encode()[:60_000])
        os._exit(0)
    os.close(writer)
    answer = b""
    deadline = time.monotonic() + 15
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(reader, 65536) if ready else b""
        if not chunk:
            break
        answer += chunk
    os.close(reader)
    if not answer:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if not answer:
        return {"outcome": "refused", "detail": f"the attempt was ended ({os.waitstatus_to_exitcode(status)})"}
    result: dict[str, str] = json.loads(answer)
    return result


def one(function: Attempt, target: dict[str, Any]) -> dict[str, str]:
    try:
        return {"outcome": "succeeded", "detail": function(target)}
    except Skip as err:
        return {"outcome": "skipped", "detail": str(err)}
    except Refused as err:
        return {"outcome": "refused", "detail": str(err)}
    except OSError as err:
        return {"outcome": "refused", "detail": errno.errorcode.get(err.errno or 0, "") + f" {err}"}
    except Exception as err:
        # The system didn't refuse the attempt: the probe itself failed, and the row must show that.
        return {"outcome": "succeeded", "detail": f"the probe failed: {err!r}"}


def victim(target: dict[str, Any]) -> None:
    """Act as the peer: hold the targets of the attempts and answer connections, until this process is killed."""
    marker = target["marker"]
    with open("/tmp/victim", "w") as stream:
        stream.write(marker)
    with open("/dev/shm/victim", "w") as stream:
        stream.write(marker)
    memory = mmap.mmap(-1, 4096)
    memory[: len(marker)] = marker.encode()
    lock = open(target["locked"], "rb")  # noqa: SIM115 (held until the end)
    fcntl.flock(lock, fcntl.LOCK_EX)
    syscall("shmget", target["shm_key"], 4096, 0o1600)
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    unix.bind("\0" + target["abstract"])
    unix.listen()
    if socket.has_dualstack_ipv6():
        tcp = socket.create_server(("::", target["port"]), family=socket.AF_INET6, dualstack_ipv6=True)
        udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    else:  # a kernel without IPv6
        tcp = socket.create_server(("0.0.0.0", target["port"]))  # noqa: S104 (in its own namespace)
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(tcp.getsockname()[:2])
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([tcp, udp, unix], [], [], 0.1)
        with open(target["touched"], "rb"):
            pass
        for end in ready:
            if end is udp:
                _, sender = udp.recvfrom(64)
                udp.sendto(b"yes", sender)
            else:
                end.accept()[0].close()


def main() -> None:
    if sys.argv[1:2] == ["victim"]:
        victim(json.loads(sys.argv[2]))
    else:
        json.dump(run(json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
