#!/usr/bin/env python3
"""Send, receive, request and answer along links with pika.

mail_pika.py send PEER TEXT        mail_pika.py receive
mail_pika.py request PEER TEXT     mail_pika.py answer
"""

import json
import secrets
import ssl
import sys
from pathlib import Path

import pika

me = json.loads(Path("/run/netspace/environment.json").read_text())


def find(entries, key, value):
    return next((entry for entry in entries if entry[key] == value), None)


def peer(name):
    # By the name that its link gives it here, which stays wherever it moves; or by its own.
    return next((one for one in me["peers"] if name in (one.get("as"), one["to"])), None) or sys.exit(
        f"no link to {name} is declared; {me['name']} may send to: {', '.join(one['to'] for one in me['peers'])}"
    )


def connect(to=None):
    # To a peer on another host: that host's broker. Read the files each time: they are replaced while you run.
    broker = (to and peer(to).get("broker")) or me["broker"]
    if "tls" in broker:
        files = broker["tls"]
        tls = ssl.create_default_context(cafile=files["ca_file"])
        tls.load_cert_chain(files["certificate_file"], files["key_file"])
        options = pika.SSLOptions(tls, files["server_name"])
        login = pika.credentials.ExternalCredentials()
    else:
        options = None
        login = pika.PlainCredentials(broker["username"], Path(broker["password_file"]).read_text())
    where = pika.ConnectionParameters(broker["host"], broker["port"], broker["vhost"], login, ssl_options=options)
    channel = pika.BlockingConnection(where).channel()
    channel.confirm_delivery()
    return channel


def send(channel, to, text, **properties):
    about = pika.BasicProperties(message_id=secrets.token_hex(16), delivery_mode=2, **properties)
    channel.basic_publish(peer(to)["exchange"], "", text.encode(), about, mandatory=True)


def receive(channel):
    """Yield (sender, delivery, properties, text). The exchange of a delivery identifies the sender."""
    waiting = []
    channel.basic_qos(prefetch_count=1)  # from each queue. Messages may have 16 MiB; where they are small, take more
    for queue in me["queues"]:
        channel.basic_consume(queue, lambda _, *letter: waiting.append(letter))
    while True:
        channel.connection.process_data_events(time_limit=None)
        while waiting:
            delivery, properties, body = waiting.pop(0)
            sender = find(me["senders"], "exchange", delivery.exchange)
            if sender is None:  # its link is revoked
                channel.basic_reject(delivery.delivery_tag, requeue=False)
                continue
            yield sender, delivery, properties, body.decode(errors="replace")
            channel.basic_ack(delivery.delivery_tag)  # the work is done, for the next is asked for


def request(channel, to, text, seconds=10):
    replies = peer(to).get("replies") or sys.exit(f"the link to {to} is for sending only")
    key, identity = secrets.token_hex(16), secrets.token_hex(16)
    channel.queue_bind(replies["queue"], replies["exchange"], key)
    try:
        send(channel, to, text, reply_to=f"{replies['exchange']}/{key}", correlation_id=identity)
        for delivery, properties, body in channel.consume(replies["queue"], inactivity_timeout=seconds):
            if delivery is None:
                raise TimeoutError(f"{to} didn't answer")
            channel.basic_ack(delivery.delivery_tag)
            if delivery.exchange == replies["exchange"] and properties.correlation_id == identity:
                return body.decode(errors="replace")
    finally:
        channel.cancel()
        channel.queue_unbind(replies["queue"], replies["exchange"], key)


def answer(channel, handle):
    for sender, _, properties, text in receive(channel):
        # pika leaves bytes that are no UTF-8 as they are: such an address leads nowhere.
        back = properties.reply_to if isinstance(properties.reply_to, str) else ""
        exchange, _, key = back.partition("/")
        if sender["pattern"] == "request" and exchange == sender["reply_exchange"]:
            about = pika.BasicProperties(correlation_id=properties.correlation_id)
            try:
                channel.basic_publish(exchange, key, handle(sender["from"], text).encode(), about)
            except pika.exceptions.NackError:
                print(f"{sender['from']} doesn't read its answers", file=sys.stderr)


def main(job="", *words):
    if (job, len(words)) not in {("send", 2), ("receive", 0), ("request", 2), ("answer", 0)}:
        sys.exit(__doc__)
    channel = connect(*words[:1])
    if job == "send":
        send(channel, *words)
    elif job == "request":
        print(request(channel, *words))
    elif job == "answer":
        answer(channel, lambda asker, text: f"{asker} asked {text}")
    elif job == "receive":
        sender, delivery, _, text = next(receive(channel))
        print(f"{sender['from']}: {text}")
        channel.basic_ack(delivery.delivery_tag)
    channel.connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
