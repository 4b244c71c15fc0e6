"""Sealed links between hosts: keys of other hosts for the cards, and problems with these keys.

A sender needs an encryption key of the receiving environment. A receiver needs the key of the endorser of the sender's
host. Both keys are in the bundle of the other host (``bundle``). Environments of this host get keys of the other host
only after its bundle confirms that it knows this host's endorser. Before that, the other host would refuse their
messages.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from netspace.layout import Layout
from netspace.link.pki import authority
from netspace.link.pki.authority import Authority
from netspace.link.problems import Problem
from netspace.link.seal import bundle as bundles
from netspace.link.seal import endorser
from netspace.link.seal.bundle import Bundle
from netspace.link.seal.endorser import DAY, Endorser
from netspace.link.topology import peers, spiffe
from netspace.spec.types import Broker, Link, LocalBroker

SOON = 14 * DAY
"""Seconds before the expiry of another host's key or endorser from which ``problems`` reports it."""
REMEDY = "exchange keys: salt-run netspace_link.exchange_seals"


def hosts(links: Iterable[Link]) -> set[str]:
    """Return the other hosts at the ends of sealed links."""
    return {host for link in links for host in (link.to_host, link.from_host) if link.seal and host}


def members(links: Iterable[Link]) -> set[str]:
    """Return the environments of this host that have sealed links to or from other hosts."""
    return {end for link in links if link.seal and (link.to_host or link.from_host) for end in link.here}


def readers(links: Iterable[Link], host: str) -> set[str]:
    """Return the environments of this host that receive sealed messages or sealed answers from *host*."""
    sent = {link.target for link in links if link.seal and link.from_host == host}
    return sent | {link.source for link in links if link.seal and link.to_host == host and link.pattern == "request"}


def _read(links: Iterable[Link]) -> Iterator[tuple[str, str]]:
    """Yield the environments of other hosts that receive sealed messages or answers from this host: (host, name)."""
    for link in links:
        if link.seal and link.to_host:
            yield link.to_host, link.target.partition("@")[0]
        if link.seal and link.from_host and link.pattern == "request":
            yield link.from_host, link.source.partition("@")[0]


@dataclass(frozen=True)
class PeerKeys:
    """The keys and names of other hosts, for sealed links to and from them.

    :param own: this host's endorser; None: there is none (yet).
    :param known: this host's authority. Bundles must lead to a root that it trusts; None: no bundle is valid.
    :param hosts: the SPIFFE IDs of the other declared hosts, by name.
    :param bundles: the bundles of other hosts, by name.
    :param former: the former names of renamed environments of other hosts, by ``<name>@<host>``. They have the keys of
        their former names, so these count until that host's next bundle.
    """

    own: Endorser | None = field(default=None, repr=False)
    known: Authority | None = field(default=None, repr=False)
    hosts: Mapping[str, str] = field(default_factory=dict)
    bundles: Mapping[str, Bundle] = field(default_factory=dict, repr=False)
    former: Mapping[str, str] = field(default_factory=dict)

    def of(self, host: str) -> Bundle | None:
        """Return the valid bundle of *host*; None if there is none.

        A bundle is invalid if its SPIFFE ID isn't the declared one, or if this host no longer trusts its root.
        """
        found = self.bundles.get(host)
        if found is None or self.known is None or found.host != self.hosts.get(host):
            return None
        return found if found.anchor in self.known.trusted else None

    def keys(self, host: str, environment: str) -> Sequence[Mapping[str, Any]]:
        """Return the encryption keys of an environment of *host*; none until that host knows this host's endorser."""
        found = self.of(host)
        if found is None or self.own is None or found.knows != self.own.kid:
            return ()
        former = self.former.get(f"{environment}@{host}", "")
        return found.keys.get(environment) or found.keys.get(former, ())

    def told(self, name: str, other: str, link: str, former: tuple[str, ...] | None = None) -> dict[str, Any]:
        """Return the ``seal`` entry for a sealed link in the card of environment *name*.

        :param other: the environment at the link's other end, ``<name>@<host>``.
        :param link: the link's name on this host.
        :param former: the link's former ends, for messages from before one of them was renamed.
        """
        if former is not None:
            link, (other, name) = ".".join(former), former
        environment, _, host = other.partition("@")
        found, whose = self.of(host), self.hosts.get(host, "")
        own = "" if self.known is None else self.known.host
        endorsers = [] if found is None else [{**found.endorser, "use": "sig", "exp": found.ends}]
        here = own.rpartition("/")[2]
        ends = (end if "@" in end else f"{end}@{here}" for end in link.split("."))
        return {
            "link": ".".join(ends),
            "own": spiffe.spiffe_id(own, name),
            "peer": spiffe.spiffe_id(whose, environment),
            "keys": list(self.keys(host, environment)),
            "endorser": {"id": whose, "keys": endorsers},
        }

    def lacking(self, links: Iterable[Link], now: float) -> list[str]:
        """Return the texts of the problems that :meth:`problems` returns."""
        return [one.text for one in self.problems(links, now)]

    def problems(self, links: Iterable[Link], now: float) -> list[Problem]:
        """Return why sealed links to or from other hosts fail now or will fail soon, each with its remedy.

        The problems of an environment on another host name that host's problem as their cause.

        :param now: seconds since 1970.
        """
        links = tuple(links)
        found: list[Problem] = []
        for host in sorted(hosts(links)):
            known, text = self.of(host), ""
            if known is None:
                text = f"{host}: nothing is known of its keys for sealed links; {REMEDY}"
            elif self.own is not None and known.knows != self.own.kid:
                text = f"{host} hasn't confirmed that it knows this host's keys, so nothing is sealed for it; {REMEDY}"
            elif known.ends < now + SOON:
                text = f"{host}: its endorser's certificate expires on {_day(known.ends)}; {REMEDY}"
            if text:
                found.append(Problem("seal-keys", text, host))
        for host, environment in sorted(set(_read(links))):
            last, text = max((key["exp"] for key in self.keys(host, environment)), default=None), ""
            if last is None and self.of(host) is not None:
                text = f"{environment}@{host}: the key to seal messages for it is missing; {REMEDY}"
            elif last is not None and last < now + SOON:
                text = f"{environment}@{host}: the last key to seal messages for it expires on {_day(last)}; {REMEDY}"
            if text:
                found.append(Problem("seal-keys", text, f"{environment}@{host}", f"seal-keys:{host}"))
        return found


def read(layout: Layout, broker: Broker | None, links: Iterable[Link]) -> PeerKeys:
    """Return the keys and names of other hosts.

    They are empty if no sealed link leads between hosts, or if the broker isn't netspace's own.
    """
    links = tuple(links)
    if not isinstance(broker, LocalBroker) or not hosts(links):
        return PeerKeys()
    known = authority.read(layout)
    return PeerKeys(
        endorser.read(layout), known, peers.identities(broker), bundles.read_all(layout), dict(_former(links))
    )


def _former(links: Iterable[Link]) -> Iterator[tuple[str, str]]:
    """Yield each environment of another host that was renamed, with its former name."""
    for link in links:
        if link.formerly is not None and link.to_host is not None and link.formerly.target is not None:
            yield link.target, link.formerly.target
        if link.formerly is not None and link.from_host is not None and link.formerly.source is not None:
            yield link.source, link.formerly.source


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
