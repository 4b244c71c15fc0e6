"""The values of a declaration. Each is immutable; unknown keys are errors.

Field names are the keys of the pillar and the arguments of the states. Sizes are
in bytes once parsed; names match :data:`NAME`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import msgspec

NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,46}[a-z0-9])?")
NAME_RULE = "1 to 48 of a-z, 0-9, '-' and '_', beginning and ending with a letter or digit"
END = re.compile(rf"{NAME.pattern}(?:@{NAME.pattern})?")
"""An end of a link: an environment of this host, or ``<environment>@<host>`` of another."""

Policy = Literal["require", "prefer", "off"]
OnLoss = Literal["stop", "revoke-links", "report"]
LevelName = Literal["L0", "L1", "L2", "L3", "L4", "L5"]
Pattern = Literal["send", "request"]
Full = Literal["reject", "drop-head"]
Via = Literal["direct", "buffered"]
Direction = Literal["in", "out"]
Protocol = Literal["tcp", "udp", "icmp"]

_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_DECIMAL = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_RATE = re.compile(r"(\d{1,15})\s*([KMGT]?)(?:bit)?(?:/s)?", re.IGNORECASE)
_SIZE = re.compile(r"(\d{1,15})\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


class Size(int):
    """A size in bytes; written as a number of bytes or with a binary suffix (``128M``)."""

    @classmethod
    def parse(cls, value: Any) -> Size:
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise ValueError(f"expected a size such as 128M, got {value!r}")
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            raise ValueError(f"expected a size such as 128M, got {value!r}")
        return cls(int(match[1]) * _UNITS[match[2].upper()])


class Rate(int):
    """A rate in bits per second; written as such or with a decimal suffix (``10M``), as networks are sold."""

    @classmethod
    def parse(cls, value: Any) -> Rate:
        match = None
        if isinstance(value, (int, str)) and not isinstance(value, bool):
            match = _RATE.fullmatch(str(value).strip())
        if match is None:
            raise ValueError(f"expected bits per second such as 10M, got {value!r}")
        return cls(int(match[1]) * _DECIMAL[match[2].upper()])


class Cidr(str):
    """An IPv4 or IPv6 network in canonical form; a bare address is a network of one."""

    @classmethod
    def parse(cls, value: Any) -> Cidr:
        if not isinstance(value, str):
            raise ValueError(f"expected a network such as 198.51.100.0/24, got {value!r}")
        try:
            return cls(ipaddress.ip_network(value))
        except ValueError as err:
            raise ValueError(f"expected a network such as 198.51.100.0/24: {err}") from err

    @property
    def network(self) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
        return ipaddress.ip_network(str(self))


class Address(str):
    """One IPv4 or IPv6 address in canonical form."""

    @classmethod
    def parse(cls, value: Any) -> Address:
        try:
            address = ipaddress.ip_address(value if isinstance(value, str) else repr(value))
            if getattr(address, "scope_id", None):
                raise ValueError(f"{value!r} has a scope, which means nothing here")
            return cls(address)
        except ValueError as err:
            raise ValueError(f"expected an address such as 198.51.100.7: {err}") from err


class Prefixed(str):
    """An address with the length of its network's prefix, in canonical form: ``198.51.100.7/24``."""

    @classmethod
    def parse(cls, value: Any) -> Prefixed:
        try:
            if not isinstance(value, str) or "/" not in value or "%" in value:
                raise ValueError(f"{value!r} has no prefix, or more than that")
            return cls(ipaddress.ip_interface(value))
        except ValueError as err:
            raise ValueError(f"expected an address and its network's prefix such as 198.51.100.7/24: {err}") from err

    @property
    def interface(self) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
        return ipaddress.ip_interface(str(self))


