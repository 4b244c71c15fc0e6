"""Types of a fleet's declaration, and of the facts that a host has published to the master. Pure.

Values are immutable; unknown keys are errors. Keys of an environment and of a link that aren't described here are
described in :mod:`netspace.spec.types`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from netspace.errors import NetspaceError, short
from netspace.fleet.policy import Policy
from netspace.spec import hosts, renames
from netspace.spec.types import Base, By, LevelName

LEVELS: tuple[LevelName, ...] = ("L0", "L1", "L2", "L3", "L4", "L5")
BROKER_PORT = 5671
DOMAIN = "netspace.internal"
"""The domain of trust domains, unless declared: ICANN reserves ``internal`` for private use."""
AUTHORITY = "/etc/netspace/authority"
MAX_TERMS = 256

Reaction = Literal["cut", "report"]
"""The reaction when the master no longer trusts a host: cut the host's links, or only report it."""


class Problem(NamedTuple):
    """One problem of a fleet's declaration.

    :param file: the file, as it is named in the declaration; empty: the problem concerns the whole fleet.
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

    :param address: where other hosts reach its broker: an address, or ``<address>:<port>`` (default port 5671). Absent:
        no link leads from another host to this one.
    :param minion: the id of its minion; absent: the host's name.
    :param trust_domain: its own trust domain; absent: ``<name>.<domain>``.
    :param instance: the name of its instance (``netspace.instance`` of its minion's configuration).
    :param level: its trust level for ``at_least``; absent: the level of its attestation when it joined.
    :param labels: words that the operator chooses for it, for ``spread``, such as ``{rack: r1}``.
    :param attestation: as in a declaration of one host; merged over the fleet's ``defaults``, key by key.
    :param broker: as in a declaration of one host, but without ``host``, ``hosts``, ``listen`` and ``trust_domain``,
        which are derived; merged over ``defaults``, key by key.
    :param network: as in a declaration of one host; merged over ``defaults``.
    :param runtimes: as in a declaration of one host; merged over ``defaults``.
    :param on_distrust: the reaction when the master judges that the host isn't trusted. ``cut``: links between it and
        other hosts are cut; ``report``: they stay, and are reported. Absent: as in ``defaults``.
    :param on_expiry: the same reactions, for the case that its last result has expired and it doesn't answer.
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
    """Settings of all hosts, as in a declaration of one host, and the reactions to hosts that aren't trusted."""

    attestation: dict[str, Any] = msgspec.field(default_factory=dict)
    broker: dict[str, Any] = msgspec.field(default_factory=dict)
    network: dict[str, Any] = msgspec.field(default_factory=dict)
    runtimes: dict[str, Any] = msgspec.field(default_factory=dict)
    on_distrust: Reaction = "cut"
    on_expiry: Reaction = "cut"


class Placing(Base, frozen=True):
    """The hosts that an environment may run on, and on how many of them it runs.

    :param on: a host, a glob of hosts' names or minions' ids, ``E@<regular expression>``, ``L@<id>,<id>``,
        ``N@<nodegroup>``, or a list of these.
    :param replicas: the number of hosts that it runs on; ``all``: all hosts that match.
    :param spread: the name of a label: replicas run on hosts with different values of this label, as far as there are
        enough values.
    :param at_least: only hosts of this trust level or a higher one are possible. Unless the environment declares an
        ``attestation``, this level is also required whenever it starts.
    """

    on: str | tuple[str, ...]
    replicas: int | Literal["all"] = 1
    spread: str | None = None
    at_least: LevelName | None = None

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms of ``on`` as a tuple, even if there is only one."""
        return (self.on,) if isinstance(self.on, str) else self.on


class Assertion(Base, frozen=True):
    """An assertion that one environment can't reach another one or a network, not even through other environments.

    :param from: an environment's name, or a network.
    :param to: an environment's name, or a network.
    :param by: ``messages`` or ``packets``; absent: both count.
    :param flow: whether data that flows in answers counts, too.
    """

    source: str = msgspec.field(name="from")
    target: str = msgspec.field(name="to")
    by: By | None = None
    flow: bool = False


class HostEntry(NamedTuple):
    """A declared host, and the file that declares it."""

    file: str
    spec: Host


class EnvironmentEntry(NamedTuple):
    """A declared environment, and the file that declares it.

    :param body: its keys as in a declaration of one host.
    """

    file: str
    placing: Placing
    body: Mapping[str, Any]

    @property
    def formerly(self) -> str | None:
        """The environment's former name; None: it isn't renamed."""
        old = self.body.get(renames.KEY)
        return old if isinstance(old, str) else None


class LinkEntry(NamedTuple):
    """A declared link between two environments of a fleet, with its file and path.

    :param reach: for a receiver with replicas: each sender reaches ``one`` of them, or ``each``.
    :param body: its keys as in a declaration of one host, without ``from`` and ``to``.
    :param on_distrust: ``cut`` or ``report``: what happens to it when a host at one end isn't trusted; None: as that
        host declares.
    """

    file: str
    path: str
    source: str
    target: str
    reach: Literal["one", "each"]
    body: Mapping[str, Any]
    on_distrust: Reaction | None = None


class AssertionEntry(NamedTuple):
    """A declared assertion, with its file and path."""

    file: str
    path: str
    spec: Assertion


class Fleet(NamedTuple):
    """A whole declaration, from one file or several.

    :param never: the assertions.
    :param domain: the domain of trust domains that aren't declared.
    :param settings_file: the file with ``defaults``.
    :param planned: whether changes wait for a plan (``apply: planned``).
    :param rollout: the policy of rollouts; an operator's arguments override it.
    :param edition: a number that the operator raises with each change; 0: there is none.
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
    edition: int = 0

    def minion(self, host: str) -> str:
        """Return the id of a host's minion."""
        return self.hosts[host].spec.minion or host

    def former(self) -> dict[str, str]:
        """Return the former name of each environment that is renamed."""
        return {name: entry.formerly for name, entry in self.environments.items() if entry.formerly is not None}

    def trust_domain(self, host: str) -> str:
        """Return a host's trust domain."""
        return self.hosts[host].spec.trust_domain or f"{host}.{self.domain}"


class Published(Base, frozen=True):
    """Facts about a host that the master learned when the host joined. None of them is secret.

    :param minion: the id of the host's minion.
    :param trust_domain: the trust domain for which its authority was certified.
    :param chain: the certificates of its authority and of the fleet's root (PEM).
    :param public_key: its public X25519 key, from which link names are derived.
    :param level: the trust level of its attestation when it joined; None: the master has not attested it.
    :param grains: its values of the grains that the declaration trusts.
    :param joined: seconds since 1970.
    :param secret_key: its public key for secrets (``netspace_attestation.secret_key``); empty: it gave none.
    """

    minion: str
    trust_domain: str
    chain: str
    public_key: str
    level: LevelName | None = None
    grains: dict[str, str] = msgspec.field(default_factory=dict)
    joined: float = 0.0
    secret_key: str = ""
    version: Literal[1] = 1


class Move(NamedTuple):
    """A change of the hosts that an environment runs on, and its reason."""

    environment: str
    old: tuple[str, ...]
    new: tuple[str, ...]
    reason: str


class Missing(NamedTuple):
    """A thing for which the fleet waits, though its declaration is right.

    :param subject: the host or environment that waits.
    :param text: what is missing, and the remedy.
    """

    subject: str
    text: str


def broker_address(text: str) -> str | None:
    """Return a broker's address with its port; *text* may lack the port. None if *text* is no address."""
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
