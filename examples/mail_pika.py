#!/usr/bin/env python3
"""Send and receive along links with pika: ``mail_pika.py send PEER TEXT``, ``mail_pika.py receive``."""

import json
import ssl
import sys
import uuid
from pathlib import Path

import pika

card = json.loads(Path("/run/netspace/environment.json").read_text())
peer = next((peer for peer in card["peers"] if sys.argv[1] == "send" and peer["to"] == sys.argv[2]), {})
broker = peer.get("broker") or card["broker"]  # a peer on another host is reached at that host's
files = broker["tls"]  # read whenever you connect: certificates are replaced long before they run out
tls = ssl.create_default_context(cafile=files["ca_file"])
tls.load_cert_chain(files["certificate_file"], files["key_file"])
connection = pika.BlockingConnection(
    pika.ConnectionParameters(
        broker["host"],
        broker["port"],
        broker["vhost"],
        pika.credentials.ExternalCredentials(),
        ssl_options=pika.SSLOptions(tls, files["server_name"]),
    )
)
channel = connection.channel()
if sys.argv[1] == "send":
    channel.confirm_delivery()
    about = pika.BasicProperties(delivery_mode=2, message_id=str(uuid.uuid4()))
    channel.basic_publish(peer["exchange"], "", sys.argv[3].encode(), about, mandatory=True)
else:
    mail = []
    channel.basic_qos(prefetch_count=1)
    for queue in card["queues"]:
        channel.basic_consume(queue, lambda _, *letter: mail.append(letter))
    while not mail:
        connection.process_data_events(time_limit=None)
    method, _, body = mail[0]
    sender = next((sender for sender in card["senders"] if sender["exchange"] == method.exchange), None)
    print(f"{sender['from'] if sender else 'nobody'}: {body.decode()}")
    channel.basic_ack(method.delivery_tag)
connection.close()
