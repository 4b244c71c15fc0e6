"""Attempts on the broker: other environments' queues and exchanges, and their accounts."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

from netspace.environment.audit.attempts.attempt import PATIENCE, Refused, Skip, attempt, want
from netspace.environment.audit.attempts.network import reach


@attempt("broker", "reach the broker's management or distribution port")
def broker_ports(target: dict[str, Any]) -> str:
    problems = []
    for port in want(target, "host", "broker_ports"):
        known = (target.get("host") or {}).get("addresses", [])
        for address in ["127.0.0.1", "::1", *(known if isinstance(known, list) else [])]:
            try:
                return reach(address, port)
            except OSError as err:
                problems.append(err.errno or 0)
    raise Refused(f"none of {len(problems)} connections succeeded")


def _channel(target: dict[str, Any]) -> Any:
    try:
        with open("/run/netspace/environment.json") as stream:
            card = json.load(stream)
        account = card["broker"]
    except (OSError, KeyError):
        raise Skip("this environment has no account on the broker") from None
    try:
        import pika
    except ImportError:
        raise Skip("no AMQP client in this image") from None
    tls = None
    if "tls" in account:
        login = pika.credentials.ExternalCredentials()
        tls = pika.SSLOptions(_tls(own=True), account["tls"]["server_name"])
    else:
        with open(account["password_file"]) as stream:
            login = pika.PlainCredentials(account["username"], stream.read().strip())
    connection = pika.BlockingConnection(
        pika.ConnectionParameters(
            account["host"],
            account["port"],
            account["vhost"],
            login,
            ssl_options=tls,
            socket_timeout=3,
            blocked_connection_timeout=3,
        )
    )
    return card, connection, connection.channel(), pika


def _broker(name: str) -> Callable[[Callable[..., str]], None]:
    """Register an attempt on the broker, which gets a new AMQP channel."""

    def register(function: Callable[..., str]) -> None:
        def run(target: dict[str, Any]) -> str:
            card, connection, channel, pika = _channel(target)
            try:
                return function(target, card, channel, pika)
            except pika.exceptions.AMQPError as err:
                raise Refused(repr(err)) from None
            finally:
                with contextlib.suppress(Exception):
                    connection.close()

        attempt("broker", name)(run)

    return register


@_broker("read another's mailbox")
def read_mailbox(target: dict[str, Any], card: Any, channel: Any, pika: Any) -> str:
    mailbox = want(target, "peer", "mailbox")
    return f"got {channel.basic_get(mailbox)}"


@_broker("empty another's mailbox")
def purge_mailbox(target: dict[str, Any], card: Any, channel: Any, pika: Any) -> str:
    channel.queue_purge(want(target, "peer", "mailbox"))
    return "purged"


@_broker("delete another's mailbox")
def delete_mailbox(target: dict[str, Any], card: Any, channel: Any, pika: Any) -> str:
    channel.queue_delete(want(target, "peer", "mailbox"))
    return "deleted"


@_broker("send to another's mailbox past the links, by the default exchange")
def default_exchange(target: dict[str, Any], card: Any, channel: Any, pika: Any) -> str:
    channel.confirm_delivery()
    channel.basic_publish("", want(target, "peer", "mailbox"), b"probe", mandatory=True)
    return "accepted"


@_broker("send along a link that is not its own")
def foreign_link(target: dict[str, Any], card: Any, channel: Any, pika: Any) -> str:
    channel.confirm_delivery()
    channel.basic_publish(want(target, "peer", "link"), "", b"probe", mandatory=True)
    return "accepted"


@_broker("bind another's link to its own mailbox")
def bind_link(target: dict[str, Any], card: Any, channel: Any, pika: Any) -> str:
    channel.queue_bind(card["mailbox"], want(target, "peer", "link"))
    return "bound"


@_broker("declare an exchange or a queue")
def declare(target: dict[str, Any], card: Any, channel: Any, pika: Any) -> str:
    channel.queue_declare("probe", auto_delete=True)
    return "declared"


@_broker("send under a forged sender")
def forged_sender(target: dict[str, Any], card: Any, channel: Any, pika: Any) -> str:
    peers = card.get("peers") or []
    if not peers:
        raise Skip("this environment has no link to another one")
    channel.confirm_delivery()
    channel.basic_publish(
        peers[0]["exchange"], "", b"probe", pika.BasicProperties(user_id="env.somebody-else"), mandatory=True
    )
    return "accepted"


@_broker("listen to the broker's own events and traces")
def broker_events(target: dict[str, Any], card: Any, channel: Any, pika: Any) -> str:
    for exchange in ("amq.rabbitmq.event", "amq.rabbitmq.trace", "amq.topic"):
        with contextlib.suppress(Exception):
            channel.queue_bind(card["mailbox"], exchange, "#")
            return f"bound {exchange}"
    raise Refused("no exchange with the broker's events can be bound")


def _tls(own: bool) -> Any:
    """Return a TLS context that accepts any broker, with this environment's own certificate or without one."""
    try:
        import ssl
    except ImportError:
        raise Refused("no TLS in this image, and the broker accepts only TLS") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if own:
        context.load_cert_chain("/run/netspace/identity.pem")
    return context