class Base(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all declared values."""


class Requirement(Base, frozen=True):
    """The least trust level that a host, an environment or a link demands.

    ``require``: not without it. ``prefer``: goes on without it, and says so.
    ``off``: doesn't ask.

    :param on_loss: what becomes of that which runs already, under ``require``: it is stopped; goes on without its
        links; or goes on with them, and is reported. Nothing is started, updated or linked anew without the level.
    """

    policy: Policy = "prefer"
    minimum: LevelName = "L1"
    on_loss: OnLoss = "stop"


class Attestation(Requirement, frozen=True):
    """The host's default requirement, and how it attests.

    :param tpm: TCTI of the TPM (``device:/dev/tpmrm0``, ``swtpm:path=/run/x.sock``);
        without one, the host attests by a software key and reaches L1 at best.
    :param roots: folder of PEM certificates that a TPM's endorsement certificate must
        chain to for L3.
    :param references: JSON file of acceptable PCR values for L4:
        ``{"sha256": {"0": ["<hex>", ...], ...}}``.
    :param pcrs: PCRs of the SHA-256 bank that the quote covers.
    :param verifier: who judges: the host itself, or its master; then what counts is a result that one of
        *verifier_keys* signed (RFC 7638 thumbprints, as the master's ``netspace_attestation.jwks`` shows them).
    """

    tpm: str | None = None
    roots: str | None = None
    references: str | None = None
    pcrs: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    verifier: Literal["self", "master"] = "self"
    verifier_keys: tuple[str, ...] = ()


MESSAGE_SIZE = Size(1024**2)
"""Bytes that a message may have where nothing else is declared."""


class RemoteHost(Base, frozen=True):
    """Another host, as links that lead there or come from there need to know it.

    :param trust_domain: its own, as its ``broker`` declares it: also the name that its broker has a certificate for.
    :param address: where its broker is reached, ``<address>:<port>``, which is its ``broker: {listen: ...}``;
        absent: no link leads there.
    :param vhost: the virtual host of its links: its instance's name.
    :param message_size: bytes that a message to it may have, which is its ``broker: {message_size: ...}``.
    :param public_key: what ``netspace_link.public_key`` tells there: the names of what is between this host and that
        one then follow from a key that no third host has.
    """

    trust_domain: str
    address: str | None = None
    vhost: str = "netspace"
    message_size: Size = MESSAGE_SIZE
    public_key: str | None = None


PORTS = ("port", "management_port", "distribution_port")
"""The keys of a local broker's ports."""


class LocalBroker(Base, frozen=True, tag_field="kind", tag="local"):
    """A RabbitMQ node of netspace's own on this host's loopback.

    :param message_size: bytes that a message may have; the sender of a larger one gets an error.
    :param names_key: file (root's alone) of 32 random characters or more, the same on all of *hosts*, for those whose
        ``public_key`` isn't declared. **Any of them can then find out which links there are between the others.**
    :param port: where it takes TLS connections; likewise the other :data:`PORTS`.
    :param epmd_port: ignored: the node has no epmd. Declarations that have it remain valid.
    :param passwords: environments whose clients can't log in by certificate: these get a password instead, and
        their own port 5672 takes AMQP without TLS. **Without such an environment, the broker accepts no passwords.**
    :param trust_domain: begins the SPIFFE ID of each environment; by default the instance's name.
    :param authority: folder with ``authority.pem`` (root's alone): the key, the certificate and those above it
        of an intermediate that issues the certificates; by default the host makes an authority of its own.
    :param host: the name of this host in links (``web@<host>``) and certificates; absent: there are no links to others.
    :param listen: ``<address>:<port>`` of this host where environments of other hosts reach it; absent: **nowhere**.
    :param hosts: the others that links lead to or come from, by name.
    """

    port: int = 5682
    management_port: int = 15682
    distribution_port: int = 25682
    epmd_port: int = 4379
    message_size: Size = MESSAGE_SIZE
    names_key: str | None = None
    passwords: tuple[str, ...] = ()
    trust_domain: str | None = None
    authority: str | None = None
    host: str | None = None
    listen: str | None = None
    hosts: dict[str, RemoteHost] = {}

    @property
    def among_hosts(self) -> bool:
        """Whether environments of other hosts come here, or ours go there: then who is who must be certain to all."""
        return bool(self.listen or self.hosts)


class ClusterBroker(Base, frozen=True, tag_field="kind", tag="cluster"):
    """Somebody's RabbitMQ, by URL; ``management`` is its HTTP API.

    :param url: of one node, or a list of several of a cluster's: environments are carried to one that answers.
        ``amqp`` is for this host alone (loopback): anybody else is spoken to by ``amqps``.
    :param management: likewise, ``http`` or ``https``; the first that answers is asked.
    :param credentials: root-readable file of ``user:password`` for the management API.
    :param names_key: file (root's alone) of 32 random characters or more, the same on all hosts, from which all names
        are made so that nobody can guess them; absent: a key of this host's own, and dead letters can be probed.
    :param ca: PEM file of the certificates that the broker is checked by where a URL is ``amqps`` or ``https``;
        by default the system's.
    :param host: the name of this host in links (``web@<host>``); absent: there are no links to other hosts.
    """

    url: str | tuple[str, ...]
    management: str | tuple[str, ...]
    credentials: str
    vhost: str = "netspace"
    names_key: str | None = None
    ca: str | None = None
    host: str | None = None

    @property
    def urls(self) -> tuple[str, ...]:
        """URLs at which its nodes take connections."""
        return (self.url,) if isinstance(self.url, str) else self.url

    @property
    def managements(self) -> tuple[str, ...]:
        """URLs at which its nodes are managed."""
        return (self.management,) if isinstance(self.management, str) else self.management


Broker = LocalBroker | ClusterBroker


class Network(Base, frozen=True):
    """The ranges that declared interfaces get their addresses from."""

    ipv4: Cidr = Cidr("10.203.0.0/16")
    ipv6: Cidr = Cidr("fd6e:6574:7370::/64")


class Io(Base, frozen=True):
    """Bounds on one environment's use of the disks that hold its layer and volumes; absent: no bound.

    :param read: bytes per second.
    :param write: bytes per second.
    :param read_ops: reads per second.
    :param write_ops: writes per second.
    """

    read: Size | None = None
    write: Size | None = None
    read_ops: int | None = None
    write_ops: int | None = None


class Limits(Base, frozen=True):
    """The resources one environment may use; every environment has bounds.

    :param memory: bytes, swap excluded (swap is 0).
    :param cpus: CPU time per second of time.
    :param pids: processes and threads.
    :param files: open files per process.
    :param shm: bytes of ``/dev/shm``, counted in ``memory`` too.
    :param tmp: bytes of ``/tmp``, counted in ``memory`` too.
    :param disk: bytes of the writable layer, which then has a file system of its own; one file
        per 16 KiB. **Absent: as much as the host's disk has.**
    """

    memory: Size = Size(256 * 1024**2)
    cpus: float = 1.0
    pids: int = 128
    files: int = 1024
    shm: Size = Size(16 * 1024**2)
    tmp: Size = Size(64 * 1024**2)
    disk: Size | None = None
    io: Io = Io()


class Volume(Base, frozen=True):
    """Files that belong to this environment alone, and outlive it.

    Either a folder of the host (``source``), or a file system of its own with a bounded size,
    kept by netspace (``size``): that one is removed with the environment only by ``purge``.

    :param source: absolute path on the host; no other environment may name it, a
        folder above it or one below it.
    :param target: absolute path inside.
    :param size: bytes it may hold; one file per 16 KiB.
    """

    target: str
    source: str | None = None
    size: Size | None = None
    read_only: bool = False


class Allow(Base, frozen=True):
    """One exception to an interface's default drop. Never opens another environment.

    :param direction: ``out``: the environment may connect; ``in``: it may be connected to.
    :param cidr: whom it may reach, or who may reach it.
    :param port: destination port, or ``first-last``; absent: every port of the protocol.
    """

    direction: Direction
    cidr: Cidr
    protocol: Protocol = "tcp"
    port: int | str | None = None


class Way(Base, frozen=True):
    """A route of an interface beside those that follow from its addresses.

    :param to: the network that is reached so.
    :param via: the next router, on the interface's own network; absent: it is there itself.
    """

    to: Cidr
    via: Address | None = None


class Interface(Base, frozen=True, tag_field="kind"):
    """Base of the interface kinds (``netspace.interface.kinds``).

    What a kind knows of its own values beyond their types it says by these methods.

    ``DEVICES`` are the host's devices that an environment with such an interface may open; ``NONE`` says that
    there is no interface at all.
    """

    DEVICES: ClassVar[tuple[str, ...]] = ()
    NONE: ClassVar[bool] = False

    def problems(self) -> Iterable[tuple[str, str]]:
        """Return the problems of the values: (key, message)."""
        return ()

    def claims(self) -> Iterable[tuple[str, str]]:
        """Return the things that only one interface of the host can have: (key, thing)."""
        return ()

    def shares(self) -> Iterable[tuple[str, str, str]]:
        """Return the values that interfaces must agree about: (key, subject, value)."""
        return ()

    def listens(self) -> Iterable[tuple[str, int]]:
        """Return the UDP ports of the host at which its own packets arrive: (key, port)."""
        return ()


class Filtered(Interface, frozen=True):
    """Base of the kinds that are filtered: nothing passes but what ``allow`` names.

    :param allow: exceptions to the default drop.
    :param rate: bits per second that it may send at most (``10M``); absent: as fast as it can.
    :param connections: connections that may be open at once, from it and to it together.
    """

    allow: tuple[Allow, ...] = ()
    rate: Rate | None = None
    connections: int = 1024


class Health(Base, frozen=True):
    """Health check of an environment: by a program run inside, or by its mailbox.

    :param exec: argument vector, run inside with the environment's own rights; it exits with 0 where all is well.
    :param mailbox: all is well while its program reads its mailbox. Needs a link that leads there.
    :param interval: seconds from one probe to the next; while it starts, at most one second.
    :param timeout: seconds that a probe may take.
    :param retries: failures in a row that make a healthy one unhealthy.
    :param start_period: seconds that it gets to start, beside ``retries`` times ``interval``.
    """

    exec: tuple[str, ...] = ()
    mailbox: bool = False
    interval: float = 10.0
    timeout: float = 5.0
    retries: int = 3
    start_period: float = 0.0


class Update(Base, frozen=True):
    """Update of an environment that is healthy and has a health check, when it is to run otherwise.

    Where two can run at once, the new one is started beside the old one, which is stopped only once the new
    one is healthy; else the old one is stopped first. Mail waits in the mailbox.

    :param rolling: false: never two at once.
    :param deadline: seconds in which the new one has to be healthy; else the previous one is put back.
    :param rollback: false: the new one stays, healthy or not.
    """

    rolling: bool = True
    deadline: float = 60.0
    rollback: bool = True


class Environment(Base, frozen=True):
    """One program in an isolated world of its own.

    :param image: ``<source>:<location>``, e.g. ``tar:/srv/shop.tar`` or ``oci:/srv/shop:web``.
        A file may be on Salt's file server: ``tar:salt://images/shop.tar``.
    :param kernel: a unikernel's file, in place of an image; then ``command``, ``env``, ``working_dir``
        and ``volumes`` can't be, and an interface is of kind ``tap``.
    :param source_hash: sha256 that the image's source, or the kernel, must have (``sha256:<hex>``).
    :param command: argument vector; absent: an OCI image's Entrypoint and Cmd.
    :param args: what follows ``command``, or the image's Entrypoint in place of its Cmd; a kernel's arguments.
    :param env: variables of the program, beside a minimal set and an OCI image's.
    :param user: uid and gid inside, never 0; absent: an OCI image's User, else 1000.
    :param working_dir: absent: an OCI image's WorkingDir, else ``/``.
    :param runtime: what runs it: ``crun``, ``runc`` or ``runsc``, and a kernel ``qemu`` or ``solo5``;
        absent: the host's default.
    :param seccomp: which system calls it may make: ``strict``, ``standard`` or ``file:/profile.json``.
    :param read_only: no writes to the root at all; else to a layer of its own.
    :param state: ``running``, or ``stopped``: all of it is there, its mailbox receives, and its program doesn't run.
    :param restart: ``always``, ``on-failure`` or ``never``.
    :param stop_timeout: seconds between SIGTERM and SIGKILL.
    :param init: whether process 1 is a small program of the host's that hands on signals to this one, and reaps: then
        it ends at once by a SIGTERM that it doesn't handle.
    :param health: absent: it is well as long as it runs.
    :param after: environments that must be healthy (or, without a check, run) before this one is started.
    :param attestation: absent: the host's default.
    :param target: whether Salt may address it by itself, as ``T@netspace:MINION-NAME``, and so run
        commands and apply states in it. **Not unless it is declared.**
    """

    image: str = ""
    kernel: str | None = None
    source_hash: str | None = None
    command: tuple[str, ...] = ()
    args: tuple[str, ...] | None = None
    env: dict[str, str] = {}
    user: int | None = None
    working_dir: str | None = None
    limits: Limits = Limits()
    interface: Any = None
    volumes: tuple[Volume, ...] = ()
    read_only: bool = False
    runtime: str | None = None
    seccomp: str = "strict"
    state: Literal["running", "stopped"] = "running"
    restart: Literal["always", "on-failure", "never"] = "on-failure"
    stop_timeout: float = 10.0
    init: bool = False
    health: Health | None = None
    after: tuple[str, ...] = ()
    update: Update = Update()
    attestation: Requirement | None = None
    target: bool = False


class Link(Base, frozen=True):
    """The right of one environment (``from``) to send to another's mailbox (``to``).

    Either end may be on another host: ``orders@h2``. Both hosts declare the link; what is of this host is named
    without it once parsed.

    ``request``: each message asks for one reply, which goes to the asker alone.

    With ``ttl`` or ``length`` its mail waits in a queue of its own, beside the receiver's mailbox.

    :param ttl: seconds that a message may wait to be read; then it is a dead letter.
    :param length: messages that may wait.
    :param full: what happens beyond ``length``: ``reject``: the sender is told by a nack;
        ``drop-head``: the oldest one is a dead letter.
    :param rate: messages in a second; needs ``length``. **This, size and content_type are kept by netspace-client**, at
        both ends: other programs find them in their card and have to look for themselves.
    :param size: bytes that a message's body may have.
    :param content_type: what all messages must be, ``application/json`` say.
    :param monitor: the sender is told when the receiver's program goes and comes.
    :param seal: messages and replies are signed and encrypted end to end with the environments' own keys, so that no
        broker and no relay can read or change them. **Their programs must seal and open**, as netspace-client does.
    :param via: to another host ``direct``: the sender is connected to the receiver's broker, and told at once what
        becomes of a message; or ``buffered``: its own broker takes the message and carries it over once it can.
    :param as: what the sender's program calls the receiver, whichever environment of whichever host that is. So the
        receiver may move, or be replaced, and the program stays as it is.
    """

    source: str = msgspec.field(name="from")
    target: str = msgspec.field(name="to")
    pattern: Pattern = "send"
    seal: bool = False
    monitor: bool = False
    attestation: Requirement | None = None
    ttl: float | None = None
    length: int | None = None
    full: Full = "reject"
    rate: float | None = None
    size: Size | None = None
    content_type: str | None = None
    via: Via = "direct"
    local: str | None = msgspec.field(name="as", default=None)

    @property
    def bounds(self) -> dict[str, float | int | str]:
        """Declared bounds of its queue; empty: its mail waits in the receiver's mailbox."""
        bounds: dict[str, float | int | str] = {}
        if self.ttl is not None:
            bounds["ttl"] = float(self.ttl)
        if self.length is not None:
            bounds.update(length=self.length, full=self.full)
        return bounds

    @property
    def narrowed(self) -> dict[str, float | int | str]:
        """Declared bounds of each of its messages, which the programs at both ends keep."""
        wanted = {
            "rate": None if self.rate is None else float(self.rate),
            "size": None if self.size is None else int(self.size),
            "content_type": self.content_type,
        }
        return {key: value for key, value in wanted.items() if value is not None}

    @property
    def name(self) -> str:
        """Unique name of the link: ``<from>.<to>`` (names have no dot)."""
        return f"{self.source}.{self.target}"

    @property
    def to_host(self) -> str | None:
        """The other host that it leads to; None: it leads to an environment of this one."""
        return host_of(self.target)

    @property
    def from_host(self) -> str | None:
        """The other host that it comes from; None: it comes from an environment of this one."""
        return host_of(self.source)

    @property
    def here(self) -> list[str]:
        """Those of its ends that are environments of this host."""
        return [end for end in (self.source, self.target) if host_of(end) is None]


def host_of(end: str) -> str | None:
    """Return the other host that an end of a link is on; None: this one."""
    return end.partition("@")[2] or None


class Runtimes(Base, frozen=True):
    """Runtimes of environments that don't name one, and the settings of each runtime.

    Under a runtime's name stand its own settings, such as ``program``.

    :param default: of environments with an image.
    :param kernels: of those with a kernel.
    """

    default: str = "crun"
    kernels: str = "qemu"
    settings: dict[str, Any] = {}


class Declaration(Base, frozen=True):
    """All that one host is declared to be."""

    attestation: Attestation = Attestation()
    broker: Broker = LocalBroker()
    network: Network = Network()
    runtimes: Runtimes = Runtimes()
    environments: dict[str, Environment] = {}
    links: tuple[Link, ...] = ()

    @property
    def interfaces(self) -> dict[str, Interface]:
        """The interface of each environment, by the environment's name."""
        return {name: environment.interface for name, environment in self.environments.items()}
