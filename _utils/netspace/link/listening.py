"""The listener at the broker's port for clients: the broker itself, known by its certificate, or another program.

The management API shows that the node runs, but not that clients reach it: RabbitMQ goes on without a listener whose
port was taken. Changes nothing.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from netspace.layout import Layout
from netspace.link import authority, identity
from netspace.spec.types import LocalBroker

_LISTEN = "0A"  # of /proc/net/tcp: TCP_LISTEN


def unanswered(layout: Layout, spec: LocalBroker, seconds: float = 5.0) -> str:
    """Return why clients can't reach the broker; empty where its port answers by the broker's own certificate.

    Makes one TLS connection and ends it before AMQP begins.
    """
    import ssl

    trusted = identity.server_folder(layout) / identity.ANCHORS
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(trusted)
        if (own := _any_identity(layout)) is not None:
            context.load_cert_chain(own)  # a broker that is shown none writes an alert into its log
    except (OSError, ssl.SSLError) as err:
        return f"its certificates can't be read: {err}"
    try:
        with socket.create_connection(("127.0.0.1", spec.port), timeout=seconds) as plain:
            with context.wrap_socket(plain, server_hostname=authority.SERVER_NAMES[0]):
                return ""
    except ConnectionRefusedError:
        return f"nothing listens at port {spec.port}"
    except (OSError, ssl.SSLError) as err:
        who = holder(spec.port)
        return f"port {spec.port} doesn't answer as the broker ({err})" + (f"; {who} has it" if who else "")


def taken(spec: LocalBroker, running: LocalBroker | None = None, *, deaf: bool = False) -> str:
    """Return which of the broker's ports another program has, and which program; empty where none is taken.

    :param running: the definition that our own broker runs by, so that its ports are its own; None: it doesn't run.
    :param deaf: it runs without its port for clients.
    """
    keys = ("port", "management_port", "distribution_port")
    own = {getattr(running, key) for key in keys if not (deaf and key == "port")} if running is not None else set()
    for key in keys:
        port = getattr(spec, key)
        if port not in own and (who := holder(port)) is not None:
            return f"broker:{key}: {port} is taken by {who}; end that program, or declare another port"
    return ""


def holder(port: int) -> str | None:
    """Return the program that listens at a TCP port of this network namespace (proc(5), ``net/tcp``); None where none
    does.

    A program that listens at one address that is not loopback does not conflict, and is not returned.
    """
    inodes = {inode for path in ("tcp", "tcp6") for inode in _listening(Path("/proc/net") / path, port)}
    if not inodes:
        return None
    links = {f"socket:[{inode}]" for inode in inodes}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            for fd in os.scandir(f"/proc/{name}/fd"):
                if os.readlink(fd.path) in links:
                    return f"{Path(f'/proc/{name}/comm').read_text().strip()} (process {name})"
        except OSError:  # it ended, or is another's
            continue
    return "another program"


def _listening(table: Path, port: int) -> list[str]:
    """The inodes of sockets that listen at *port* on loopback or on all addresses."""
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:
        return []
    found = []
    for line in lines:
        fields = line.split()
        address, _, number = fields[1].rpartition(":")
        near = not address.strip("0") or address in ("0100007F", "0000000000000000FFFF00000100007F") or (
            address == "00000000000000000000000001000000"
        )  # fmt: skip
        if fields[3] == _LISTEN and int(number, 16) == port and near:
            found.append(fields[9])
    return found


def _any_identity(layout: Layout) -> Path | None:
    """The certificate and key of an arbitrary environment."""
    try:
        folders = sorted(path for path in layout.identities.iterdir() if path.is_dir())
    except OSError:
        return None
    return next((path / identity.FILE for path in folders if (path / identity.FILE).exists()), None)