def _stream(own: bool) -> Any:
    """Return a connection to the broker: plain on port 5672 or, if that fails, TLS on port 5671."""
    try:
        plain = socket.create_connection(("127.0.0.1", 5672), timeout=PATIENCE * 10)
    except OSError:
        raw = socket.create_connection(("127.0.0.1", 5671), timeout=PATIENCE * 10)
        try:
            return _tls(own).wrap_socket(raw)
        except BaseException:
            raw.close()
            raise
    return plain


def login(mechanism: str, response: bytes, own: bool = False) -> str:
    """Log in at the broker by hand-made AMQP 0-9-1 frames; raise Refused if the login isn't accepted.

    :param own: whether to present this environment's own client certificate.
    """
    try:
        return _login(mechanism, response, own)
    except OSError as err:
        raise Refused(f"{mechanism}: {err}") from None


def _login(mechanism: str, response: bytes, own: bool) -> str:
    with _stream(own) as broker:
        broker.sendall(b"AMQP\0\0\x09\x01")
        _frame(broker)  # connection.start
        method = struct.pack("=BB", 0, 10) + struct.pack("=BB", 0, 11) + b"\0\0\0\0"  # start-ok, no properties
        method += bytes([len(mechanism)]) + mechanism.encode() + struct.pack("!I", len(response)) + response
        method += b"\x05en_US"
        broker.sendall(struct.pack("!BHI", 1, 0, len(method)) + method + b"\xce")
        answer = _frame(broker)
    if answer[:4] == b"\0\x0a\0\x1e":  # connection.tune
        return "logged in"
    raise Refused(f"{mechanism}: the broker did not accept the login")


def _frame(stream: socket.socket) -> bytes:
    header = _exactly(stream, 7)
    size = min(struct.unpack_from("!I", header, 3)[0] + 1, 65536)
    return _exactly(stream, size)


def _exactly(stream: socket.socket, size: int) -> bytes:
    """Read exactly *size* bytes, in several reads, because MSG_WAITALL can't be used with TLS."""
    found = b""
    while len(found) < size:
        part = stream.recv(size - len(found))
        if not part:
            raise Refused("the broker closed the connection")
        found += part
    return found


@attempt("broker", "log in as somebody else")
def other_account(target: dict[str, Any]) -> str:
    users = [
        "guest",
        "admin",
        "netspace",
        *([target["peer"]["account"]] if "account" in target.get("peer", {}) else []),
    ]
    problems = []
    for user in users:
        for password in (user, ""):
            for own in (False, os.path.exists("/run/netspace/identity.pem")):
                try:
                    return f"{login('PLAIN', f'{chr(0)}{user}{chr(0)}{password}'.encode(), own)} as {user}"
                except (Refused, OSError) as err:
                    problems.append(str(err))
    raise Refused("; ".join(sorted(set(problems))))


@attempt("broker", "log in without a name")
def anonymous(target: dict[str, Any]) -> str:
    with contextlib.suppress(Refused):
        return login("ANONYMOUS", b"anybody")
    with contextlib.suppress(Refused):
        return login("EXTERNAL", b"")
    return login("PLAIN", b"\0\0")
