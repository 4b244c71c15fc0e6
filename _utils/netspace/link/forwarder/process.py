"""Forwarder: one haproxy that connects 127.0.0.1:5671 (or 5672) in each environment to the broker.

haproxy runs in the host's network namespace and listens in the environments' namespaces (``bind ... namespace``). It
only forwards bytes; the broker checks permissions. TLS is between client and broker; for clients that can't use TLS
(``broker: {passwords: [...]}``), it is between haproxy and broker. An environment's network namespace is found by name
and identified by its inode number, because a new namespace of the same name needs a new socket.

Each environment has two limits: new connections (TLS handshakes) per second, and bytes per second over all its
connections. A client above a limit waits.

An environment with direct links to other hosts reaches their brokers at the same port. The server name that its client
asks for (TLS SNI) selects one of the hosts that its links need. If this host accepts connections from other hosts
(``broker: {listen: ...}``), haproxy forwards the connections whose client asks for the broker's server name.

An environment is left out (``ports``) if one of its programs has taken its port. Both ``apply`` and the start of
haproxy (``launch``) check this.

Facts about haproxy on which the code relies:

- haproxy refuses a configuration that names a missing namespace, and keeps the old configuration.
- A reload hands sockets over to the new worker by address and namespace name. It would keep sockets of a removed
  namespace; ``-x /dev/null`` prevents this.
- The master process holds a descriptor for each namespace. It doesn't start with more than 250 of them, unless ``-n``
  allows as many connections.
- Old workers keep their connections until these end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import shutil
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from netspace import files, library_copy
from netspace.errors import MissingError, NetspaceError, raise_any
from netspace.layout import Layout
from netspace.link import host_peer
from netspace.link.card import PORT, SERVER_NAME, TLS_PORT
from netspace.link.forwarder import haproxy, ports
from netspace.link.pki import certificates
from netspace.link.topology import peers
from netspace.spec.types import Broker, Link, LocalBroker, RemoteHost
from netspace.supervision.service import Service, Supervisor

NAME = "forwarder"
PROGRAM = Path("/usr/sbin/haproxy")

CONNECTIONS = 16  # per environment; the broker accepts 8 and refuses the others itself
NEW = 8  # new connections per second and environment; others wait
RATE = "32m"  # bytes per second that an environment may send; without a limit, reading them would starve the others
ALL_CONNECTIONS = 9000
OLD_WORKERS = 16  # each needs 10 MB until its last connection ends; haproxy ends older ones
SECTION = "frontend environment:"
_ENTRY = re.compile(
    rf"^{SECTION}(\S+)\n    # network namespace (\d+)\n"
    rf"(?:    .*\n)*?    bind {re.escape(ports.LOOPBACK)}:(\d+) namespace",
    re.MULTILINE,
)
_CHECK = "check no-check-ssl inter 5s fastinter 1s downinter 2s fall 3 rise 1 on-marked-down shutdown-sessions"
WAY = "backend to:"
FROM_ELSEWHERE = 4000  # connections from all other hosts together
FROM_ONE = 500  # connections from one of them
PATIENCE = "10s"  # for a client's TLS ClientHello, the first thing that it sends
START_SECONDS = 300.0  # for a start; it takes about one, and a minute or two on an emulated processor
RETRY_SECONDS = 20.0  # for a start whose process has ended once


def folder(layout: Layout) -> Path:
    return layout.run / "forwarder"


def config_file(layout: Layout) -> Path:
    return folder(layout) / "haproxy.cfg"


def served_file(layout: Layout) -> Path:
    """Return the path of a copy of the configuration that haproxy has accepted."""
    return folder(layout) / "served.cfg"


def service(layout: Layout) -> Service:
    """Return the definition of the service that runs haproxy."""
    return Service(
        name=NAME,
        command=library_copy.command(layout, "forward"),
        description=f"Forwarder of {layout.instance}: from the environments to the broker",
        variables={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
        reload=("/bin/kill", "-USR2", "{pid}"),
        stop_timeout=5.0,
        log=layout.logs / "forwarder.log",
    )


def command(layout: Layout) -> tuple[str, ...]:
    """Return the command that starts haproxy."""
    return (
        str(PROGRAM),
        "-W",
        "-S",
        f"{haproxy.socket_path(layout)},level,admin,mode,600",
        "-n",
        str(ALL_CONNECTIONS),
        "-x",
        "/dev/null",
        "-f",
        str(config_file(layout)),
    )


def namespaces(layout: Layout, environments: Collection[str]) -> dict[str, int]:
    """Return the inode number of each environment's network namespace; environments without one are left out."""
    found = {}
    for name in environments:
        with contextlib.suppress(OSError):
            found[name] = layout.netns(name).stat().st_ino
    return found


