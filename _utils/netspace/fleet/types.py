"""Types of a fleet's declaration, and of what a host has published to the master. Pure.

Values are immutable; unknown keys are errors. The keys of an environment and of a link that aren't described here are
those of :mod:`netspace.spec.types`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from netspace.errors import NetspaceError, short
from netspace.fleet.policy import Policy
from netspace.spec import hosts
from netspace.spec.types import Base, By, LevelName

LEVELS: tuple[LevelName, ...] = ("L0", "L1", "L2", "L3", "L4", "L5")
BROKER_PORT = 5671
DOMAIN = "netspace.internal"
"""The domain of trust domains, unless declared: ICANN reserves ``internal`` for private use."""
AUTHORITY = "/etc/netspace/authority"
MAX_TERMS = 256

Reaction = Literal["cut", "report"]
"""What follows for a host's links when the master no longer trusts the host."""


class Problem(NamedTuple):
    """One problem of a fleet's declaration.

    :param file: the file, as it is named in the declaration; empty: the fleet as a whole.
    :param path: the path in that file, such as ``links:3:to``.
    """

    file: str
    path: str
    reason: str

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.file, short(self.path)) if part)
        return f"{where or 'fleet'}: {short(self.reason, 1000)}"


class FleetError(NetspaceError):
    """An invalid declaration of a fleet. ``problems`` lists every problem found."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, problems)))


class Host(Base, frozen=True):
    """One host of a fleet.

    :param address: where other hosts reach its broker: an address, or ``<address>:<port>`` (5671). Absent: no link
        leads to it from another host.
    :param minion: the id of its minion; absent: the host's name.
    :param trust_domain: its own trust domain; absent: ``<name>.<domain>``.
    :param instance: the name of its instance (``netspace.instance`` of its minion's configuration).
    :param level: the trust level that it reaches, for ``at_least``; absent: that of its attestation when it joined.
    :param labels: words that the operator chooses for it, for ``spread``, such as ``{rack: r1}``.
    :param attestation: as in a declaration of one host. So are ``broker``, ``network`` and ``runtimes``. Each of the
        four is merged over the fleet's ``defaults``, key by key.
    :param broker: without ``host``, ``hosts``, ``listen`` and ``trust_domain``, which are derived.
    :param on_distrust: whether links between it and other hosts are cut when the master judges that it isn't trusted;
        absent: as in ``defaults``.
    :param on_expiry: whether these links are cut when its last result has expired and it doesn't answer.
    """

    address: str | None = None
    minion: str | None = None
    trust_domain: str | None = None
    instance: str = "netspace"
    level: LevelName | None = None
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    attestation: dict[str, Any] = msgspec.field(default_factory=dict)
    broker: dict[str, Any] = msgspec.field(default_factory=dict)
    network: dict[str, Any] = msgspec.field(default_factory=dict)
    runtimes: dict[str, Any] = msgspec.field(default_factory=dict)
    on_distrust: Reaction | None = None
    on_expiry: Reaction | None = None


class Defaults(Base, frozen=True):
    """Settings of all hosts, as in a declaration of one host; and what follows for hosts that aren't trusted."""

    attestation: dict[str, Any] = msgspec.field(default_factory=dict)
    broker: dict[str, Any] = msgspec.field(default_factory=dict)
    network: dict[str, Any] = msgspec.field(default_factory=dict)
    runtimes: dict[str, Any] = msgspec.field(default_factory=dict)
    on_distrust: Reaction = "cut"
    on_expiry: Reaction = "cut"


class Placing(Base, frozen=True):
    """The hosts that an environment may run on, and the number of them that it runs on.

    :param on: a host, a glob of hosts' names or minions' ids, ``E@<regular expression>``, ``L@<id>,<id>``,
        ``N@<nodegroup>``, or a list of these.
    :param replicas: the number of hosts that it runs on; or ``all`` that match.
    :param spread: the name of a label: replicas run on hosts with different values of it, as far as there are enough.
    :param at_least: only hosts of this trust level or a higher one. Unless the environment declares an ``attestation``,
        it then requires that level when it is started, too.
    """

    on: str | tuple[str, ...]
    replicas: int | Literal["all"] = 1
    spread: str | None = None
    at_least: LevelName | None = None

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms of ``on``."""
        return (self.on,) if isinstance(self.on, str) else self.on


class Assertion(Base, frozen=True):
    """An assertion that one environment can't reach another one or a network, not even through other environments.

    :param from: an environment's name, or a network.
    :param to: an environment's name, or a network.
    :param by: ``messages`` or ``packets``; absent: both count.
    :param flow: true: data that flows in answers counts too.
    """

    source: str = msgspec.field(name="from")
    target: str = msgspec.field(name="to")
    by: By | None = None
    flow: bool = False


class HostEntry(NamedTuple):
    """A host, and the file that declares it."""

    file: str
    spec: Host


class EnvironmentEntry(NamedTuple):
    """An environment, and the file that declares it.

    :param body: its keys as in a declaration of one host.
    """

    file: str
    placing: Placing
    body: Mapping[str, Any]


class LinkEntry(NamedTuple):
    """A link between two environments of a fleet.

    :param reach: for a receiver with replicas: each sender reaches ``one`` of them, or ``each``.
    :param body: its keys as in a declaration of one host, without ``from`` and ``to``.
    :param on_distrust: whether it is cut when a host at one end isn't trusted; None: as the host declares.
    """

    file: str
    path: str
    source: str
    target: str
    reach: Literal["one", "each"]
    body: Mapping[str, Any]
    on_distrust: Reaction | None = None


class AssertionEntry(NamedTuple):
    """An assertion, and its place in a file."""

    file: str
    path: str
    spec: Assertion


class Fleet(NamedTuple):
    """A whole declaration, of one file or several.

    :param settings_file: the file with ``defaults``.
    :param planned: whether changes wait for a plan (``apply: planned``).
    :param rollout: the policy of rollouts, unless an operator gives another.
    """

    hosts: Mapping[str, HostEntry]
    environments: Mapping[str, EnvironmentEntry]
    links: tuple[LinkEntry, ...]
    never: tuple[AssertionEntry, ...] = ()
    defaults: Defaults = Defaults()
    domain: str = DOMAIN
    trusted_grains: tuple[str, ...] = ()
    settings_file: str = ""
    planned: bool = False
    rollout: Policy = Policy()

    def minion(self, host: str) -> str:
        """Return the id of a host's minion."""
        return self.hosts[host].spec.minion or host

    def trust_domain(self, host: str) -> str:
        """Return a host's trust domain."""
        return self.hosts[host].spec.trust_domain or f"{host}.{self.domain}"


class Published(Base, frozen=True):
    """Facts about a host that the master learned when the host joined. Nothing of it is secret.

    :param trust_domain: the trust domain that its authority was certified for.
    :param chain: the certificates of its authority and of the fleet's root (PEM).
    :param public_key: the public half of its names key.
    :param level: the trust level of its attestation when it joined; None: the master has not attested it.
    :param grains: its values of the grains that the declaration trusts.
    :param joined: seconds since 1970.
    """

    minion: str
    trust_domain: str
    chain: str
    public_key: str
    level: LevelName | None = None
    grains: dict[str, str] = msgspec.field(default_factory=dict)
    joined: float = 0.0
    version: Literal[1] = 1


class Move(NamedTuple):
    """A change of the hosts that an environment runs on, and its reason."""

    environment: str
    old: tuple[str, ...]
    new: tuple[str, ...]
    reason: str


class Missing(NamedTuple):
    """Something that the fleet waits for, though its declaration is right.

    :param subject: the host or environment that waits.
    """

    subject: str
    text: str


def broker_address(text: str) -> str | None:
    """Return the ``<address>:<port>`` of a broker whose port may be left out; None if *text* is neither."""
    try:
        alone = ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        found = hosts.address(text)
        try:
            return text if found is not None and ipaddress.ip_address(found[0]) else None
        except ValueError:
            return None
    if getattr(alone, "scope_id", None):
        return None
    return f"[{alone}]:{BROKER_PORT}" if alone.version == 6 else f"{alone}:{BROKER_PORT}"
