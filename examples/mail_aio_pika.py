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


async def main(job: str, *arguments: str) -> None:
    card = json.loads(Path("/run/netspace/environment.json").read_text())
    broker = card["broker"]
    files = broker["tls"]  # read whenever you connect: certificates are replaced long before they run out
    tls = ssl.create_default_context(cafile=files["ca_file"])
    tls.load_cert_chain(files["certificate_file"], files["key_file"])
    where = f"amqps://{broker['host']}:{broker['port']}/{quote(broker['vhost'], safe='')}?auth=external"
    async with await aio_pika.connect(where, ssl_context=tls) as link:
        channel = await link.channel(publisher_confirms=True)
        if job == "send":
            peer = next(peer for peer in card["peers"] if peer["to"] == arguments[0])
            # ensure=False: a program declares nothing, not even to ask whether it is there.
            exchange = await channel.get_exchange(peer["exchange"], ensure=False)
            message = aio_pika.Message(arguments[1].encode(), delivery_mode=2, message_id=str(uuid.uuid4()))
            await exchange.publish(message, routing_key="", mandatory=True)
        else:
            mail: asyncio.Queue = asyncio.Queue()
            await channel.set_qos(prefetch_count=1)
            for name in card["queues"]:
                await (await channel.get_queue(name, ensure=False)).consume(mail.put)
            message = await mail.get()
            senders = [one["from"] for one in card["senders"] if one["exchange"] == message.exchange]
            print(f"{senders[0] if senders else 'nobody'}: {message.body.decode()}")
            await message.ack()


asyncio.run(main(*sys.argv[1:]))
