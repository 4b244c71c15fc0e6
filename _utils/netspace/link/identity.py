"""Identities of this host's environments towards the broker: their keys and certificates, and the broker's own.

An environment's key exists in memory alone: in ``layout.identity(<name>)`` (root's), and, handed out, in the
environment's own ``/run/netspace``. One file holds key and certificate, so that both are replaced at
once; a client reads it whenever it connects, and connections that stand are not asked for it again.
After a reboot all are issued anew.

The broker knows an environment by its SPIFFE ID; ``model`` and ``diff`` know it as ``env.<name>``.
:class:`Accounts` is where the two meet. Environments that the declaration lists in ``broker: {passwords: [...]}`` have
a password instead; so have all on a broker that isn't ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netspace import files
from netspace.layout import Layout
from netspace.link import authority, credentials, remote
from netspace.link.authority import Authority, Issued, Issuer
from netspace.link.names import account
from netspace.spec.types import NAME, Broker, LocalBroker

FILE, ANCHORS, PASSWORD = "identity.pem", "ca.pem", "password"
SERVER, CLIENT = "server.pem", "client.pem"
"""The broker's own certificates: the one that it shows to clients, and the one by which it logs in at other hosts."""


def certified(broker: Broker, environments: Iterable[str]) -> set[str]:
    """Those of the environments that log in by certificate."""
    return set(environments) - set(broker.passwords) if isinstance(broker, LocalBroker) else set()


def server_folder(layout: Layout) -> Path:
    """Return the folder of the broker's own keys and certificates, and of the certificates that it trusts."""
    return layout.broker / "etc/tls"


def path(layout: Layout, environment: str) -> Path:
    return layout.identity(environment) / FILE


@dataclass(frozen=True)
class Identities:
    """The authority and the certificates that it issued, as observed at one time.

    :param host: SPIFFE ID of the host; None where there is no authority yet.
    :param lacking: why the authority isn't as declared; empty: it is.
    :param by: the authority's name.
    :param trusted: digest of the certificates that are trusted.
    :param issued: by environment; key ``None``: the broker's own; key :data:`CLIENT`: its own to log in at other hosts.
    :param now: when they were observed, in seconds since 1970.
    """

    host: str | None = None
    lacking: str = ""
    by: str = ""
    trusted: str = ""
    issued: Mapping[str | None, Issued | None] = field(default_factory=dict)
    now: float = 0.0

    def changes(self, broker: Broker, environments: Collection[str]) -> dict[str, dict[str, Any]]:
        """Return the certificates to issue, so that each of the environments (and the broker) has one that lasts."""
        if not isinstance(broker, LocalBroker):
            return {}
        if self.lacking:
            return {"authority": {"old": self.lacking, "new": "as declared"}}
        host = str(self.host)
        wanted: dict[str, tuple[Issued | None, str | None, str]] = {}
        wanted["of the broker itself"] = (self.issued.get(None), None, serves(broker))
        if broker.hosts:
            wanted["of the broker at others"] = (self.issued.get(CLIENT), None, "")
        wanted.update({name: (self.issued.get(name), name, "") for name in sorted(certified(broker, environments))})
        return {
            f"certificates:{what}": {"old": "due" if one else None, "new": "issued"}
            for what, (one, whose, name) in wanted.items()
            if _due(one, authority.spiffe_id(host, whose), self.by, self.now, name)
        }


def observe(layout: Layout, broker: Broker, environments: Iterable[str], now: float) -> Identities:
    """Observe the issued certificates, by the first line of each file."""
    if not isinstance(broker, LocalBroker):
        return Identities(now=now)
    known = authority.read(layout)
    lacking = authority.wanting(layout, broker, known, now)
    if known is None:
        return Identities(lacking=lacking, now=now)
    served = server_folder(layout)
    if files.differs(served / ANCHORS, known.anchors) or not (served / ANCHORS).exists():
        lacking = lacking or "not what the broker trusts"
    there: dict[str | None, Issued | None] = {None: _issued(served / SERVER), CLIENT: _issued(served / CLIENT)}
    there.update({name: _issued(path(layout, name)) for name in certified(broker, environments)})
    return Identities(known.host, lacking, known.name, _digest(known), there, now)


