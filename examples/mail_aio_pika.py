#!/usr/bin/env python3
"""Send and receive along links with aio-pika: ``mail_aio_pika.py send PEER TEXT``, ``mail_aio_pika.py receive``."""

import asyncio
import json
import ssl
import sys
import uuid
from pathlib import Path
from urllib.parse import quote

import aio_pika


def connect(broker: dict):
    files = broker["tls"]  # read whenever you connect: certificates are replaced long before they run out
    tls = ssl.create_default_context(cafile=files["ca_file"])
    tls.load_cert_chain(files["certificate_file"], files["key_file"])
    where = f"amqps://{broker['host']}:{broker['port']}/{quote(broker['vhost'], safe='')}?auth=external"
    return aio_pika.connect(where, ssl_context=tls)


async def send(card: dict, to: str, text: str) -> None:
    # By the name that its link gives it here, which stays wherever it moves; or by its own.
    peer = next((peer for peer in card["peers"] if to in (peer.get("as"), peer["to"])), None)
    if peer is None:
        sys.exit(f"no link to {to} is declared; {card['name']} may send to: {[one['to'] for one in card['peers']]}")
    if "broker" in peer:
        sys.exit(f"{to} is on another host; aio-pika can't choose the server name of its broker (pika can)")
    async with await connect(card["broker"]) as link:
        channel = await link.channel(publisher_confirms=True)
        # ensure=False: a program declares nothing, not even to ask whether it is there.
        exchange = await channel.get_exchange(peer["exchange"], ensure=False)
        message = aio_pika.Message(text.encode(), delivery_mode=2, message_id=str(uuid.uuid4()))
        await exchange.publish(message, routing_key="", mandatory=True)


async def receive(card: dict) -> None:
    """Print the next message."""
    senders = {sender["exchange"]: sender["from"] for sender in card["senders"]}
    arrived: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
    async with await connect(card["broker"]) as link:
        channel = await link.channel()
        await channel.set_qos(1)  # from each queue. Messages may have 16 MiB; where they are small, take more
        for name in card["queues"]:
            await (await channel.get_queue(name, ensure=False)).consume(arrived.put)
        while (message := await arrived.get()).exchange not in senders:
            await message.reject()  # its link is revoked
        print(f"{senders[message.exchange]}: {message.body.decode(errors='replace')}")
        await message.ack()


def main(job: str = "", *words: str) -> None:
    work = {("send", 2): send, ("receive", 0): receive}.get((job, len(words)))
    if work is None:
        sys.exit(__doc__)
    asyncio.run(work(json.loads(Path("/run/netspace/environment.json").read_text()), *words))


main(*sys.argv[1:])
