"""The listener at the broker's port for clients: the broker itself, known by its certificate, or another program.

The management API shows that the node runs, but not that clients reach it: RabbitMQ goes on without a listener whose
port was taken. Changes nothing.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from pathlib import Path

from netspace import sockets
from netspace.layout import Layout
from netspace.link import authority, identity
from netspace.spec.types import PORTS, LocalBroker


def unanswered(layout: Layout, spec: LocalBroker, seconds: float = 5.0) -> str:
    """Return why clients can't reach the broker; empty where its port answers by the broker's own certificate.

    Makes one TLS connection and ends it before AMQP begins.
    """
    import ssl

    known = authority.read(layout)
    if known is None:
        return ""  # there is nothing to check it by, which the plan mends
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=known.anchors.decode())
    if (own := _any_identity(layout)) is not None:
        with contextlib.suppress(OSError, ssl.SSLError):
            context.load_cert_chain(own)  # a broker that is shown none writes an alert into its log
    try:
        with socket.create_connection(("127.0.0.1", spec.port), timeout=seconds) as plain:
            with context.wrap_socket(plain, server_hostname=authority.SERVER_NAMES[0]):
                return ""
    except ConnectionRefusedError:
        return f"nothing listens at port {spec.port}"
    except (OSError, ssl.SSLError) as err:
        who = holder(spec.port)
        return f"port {spec.port} doesn't answer as the broker ({err})" + (f"; {who} has it" if who else "")


def taken(spec: LocalBroker, own: int | None = None) -> str:
    """Return which of the broker's ports another program has, and which program; empty where none is taken.

    :param own: process of our own broker, whose ports are its own; None: it doesn't run.
    """
    for key in PORTS:
        port = getattr(spec, key)
        who = holder(port)
        if who is not None and who.pid != (own or -1):
            return f"broker:{key}: {port} is taken by {who}; end that program, or declare another port"
    return ""


def holder(port: int) -> sockets.Holder | None:
    """Return the program that listens at a TCP port of this network namespace; None: none does.

    Bound to one address that is not loopback, it is in nobody's way.
    """
    found = [one for table in ("tcp", "tcp6") for one in sockets.listeners(table, {port}) if _near(one.address)]
    return sockets.holder(found) if found else None


def _near(address: str) -> bool:
    return not address or ipaddress.ip_address(address).is_loopback


def _any_identity(layout: Layout) -> Path | None:
    """The certificate and key of an arbitrary environment."""
    try:
        folders = sorted(path for path in layout.identities.iterdir() if path.is_dir())
    except OSError:
        return None
    return next((path / identity.FILE for path in folders if (path / identity.FILE).exists()), None)
