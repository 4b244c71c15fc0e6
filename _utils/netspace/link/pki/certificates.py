"""Keys and certificates by which environments log in at the broker, and the broker's own key and certificate.

An environment's key is on no disk: it is in ``layout.identity(<name>)`` (readable by root alone), and in the
environment's own ``/run/netspace``. One file holds key and certificate, so that both are replaced at once. A client
reads the file whenever it connects; established connections don't need it. After a reboot all certificates are issued
again.

An environment's account on the broker is named by its SPIFFE ID; ``objects`` and ``diff`` name it ``env.<name>``.
:class:`Accounts` converts these names. Environments in ``broker: {passwords: [...]}`` have a password instead of a
certificate, as have all environments on a broker that isn't netspace's own.
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
from netspace.link.pki import authority, passwords
from netspace.link.pki.authority import Authority, Issued, Issuer
from netspace.link.topology import peers, spiffe
from netspace.link.topology.names import account
from netspace.spec.types import NAME, Broker, LocalBroker

FILE, ANCHORS, PASSWORD = "identity.pem", "ca.pem", "password"
SERVER, CLIENT = "server.pem", "client.pem"
"""The broker's own certificates: its server certificate, and the client certificate for brokers of other hosts."""


def certified(broker: Broker, environments: Iterable[str]) -> set[str]:
    """Return the environments in *environments* that log in by certificate."""
    return set(environments) - set(broker.passwords) if isinstance(broker, LocalBroker) else set()


def server_folder(layout: Layout) -> Path:
    """Return the folder of the broker's own keys and certificates, and of its trusted certificates."""
    return layout.broker / "etc/tls"


def path(layout: Layout, environment: str) -> Path:
    return layout.identity(environment) / FILE


@dataclass(frozen=True)
class Identities:
    """The authority and its issued certificates, as observed at one time.

    :param host: the SPIFFE ID of the host; None: there is no authority yet.
    :param lacking: how the authority differs from the declaration; empty if it doesn't.
    :param by: the authority's name.
    :param trusted: a digest of the trusted certificates.
    :param issued: the certificates by environment. The key ``None`` has the broker's server certificate, the key
        :data:`CLIENT` its client certificate for brokers of other hosts.
    :param now: the time of the observation, in seconds since 1970.
    """

    host: str | None = None
    lacking: str = ""
    by: str = ""
    trusted: str = ""
    issued: Mapping[str | None, Issued | None] = field(default_factory=dict)
    now: float = 0.0

    def changes(self, broker: Broker, environments: Collection[str]) -> dict[str, dict[str, Any]]:
        """Return the certificates to issue to *environments* and to the broker, as a step's changes.

        Certificates are issued if they are missing or due.
        """
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
            if _due(one, spiffe.spiffe_id(host, whose), self.by, self.now, name)
        }


def observe(layout: Layout, broker: Broker, environments: Iterable[str], now: float) -> Identities:
    """Return the issued certificates. Only the first line of each file is read."""
    if not isinstance(broker, LocalBroker):
        return Identities(now=now)
    known = authority.read(layout)
    lacking = authority.wanting(layout, broker, known, now)
    if known is None:
        return Identities(lacking=lacking, now=now)
    served = server_folder(layout)
    if files.differs(served / ANCHORS, known.anchors) or not (served / ANCHORS).exists():
        lacking = lacking or "not the one that the broker trusts"
    there: dict[str | None, Issued | None] = {None: _issued(served / SERVER), CLIENT: _issued(served / CLIENT)}
    there.update({name: _issued(path(layout, name)) for name in certified(broker, environments)})
    return Identities(known.host, lacking, known.name, _digest(known), there, now)


def trusted(layout: Layout, broker: Broker) -> str:
    """Return a digest of the certificates that clients and broker trust; empty if there are none."""
    known = authority.read(layout) if isinstance(broker, LocalBroker) else None
    return "" if known is None else _digest(known)


def _digest(known: Authority) -> str:
    return hashlib.sha256(known.anchors).hexdigest()[:16]


def serves(broker: LocalBroker) -> str:
    """Return the server name by which other hosts reach *broker*; empty if no other host connects to it."""
    return str(broker.trust_domain) if broker.listen else ""