def trusted(layout: Layout, broker: Broker) -> str:
    """Return the digest of the certificates that client and broker trust; empty where there are none."""
    known = authority.read(layout) if isinstance(broker, LocalBroker) else None
    return "" if known is None else _digest(known)


def _digest(known: Authority) -> str:
    return hashlib.sha256(known.anchors).hexdigest()[:16]


def serves(broker: LocalBroker) -> str:
    """The name in its certificate by which other hosts reach *broker*; empty: they don't."""
    return str(broker.trust_domain) if broker.listen else ""


def _due(one: Issued | None, whose: str, by: str, now: float, serves: str = "") -> bool:
    """Whether a certificate must be issued: there is none, it runs out, or says another name or authority."""
    return one is None or one.id != whose or one.serves != serves or one.due(now, by)


def _issued(place: Path) -> Issued | None:
    try:
        with open(place, "rb", buffering=0) as stream:
            return authority.issued(stream.read(authority.HEADER))
    except OSError:
        return None


def ensure(
    layout: Layout,
    broker: Broker,
    environments: Iterable[str],
    now: float,
    owner: tuple[int, int],
    *,
    replace: bool = False,
    distrust: bool = False,
) -> tuple[set[str], bool]:
    """Issue what lacks or is due, to the environments and to the broker.

    :param owner: of the broker's files: root, and the group that it runs as.
    :param replace: with another authority; *distrust*: and trust no former one.
    :return: the environments that got a new one, and whether the broker has to read its files again.
    """
    if not isinstance(broker, LocalBroker):
        return set(), False
    known = authority.ensure(layout, broker, now, replace=replace, distrust=distrust)
    served = server_folder(layout)
    served.mkdir(mode=0o750, parents=True, exist_ok=True)
    os.chown(served, *owner)
    served.chmod(0o750)
    told = files.write(served / ANCHORS, known.anchors, mode=0o640, owner=owner)
    issuer: Issuer | None = None
    if _due(_issued(served / SERVER), known.id(None), known.name, now, serves(broker)):
        issuer = Issuer(known)
        told |= files.write(served / SERVER, issuer.server(now, serves=serves(broker)), mode=0o640, owner=owner)
    if not broker.hosts:
        files.remove(served / CLIENT)
    elif _due(_issued(served / CLIENT), known.id(None), known.name, now):
        issuer = issuer or Issuer(known)
        told |= files.write(served / CLIENT, issuer.client(now), mode=0o640, owner=owner)
    renewed = set()
    for name in sorted(certified(broker, environments)):
        if _due(_issued(path(layout, name)), known.id(name), known.name, now):
            issuer = issuer or Issuer(known)
            folder = layout.identity(name)
            layout.identities.mkdir(mode=0o700, parents=True, exist_ok=True)  # no local user reads the names
            folder.mkdir(mode=0o700, exist_ok=True)
            files.write(folder / FILE, issuer.environment(name, now))
            renewed.add(name)
    return renewed, told


def remove(layout: Layout, environments: Iterable[str]) -> None:
    """Forget the keys of *environments*."""
    for name in environments:
        shutil.rmtree(layout.identity(name), ignore_errors=True)
    with contextlib.suppress(OSError):
        layout.identities.rmdir()


def known(layout: Layout) -> set[str]:
    """The environments that have a key."""
    try:
        return {entry.name for entry in layout.identities.iterdir()}
    except FileNotFoundError:
        return set()