@dataclass(frozen=True)
class Wanted:
    """The desired state of the forwarder: the environments to serve, and their routes.

    :param broker: the declared broker.
    :param namespaces: the inode number of each environment's network namespace.
    :param trusted: a digest of the trusted certificates for our broker. A new digest makes haproxy reload.
    :param ways: for each environment, the other hosts to which its direct links lead.
    :param peer: whether the host's own peer is served, too.
    """

    broker: Broker
    namespaces: Mapping[str, int]
    trusted: str = ""
    ways: Mapping[str, Mapping[str, RemoteHost]] = field(default_factory=dict)
    peer: bool = False

    @cached_property
    def certified(self) -> set[str]:
        """The served environments that log in by certificate."""
        return certificates.certified(self.broker, self.namespaces)

    def port(self, environment: str) -> int:
        """Return the port inside the environment at which its programs reach the broker."""
        return TLS_PORT if environment in self.certified else PORT


def find(layout: Layout, broker: Broker, environments: Collection[str], links: Collection[Link]) -> Wanted:
    """Return the desired state of the forwarder for those *environments* that have a network namespace now."""
    return Wanted(
        broker,
        namespaces(layout, environments),
        certificates.trusted(layout, broker),
        peers.ways(broker, links),
        host_peer.wanted(links),
    )


def render(layout: Layout, wanted: Wanted) -> str:
    """Return haproxy's configuration."""
    lines = [
        "# Written by netspace: each environment's own port, carried to the broker.",
        "global",
        f"    chroot {folder(layout)}/empty",
        "    user haproxy",
        "    group haproxy",
        # If the system grants fewer descriptors than -n needs, haproxy uses what it gets.
        "    no strict-limits",
        f"    mworker-max-reloads {OLD_WORKERS}",
        "    nbthread 2",
        "defaults",
        "    mode tcp",
        f"    maxconn {CONNECTIONS}",
        "    timeout connect 5s",
        "    timeout client 20d",  # AMQP's heartbeats detect dead connections
        "    timeout server 20d",
        "backend shares",
        "    stick-table type integer size 100k expire 10s store bytes_in_rate(1s)",
        *_to_broker(layout, wanted),
        *_from_elsewhere(wanted.broker),
        *(host_peer.frontend(layout) if wanted.peer else ()),
    ]
    for name in sorted(wanted.namespaces):
        lines += _from_environment(layout, wanted, name)
    return with_something(layout, "\n".join(lines) + "\n")


def with_something(layout: Layout, config: str) -> str:
    """Return the configuration with at least one frontend; haproxy refuses a configuration without any."""
    if "\nfrontend " in config:
        return config
    lines = (
        "frontend nobody",
        f"    bind unix@{folder(layout)}/nobody.sock mode 600",
        "    tcp-request connection reject",
    )
    return config + "\n".join(lines) + "\n"


def _to_broker(layout: Layout, wanted: Wanted) -> list[str]:
    """Return the backends to the broker: for clients that use TLS, and for clients that can't."""
    lines = ["backend broker", *_servers(wanted.broker)]
    if isinstance(wanted.broker, LocalBroker) and len(wanted.certified) < len(wanted.namespaces):
        anchors = certificates.server_folder(layout) / certificates.ANCHORS
        lines += [
            "backend broker-by-password",
            f"    # trusts {wanted.trusted}",
            f"    server broker {_local(wanted.broker)} ssl verify required ca-file {anchors} verifyhost {SERVER_NAME}",
        ]
    return lines


def _from_elsewhere(broker: Broker) -> list[str]:
    """Return the lines of haproxy's frontend for connections of other hosts; empty if ``listen`` isn't declared."""
    if not isinstance(broker, LocalBroker) or broker.listen is None:
        return []
    return [
        "frontend from-elsewhere",
        # transparent: the address may not exist yet; after a boot it may come later.
        f"    bind {broker.listen} transparent",
        f"    maxconn {FROM_ELSEWHERE}",
        "    stick-table type ipv6 size 10k expire 10m store conn_cur",
        "    tcp-request connection track-sc0 src",
        f"    tcp-request connection reject if {{ sc0_conn_cur gt {FROM_ONE} }}",
        f"    tcp-request inspect-delay {PATIENCE}",
        f"    tcp-request content accept if {{ req.ssl_sni -m str {broker.trust_domain} }}",
        "    tcp-request content reject if { req.len gt 0 } || WAIT_END",
        "    default_backend broker",
    ]