def _due(one: Issued | None, whose: str, by: str, now: float, serves: str = "") -> bool:
    """Return whether a certificate must be issued, because it is missing or due, or has another name or authority.

    :param whose: the SPIFFE ID that the certificate must have.
    """
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
    """Issue missing and due certificates to the environments and to the broker.

    :param owner: owner and group of the broker's files: root, and the group of the broker's process.
    :param replace: whether to replace the authority first.
    :param distrust: whether to stop trusting previous authorities.
    :return: the environments that got a new certificate, and whether the broker must reload its files.
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
            layout.identities.mkdir(mode=0o700, parents=True, exist_ok=True)  # other users must not learn names
            folder.mkdir(mode=0o700, exist_ok=True)
            files.write(folder / FILE, issuer.environment(name, now))
            renewed.add(name)
    return renewed, told


def remove(layout: Layout, environments: Iterable[str]) -> None:
    """Delete the keys and certificates of *environments*."""
    for name in environments:
        shutil.rmtree(layout.identity(name), ignore_errors=True)
    with contextlib.suppress(OSError):
        layout.identities.rmdir()


def known(layout: Layout) -> set[str]:
    """Return the environments that have a key."""
    try:
        return {entry.name for entry in layout.identities.iterdir()}
    except FileNotFoundError:
        return set()


@dataclass(frozen=True)
class Accounts:
    """Conversion between netspace's names of accounts (``env.<name>``) and the broker's (SPIFFE IDs).

    :param host: the SPIFFE ID of this host; None: the broker's names are ``env.<name>``, too.
    :param by_password: environments that log in by password; the broker's names of their accounts are ``env.<name>``.
    :param hosts: the SPIFFE IDs of other hosts, by the hosts' names.
    """

    host: str | None = None
    by_password: frozenset[str] = frozenset()
    hosts: Mapping[str, str] = field(default_factory=dict)

    def there(self, name: str) -> str:
        """Return the broker's name of the account that netspace calls *name*."""
        kind, _, end = name.partition(".")
        if self.host is None or kind != "env" or end in self.by_password:
            return name
        environment, _, host = end.partition("@")
        if not host:
            return spiffe.spiffe_id(self.host, environment)
        # An undeclared host has no account, so any name that doesn't exist will do.
        return spiffe.spiffe_id(self.hosts[host], environment or None) if host in self.hosts else name

    def here(self, name: str) -> str:
        """Return netspace's name of the account that the broker calls *name*.

        The result begins with :data:`STALE` if the declaration demands another account for that environment.
        """
        if self.host is None:
            return name
        for host, whose in self.hosts.items():
            _, begins, environment = name.partition(f"{whose}/env/")
            if name == spiffe.spiffe_id(whose, None) or (begins and NAME.fullmatch(environment)):
                return account(f"{environment}@{host}")
        environment = self._environment(name)
        if not NAME.fullmatch(environment):
            # The broker accepts only certificates of this host and of declared hosts; no other account can be used.
            return f"{STALE}{name}" if name.startswith("spiffe://") else name
        ours = account(environment)
        return ours if self.there(ours) == name else f"{STALE}{name}"

    def _environment(self, name: str) -> str:
        """Return the environment of this host to which an account belongs; empty if there is none.

        The account's trust domain doesn't matter.
        """
        host, slash, environment = name.partition("/env/")
        if slash:
            same = host.startswith("spiffe://") and host.rpartition("/")[2] == str(self.host).rpartition("/")[2]
            return environment if same else ""
        return name.removeprefix("env.") if name.startswith("env.") else ""

    def told(self, definitions: Mapping[str, Any]) -> dict[str, Any]:
        """Return the broker's *definitions* with account names converted to netspace's."""
        return self._named(definitions, self.here)

    def document(self, definitions: Mapping[str, Any]) -> dict[str, Any]:
        """Return netspace's *definitions* with account names converted to the broker's."""
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
        """Return the names of accounts in our vhost whose way to log in differs from the declared one.

        Such accounts were made by an older version of netspace, or for an older declaration.
        """
        users = {one["name"] for one in definitions.get("users", ())}
        return sorted(
            one["user"].removeprefix(STALE)
            for one in definitions.get("permissions", ())
            if one.get("vhost") == vhost and one["user"].startswith(STALE) and one["user"] in users
        )


def accounts(broker: Broker, host: str | None) -> Accounts:
    """Return the conversion of account names for *broker*.

    :param host: the SPIFFE ID of this host; None: it has none yet.
    """
    if not isinstance(broker, LocalBroker):
        return Accounts()
    return Accounts(host, frozenset(broker.passwords), peers.identities(broker))


@dataclass(frozen=True)
class Access:
    """The log-in of environments: the account name in the card, and the files beside the card.

    :param authority: the host's authority; None: the broker isn't netspace's own, or there is no authority yet.
    """

    layout: Layout
    broker: Broker
    vhost: str
    authority: Authority | None = field(default=None, repr=False)

    def identity(self, environment: str) -> str | None:
        """Return the environment's SPIFFE ID; None if it logs in by password; empty without an authority."""
        if not certified(self.broker, [environment]):
            return None
        return self.authority.id(environment) if self.authority else ""

    def files(self, environment: str) -> dict[str, bytes]:
        """Return the files by which an environment logs in, by name; nothing if they don't exist yet.

        For a log-in by certificate, the files are the key with its certificate, and the trusted certificates. For a
        log-in by password, there is only the password's file.
        """
        if certified(self.broker, [environment]):
            with contextlib.suppress(FileNotFoundError):
                if self.authority is not None:
                    return {FILE: path(self.layout, environment).read_bytes(), ANCHORS: self.authority.anchors}
            return {}
        password = passwords.read(self.layout, environment)
        return {} if password is None else {PASSWORD: password.encode()}


STALE = "stale "
"""The prefix by which :meth:`Accounts.told` marks the name of an account to remove. No account name begins with it."""
