"""Suggested lines of a declaration that would permit exactly the recorded refusals of an environment. Pure.

A refused packet becomes a rule for one peer, protocol and port. Refused ports that follow one another become one rule
with a range. A rule is risky if it opens more than a service of the Internet; a comment then gives the reason. The
operator decides, because an intruder's packets are recorded, too.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import re
import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from netspace.spec import checks
from netspace.spec.types import Allow, Cidr, Filtered, Interface, Link
from netspace.text import printable

WIDTH = 80
MANY = 16
"""If more ports of one peer, or more peers with one port, were refused, a comment says that it may be a scan."""
# Plain texts that YAML reads as texts. A number or a time begins otherwise; the words are those of YAML 1.1.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
_TOLD = 32  # refusals that nothing can permit, which are listed
# Services that can control a machine, or pass on data, by port (IANA's registry of service names and ports).
_POWERFUL = {
    21: "FTP, unencrypted",
    22: "SSH, remote control",
    23: "Telnet, unencrypted remote control",
    25: "SMTP, which sends mail to anyone",
    53: "DNS: names can carry data out",
    135: "RPC, remote control",
    139: "SMB, files",
    445: "SMB, files",
    2375: "Docker, which gives its host away",
    2376: "Docker, which gives its host away",
    2379: "etcd, secrets",
    3389: "RDP, remote control",
    4505: "Salt's master",
    4506: "Salt's master",
    5900: "VNC, remote control",
    6443: "Kubernetes, remote control",
    10250: "Kubernetes, remote control",
}

Kind = Literal["packets", "messages", "system calls", "files"]


class Setting(NamedTuple):
    """A key of an environment that permits something, such as ``read_only``.

    :param value: the value as YAML.
    :param risk: the reason that it is risky.
    """

    key: Literal["seccomp", "read_only"]
    value: str
    risk: str = ""


Part = Allow | Link | Setting
"""A part of a declaration that permits something."""


class Refused(NamedTuple):
    """A thing that an environment was refused.

    :param what: a short description of the thing.
    :param times: the number of refusals.
    :param first: the time of the first refusal, in seconds since the epoch.
    :param last: the time of the last refusal, in seconds since the epoch.
    :param part: the part of a declaration that would permit it; None if no part can.
    :param why: the reason that no part can permit it; empty if *part* is set.
    """

    kind: Kind
    what: str
    times: int
    first: float
    last: float
    part: Part | None = None
    why: str = ""


class Rule(NamedTuple):
    """A suggested rule, and the refusals that it would have prevented."""

    part: Allow
    seen: tuple[Refused, ...]


def permitted(part: Part, interface: Interface | None, links: Collection[Link] = ()) -> bool:
    """Return whether the applied declaration by now permits *part*, which was refused earlier.

    The result is always False for a setting. A changed setting starts a new record, so recorded refusals happened with
    the present settings.

    :param interface: the environment's interface as applied.
    :param links: the links as applied.
    """
    if isinstance(part, Setting):
        return False
    if isinstance(part, Link):
        return any(link.source == part.source and link.target == part.target for link in links)
    allow = interface.allow if isinstance(interface, Filtered) else ()
    return any(_covers(rule, part) for rule in allow)


def _covers(rule: Allow, part: Allow) -> bool:
    """Return whether *rule* permits all packets that *part* permits.

    The result is False for a rule by name, because the name's addresses may change.
    """
    if rule.name is not None or (rule.direction, rule.protocol) != (part.direction, part.protocol):
        return False
    assert rule.cidr is not None and part.cidr is not None
    whole, one = rule.cidr.network, part.cidr.network
    if whole.version != one.version or not (int(whole[0]) <= int(one[0]) and int(one[-1]) <= int(whole[-1])):
        return False
    if rule.port is None or part.port is None:
        return rule.port is None
    (first, last), (begin, end) = checks.ports(rule.port) or (1, 0), checks.ports(part.port) or (0, 1)
    return first <= begin and end <= last


def rules(refused: Iterable[Refused]) -> list[Rule]:
    """Return the smallest list of rules that permits exactly the refused packets."""
    found: dict[tuple[str, str, str], dict[int, list[Refused]]] = {}
    for one in refused:
        if isinstance(part := one.part, Allow):
            ports = found.setdefault((part.direction, str(part.cidr), part.protocol), {})
            bounds = (0, 0) if part.port is None else checks.ports(part.port) or (0, 0)
            ports.setdefault(bounds[0], []).append(one)
    made = []
    for ports in found.values():
        for run in _runs(sorted(ports)):
            seen = tuple(one for port in run for one in ports[port])
            part = seen[0].part
            assert isinstance(part, Allow)
            port = part.port if len(run) == 1 else f"{run[0]}-{run[-1]}"
            made.append(Rule(msgspec.structs.replace(part, port=port), seen))
    return made


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """Return sorted numbers, split into runs without a gap."""
    found: list[list[int]] = []
    for one in numbers:
        if found and one == found[-1][-1] + 1:
            found[-1].append(one)
        else:
            found.append([one])
    return found


def risks(part: Allow, host: Collection[str] = (), among: int = 1, peers: int = 1) -> list[str]:
    """Return the reasons that a rule for one peer is risky; empty if it isn't.

    :param host: the host's own addresses, as the environment sees them.
    :param among: the number of this peer's ports in the record. A large number may mean a scan.
    :param peers: the number of peers with the same refused ports. A large number may mean a scan.
    """
    assert part.cidr is not None
    peer = part.cidr.network[0]
    found = []
    if part.direction == "in":
        found.append("others may open connections to it")
    if str(peer) in host:
        found.append("this is the host itself")
    elif peer.is_link_local:
        found.append("link-local: a cloud's metadata service may answer there")
    elif peer.is_multicast or peer == ipaddress.ip_address("255.255.255.255"):
        found.append("a group of machines, not one")
    elif not peer.is_global:
        found.append("an address of a private network")
    if part.protocol == "icmp":
        found.append("a rule for icmp covers all its messages, not echo requests alone")
    elif part.port is not None:
        first, last = checks.ports(part.port) or (0, 0)
        found += [text for port, text in _POWERFUL.items() if first <= port <= last and part.direction == "out"]
    if among > MANY:
        found.append(f"{among} ports of this peer were tried: a scan?")
    if peers > MANY:
        found.append(f"the same was tried at {peers} peers: a scan?")
    return found


def text(
    name: str,
    interface: Interface | None,
    host: Collection[str],
    refused: Sequence[Refused],
    unseen: Mapping[Kind, str],
    links: Collection[Link] = (),
) -> str:
    """Return the suggestion as YAML of at most 80 columns. Things that are permitted by now are left out.

    In pillar, a list replaces an earlier list. So the suggestion repeats the existing rules before the new ones.

    :param name: the environment's name.
    :param interface: the environment's interface as applied.
    :param host: the host's own addresses, as the environment sees them.
    :param unseen: the reason for each kind of refusal that isn't recorded.
    :param links: the links as applied.
    """
    open_ = [one for one in refused if one.part is None or not permitted(one.part, interface, links)]
    wanted, asked = rules(open_), [one for one in open_ if isinstance(one.part, Link)]
    own = _settings(open_)
    lines = _head(name, open_, unseen)
    if wanted or asked or own:
        lines.append("netspace:")
    if wanted or own:
        lines += ["  environments:", f"    {_scalar(name)}:", *own]
    if wanted and isinstance(interface, Filtered):
        lines += ["      interface:", f"        kind: {type(interface).__struct_config__.tag}", "        allow:"]
        for rule in interface.allow:
            lines += [*_comment("there now", 10), *_item(_allow(rule), 10)]
        ports, peers = Counter[str](), Counter[tuple[str, ...]]()
        for rule_ in wanted:
            ports[str(rule_.part.cidr)] += len(rule_.seen)
            peers[_service(rule_.part)] += 1
        for rule_ in wanted:
            part = rule_.part
            lines += _comment(_times(rule_.seen), 10)
            lines += _comment(_risky(risks(part, host, ports[str(part.cidr)], peers[_service(part)])), 10)
            lines += _item(_allow(part), 10)
    if asked:
        lines += ["  links:", *_comment("add these to the links that are there", 4)]
        for one in asked:
            assert isinstance(one.part, Link)
            lines += [*_comment(_times([one]), 4), *_comment(_risky(["its messages reach another environment"]), 4)]
            lines += _item(_link(one.part), 4)
    return "\n".join([*lines, *_tail(open_), ""])


def _service(part: Allow) -> tuple[str, ...]:
    """Return direction, protocol and port of a rule, which are the same for all peers of a scan."""
    return part.direction, part.protocol, str(part.port)


def _settings(refused: Sequence[Refused]) -> list[str]:
    """Return the lines that suggest settings of the environment itself."""
    found: dict[tuple[str, str], list[Refused]] = {}
    for one in refused:
        if isinstance(part := one.part, Setting):
            found.setdefault((part.key, part.value), []).append(one)
    lines = []
    for (key, value), seen in found.items():
        for one in seen[:_TOLD]:
            lines += _comment(f"{one.what}: {_times([one])}", 6)
        if len(seen) > _TOLD:
            lines += _comment(f"and {len(seen) - _TOLD} more", 6)
        assert isinstance(seen[0].part, Setting)
        lines += [*_comment(_risky([seen[0].part.risk]), 6), f"      {key}: {value}"]
    return lines


def _head(name: str, refused: Sequence[Refused], unseen: Mapping[Kind, str]) -> list[str]:
    if refused:
        since = _moment(min(one.first for one in refused))
        said = f"{name} was refused this since {since}. Nothing is applied. Keep the lines that it needs."
    else:
        said = f"{name}: nothing is known to be refused."
    lines = _comment(said, 0)
    for kind, why in unseen.items():
        lines += _comment(f"{kind}: not recorded: {why}", 0)
    return lines


def _tail(refused: Sequence[Refused]) -> list[str]:
    never = [one for one in refused if one.part is None]
    lines = _comment("No line is suggested for these:", 0) if never else []
    for one in never[:_TOLD]:
        lines += _comment(f"{one.what}: {_times([one])}; {one.why}", 0)
    if len(never) > _TOLD:
        lines += _comment(f"and {len(never) - _TOLD} more", 0)
    return lines


def _times(seen: Sequence[Refused]) -> str:
    count, last = sum(one.times for one in seen), max(one.last for one in seen)
    return f"once, {_moment(last)}" if count == 1 else f"{count} times, last {_moment(last)}"


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat(timespec="seconds")


def _risky(why: Sequence[str]) -> str:
    return f"RISKY: {'; '.join(why)}" if why else ""


def _comment(said: str, indent: int) -> list[str]:
    """Return *said* as lines of a YAML comment.

    Control characters are escaped, because programs choose names in the text. Continuation lines are indented, so that
    no such name can look like a line of the suggestion itself.
    """
    return textwrap.wrap(
        printable(said), WIDTH, initial_indent=f"{' ' * indent}# ", subsequent_indent=f"{' ' * indent}#   "
    )


def _allow(rule: Allow) -> dict[str, str]:
    values = {
        "direction": rule.direction,
        "cidr": None if rule.cidr is None else f'"{_network(rule.cidr)}"',
        "name": None if rule.name is None else _scalar(rule.name),
        "protocol": rule.protocol,
        "port": f'"{rule.port}"' if isinstance(rule.port, str) else rule.port,
    }
    return {key: str(value) for key, value in values.items() if value is not None}


def _link(link: Link) -> dict[str, str]:
    return {"from": _scalar(link.source), "to": _scalar(link.target), "pattern": link.pattern}


def _scalar(name: str) -> str:
    """Return a name as YAML, in quotes if YAML would read it as another type: ``no``, ``123``, ``1e5``."""
    plain = _PLAIN.fullmatch(name) is not None and name.lower() not in _WORDS
    return name if plain else json.dumps(name, ensure_ascii=False)


def _network(cidr: Cidr) -> str:
    network = cidr.network
    return str(network[0] if network.num_addresses == 1 else network)


def _item(values: Mapping[str, str], indent: int) -> list[str]:
    """Return the lines of one list element. It takes one line if it fits."""
    flow = f"{' ' * indent}- {{{', '.join(f'{key}: {value}' for key, value in values.items())}}}"
    if len(flow) <= WIDTH:
        return [flow]
    first, *others = (f"{key}: {value}" for key, value in values.items())
    return [f"{' ' * indent}- {first}", *(f"{' ' * indent}  {one}" for one in others)]
