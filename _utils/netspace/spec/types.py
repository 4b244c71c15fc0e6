"""Types of a host's declaration. Values are immutable; unknown keys are errors.

The field names are the pillar's keys and the states' arguments. Parsed sizes are in bytes. The declared names match
:data:`NAME`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import msgspec

from netspace.patterns import pattern

NAME = pattern(r"[a-z0-9](?:[a-z0-9_-]{0,46}[a-z0-9])?")
NAME_RULE = "1 to 48 of a-z, 0-9, '-' and '_', beginning and ending with a letter or digit"
END = pattern(rf"{NAME.pattern}(?:@{NAME.pattern})?")
"""An end of a link: an environment of this host, or ``<environment>@<host>`` of another."""

Policy = Literal["require", "prefer", "off"]
OnLoss = Literal["stop", "revoke-links", "report"]
LevelName = Literal["L0", "L1", "L2", "L3", "L4", "L5"]
ProvedLevel = Literal["L1", "L2", "L3", "L4", "L5"]
"""A level above L0, which a host must prove."""
Pattern = Literal["send", "request"]
Full = Literal["reject", "drop-head"]
Via = Literal["direct", "buffered"]
Direction = Literal["in", "out"]
By = Literal["messages", "packets"]
Protocol = Literal["tcp", "udp", "icmp"]

_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_DECIMAL = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_RATE = pattern(r"(\d{1,15})\s*([KMGT]?)(?:bit)?(?:/s)?", re.IGNORECASE)
_SIZE = pattern(r"(\d{1,15})\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def _written(value: int, units: Mapping[str, int]) -> str:
    """Return a number with the largest unit of which it is a multiple."""
    unit = next((unit for unit in ("T", "G", "M", "K") if value and value % units[unit] == 0), "")
    return f"{value // units[unit]}{unit}"


class Size(int):
    """A size in bytes; written as a number of bytes or with a binary suffix (``128M``)."""

    @property
    def written(self) -> str:
        """The size as a declaration has it: ``128M``."""
        return _written(int(self), _UNITS)

    @classmethod
    def parse(cls, value: Any) -> Size:
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise ValueError(f"expected a size such as 128M, got {value!r}")
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            raise ValueError(f"expected a size such as 128M, got {value!r}")
        return cls(int(match[1]) * _UNITS[match[2].upper()])


class Rate(int):
    """A rate in bits per second; written as a number or with a decimal suffix (``10M``), as usual for networks."""

    @property
    def written(self) -> str:
        """The rate as a declaration has it: ``10M``."""
        return _written(int(self), _DECIMAL)

    @classmethod
    def parse(cls, value: Any) -> Rate:
        match = None
        if isinstance(value, (int, str)) and not isinstance(value, bool):
            match = _RATE.fullmatch(str(value).strip())
        if match is None:
            raise ValueError(f"expected bits per second such as 10M, got {value!r}")
        return cls(int(match[1]) * _DECIMAL[match[2].upper()])


class Cidr(str):
    """An IPv4 or IPv6 network in canonical form; an address without a prefix length is a network of one address."""

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


_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
HOST_NAME = rf"(?:{_LABEL}\.)+[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?"
"""A name of the DNS with at least one dot, in small letters (RFC 1123 section 2.1). Its last label begins with a
letter, so that no address looks like a name."""
_HOST_NAME = pattern(HOST_NAME)


ADDRESSES_OF_NAME = 256
"""The most addresses of one family that a name may have at once: of the last answer and of earlier ones."""


class HostName(str):
    """A fully qualified DNS name in lower case: ``deb.example.org``."""

    @classmethod
    def parse(cls, value: Any) -> HostName:
        name = value.lower() if isinstance(value, str) else ""
        if len(name) > 253 or not _HOST_NAME.fullmatch(name):
            raise ValueError(f"expected a full name such as deb.example.org (other letters as xn--...), got {value!r}")
        return cls(name)


class Address(str):
    """One IPv4 or IPv6 address in canonical form."""

    @classmethod
    def parse(cls, value: Any) -> Address:
        try:
            address = ipaddress.ip_address(value if isinstance(value, str) else repr(value))
            if getattr(address, "scope_id", None):
                raise ValueError(f"{value!r} has a scope, which isn't allowed here")
            return cls(address)
        except ValueError as err:
            raise ValueError(f"expected an address such as 198.51.100.7: {err}") from err


class Prefixed(str):
    """An address with the length of its network's prefix, in canonical form: ``198.51.100.7/24``."""

    @classmethod
    def parse(cls, value: Any) -> Prefixed:
        try:
            if not isinstance(value, str) or "/" not in value or "%" in value:
                raise ValueError(f"{value!r}: expected an address and one prefix length, such as 198.51.100.7/24")
            return cls(ipaddress.ip_interface(value))
        except ValueError as err:
            raise ValueError(f"expected an address and its network's prefix such as 198.51.100.7/24: {err}") from err

    @property
    def interface(self) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
        return ipaddress.ip_interface(str(self))