def _from_environment(layout: Layout, wanted: Wanted, name: str) -> list[str]:
    """Return the frontend of one environment, and the backends of its routes to other hosts."""
    certified = name in wanted.certified
    away = sorted(wanted.ways.get(name, {}).items()) if certified else []
    lines = []
    for host, about in away:
        # One backend per environment and host, so that revoking one route can end its connections alone.
        lines += [f"{WAY}{name}:{host}", f"    server broker {about.address} init-addr last,libc,none"]
    lines += [
        f"{SECTION}{name}",
        f"    # network namespace {wanted.namespaces[name]}",
        f"    bind {ports.LOOPBACK}:{wanted.port(name)} namespace {layout.netns_name(name)}",
        f"    rate-limit sessions {NEW}",
        f"    filter bwlim-in share limit {RATE} key fe_id table shares min-size 16k",
        "    tcp-request content set-bandwidth-limit share",
    ]
    if away:
        lines += [
            f"    tcp-request inspect-delay {PATIENCE}",
            "    tcp-request content accept if { req.ssl_hello_type 1 }",
        ]
        lines += [
            f"    use_backend to:{name}:{host} if {{ req.ssl_sni -m str {about.trust_domain} }}" for host, about in away
        ]
    return [*lines, f"    default_backend {_backend(wanted.broker, certified)}"]


def _backend(broker: Broker, certified: bool) -> str:
    return "broker" if certified or not isinstance(broker, LocalBroker) else "broker-by-password"


def _local(broker: LocalBroker) -> str:
    return f"127.0.0.1:{broker.port}"


def _servers(broker: Broker) -> list[str]:
    """Return haproxy's server lines for one broker, or for the nodes of a cluster."""
    if isinstance(broker, LocalBroker):
        return [f"    server broker {_local(broker)}"]
    if len(broker.urls) == 1:
        return [f"    server broker {_node(broker.urls[0], broker.ca)}"]
    # Each connection goes to the next node that answers. If a node is found dead, haproxy ends its connections, so that
    # clients reconnect at once instead of waiting for heartbeats.
    lines = ["    balance roundrobin", "    option redispatch 1", "    retries 2", f"    default-server {_CHECK}"]
    return lines + [f"    server node{number} {_node(url, broker.ca)}" for number, url in enumerate(broker.urls, 1)]


def _node(url: str, ca: str | None) -> str:
    parts = urlsplit(url)
    host = parts.hostname or ""
    secure = parts.scheme == "amqps"
    address = f"[{host}]" if ":" in host else host
    where = f"{address}:{parts.port or (5671 if secure else 5672)} init-addr last,libc,none"
    if secure:
        anchors = ca or "/etc/ssl/certs/ca-certificates.crt"
        where += f" ssl verify required ca-file {_quoted(anchors)} verifyhost {host} sni str({host})"
    return where


def _quoted(value: str) -> str:
    """Return *value* quoted as one word of haproxy's configuration.

    https://docs.haproxy.org/3.0/configuration.html#2.2

    :raises NetspaceError: *value* has a control character, which can't be quoted.
    """
    if not value.isprintable():
        raise NetspaceError(f"{value!r}: has a control character; it can't be written into a configuration")
    return '"' + "".join(f"\\{one}" if one in '"\\$' else one for one in value) + '"'


def current(layout: Layout) -> str:
    """Return the configuration that haproxy has accepted; empty if there is none."""
    try:
        return served_file(layout).read_text()
    except FileNotFoundError:
        return ""


def served(config: str) -> list[str]:
    """Return the environments that a configuration serves."""
    return [line.removeprefix(SECTION) for line in config.splitlines() if line.startswith(SECTION)]


def entries(config: str) -> dict[str, tuple[int, int]]:
    """Return, for each environment in a configuration, the inode number of its network namespace and its port."""
    return {name: (int(inode), int(port)) for name, inode, port in _ENTRY.findall(config)}


def _ways(config: str) -> set[str]:
    """Return the routes to other hosts in a configuration: backend ``to:<environment>:<host>`` and server line."""
    lines = config.splitlines()
    return {f"{line} {after}" for line, after in itertools.pairwise(lines) if line.startswith(WAY)}