@dataclass(frozen=True)
class Accounts:
    """The broker's names of accounts, and ours: :meth:`there` and :meth:`here` turn one into the other.

    :param host: SPIFFE ID of this host; None: accounts are named ``env.<name>`` there too.
    :param by_password: environments that are known there as ``env.<name>`` all the same.
    :param hosts: SPIFFE IDs of other hosts, by their names.
    """

    host: str | None = None
    by_password: frozenset[str] = frozenset()
    hosts: Mapping[str, str] = field(default_factory=dict)

    def there(self, name: str) -> str:
        """Return the broker's name of our account *name*."""
        kind, _, end = name.partition(".")
        if self.host is None or kind != "env" or end in self.by_password:
            return name
        environment, _, host = end.partition("@")
        if not host:
            return authority.spiffe_id(self.host, environment)
        # One that is declared no more has no account either: whatever name it gets here is nobody's.
        return authority.spiffe_id(self.hosts[host], environment or None) if host in self.hosts else name

    def here(self, name: str) -> str:
        """Return our name of the broker's account *name*, after :data:`STALE` if it logs in otherwise than declared."""
        if self.host is None:
            return name
        for host, whose in self.hosts.items():
            _, begins, environment = name.partition(f"{whose}/env/")
            if name == authority.spiffe_id(whose, None) or (begins and NAME.fullmatch(environment)):
                return account(f"{environment}@{host}")
        environment = self._environment(name)
        if not NAME.fullmatch(environment):
            # All certificates that are let in are of this host or of those above: no other account can be of use.
            return f"{STALE}{name}" if name.startswith("spiffe://") else name
        ours = account(environment)
        return ours if self.there(ours) == name else f"{STALE}{name}"

    def _environment(self, name: str) -> str:
        """Return the environment that an account is of, in any trust domain of this host; empty: it is of none here."""
        host, slash, environment = name.partition("/env/")
        if slash:
            same = host.startswith("spiffe://") and host.rpartition("/")[2] == str(self.host).rpartition("/")[2]
            return environment if same else ""
        return name.removeprefix("env.") if name.startswith("env.") else ""

    def told(self, definitions: Mapping[str, Any]) -> dict[str, Any]:
        """Return a broker's *definitions* with our names of accounts."""
        return self._named(definitions, self.here)

    def document(self, definitions: Mapping[str, Any]) -> dict[str, Any]:
        """Return our *definitions* with the broker's names of accounts."""
        return self._named(definitions, self.there)

    def _named(self, definitions: Mapping[str, Any], rename: Any) -> dict[str, Any]:
        if self.host is None:
            return dict(definitions)
        renamed = {
            section: [{**one, key: rename(one[key])} for one in definitions[section]]
            for section, key in (("users", "name"), ("permissions", "user"))
            if section in definitions
        }
        return {**definitions, **renamed}

    def stale(self, definitions: Mapping[str, Any], vhost: str) -> list[str]:
        """Accounts in our vhost that log in otherwise than declared (an older version's), by the broker's names."""
        users = {one["name"] for one in definitions.get("users", ())}
        return sorted(
            one["user"].removeprefix(STALE)
            for one in definitions.get("permissions", ())
            if one.get("vhost") == vhost and one["user"].startswith(STALE) and one["user"] in users
        )


def accounts(broker: Broker, host: str | None) -> Accounts:
    """Return the names of environments' accounts on *broker*.

    :param host: SPIFFE ID of this host, if it has one yet.
    """
    if not isinstance(broker, LocalBroker):
        return Accounts()
    return Accounts(host, frozenset(broker.passwords), remote.identities(broker))


@dataclass(frozen=True)
class Access:
    """The log-in of each environment: its name on the card, and the files beside the card.

    :param authority: None where the broker isn't ours, or where there is no authority yet.
    """

    layout: Layout
    broker: Broker
    vhost: str
    authority: Authority | None = field(default=None, repr=False)

    def identity(self, environment: str) -> str | None:
        """Return its SPIFFE ID, empty where there is no authority yet; None where it logs in by password."""
        if not certified(self.broker, [environment]):
            return None
        return self.authority.id(environment) if self.authority else ""

    def files(self, environment: str) -> dict[str, bytes]:
        """Return its key, certificate and the authority's, or its password; no file where it has none of these yet."""
        if certified(self.broker, [environment]):
            with contextlib.suppress(FileNotFoundError):
                if self.authority is not None:
                    return {FILE: path(self.layout, environment).read_bytes(), ANCHORS: self.authority.anchors}
            return {}
        password = credentials.read(self.layout, environment)
        return {} if password is None else {PASSWORD: password.encode()}


STALE = "stale "
"""The mark that :meth:`Accounts.told` puts before the name of an account to remove; no account's name begins so."""