EVERYWHERE = (Cidr("0.0.0.0/0"), Cidr("::/0"))


class Base(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base class of all declared values."""


class Requirement(Base, frozen=True):
    """The lowest trust level that a host, an environment or a link demands.

    :param policy: ``require``: the operation is refused below the level. ``prefer``: the operation is done all the
        same, with a comment. ``off``: the level isn't checked.
    :param minimum: ``L0`` none, ``L1`` a software key, ``L2`` a TPM, ``L3`` a TPM with the certificate of an accepted
        maker, ``L4`` a measured boot as expected, ``L5`` measured programs as expected.
    :param on_loss: what happens to a running environment when the host loses the level, under ``require``. ``stop``:
        the environment is stopped. ``revoke-links``: it keeps running without its links. ``report``: it keeps running
        with its links, and is reported. Without the level, nothing new is started, updated or linked.
    """

    policy: Policy = "prefer"
    minimum: LevelName = "L1"
    on_loss: OnLoss = "stop"


class Appraised(Base, frozen=True):
    """The trust level of another host, as this host's master reports it.

    :param level: the level by the last result of the master's verifier.
    :param until: the end of the result's validity, in seconds since 1970.
    """

    level: LevelName
    until: float


class Attestation(Requirement, frozen=True):
    """The host's default requirement, and its settings for attestation.

    :param tpm: TCTI of the TPM (``device:/dev/tpmrm0``, ``swtpm:path=/run/x.sock``); absent: the host attests with a
        software key and reaches at most L1.
    :param roots: folder of PEM certificates of TPM makers. For L3, the TPM's endorsement certificate must chain to one
        of them.
    :param references: JSON file of acceptable PCR values for L4: ``{"sha256": {"0": ["<hex>", ...], ...}}``.
    :param pcrs: PCRs of the SHA-256 bank that the quote covers.
    :param verifier: the verifier of the host's evidence: the host itself (``self``), or its ``master``.
    :param verifier_keys: with ``master``: the keys whose attestation results the host accepts (RFC 7638 thumbprints, as
        the master's ``netspace_attestation.jwks`` shows them).
    :param ledger: keep a ledger of runs: which image and configuration each environment was started with, proved by an
        NV index of the TPM.
    :param appraised: the levels of other hosts, by their names in links, for links with ``attested``. **The fleet's
        master fills this in**, each time when it hands out the pillar.
    """

    tpm: str | None = None
    roots: str | None = None
    references: str | None = None
    pcrs: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    verifier: Literal["self", "master"] = "self"
    verifier_keys: tuple[str, ...] = ()
    ledger: bool = False
    appraised: dict[str, Appraised] = msgspec.field(default_factory=dict)


MESSAGE_SIZE = Size(1024**2)
"""The most bytes of a message, unless declared otherwise."""


class RemoteHost(Base, frozen=True):
    """Settings of another host, for links to it and from it.

    :param trust_domain: the trust domain that the other host's ``broker`` declares; also the name in its broker's
        certificate.
    :param address: the ``<address>:<port>`` of the other host's broker, equal to its ``broker: {listen: ...}``; absent:
        no link may lead to this host.
    :param vhost: the virtual host of the other host's links: its instance's name.
    :param message_size: the most bytes of a message to the other host, equal to its ``broker: {message_size: ...}``.
    :param public_key: the output of ``netspace_link.public_key`` on that host. The names of broker objects between the
        two hosts are then derived from a key that no third host has.
    """

    trust_domain: str
    address: str | None = None
    vhost: str = "netspace"
    message_size: Size = MESSAGE_SIZE
    public_key: str | None = None


PORTS = ("port", "management_port", "distribution_port")
"""The keys of a local broker's ports."""


class LocalBroker(Base, frozen=True, tag_field="kind", tag="local"):
    """netspace's own RabbitMQ node on this host's loopback.

    :param message_size: the most bytes of a message; the sender of a larger message gets an error.
    :param names_key: file (readable by root alone) of 32 random characters or more, the same on all of *hosts*, for
        hosts without a declared ``public_key``. **Each of these hosts can then find out the links between the others.**
    :param port: the port for TLS connections, on loopback.
    :param management_port: the port of the node's management API, on loopback.
    :param distribution_port: the port of Erlang's distribution, on loopback.
    :param epmd_port: ignored: the node has no epmd. Declarations with this key remain valid.
    :param passwords: environments whose clients can't log in by certificate. They get a password instead, and their own
        port 5672 accepts AMQP without TLS. **Without such an environment, the broker accepts no passwords.**
    :param trust_domain: the trust domain of each environment's SPIFFE ID; by default the instance's name.
    :param authority: folder with ``authority.pem`` (readable by root alone): the key and the certificate of an
        intermediate CA that issues the certificates, and the certificates above it; by default the host creates a CA.
    :param host: the name of this host in links (``web@<host>``) and certificates; absent: no links to other hosts.
    :param listen: the ``<address>:<port>`` at which this host accepts environments of other hosts; absent: **none**.
    :param hosts: the other hosts that links lead to or come from, by name.
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
        """True if links to or from other hosts are possible.

        They require host, trust_domain and authority.
        """
        return bool(self.listen or self.hosts)


class ClusterBroker(Base, frozen=True, tag_field="kind", tag="cluster"):
    """An external RabbitMQ cluster, by URL.

    :param url: the URL of one node, or a list of several nodes' URLs; environments are connected to a node that
        answers. ``amqp`` is accepted for loopback only; other hosts need ``amqps``.
    :param management: the URL of one node's management HTTP API (``http`` or ``https``), or a list of several nodes'
        URLs; the first node that answers is used.
    :param vhost: the virtual host of the links; it must exist.
    :param credentials: file with ``user:password`` for the management API, readable by root.
    :param names_key: file (readable by root alone) of 32 random characters or more, the same on all hosts. All object
        names are derived from this key, so that nobody can guess them. Absent: the host uses its own key, and everybody
        with a login at the broker can count the dead letters.
    :param ca: PEM file of the CA certificates that check the broker if a URL is ``amqps`` or ``https``; by default the
        system's.
    :param host: the name of this host in links (``web@<host>``); absent: no links to other hosts.
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
        """The URLs for AMQP connections."""
        return (self.url,) if isinstance(self.url, str) else self.url

    @property
    def managements(self) -> tuple[str, ...]:
        """The URLs of the management API."""
        return (self.management,) if isinstance(self.management, str) else self.management


Broker = LocalBroker | ClusterBroker


class Network(Base, frozen=True):
    """The ranges from which interfaces get their addresses.

    :param ipv4: an IPv4 network that only this host uses.
    :param ipv6: an IPv6 network that only this host uses.
    """

    ipv4: Cidr = Cidr("10.203.0.0/16")
    ipv6: Cidr = Cidr("fd6e:6574:7370::/64")


class Io(Base, frozen=True):
    """Limits on one environment's use of the disks that hold its layer and volumes; absent: no limit.

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
    """The resources that one environment may use. Every environment has limits.

    :param memory: bytes, swap excluded (swap is 0).
    :param cpus: CPU seconds per second.
    :param pids: processes and threads.
    :param files: open files per process.
    :param shm: bytes of ``/dev/shm``, counted in ``memory`` too.
    :param tmp: bytes of ``/tmp``, counted in ``memory`` too.
    :param disk: bytes of the writable layer, which is then a separate file system with one file per 16 KiB. **Absent:
        no limit except the free space of the host's disk.**
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

    A volume is either a folder of the host (``source``), or a file system of limited size that netspace keeps
    (``size``). When the environment is removed, such a file system is kept, unless ``purge`` is set.

    :param source: absolute path on the host. No other environment may name this path, a folder above it, or a folder
        below it.
    :param target: absolute path in the environment.
    :param size: the most bytes of the volume; one file per 16 KiB.
    :param read_only: whether the environment may only read it.
    """

    target: str
    source: str | None = None
    size: Size | None = None
    read_only: bool = False


class Allow(Base, frozen=True):
    """One exception to an interface's default drop. It never allows connections to another environment.

    :param direction: ``out``: the environment may connect; ``in``: peers may connect to it.
    :param cidr: the network of the peers. With ``name``: the network in which the addresses of the name must lie;
        required if the name has addresses that aren't public.
    :param name: the DNS name of the peers, for ``out``. The host looks up the name, and lets its current addresses
        pass.
    :param protocol: ``tcp``, ``udp`` or ``icmp``, which has no ports.
    :param port: destination port, or ``first-last``; absent: every port of the protocol.
    """

    direction: Direction
    cidr: Cidr | None = None
    name: HostName | None = None
    protocol: Protocol = "tcp"
    port: int | str | None = None

    @property
    def networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """The networks in which the peers' addresses lie."""
        return (self.cidr.network,) if self.cidr is not None else tuple(one.network for one in EVERYWHERE)

    @property
    def each(self) -> tuple[Allow, ...]:
        """This rule, once for each address family; each copy has a ``cidr``."""
        if self.cidr is not None:
            return (self,)
        return tuple(msgspec.structs.replace(self, cidr=one) for one in EVERYWHERE)


class Way(Base, frozen=True):
    """A route of an interface, in addition to the routes that follow from its addresses.

    :param to: the destination network.
    :param via: the next router, on the interface's own network; absent: the destination is directly on the link.
    """

    to: Cidr
    via: Address | None = None


class Interface(Base, frozen=True, tag_field="kind"):
    """Base class of the interface kinds (``netspace.interface.kinds``).

    A kind overrides these methods to check its values beyond their types.

    ``DEVICES``: the host's devices that an environment with such an interface may open. ``NONE``: true for the kind
    without an interface.
    """

    DEVICES: ClassVar[tuple[str, ...]] = ()
    NONE: ClassVar[bool] = False

    def problems(self) -> Iterable[tuple[str, str]]:
        """Return the problems of the declared values: (key, message)."""
        return ()

    def claims(self) -> Iterable[tuple[str, str]]:
        """Return the resources that only one interface of the host can have: (key, resource)."""
        return ()

    def shares(self) -> Iterable[tuple[str, str, str]]:
        """Return the values that all interfaces with the same subject must have in common: (key, subject, value)."""
        return ()

    def listens(self) -> Iterable[tuple[str, int]]:
        """Return the UDP ports of the host that the interface's tunnel uses: (key, port)."""
        return ()

    def network(self) -> str:
        """Return a description of the external network of the interface; empty if the host routes its packets."""
        return ""

    def networks(self, direction: Direction) -> tuple[Cidr, ...]:
        """Return the networks outside that the interface can send packets to (``out``) or receive from (``in``).

        Rules of ``allow`` then let a part of these packets pass.
        """
        return EVERYWHERE

    def families(self) -> frozenset[str]:
        """Return the address families in which the interface gets an address."""
        return frozenset(("ipv4", "ipv6"))


class Filtered(Interface, frozen=True):
    """Base class of the filtered kinds: only connections that an ``allow`` rule permits pass.

    :param allow: exceptions to the default drop.
    :param rate: the most bits per second that the environment may send (``10M``); absent: unlimited.
    :param connections: the most connections that may be open at once, in both directions together. Connections through
        published ports are counted separately, with the same limit.
    :param audit: whether refused packets are recorded (``netspace.refused`` shows the record). Refused packets are
        still dropped. An environment's ``audit`` sets this value.
    """

    allow: tuple[Allow, ...] = ()
    rate: Rate | None = None
    connections: int = 1024
    audit: bool = False


class Health(Base, frozen=True):
    """Health check of an environment: by a program run inside, or by its mailbox.

    :param exec: argument vector, run inside with the environment's own rights; exit 0 means healthy.
    :param mailbox: the environment is healthy while its program consumes from its mailbox. Needs a link to it.
    :param interval: seconds from one probe to the next; at most one second while the environment starts.
    :param timeout: the most seconds of a probe.
    :param retries: failures in a row that make a healthy environment unhealthy.
    :param start_period: seconds for the environment's start, in addition to ``retries`` times ``interval``.
    """

    exec: tuple[str, ...] = ()
    mailbox: bool = False
    interval: float = 10.0
    timeout: float = 5.0
    retries: int = 3
    start_period: float = 0.0


class Update(Base, frozen=True):
    """Update of a healthy environment with a health check, after a change that needs a new process.

    If two processes can run at once, the new process is started beside the old one, and the old process is stopped once
    the new one is healthy. Otherwise the old process is stopped first. Messages wait in the mailbox.

    :param rolling: false: never run two processes at once.
    :param deadline: seconds within which the new process must be healthy; after them the previous process is restored.
    :param rollback: false: the new process stays, healthy or not.
    """

    rolling: bool = True
    deadline: float = 60.0
    rollback: bool = True


class Handed(Base, frozen=True):
    """Limits of a child's link. Absent: the parent link's limit, or the default for a link to or from the parent.

    :param rate: the most messages per second.
    :param size: the most bytes of a message's body.
    :param length: the most messages that may wait.
    """

    rate: float | None = None
    size: Size | None = None
    length: int | None = None


class Delegable(Base, frozen=True):
    """The rights, derived from a link, that a program may give to others by the request ``delegate`` to its host.

    In a declaration, the key of each entry is the receiver of the link. Messages sent by such a right wait in a
    separate queue.

    :param to: the environments that may get the right, each a receiver of another link of this environment.
    :param rate: the most messages per second. Absent: as in the link.
    :param size: the most bytes of a message's body. Absent: as in the link.
    :param length: the most messages that may wait. Absent: as in the link, but at most 100.
    :param at_most: the number of environments that may have the right at once. Absent: all of ``to``.
    :param lifetime: the most seconds that the right lasts.
    """

    to: tuple[str, ...]
    rate: float | None = None
    size: Size | None = None
    length: int | None = None
    at_most: int | None = None
    lifetime: float = 600.0


# Fields that it has in common with Environment are repeated: a common base would put them before the other fields, and
# the order of fields is that of records and of the schema. Some defaults and descriptions differ, too.
class Template(Base, frozen=True):
    """A template of children, which a program starts by a request ``spawn`` to its host.

    A child has no interface, no volume and a root that can't be written. Runtime, system calls, AppArmor, demanded
    trust and ``audit`` are those of its parent.

    :param image: ``<source>:<location>``. An apply makes the image; a spawn takes the one that the last apply made.
    :param source_hash: sha256 that the image's source must have (``sha256:<hex>``).
    :param command: argument vector; absent: an OCI image's Entrypoint and Cmd.
    :param args: arguments after ``command``, or after the image's Entrypoint in place of its Cmd.
    :param env: environment variables of the program.
    :param user: uid and gid inside, never 0; absent: an OCI image's User, else 1000.
    :param working_dir: the program's working directory; absent: an OCI image's WorkingDir, else ``/``.
    :param limits: limits of each child.
    :param stop_timeout: seconds between SIGTERM and SIGKILL, at most 10.
    :param init: whether process 1 is a small init from the host.
    :param host: the requests that a child may send to the peer ``host``: only those that its parent may send, and none
        about children.
    :param links: the parent's links that a child gets, too, by their receivers; each may have lower limits.
    :param to_parent: the link from a child to its parent; absent: none.
    :param from_parent: the link from the parent to a child; absent: none.
    :param values: the values of a child, by name. The request ``spawn`` may replace them by values of the same types.
    :param at_most: the number of children that may run at once. **Each has its place on the host even while it doesn't
        run**: a network namespace, a record, and the queues of its links.
    :param lifetime: seconds after which a child is ended.
    """

    image: str
    source_hash: str | None = None
    command: tuple[str, ...] = ()
    args: tuple[str, ...] | None = None
    env: dict[str, str] = {}
    user: int | None = None
    working_dir: str | None = None
    limits: Limits = Limits()
    stop_timeout: float = 1.0
    init: bool = False
    host: tuple[str, ...] = ()
    links: dict[str, Handed] = {}
    to_parent: Handed | None = None
    from_parent: Handed | None = None
    values: dict[str, Any] = {}
    at_most: int = 1
    lifetime: float = 600.0


class Secret(Base, frozen=True):
    """A secret of one environment. The declaration has only its source, or its ciphertext.

    :param source: where the secret is: ``sdb://PROFILE/KEY`` (Salt's sdb). In a fleet the master reads it, else the
        host.
    :param minimum: the lowest trust level of a host that gets the secret. From ``L2`` on it must be encrypted to the
        host's TPM.
    :param sealed: the secret encrypted to the host. **The fleet's master fills this in**, each time when it hands out
        the pillar.
    :param unread: whether the master couldn't read the source when it handed out the pillar. The host then keeps the
        secret that it has. **The master fills this in**, too.
    """

    source: str | None = None
    minimum: ProvedLevel = "L1"
    sealed: str | None = None
    unread: bool = False


class Environment(Base, frozen=True):
    """One program in an isolated environment.

    :param image: ``<source>:<location>``, e.g. ``tar:/srv/shop.tar`` or ``oci:/srv/shop:web``. A file may be on Salt's
        file server: ``tar:salt://images/shop.tar``.
    :param kernel: a unikernel's file, instead of an image. It excludes ``command``, ``env``, ``working_dir`` and
        ``volumes``, and an interface must be of kind ``tap``.
    :param source_hash: sha256 that the image's source, or the kernel, must have (``sha256:<hex>``).
    :param command: argument vector; absent: an OCI image's Entrypoint and Cmd.
    :param args: arguments after ``command``, or after the image's Entrypoint in place of its Cmd; a kernel's arguments.
    :param env: environment variables of the program, in addition to a minimal set and an OCI image's.
    :param user: uid and gid inside, never 0; absent: an OCI image's User, else 1000.
    :param limits: limits on memory, processors, processes, files and disk.
    :param interface: the virtual interface, of the kind that its ``kind`` names; absent: loopback alone.
    :param volumes: files that belong to this environment alone, and outlive it.
    :param working_dir: the program's working directory; absent: an OCI image's WorkingDir, else ``/``.
    :param runtime: ``crun``, ``runc`` or ``runsc``, and ``qemu`` or ``solo5`` for a kernel; absent: the host's default.
    :param seccomp: the profile of allowed system calls: ``strict``, ``standard`` or ``file:/profile.json``.
    :param apparmor: ``prefer``: netspace's AppArmor profile confines the environment where the host supports AppArmor.
        ``require``: the environment doesn't start without the profile. ``off``: no profile.
    :param image_cache: ``shared``: environments with the same image share its pages in memory. ``own``: this
        environment has its own copy of the image on the disk, so that access times don't reveal which pages other
        environments read.
    :param read_only: true: the root can't be written; false: writes go to a layer that only this environment has.
    :param state: ``running``, or ``stopped``: the environment exists and its mailbox receives, but its program doesn't
        run.
    :param restart: ``always``, ``on-failure`` or ``never``.
    :param stop_timeout: seconds between SIGTERM and SIGKILL.
    :param settle: seconds that the program must stay up before an apply counts it as started; the apply waits for this
        time.
    :param init: whether process 1 is a small init from the host, which forwards signals to the program and reaps
        orphans. A SIGTERM that the program doesn't handle then ends it at once.
    :param health: the health check; absent: the environment is healthy as long as its program runs.
    :param after: environments that must be healthy before this one is started; those without a health check must run.
    :param attestation: the trust that the environment demands; absent: the host's default.
    :param target: whether Salt may address the environment as ``T@netspace:MINION-NAME``, and so run commands and apply
        states in it. **The default is no.**
    :param audit: whether the packets, system calls and messages that the environment is refused are recorded; they are
        still refused. ``netspace.refused`` shows the record, and ``netspace.suggest`` shows a declaration that would
        permit them.
    :param host: the requests that the program may send to the peer ``host``: ``whoami``, ``values``, ``who``. **The
        default is none.**
    :param spawns: templates of children that the program may start, by name; needs ``host: [spawn]``. **The default is
        none.**
    :param delegates: links from which the program may give weaker rights to others, by the links' receivers; needs
        ``host: [delegate]``. **The default is none.** Plans, reachability and ``never`` count every right that could be
        given.
    :param offers: names of services that the environment offers. Environments that may send to it find it by these
        names (``who``).
    :param values: values for the program, by name: texts, numbers, true or false, lists, mappings. They are in the
        environment's card, and change without a restart. **They are no secrets.**
    :param secrets: secrets for the program, by name: each has a source (``sdb://PROFILE/KEY``), and perhaps a lowest
        trust level. The program finds them in memory; they change without a restart, and are on no disk.
    :param tenant: the tenant to which the environment belongs. A tenant can't write this key in its own part.
    :param formerly: the name that the environment had until now on this host. The messages that wait in the mailbox of
        that name are then read under the new name.
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
    apparmor: Literal["prefer", "require", "off"] = "prefer"
    image_cache: Literal["shared", "own"] = "shared"
    state: Literal["running", "stopped"] = "running"
    restart: Literal["always", "on-failure", "never"] = "on-failure"
    stop_timeout: float = 10.0
    settle: float = 0.0
    init: bool = False
    health: Health | None = None
    after: tuple[str, ...] = ()
    update: Update = Update()
    attestation: Requirement | None = None
    target: bool = False
    audit: bool = False
    host: tuple[str, ...] = ()
    values: dict[str, Any] = {}
    secrets: dict[str, str | Secret] = {}
    offers: tuple[str, ...] = ()
    spawns: dict[str, Template] = {}
    delegates: dict[str, Delegable] = {}
    tenant: str | None = None
    formerly: str | None = None

    @property
    def meant_to_stay(self) -> bool:
        """Whether any end of the program counts as a failure: ``always``, or ``on-failure`` with a health check."""
        return self.restart == "always" or (self.restart == "on-failure" and self.health is not None)

    @property
    def audited_interface(self) -> Any:
        """The environment's interface, with ``audit`` set as for the environment."""
        if not self.audit or not isinstance(self.interface, Filtered):
            return self.interface
        return msgspec.structs.replace(self.interface, audit=True)


class FormerEnds(Base, frozen=True):
    """The names that the ends of a link had until now.

    :param from: the sender's former name, without a host; absent: it had no other name.
    :param to: the receiver's former name, without a host; absent: it had no other name.
    """

    source: str | None = msgspec.field(name="from", default=None)
    target: str | None = msgspec.field(name="to", default=None)


class Link(Base, frozen=True):
    """The right of one environment (``from``) to send to another's mailbox (``to``).

    Either end may be on another host: ``orders@h2``. Both hosts declare the link. Once parsed, this host's environments
    are named without ``@<host>``.

    With ``ttl``, ``length`` or ``durable: false`` the link's messages wait in a dedicated queue, not in the receiver's
    mailbox.

    :param from: the sender: an environment's name, or ``<name>@<host>``.
    :param to: the receiver: an environment's name, or ``<name>@<host>``.
    :param pattern: ``send``; or ``request``: each message asks for one reply, which goes to the asker alone.
    :param attestation: the trust that the link demands; absent: the trust that its two ends demand.
    :param attested: the lowest permitted trust level of the sender's host. The receiver's host refuses the link if no
        valid result gives the sender's host this level.
    :param ttl: the most seconds that a message may wait to be read. An older message becomes a dead letter.
    :param length: the most messages that may wait.
    :param full: the effect of a message beyond ``length``. ``reject``: the sender gets a nack; ``drop-head``: the
        oldest message becomes a dead letter.
    :param durable: ``false``: messages wait in the broker's memory, which is faster. **If the broker ends, waiting
        messages are lost, also confirmed ones.**
    :param rate: the most messages per second; needs ``length``. **netspace-client enforces rate, size and
        content_type**, at both ends. Other programs find these limits in their card and must enforce them themselves.
    :param size: the most bytes of a message's body.
    :param content_type: the media type of all messages, such as ``application/json``.
    :param monitor: whether the sender is notified when the receiver's program stops and starts.
    :param seal: whether messages and replies are signed and encrypted end to end with the environments' own keys, so
        that no broker and no relay can read or change them. **The programs must seal and open**, as netspace-client
        does.
    :param via: for a link to another host. ``direct``: the sender connects to the receiver's broker, and learns at once
        the outcome of a message. ``buffered``: the sender's own broker stores the message and forwards it later.
    :param as: the sender's local name for the receiver. The receiver may then move to another host, or be replaced,
        without a change of the sender's program.
    :param formerly: the former names of its ends, so that waiting messages are kept when an environment is renamed.
        Give it only for an end on another host; an environment of this host has its own key ``formerly``.
    """

    source: str = msgspec.field(name="from")
    target: str = msgspec.field(name="to")
    pattern: Pattern = "send"
    seal: bool = False
    monitor: bool = False
    attestation: Requirement | None = None
    attested: ProvedLevel | None = None
    ttl: float | None = None
    length: int | None = None
    full: Full = "reject"
    durable: bool = True
    rate: float | None = None
    size: Size | None = None
    content_type: str | None = None
    via: Via = "direct"
    local: str | None = msgspec.field(name="as", default=None)
    formerly: FormerEnds | None = None

    @property
    def bounds(self) -> dict[str, float | int | str]:
        """The declared properties of the link's own queue; empty: its messages wait in the receiver's mailbox."""
        bounds: dict[str, float | int | str] = {}
        if self.ttl is not None:
            bounds["ttl"] = float(self.ttl)
        if self.length is not None:
            bounds.update(length=self.length, full=self.full)
        if not self.durable:
            bounds["durable"] = False
        return bounds

    @property
    def narrowed(self) -> dict[str, float | int | str]:
        """The declared limits on the link's messages, which the programs at both ends enforce."""
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
    def former_name(self) -> str | None:
        """The name that the link had before one of its ends was renamed; None: it had no other name."""
        if self.formerly is None:
            return None
        ends = (_renamed(self.source, self.formerly.source), _renamed(self.target, self.formerly.target))
        return ".".join(ends)

    @property
    def formerly_to(self) -> FormerEnds | None:
        """The former name of the receiver alone. A link that derives from this one has another sender.

        That sender must not get the mailbox of this link's sender.
        """
        target = None if self.formerly is None else self.formerly.target
        return None if target is None else FormerEnds(target=target)

    @property
    def to_host(self) -> str | None:
        """The other host that the link leads to; None: its receiver is on this host."""
        return host_of(self.target)

    @property
    def from_host(self) -> str | None:
        """The other host that the link comes from; None: its sender is on this host."""
        return host_of(self.source)

    @property
    def here(self) -> list[str]:
        """The ends of the link that are environments of this host."""
        return [end for end in (self.source, self.target) if host_of(end) is None]


class Never(Base, frozen=True):
    """An assertion that one end can't reach another. A declaration that would allow it is refused.

    An end is an environment, ``<environment>@<host>``, or a network outside, such as ``0.0.0.0/0``.

    :param from: the end that must not send a message or open a connection.
    :param to: the end that must not be reached.
    :param by: ``messages`` or ``packets``: only this way is forbidden; absent: both are forbidden.
    :param flow: true: the assertion also forbids that data reach *to* in answers, or through other environments of this
        host, whose programs could forward the data.
    """

    source: str = msgspec.field(name="from")
    target: str = msgspec.field(name="to")
    by: By | None = None
    flow: bool = False


def _renamed(end: str, former: str | None) -> str:
    """Return an end of a link by its former name, on the same host."""
    return end if former is None else former + end[len(end.partition("@")[0]) :]


def host_of(end: str) -> str | None:
    """Return the other host that an end of a link is on; None: this host."""
    return end.partition("@")[2] or None


class Quota(Base, frozen=True):
    """The most that the environments of a tenant may have together, by their declared limits.

    An environment that an update may run twice for a while (with ``health``, and without ``update: {rolling: false}``)
    counts twice in memory, cpus, pids and disk. A template of children counts ``at_most`` times.

    :param environments: environments, without children.
    :param memory: bytes.
    :param cpus: CPU seconds per second.
    :param pids: processes and threads.
    :param disk: bytes of writable layers, and of volumes with a size.
    :param children: children.
    :param links: links with an end in the tenant, including those of children and those to the host.
    :param messages: messages that may wait. Each queue counts with the greatest number that it can hold: 10,000 for the
        mailbox of each environment with a link, 10,000 for the answers to each environment that sends requests, and the
        ``length`` of each link that has a queue of its own.
    :param waiting: bytes of these messages: 64M for a mailbox or a link's own queue, 16M for answers.
    :param connections: connections through interfaces. An interface counts with its ``connections``, and twice if it
        has published ports.
    """

    environments: int
    memory: Size
    cpus: float
    pids: int
    disk: Size = Size(0)
    children: int = 0
    links: int = 0
    messages: int = 0
    waiting: Size = Size(0)
    connections: int = 0


class Tenant(Base, frozen=True):
    """A party that shares the host with other parties, without trust between them.

    The operator writes this section, and the tenant writes its own part (``include``). The part can contain only values
    that this section permits.

    :param quota: the most that its environments may have together.
    :param names: the names that its environments may have: a whole name, or the beginning of names with ``*`` after it;
        absent: ``<tenant>-*``. No other environment can have such a name.
    :param include: the tenant's own files on the host, in YAML or JSON, with the keys ``environments`` and ``links``.
    :param environments: environments of the tenant's part that are written here, in pillar, and not in a file.
    :param links: links within the tenant. A link to another tenant must be in the parts of both, with the same values;
        all other links are the operator's.
    :param images: the images (also of templates) and kernels (``kernel:/srv/acme/app``) that it may name. ``*`` stands
        for any characters except ``/``. With ``@sha256:<hex>`` at the end, the tenant must give this ``source_hash``.
    :param runtimes: the runtimes that it may name; absent: its environments have the host's default.
    :param seccomp: the profiles that it may name.
    :param interfaces: the interfaces that it may declare, each with ``kind`` and all other keys that the kind needs.
        The tenant may add ``allow``, ``rate``, ``connections`` and ``publish``.
    :param outside: networks and DNS names that its rules (``allow``) may name. A rule for a single address is permitted
        only if this address itself is listed, because it could be one of the host's own.
    :param ports: the ports of the host, or ranges of them, that it may publish (``8080-8089``).
    :param folders: the host's folders in which the sources of its volumes may be.
    :param host: the requests that its programs may send to the peer ``host``.
    :param reaches: the tenants that its environments may reach, directly or through other environments.
    """

    quota: Quota
    names: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    environments: dict[str, Environment] = {}
    links: tuple[Link, ...] = ()
    images: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    seccomp: tuple[str, ...] = ("strict",)
    interfaces: tuple[Any, ...] = ()
    outside: tuple[str, ...] = ()
    ports: tuple[int | str, ...] = ()
    folders: tuple[str, ...] = ()
    host: tuple[str, ...] = ()
    reaches: tuple[str, ...] = ()


class Runtimes(Base, frozen=True):
    """Default runtimes, and the settings of each runtime.

    Each further key is the name of a runtime; its value holds the runtime's settings, such as ``program``.

    :param default: the runtime of environments with an image that name no runtime.
    :param kernels: the runtime of environments with a kernel that name no runtime.
    """

    default: str = "crun"
    kernels: str = "qemu"
    settings: dict[str, Any] = {}


class Declaration(Base, frozen=True):
    """The whole declaration of one host.

    :param broker: the message broker; absent: netspace's own.
    :param environments: the isolated programs, by their names.
    :param links: the rights to send messages, the only connections between environments.
    :param never: assertions that one end can't reach another.
    :param tenants: parties that don't trust each other, by their names, each with its environments.
    """

    attestation: Attestation = Attestation()
    broker: Broker = LocalBroker()
    network: Network = Network()
    runtimes: Runtimes = Runtimes()
    environments: dict[str, Environment] = {}
    links: tuple[Link, ...] = ()
    never: tuple[Never, ...] = ()
    tenants: dict[str, Tenant] = {}

    @property
    def interfaces(self) -> dict[str, Interface]:
        """The interface of each environment, by the environment's name."""
        return {name: environment.audited_interface for name, environment in self.environments.items()}
