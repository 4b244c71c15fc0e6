"""The cost of applies and messages of links, compared with Salt's states and a bare connection.

usage: sudo python benchmarks/links.py [--json] [--environments N] [--rounds N] [--messages N] [--salt N]

It starts a sandbox (``scripts/sandbox``). Applies are measured by the library, with a real broker, the forwarder and a
namespace for each environment; each environment has three links to others. The peer is Salt's ``rabbitmq_user``, which
runs ``rabbitmqctl`` several times for each user. It makes a few users on the same broker, and the time is scaled to all
accounts (without queues, exchanges and bindings, for which Salt has no state).

Messages are measured by ``link_load.c`` (Debian: librabbitmq-dev, libssl-dev), a client that takes little time. They go
through a classic queue, so that the figures show the transport, not the disk. The peer is a plain connection to a
temporary listener of the same broker. The paths are measured in turn within each round. ``link_client.py`` measures
programs with ``netspace-client`` (Python, and quorum queues), over a plain and over a sealed link.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bench
import link_client
from bench import Rounds, line, say

PLAIN_PORT = 5699
OUT = 3  # links from each environment
HOSTILE = Path(__file__).parents[1] / "tests/support/links/hostile.py"
ATTACKS = {"attacked": "noise", "flooded": "transaction"}


class Host:
    """Environments' namespaces, a broker, and links between them."""

    def __init__(self, count: int, folder: Path) -> None:
        from netspace.layout import Layout
        from netspace.link.reconciler import Links
        from netspace.supervision.daemon.client import DaemonSupervisor

        self.layout = Layout()
        self.supervisor = DaemonSupervisor(self.layout)
        self.links = Links(self.layout, self.supervisor)
        self.names = [f"e{number:04}" for number in range(count)]
        self.load = str(folder / "link_load")
        source = str(Path(__file__).with_name("link_load.c"))
        subprocess.run(["cc", "-O2", "-o", self.load, source, "-lrabbitmq", "-lssl"], check=True)

    def namespaces(self) -> None:
        from netspace.interface.plan import DesiredInterfaces
        from netspace.interface.reconciler import Interfaces
        from netspace.spec import parse

        kind = Interfaces(self.layout)
        desired = DesiredInterfaces(interfaces={name: parse.interface({"kind": "none"}) for name in self.names})
        failed = [one for one in kind.apply(kind.plan(desired, kind.observe()).steps) if one.error]
        assert not failed, failed[0]

    def declared(self) -> list[Any]:
        from netspace.spec.types import Link

        count = len(self.names)
        return [
            Link(source=self.names[number], target=self.names[(number + step) % count])
            for number in range(count)
            for step in range(1, OUT + 1)
        ]

    def converge(self, links: list[Any]) -> int:
        """Apply exactly these links; return the number of steps."""
        from netspace.link.reconciler import DesiredLinks
        from netspace.spec.types import LocalBroker

        # The last environment logs in by password, the others by certificate, so that both can be measured.
        broker = LocalBroker(passwords=(self.names[-1],))
        observed = self.links.observe()
        plan = self.links.plan(
            DesiredLinks(broker, tuple(links)), observed, self.links.names() - {o.name for o in links}
        )
        failed = [one for one in self.links.apply(plan.steps) if one.error]
        assert not failed and not plan.refusals, [one.error[:300] for one in failed] or plan.refusals
        return len(plan.steps)

    def remove(self) -> None:
        self.links.purge()
        self.supervisor.purge()


