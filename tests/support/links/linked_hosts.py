"""Two hosts with links between them: a network namespace for each, a veth pair, and one root certificate for both.

Neither host has a route to anything else.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pika

from netspace.link.pki import certificates
from netspace.link.pki.root import Root, adopt, request
from netspace.link.seal import exchange as exchanging
from netspace.link.topology import pair_keys
from netspace.spec.types import LocalBroker, RemoteHost
from support.links.link_world import World

ADDRESSES = {"h1": "198.51.100.1", "h2": "198.51.100.2"}
PORT = 5671


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def domain(name: str) -> str:
    return f"{name}.example.org"


class Cable:
    """The veth pair between the two hosts."""

    def cut(self) -> None:
        """Drop all packets from now on, without a sign to either host."""
        ip("-n", "host-h1", "link", "set", "cable", "down")

    def mend(self) -> None:
        ip("-n", "host-h1", "link", "set", "cable", "up")


def broker(folder: Path, name: str, instances: Mapping[str, str]) -> LocalBroker:
    """Return the broker in the declaration of the host *name*, with its CA in *folder*."""
    others = {
        other: RemoteHost(
            trust_domain=domain(other),
            address=f"{address}:{PORT}",
            vhost=instances[other],
            public_key=pair_keys.public(folder / other),
        )
        for other, address in ADDRESSES.items()
        if other != name
    }
    return LocalBroker(
        host=name,
        listen=f"{ADDRESSES[name]}:{PORT}",
        hosts=others,
        trust_domain=domain(name),
        authority=str(folder / name),
    )


def certify(folder: Path, name: str) -> None:
    """Give a host a CA, or replace its CA."""
    adopt(folder / name, Root(folder / "root").certify(request(folder / name), domain(name)))


def exchange(*worlds: World) -> dict[str, list[str]]:
    """Deliver to each host the other hosts' key bundles for seals, as the master does.

    Return, by host, the hosts whose bundles were new.
    """
    made = {str(world.broker.host): world for world in worlds}

    def hand(name: str, texts: Sequence[str]) -> dict[str, bool]:
        return dict(made[name].links.adopt_seals(text) for text in texts)

    done = exchanging.exchange(
        lambda: {name: {"host": name, "bundles": world.links.seal_bundles()[0]} for name, world in made.items()}, hand
    )
    assert not done["problems"], done
    return done["exchanged"]


def as_broker(whose: World, there: World, certificate: str | Path | None = None) -> pika.BlockingConnection:
    """Connect to the broker *there* as the broker of the host *whose*, or with another certificate of that host."""
    own = certificates.server_folder(whose.layout) / certificates.CLIENT
    tls = pika.SSLOptions(whose.tls(certificate or own), str(there.broker.trust_domain))
    address, _, port = str(there.broker.listen).partition(":")
    login = pika.credentials.ExternalCredentials()
    where = pika.ConnectionParameters(
        address, int(port), there.layout.instance, login, ssl_options=tls, socket_timeout=60, stack_timeout=60
    )
    with whose.here():
        return pika.BlockingConnection(where)


@contextlib.contextmanager
def hosts(folder: Path) -> Iterator[tuple[World, World, Cable]]:
    """Make the two hosts, which leave nothing behind; *folder* is for their CAs."""
    root = Root(folder / "root")
    root.make("tests' root of links")
    # Names of their own, for their folders are on this machine's disk.
    instances = {name: f"{name}{secrets.token_hex(4)}" for name in ADDRESSES}
    with contextlib.ExitStack() as after:
        made = []
        for name in ADDRESSES:
            certify(folder, name)
            ip("netns", "add", f"host-{name}")
            after.callback(ip, "netns", "del", f"host-{name}")
            world = World(instances[name], f"host-{name}", broker(folder, name, instances))
            for path in (world.layout.state, world.layout.run, world.layout.logs, world.layout.broker):
                after.callback(shutil.rmtree, path, ignore_errors=True)
            after.callback(world.remove)
            made.append(world)
            ip("-n", f"host-{name}", "link", "set", "lo", "up")
        ip("-n", "host-h1", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", "host-h2")
        for name, address in ADDRESSES.items():
            ip("-n", f"host-{name}", "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", f"host-{name}", "link", "set", "cable", "up")
        yield made[0], made[1], Cable()