def available() -> None:
    """Check that haproxy is installed; raise MissingError if it isn't."""
    if not PROGRAM.exists():
        raise MissingError(f"haproxy ({PROGRAM})", "apt-get install haproxy")


def apply(layout: Layout, wanted: Wanted, supervisor: Supervisor) -> dict[str, str]:
    """Serve exactly the environments in *wanted*; return the environments that are left out, each with the reason.

    Connections of environments that stay are kept, except to hosts that they may no longer reach. A haproxy that
    doesn't answer is restarted.

    :raises NetspaceError: haproxy refuses its configuration, and keeps the old one.
    """
    available()
    reached = {name: (layout.netns(name), wanted.port(name)) for name in wanted.namespaces}
    with ports.Held(reached) as held:
        staying = {name: inode for name, inode in wanted.namespaces.items() if name not in held.refused}
        _apply(layout, dataclasses.replace(wanted, namespaces=staying), supervisor)
    return held.refused


def _apply(layout: Layout, wanted: Wanted, supervisor: Supervisor) -> None:
    before = current(layout)
    config = _install(layout, wanted)
    supervisor.define([service(layout)])
    status = supervisor.observe([NAME]).get(NAME)
    running = status is not None and status.state == "running" and haproxy.socket_path(layout).exists()
    # A restart ends all connections, so haproxy gets more time to answer here than in a health check.
    if running and not haproxy.silent(layout, haproxy.DEAD_SECONDS):
        if config != before:
            try:
                _reload(layout)
            except NetspaceError:
                files.write(config_file(layout), before.encode())  # its next start would load this file
                raise
            haproxy.end(layout, {line.split()[1] for line in _ways(before) - _ways(config)})
    else:
        if status is not None and status.state in ("running", "starting", "frozen"):
            raise_any(supervisor.stop([NAME]))
        raise_any(supervisor.start([NAME]))
        _wait(layout, supervisor)
    files.write(served_file(layout), config.encode())


def restore(layout: Layout, wanted: Wanted, supervisor: Supervisor) -> dict[str, str]:
    """Write the configuration for haproxy's start after a reboot; if haproxy already runs, call :func:`apply`."""
    status = supervisor.observe([NAME]).get(NAME)
    if status is not None and status.state == "running":
        return apply(layout, wanted, supervisor)
    files.write(served_file(layout), _install(layout, wanted).encode())
    return {}


def _install(layout: Layout, wanted: Wanted) -> str:
    config = render(layout, wanted)
    folder(layout).mkdir(parents=True, exist_ok=True, mode=0o700)
    if wanted.peer:
        host_peer.ensure(layout)  # haproxy makes the socket file in it
    (folder(layout) / "empty").mkdir(exist_ok=True, mode=0o755)
    files.write(config_file(layout), config.encode())
    return config


def _reload(layout: Layout) -> None:
    """Let haproxy's master process reload its configuration; wait until the new worker serves.

    :raises NetspaceError: haproxy refuses the configuration; the error contains haproxy's alerts.
    """
    answer = haproxy.ask(layout, "reload")
    if not answer.startswith("Success=1"):
        alerts = [line.partition("config : ")[2] or line for line in answer.splitlines() if "[ALERT]" in line]
        raise NetspaceError(f"the forwarder refuses its configuration: {'; '.join(alerts) or answer[:400]}")


def _wait(layout: Layout, supervisor: Supervisor) -> None:
    """Wait until haproxy serves.

    :raises NetspaceError: it doesn't serve.
    """
    soon = time.monotonic() + RETRY_SECONDS

    def ended() -> bool:
        status = supervisor.observe([NAME]).get(NAME)
        if status is None or status.state in ("failed", "stopped"):
            return True
        return status.restarts > 0 and time.monotonic() > soon

    if not haproxy.serves(layout, START_SECONDS, ended):
        raise NetspaceError(f"the forwarder doesn't start: {_complaint(layout)}")


def _complaint(layout: Layout) -> str:
    try:
        lines = (layout.logs / "forwarder.log").read_text(errors="replace").splitlines()
    except OSError:
        return f"see the log of the service {layout.service(NAME)}"
    return "; ".join([line for line in lines if "[ALERT]" in line][-5:]) or f"see {layout.logs}/forwarder.log"


def remove(layout: Layout, supervisor: Supervisor) -> None:
    """Stop the forwarder, and remove its service and its files."""
    if NAME in supervisor.observe([NAME]):
        raise_any(supervisor.remove([NAME]))
    shutil.rmtree(folder(layout), ignore_errors=True)
