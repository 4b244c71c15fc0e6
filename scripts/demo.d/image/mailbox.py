"""A small client based on pika, with which a program in an environment sends messages and requests, and answers.

It reads all names from /run/netspace (see docs/environment-json.md). It declares no object at the broker: the objects
that it may use exist already. The exchange of a delivery identifies its sender, and can't be forged.
"""

import contextlib
import fcntl
import json
import secrets
import signal
import ssl
import sys
import time

import pika
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPConnectionError, AMQPError, ChannelClosedByBroker, NackError, UnroutableError

CARD = "/run/netspace/environment.json"


class Refused(Exception):
    """Error: the broker refused a request of this environment."""


def read_card():
    with open(CARD, encoding="utf-8") as stream:
        return json.load(stream)


def log(text):
    print(text, flush=True)


@contextlib.contextmanager
def channel(card, to=None):
    """Return a channel that confirms each message, on a new connection with the current credentials.

    The connection leads to the environment's own broker, or to the broker of a peer on another host.
    """
    broker = (peer(card, to).get("broker") if to else None) or card.get("broker")
    if broker is None:
        raise Refused(f"{card['name']} has no link, so it can't log in to the broker")
    # Read each time: certificates are replaced long before they run out.
    files = broker["tls"]
    tls = ssl.create_default_context(cafile=files["ca_file"])
    tls.load_cert_chain(files["certificate_file"], files["key_file"])
    parameters = pika.ConnectionParameters(
        broker["host"],
        broker["port"],
        broker["vhost"],
        pika.credentials.ExternalCredentials(),
        ssl_options=pika.SSLOptions(tls, files["server_name"]),
        heartbeat=30,
        blocked_connection_timeout=10,
    )
    try:
        connection = pika.BlockingConnection(parameters)
    except AMQPConnectorException as err:  # pika's only error that isn't an AMQPError
        raise AMQPConnectionError(f"the broker doesn't answer: {err}") from err
    try:
        opened = connection.channel()
        opened.confirm_delivery()
        yield opened
    finally:
        with contextlib.suppress(AMQPError):
            connection.close()


def forever(serve, whom=None):
    """Run ``serve(card, channel)`` forever: after an error, read the card again, and use a new connection.

    ``whom(card)`` returns the peer to connect to; without it, the program reads its own mailbox.
    """
    # The first process of an environment gets no signal that it doesn't handle.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    pause = 0.5
    while True:
        try:
            card = read_card()
            with channel(card, whom(card) if whom else None) as opened:
                pause = 0.5
                serve(card, opened)
        except (AMQPError, Refused, OSError, KeyError, StopIteration) as err:
            log(f"waiting: {err or type(err).__name__}")
            time.sleep(pause)
            pause = min(pause * 2, 10)


def publish(opened, exchange, text, key="", **properties):
    """Send *text*, and wait for the broker's confirmation.

    :raises Refused: when this environment has no such link, or the mailbox is full.
    """
    try:
        opened.basic_publish(exchange, key, text.encode(), pika.BasicProperties(**properties), mandatory=True)
    except ChannelClosedByBroker as err:
        raise Refused(f"{err.reply_code} {err.reply_text}") from err
    except (NackError, UnroutableError) as err:
        raise Refused(f"not delivered: {type(err).__name__}") from err


def peer(card, name):
    """Return the card's entry for the peer *name*.

    If the card has no such entry, return an invented entry with the exchange name that a link would have.
    """
    for entry in card["peers"]:
        if entry["to"] == name:
            return entry
    return {"to": name, "exchange": f"link.{card['name']}.{name}"}


def shop(card):
    """Return the peer with a request link; if no peer has one, a peer with another link.

    :raises Refused: there is no peer.
    """
    peers = sorted(card["peers"], key=lambda entry: "replies" not in entry)
    if not peers:
        raise Refused(f"no link leads from {card['name']} to another environment")
    return peers[0]["to"]


def send(card, opened, to, text):
    publish(opened, peer(card, to)["exchange"], text, message_id=secrets.token_hex(8), delivery_mode=2)


def ask(card, opened, to, text, timeout=5.0):
    """Send a request along a declared link and return the answer.

    All programs of the environment share the replies queue, so they take turns.
    """
    replies = peer(card, to)["replies"]
    key = secrets.token_hex(16)
    with open("/tmp/replies.lock", "w", encoding="utf-8") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        opened.queue_bind(replies["queue"], replies["exchange"], key)
        try:
            address = f"{replies['exchange']}/{key}"
            publish(opened, peer(card, to)["exchange"], text, reply_to=address, correlation_id=key)
            until = time.monotonic() + timeout
            for method, properties, body in opened.consume(replies["queue"], auto_ack=True, inactivity_timeout=0.2):
                # Only the asked peer can publish to this exchange.
                if method and method.exchange == replies["exchange"] and properties.correlation_id == key:
                    return body.decode(errors="replace")
                if time.monotonic() > until:
                    raise Refused(f"no answer from {to} within {timeout:g} s")
        finally:
            with contextlib.suppress(AMQPError):
                opened.cancel()
                opened.queue_unbind(replies["queue"], replies["exchange"], key)


def letters(card, opened):
    """Yield the messages of all queues in the card, for ever."""
    waiting = []
    for queue in card["queues"]:
        opened.basic_consume(queue, lambda _, *letter: waiting.append(letter))
    while True:
        opened.connection.process_data_events(time_limit=None)
        while waiting:
            yield waiting.pop(0)


def serve(card, opened, answer):
    """Read all messages, for ever; ``answer(sender, text)`` returns the reply to a request."""
    senders = {entry["exchange"]: entry for entry in card["senders"]}
    opened.basic_qos(prefetch_count=16)
    for method, properties, body in letters(card, opened):
        sender = senders.get(method.exchange)
        if sender is None:
            # A link made after this card was read: read it again.
            opened.connection.sleep(0.5)
            opened.basic_nack(method.delivery_tag)
            return
        reply = answer(sender["from"], body.decode(errors="replace"))
        own = sender.get("reply_exchange")
        # pika leaves bytes that are no UTF-8 as they are: such an address leads nowhere.
        back = properties.reply_to if isinstance(properties.reply_to, str) else ""
        if own and back.startswith(f"{own}/"):
            wanted = properties.correlation_id or properties.message_id
            with contextlib.suppress(Refused):  # the asker may be gone
                publish(opened, own, reply, back[len(own) + 1 :], correlation_id=wanted)
        opened.basic_ack(method.delivery_tag)


def once(action, whom=None):
    """Print the result of ``action(card, channel)``; if the broker refuses, print its reason and exit with 1."""
    card = read_card()
    try:
        with channel(card, whom(card) if whom else None) as opened:
            log(action(card, opened))
    except (Refused, AMQPError, OSError) as err:
        log(f"refused: {err or type(err).__name__}")
        sys.exit(1)
