"""The broker survives any frames from a logged-in account, and other environments are not affected.

NETSPACE_AMQP_FRAMES is the number of frames (by default 4,000, which take seconds); NETSPACE_AMQP_SEED is the seed.
"""

from __future__ import annotations

import collections
import concurrent.futures
import os
import signal
import socket
import ssl

import pytest
from support.links import amqp_fuzz
from support.waiting import until
from test_link_admission import NAMES

from netspace.link.broker import node
from netspace.link.pki import certificates
from netspace.spec.types import Link

pytestmark = [pytest.mark.root, pytest.mark.exhaustion]

FRAMES = int(os.environ.get("NETSPACE_AMQP_FRAMES", "4000"))
SEED = int(os.environ.get("NETSPACE_AMQP_SEED", "1"))
ASK = Link(source="web", target="orders", pattern="request")
TELL = Link(source="orders", target="audit")
WORKERS = 4  # half as many as an account may have connections, of which the broker forgets late
ATOMS = 2000
"""More than that many new names within the broker would be those that a sender chose."""


@pytest.fixture
def host(standing):
    standing.environment("web", "orders", "audit")
    standing.apply(ASK, TELL)
    return standing


def number(host, expression: str) -> int:
    """Evaluate *expression* in the broker; return the number, which comes back in a global parameter."""
    return int(host.evaluate(f"{expression}."))


def test_the_broker_survives_any_frames_of_an_account(host, record_property):
    about = host.card("web")["broker"]
    context = host.tls(certificates.path(host.layout, "web"))

    def connect() -> ssl.SSLSocket:
        # Past the forwarder, which admits eight connections a second.
        plain = socket.create_connection(("127.0.0.1", host.broker.port), timeout=30)
        return context.wrap_socket(plain, server_hostname=about["tls"]["server_name"])

    plain = (
        "link.web.orders",
        "reply.orders",
        "replies.web",
        "mailbox.web",
        "mailbox.audit",
        "link.orders.audit",
        "dead",
    )
    names = [*map(host.n, plain), *NAMES.values(), "", "amq.topic", "amq.rabbitmq.event", "mine", "é", "x" * 255]
    atoms = number(host, "erlang:system_info(atom_count)")
    pid = host.supervisor.observe()[node.NODE].pid
    signal.alarm(600 + FRAMES // 100)  # a million takes longer than a test may
    vhost = host.links.access().vhost
    with host.generous(), concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        runs = [
            pool.submit(amqp_fuzz.run, connect, FRAMES // WORKERS, f"{SEED}.{worker}", names, vhost)
            for worker in range(WORKERS)
        ]
    told = collections.Counter()
    for one in runs:
        told.update(one.result())
    for key, value in told.items():
        record_property(key, value)
    print(dict(told))
    assert host.supervisor.observe()[node.NODE].pid == pid, "it is the same node"
    assert number(host, "erlang:system_info(atom_count)") < atoms + ATOMS
    with host.client("audit") as channel:
        assert channel.basic_get(host.n("mailbox.audit"))[0] is None, "nothing came by a link that isn't there"
    with host.client("orders") as channel:
        channel.basic_publish(host.n("link.orders.audit"), "", b"well", mandatory=True)
    host.no_mail()
    until(lambda: host.plan(ASK, TELL).steps == [], "the broker has what was declared", patience=60)
