"""Links between hosts: checks of the declared values of other hosts, and the selection of this host's links. Pure.

The same list of links may be declared on every host of a fleet, with each end as ``<environment>@<host>``.
:func:`local` drops the links that don't concern this host, and removes ``@<host>`` from the names of this host's
environments. In its result, an end with an ``@`` is on another host.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Literal

import msgspec

from netspace.errors import Problem
from netspace.patterns import pattern
from netspace.spec.paths import PLAINLY, bare
from netspace.spec.types import NAME, NAME_RULE, Broker, ClusterBroker, Link, LocalBroker, host_of

# A name that is valid in certificates (DNS, RFC 1123 section 2.1) and as a SPIFFE trust domain (no capitals).
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
DOMAIN = pattern(rf"(?=.{{1,200}}$){_LABEL}(?:\.{_LABEL})+")
_NO_KEYS = "hosts that share a broker have no authorities that could certify the keys; leave seal out"
_PUBLIC = pattern(r"[A-Za-z0-9_-]{43}")  # 32 bytes
_ADDRESS = pattern(r"(?:\[([0-9a-fA-F:.]{2,45})\]|([A-Za-z0-9.-]{1,253})):([0-9]{1,5})")


def local(links: Iterable[Link], broker: Broker) -> tuple[Link, ...]:
    """Return the links that concern this host, with the names of its environments without ``@<host>``."""
    if broker.host is None:
        return tuple(links)
    suffix = f"@{broker.host}"
    named = (_named_here(link, suffix) for link in links)
    return tuple(link for link in named if link.here)


def _named_here(link: Link, suffix: str) -> Link:
    source, target = link.source.removesuffix(suffix), link.target.removesuffix(suffix)
    # The local name only appears in the sender's card, which is written on the sender's host.
    local = None if remote(source) else link.local
    named: Link = msgspec.structs.replace(link, source=source, target=target, local=local)
    return named


def address(text: str) -> tuple[str, int] | None:
    """Return the host and the port in ``<host>:<port>`` or ``[<IPv6>]:<port>``; None if *text* is malformed."""
    match = _ADDRESS.fullmatch(text)
    if match is None or not 1 <= int(match[3]) <= 65535:
        return None
    return match[1] or match[2], int(match[3])


def _is_numeric(text: str) -> bool:
    """Return whether *text* is an IP address with a port, and not a host name with a port."""
    found = address(text)
    try:
        return found is not None and bool(ipaddress.ip_address(found[0]))
    except ValueError:
        return False


def within(one: str, other: str) -> bool:
    """Return whether one of two different trust domains is a subdomain of the other.

    If it is, the authority of the upper domain could issue certificates for the lower domain.
    """
    return one.endswith(f".{other}") or other.endswith(f".{one}")


def settings(broker: LocalBroker, path: str) -> list[Problem]:
    """Check a broker's settings about this host's name and about other hosts."""
    problems = []
    if broker.host is not None and not NAME.fullmatch(broker.host):
        problems.append(Problem(f"{path}:host", f"{broker.host!r} can't be a host's name: use {NAME_RULE}"))
    if broker.listen is not None and not _is_numeric(broker.listen):
        problems.append(
            Problem(f"{path}:listen", f"{broker.listen!r}: expected an address and a port, such as 198.51.100.7:5671")
        )
    if broker.among_hosts:
        why = "is missing; listen and hosts need it,"
        needed = {
            "host": "as the name of this host",
            "trust_domain": "as the name of this host in certificates",
            "authority": "as an authority below a root that all hosts trust",
        }
        problems += [
            Problem(f"{path}:{key}", f"{why} {what}") for key, what in needed.items() if not getattr(broker, key)
        ]
        if broker.trust_domain is not None and not DOMAIN.fullmatch(broker.trust_domain):
            problems.append(
                Problem(f"{path}:trust_domain", f"{broker.trust_domain!r}: expected a name such as h1.example.org")
            )
    problems += _keys(broker, path)
    if broker.listen is not None and broker.passwords:
        problems.append(
            Problem(
                f"{path}:passwords",
                "a broker that other hosts reach (listen) accepts only certificates; leave passwords out",
            )
        )
    owners = {broker.trust_domain: broker.host}
    for name, host in broker.hosts.items():
        where = f"{path}:hosts:{name}"
        if not NAME.fullmatch(name):
            problems.append(Problem(where, f"{name!r} can't be a host's name: use {NAME_RULE}"))
        if name == broker.host:
            problems.append(Problem(where, "is this host itself"))
        if not DOMAIN.fullmatch(host.trust_domain):
            problems.append(
                Problem(f"{where}:trust_domain", f"{host.trust_domain!r}: expected a name such as h2.example.org")
            )
        elif nested := [one for one in owners if one and within(one, host.trust_domain)]:
            other = f"{nested[0]} is {owners[nested[0]]}'s"
            problems.append(
                Problem(
                    f"{where}:trust_domain",
                    f"{other}: one domain lies within the other, so its authority could issue the other's certificates",
                )
            )
        elif host.trust_domain in owners:
            whose = owners[host.trust_domain]
            problems.append(
                Problem(
                    f"{where}:trust_domain", f"{host.trust_domain} already belongs to {whose}; give each host its own"
                )
            )
        owners.setdefault(host.trust_domain, name)
        if host.address is not None and not _is_numeric(host.address):
            wanted = "expected a numeric address and a port, such as 198.51.100.8:5671"
            problems.append(Problem(f"{where}:address", f"{host.address!r}: {wanted}"))
        if not re.fullmatch(r"[a-z0-9_-]{1,64}", host.vhost):
            problems.append(Problem(f"{where}:vhost", f"{host.vhost!r} can't be the name of an instance"))
    return problems


def _keys(broker: LocalBroker, path: str) -> list[Problem]:
    """Check the keys for links between hosts: ``names_key``, and each other host's ``public_key``.

    The names of broker objects between this host and another host are derived from these keys.
    """
    problems = []
    without = [name for name, host in broker.hosts.items() if host.public_key is None]
    if broker.names_key is None:
        why = "is missing; give the output of `netspace_link.public_key` on that host"
        problems += [Problem(f"{path}:hosts:{name}:public_key", why) for name in without]
    elif not bare(broker.names_key):
        why = f"{broker.names_key!r:.200}: expected the absolute path of a file, {PLAINLY}"
        problems.append(Problem(f"{path}:names_key", why))
    elif not without:
        why = "it has no effect, since it is only for hosts of broker:hosts without a public_key; leave it out"
        problems.append(Problem(f"{path}:names_key", why))
    owners: dict[str, str] = {}
    for name, host in broker.hosts.items():
        if host.public_key is None:
            continue
        where = f"{path}:hosts:{name}:public_key"
        if not _PUBLIC.fullmatch(host.public_key):
            problems.append(
                Problem(where, f"{host.public_key!r}: expected the output of `netspace_link.public_key` on that host")
            )
        elif owners.setdefault(host.public_key, name) != name:
            problems.append(Problem(where, f"already belongs to {owners[host.public_key]}; give the key of this host"))
    return problems


def link(spec: Link, broker: Broker, path: str) -> list[Problem]:
    """Check one link against the declared settings of other hosts.

    :param spec: a link as :func:`local` returns it.
    """
    other = spec.to_host or spec.from_host
    if other is None:
        if spec.via != "direct":
            return [Problem(f"{path}:via", "it has no effect, because both ends are on this host; leave it out")]
        return []
    key: Literal["from", "to"] = "to" if spec.to_host else "from"
    if not spec.here:
        return [
            Problem(path, f"neither {spec.source} nor {spec.target} is an environment of this host ({broker.host})")
        ]
    if isinstance(broker, ClusterBroker):
        return _on_cluster(spec, broker, path, key)
    if other not in broker.hosts:
        known = ", ".join(sorted(broker.hosts)) or "none"
        return [Problem(f"{path}:{key}", f"{other} is not in broker:hosts ({known})")]
    problems = []
    if spec.to_host and broker.hosts[other].address is None:
        problems.append(
            Problem(
                f"{path}:to", f"broker:hosts:{other}:address is missing; this host needs it to reach that host's broker"
            )
        )
    if spec.from_host and broker.listen is None:
        problems.append(
            Problem(f"{path}:from", "broker:listen is missing; other hosts need it to reach this host's broker")
        )
    if spec.source in broker.passwords:
        problems.append(
            Problem(
                f"{path}:from", f"{spec.source} logs in by password (broker:passwords), which other hosts don't accept"
            )
        )
    if spec.via == "buffered":
        if spec.pattern != "send":
            problems.append(
                Problem(
                    f"{path}:via", "a request can't be buffered, because the sender waits for the answer; use direct"
                )
            )
        if spec.monitor:
            problems.append(
                Problem(
                    f"{path}:monitor",
                    "the sender of a buffered link doesn't connect to the receiver's host; use direct",
                )
            )
        if not spec.durable:
            why = "a buffered link must keep messages while a host is down, so they can't be in memory only; use direct"
            problems.append(Problem(f"{path}:durable", why))
    return problems


def _on_cluster(spec: Link, broker: ClusterBroker, path: str, key: str) -> list[Problem]:
    problems = []
    if broker.host is None:
        problems.append(Problem(f"{path}:{key}", "broker:host is missing; give the name of this host in links"))
    if broker.names_key is None:
        problems.append(
            Problem(f"{path}:{key}", "broker:names_key is missing; give the key file that all hosts of the fleet have")
        )
    if spec.source.partition("@")[0] == spec.target.partition("@")[0]:
        why = "both ends have the same name, and the hosts share one broker; give each end its own name"
        problems.append(Problem(f"{path}:{key}", why))
    if spec.seal:
        problems.append(Problem(f"{path}:seal", _NO_KEYS))
    if spec.via != "direct":
        problems.append(Problem(f"{path}:via", "it has no effect, because both ends are on one broker; leave it out"))
    return problems


def remote(end: str) -> bool:
    """Return whether an end of a link is on another host."""
    return host_of(end) is not None
