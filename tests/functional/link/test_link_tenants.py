"""Two tenants at a real broker: neither touches the other's queues, whose bounds are those that a quota counts."""

from __future__ import annotations

import re

import pytest
from pika.exceptions import AMQPError
from support.links.mail import read, send

from netspace.spec import parse
from netspace.spec.tenancy import quota
from netspace.spec.types import Declaration

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("unhurried")]


def declared() -> Declaration:
    """Return two tenants, each with a link for requests; one of acme's links has a queue of its own."""
    tenants = {}
    for name in ("acme", "umbra"):
        spec = {"image": "tar:/x.tar", "read_only": True}
        tenants[name] = {
            "quota": {"environments": 2, "memory": "1G", "cpus": 2, "pids": 512, "links": 2}
            | {"messages": 40_000, "waiting": "1G"},
            "images": ["tar:/x.tar"],
            "environments": {f"{name}-web": spec, f"{name}-db": spec},
            "links": [{"from": f"{name}-web", "to": f"{name}-db", "pattern": "request"}],
        }
    tenants["acme"]["links"].append({"from": "acme-db", "to": "acme-web", "length": 5})  # type: ignore[attr-defined]
    return parse.declaration({"tenants": tenants})


@pytest.fixture(scope="module")
def host(standing):
    found = declared()
    standing.environment(*found.environments)
    standing.apply(*found.links)
    return standing


def test_tenant_touches_no_queue_of_another_tenant(host):
    links = {link.name: link for link in declared().links}
    send(host, links["umbra-web.umbra-db"], b"secret")
    send(host, links["acme-web.acme-db"], b"own")
    foreign = host.card("umbra-db")["queues"]
    exchange = host.links.called.exchange(links["umbra-web.umbra-db"])
    attempts = {
        "read": lambda channel: channel.basic_get(foreign[0]),
        "consume": lambda channel: channel.basic_consume(foreign[0], print),
        "send": lambda channel: channel.basic_publish(exchange, "", b"forged", mandatory=True),
        "purge": lambda channel: channel.queue_purge(foreign[0]),
        "delete": lambda channel: channel.queue_delete(foreign[0]),
        "bind": lambda channel: channel.queue_bind(host.card("acme-db")["mailbox"], exchange),
    }
    done = []
    for what, attempt in attempts.items():
        connection = host.connect("acme-db")
        channel = connection.channel()
        channel.confirm_delivery()
        try:
            attempt(channel)
        except AMQPError:
            continue
        else:
            done.append(what)
        finally:
            if connection.is_open:
                connection.close()
    assert done == []
    assert read(host, "umbra-db", 1) == [("umbra-web", b"secret")]
    assert read(host, "acme-db", 1) == [("acme-web", b"own")]


def test_queues_have_the_bounds_that_the_quota_counts(host):
    found = declared()
    with host.api() as api:
        names = [one["name"] for one in api.get("queues", "netspace", query="columns=name")]
        queues = [api.get("queues", "netspace", name) for name in names]
        rules = api.get("policies", "netspace")
    for tenant in found.tenants:
        messages = waiting = 0
        for queue in queues:
            # mailbox.<environment>, replies.<environment>, and lane.<sender>.<receiver>, which the receiver reads
            kind, *ends = queue["name"].split(".")
            reader = ends[1] if kind == "lane" else ends[0] if kind in ("mailbox", "replies") else ""
            if found.environments.get(reader) is None or found.environments[reader].tenant != tenant:
                continue
            kinds = ("queues", f"{queue['type']}_queues")
            fitting = [one for one in rules if one["apply-to"] in kinds and re.search(one["pattern"], queue["name"])]
            policy = max(fitting, key=lambda one: one["priority"])["definition"]
            messages += min(policy["max-length"], queue["arguments"].get("x-max-length", policy["max-length"]))
            waiting += policy["max-length-bytes"]
        used = quota.used(found, tenant)
        assert (messages, waiting) == (used.messages, used.waiting), [queue["name"] for queue in queues]