def manage(host: Host, rounds: Rounds) -> None:
    """Measure applies: all links, no change, one more link, and one link less while its sender sends."""
    from netspace.spec.types import Link

    every = host.declared()
    say(f"{len(host.names)} namespaces")
    host.namespaces()
    say("the broker starts, with one link")
    with rounds.timed("start"):
        host.converge(every[:1])
    say(f"{len(every)} links")
    with rounds.timed("create"):
        host.converge(every)
    for _ in range(3):
        with rounds.timed("unchanged"):
            assert host.converge(every) == 0
    more = Link(source=host.names[0], target=host.names[len(host.names) // 2])
    for _ in range(3):
        with rounds.timed("add"):
            host.converge([*every, more])
        told = Told(host, more)
        with rounds.timed("revoke"):
            host.converge(every)
        rounds.note("told", told.milliseconds())


class Told:
    """Measurement of the time from a revocation to the first message that the broker refuses.

    A program sends all the time, so that the first refusal is noticed at once.
    """

    def __init__(self, host: Host, link: Any) -> None:
        from netspace.link.broker.management import Management

        self._begun: float | None = None
        self._heard = 0.0
        real = Management.delete

        def delete(api: Any, *where: str, **how: Any) -> Any:
            if self._begun is None:
                self._begun = time.perf_counter()
                Management.delete = real  # type: ignore[method-assign]
            return real(api, *where, **how)

        Management.delete = delete  # type: ignore[assignment, method-assign]
        connection = connect(host, link.source)
        channel = connection.channel()
        channel.confirm_delivery()
        exchange = host.links.called.exchange(link)

        def send() -> None:
            import pika

            try:
                while True:
                    channel.basic_publish(exchange, "", b"x", mandatory=True)
            except pika.exceptions.AMQPError:
                self._heard = time.perf_counter()
            connection.close()

        self._thread = threading.Thread(target=send)
        self._thread.start()

    def milliseconds(self) -> float:
        self._thread.join(60)
        assert self._begun is not None
        return (self._heard - self._begun) * 1000


def connect(host: Host, name: str) -> Any:
    """Return a client inside an environment."""
    import ssl

    import pika

    from netspace.interface import netns as namespaces
    from netspace.link.pki import authority, certificates

    known = authority.read(host.layout)
    assert known is not None
    context = ssl.create_default_context(cadata=known.anchors.decode())
    context.load_cert_chain(certificates.path(host.layout, name))
    parameters = pika.ConnectionParameters(
        "127.0.0.1",
        5671,
        host.layout.instance,
        pika.credentials.ExternalCredentials(),
        ssl_options=pika.SSLOptions(context, "localhost"),
    )
    made: list[Any] = []

    def inside() -> None:
        namespaces.enter(host.layout.netns(name))
        made.append(pika.BlockingConnection(parameters))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    return made[0]


def salt(host: Host, rounds: Rounds, sample: int, folder: Path) -> None:
    """Measure Salt's own state that makes users, on the same broker."""
    from netspace.link.broker import node as broker
    from netspace.spec.types import LocalBroker

    variables = broker.service(host.layout, LocalBroker()).variables
    shim = folder / "bin"
    shim.mkdir()
    setting = " ".join(f"'{key}={value}'" for key, value in variables.items())
    # Salt finds rabbitmqctl by PATH, and can't be given another node than the machine's own: so the shim sets the node.
    (shim / "rabbitmqctl").write_text(
        "#!/bin/sh\ncd /\nexec setpriv --reuid=rabbitmq --regid=rabbitmq --clear-groups "
        f'env {setting} /usr/lib/rabbitmq/bin/rabbitmqctl "$@"\n'
    )
    (shim / "rabbitmqctl").chmod(0o755)
    states = folder / "states"
    states.mkdir()
    users = "".join(
        f"peer{number}:\n  rabbitmq_user.present:\n    - password: secret{number}\n    - perms:\n"
        f"      - {host.layout.instance}: ['^$', '^x$', '^y$']\n"
        for number in range(sample)
    )
    (states / "users.sls").write_text(users)
    command = [
        str(bench.ROOT / ".venv/bin/salt-call"),
        "--local",
        f"--config-dir={folder}",
        f"--file-root={states}",
        "--retcode-passthrough",
        "--log-level=error",
        "--out=json",
    ]
    (folder / "minion").write_text(f"cachedir: {folder}/cache\npki_dir: {folder}/pki\nlog_file: /dev/null\n")
    ours = {**os.environ, "PATH": f"{shim}:{os.environ['PATH']}"}
    for name in ("salt users", "salt unchanged"):
        with rounds.timed("salt itself"):
            subprocess.run([*command, "test.ping"], check=True, env=ours, stdout=subprocess.DEVNULL)
        with rounds.timed(name):
            subprocess.run([*command, "state.apply", "users"], check=True, env=ours, stdout=subprocess.DEVNULL)
        rounds.values[name][-1] = (rounds.values[name][-1] - rounds.values["salt itself"][-1]) / sample


def messages(host: Host, rounds: Rounds, count: int, times: int) -> None:
    """Measure messages over each path."""
    from netspace.link.broker import node as broker
    from netspace.link.pki import authority, certificates, passwords
    from netspace.spec.types import LocalBroker

    vhost = host.layout.instance
    first, last = host.names[0], host.names[-1]
    known = authority.read(host.layout)
    assert known is not None
    anchors = host.layout.identity(first) / "anchors.pem"
    anchors.write_bytes(known.anchors)
    listen = f'rabbit_networking:start_tcp_listener({{"127.0.0.1", {PLAIN_PORT}}}, 10).'
    refused = broker.evaluate(host.layout, LocalBroker(), listen)
    assert not refused, refused
    secret = passwords.read(host.layout, last)
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    with host.links.management(LocalBroker()) as api:
        accounts = [f"env.{last}", known.id(first)]
        queue = {"name": "bench", "vhost": vhost, "durable": False, "auto_delete": False}
        api.post(
            "definitions",
            body={
                "permissions": [{"user": user, "vhost": vhost, **everything} for user in accounts],
                "queues": [{**queue, "durable": True, "arguments": {"x-queue-type": "classic"}}],
                "exchanges": [{**queue, "durable": True, "type": "fanout", "internal": False, "arguments": {}}],
                "bindings": [
                    {"source": "bench", "vhost": vhost, "destination": "bench", "destination_type": "queue"}
                    | {"routing_key": "", "arguments": {}}
                ],
            },
        )
        tls = f"{certificates.path(host.layout, first)},{anchors},tls"
        paths = {
            "plain": f"-,{PLAIN_PORT},env.{last},{secret}",
            "mtls": f"-,{LocalBroker().port},{tls}",
            "certificate": f"{host.layout.netns(first)},5671,{tls}",
            "password": f"{host.layout.netns(last)},5672,env.{last},{secret}",
        }

        def load(what: str, many: int, who: str, name: str) -> None:
            command = [host.load, what, str(many), vhost, "bench", "bench", who, who]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rounds.note(f"{what} {name}", float(done.stdout))
            api.delete("queues", vhost, "bench", "contents")

        for number in range(times):
            say(f"messages: round {number + 1} of {times}")
            for name, who in paths.items():
                load("rtt", count, who, name)
                load("confirm", 10 * count, who, name)
            for name, attack in ATTACKS.items():
                with hostile(host, host.names[1], attack):
                    load("rtt", count, paths["certificate"], name)


@contextlib.contextmanager
def hostile(host: Host, name: str, attack: str) -> Iterator[None]:
    """Repeat an attack from environment *name* for the duration of the context."""
    with tempfile.TemporaryDirectory() as folder:
        card = host.links.cards()(name, [link for link in host.links.recorded() if name in (link.source, link.target)])
        (Path(folder) / "environment.json").write_text(json.dumps(card))
        for file, content in host.links.access().files(name).items():
            (Path(folder) / file).write_bytes(content)
        command = ["ip", "netns", "exec", host.layout.netns_name(name), sys.executable, str(HOSTILE), attack, folder]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as attacker:
            try:
                time.sleep(1.0)
                yield
            finally:
                attacker.kill()


def programs(host: Host, rounds: Rounds, times: int, folder: Path) -> None:
    """Measure messages between programs, over a plain and over a sealed link."""
    from netspace.spec.types import Link

    asker, plain, sealed, *_ = host.names
    host.converge(
        [
            Link(source=asker, target=plain, pattern="request"),
            Link(source=asker, target=sealed, pattern="request", seal=True),
        ]
    )
    link_client.measure(host.links, asker, {"plain": plain, "sealed": sealed}, folder, rounds, times)


def lines(rounds: Rounds, count: int) -> dict[str, dict[str, Any]]:
    middle = rounds.middle
    many = f"{count} environments, {OUT * count} links"
    found = {
        "broker, from nothing": line(middle("start"), "ms", "itself", middle("start")),
        f"{many}, from nothing": line(middle("create"), "ms", "goal", 7000 * count / 1000, ratio=1.0),
        f"{many}, unchanged": line(middle("unchanged"), "ms", "goal", 500, ratio=1.0),
        f"{many}, one link more": line(middle("add"), "ms", "goal", 500, ratio=1.0),
        f"{many}, one revoked": line(middle("revoke"), "ms", "goal", 500, ratio=1.0),
        f"{many}, from nothing, processor time": line(middle("create cpu"), "ms", "by the clock", middle("create")),
        f"{many}, unchanged, processor time": line(middle("unchanged cpu"), "ms", "by the clock", middle("unchanged")),
        "its sender is told after": line(middle("told"), "ms", "goal", 50, ratio=1.0),
    }
    if "salt users" in rounds:
        for name, ours in (("salt users", "create"), ("salt unchanged", "unchanged")):
            what = "from nothing" if ours == "create" else "unchanged"
            peer = f"rabbitmq_user for each (measured {middle(name):.0f} ms), without links"
            found[f"{many}, {what}, beside Salt"] = line(middle(ours), "ms", peer, middle(name) * count, ratio=0.1)
    plain = {what: middle(f"{what} plain") for what in ("rtt", "confirm")}
    paths = {
        "certificate": "an environment's own port, mTLS",
        "password": "... without TLS",
        "mtls": "mTLS, no forwarder",
    }
    for name, told in paths.items():
        peer, limit = "plain loopback", {"certificate": (2.0, 0.7), "password": (1.5, 0.9)}.get(name)
        found[f"round trip, {told}"] = line(
            middle(f"rtt {name}"), "us", peer, plain["rtt"], ratio=limit[0] if limit else None
        )
        fast = line(middle(f"confirm {name}"), "msg/s", peer, plain["confirm"])
        if limit:
            fast |= {"target": round(limit[1] * plain["confirm"], 3)}
            fast["met"] = fast["value"] >= fast["target"]
        found[f"with confirms, {told}"] = fast
    found["round trip, certificate, while a neighbour attacks"] = line(
        middle("rtt attacked"), "us", "while it doesn't", middle("rtt certificate"), ratio=2.0
    )
    found["round trip, certificate, while a neighbour floods"] = line(
        middle("rtt flooded"), "us", "while it doesn't", middle("rtt certificate"), ratio=2.0
    )
    for what, unit, told in (("call", "ms", "a question and its answer"), ("send", "msg/s", "sent and confirmed")):
        peer = "over a plain link"
        found[f"netspace-client, sealed: {told}"] = line(middle(f"{what} sealed"), unit, peer, middle(f"{what} plain"))
    return found


def measure(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    rounds = Rounds()
    with bench.disk(in_memory=options.memory_disk), tempfile.TemporaryDirectory(prefix="links-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        host = Host(options.environments, folder)
        try:
            manage(host, rounds)
            if options.salt and (bench.ROOT / ".venv/bin/salt-call").exists():
                say(f"{options.salt} users by Salt's rabbitmq_user")
                salt(host, rounds, options.salt, folder)
            messages(host, rounds, options.messages, options.rounds)
            programs(host, rounds, options.rounds, folder)
        finally:
            host.remove()
            shutil.rmtree(host.layout.broker, ignore_errors=True)
    return lines(rounds, options.environments)


def main() -> None:
    parser = bench.arguments(__doc__, rounds=3)
    parser.add_argument("--environments", type=int, default=1000, help="environments (default 1000)")
    parser.add_argument("--messages", type=int, default=2000, help="round trips in a round (default 2000)")
    parser.add_argument("--salt", type=int, default=3, help="users to make by Salt's own state (default 3; 0: none)")
    options = parser.parse_args()
    if options.environments // 2 <= OUT:
        parser.error(f"--environments: want {2 * OUT + 2} or more, so that there is one link more to make")
    bench.on_a_host_of_its_own()
    bench.tell(measure(options), options)


if __name__ == "__main__":
    main()
