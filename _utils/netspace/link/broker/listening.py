"""Checks that the broker itself, identified by its certificate, listens at its port for clients. Changes nothing.

The management API shows only that the node runs. If another program uses the port for clients, RabbitMQ runs without
that listener.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from pathlib import Path

from netspace import sockets
from netspace.layout import Layout
from netspace.link.pki import authority, certificates
from netspace.spec.types import PORTS, LocalBroker


def unanswered(layout: Layout, spec: LocalBroker, seconds: float = 5.0) -> str:
    """Return why clients can't reach the broker; empty if its port answers with the broker's own certificate.

    The check makes one TLS connection, and closes it before AMQP begins.
    """
    import ssl

    known = authority.read(layout)
    if known is None:
        return ""  # the certificate can't be checked without an authority; the plan will make one
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=known.anchors.decode())
    if (own := _any_identity(layout)) is not None:
        with contextlib.suppress(OSError, ssl.SSLError):
            context.load_cert_chain(own)  # without a client certificate the broker logs an alert
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
    """Return a text on the first of the broker's ports that another program uses; empty if there is none.

    The text names the program.

    :param own: the process id of our own broker, which may use the ports; None: it doesn't run.
    """
    for key in PORTS:
        port = getattr(spec, key)
        who = holder(port)
        if who is not None and who.pid != (own or -1):
            return f"broker:{key}: {port} is taken by {who}; end that program, or declare another port"
    return ""


def holder(port: int) -> sockets.Holder | None:
    """Return the program that listens at a TCP port of this network namespace, on loopback or on all addresses.

    None: no program does. A listener on another single address doesn't conflict with the broker, so it isn't looked
    for.
    """
    found = [one for table in ("tcp", "tcp6") for one in sockets.listeners(table, {port}) if _near(one.address)]
    return sockets.holder(found) if found else None


def _near(address: str) -> bool:
    return not address or ipaddress.ip_address(address).is_loopback


def _any_identity(layout: Layout) -> Path | None:
    """Return the file with the key and certificate of any one environment; None if there is none."""
    try:
        folders = sorted(path for path in layout.identities.iterdir() if path.is_dir())
    except OSError:
        return None
    return next((path / certificates.FILE for path in folders if (path / certificates.FILE).exists()), None)
