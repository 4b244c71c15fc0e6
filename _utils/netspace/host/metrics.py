"""Metrics of one host for a monitoring system: environments, links, interfaces, trust, expiries. Changes nothing.

Labels are names from the declaration and words of this module, so their number is bounded by the declaration. The
values contain no secret, and no text of a program. A call lists each folder once, calls the supervisor and the broker
once each, and reads a few small files of the kernel for each environment.
"""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from netspace import __version__, files, paths
from netspace.errors import NetspaceError
from netspace.host.host import Host
from netspace.layout import Layout
from netspace.openmetrics import Family, Kind, counted, labels, textfile

if TYPE_CHECKING:
    from netspace.interface.claims import Claims
    from netspace.supervision.service import Status

MARK = b"# Written by netspace.metrics, which replaces it as a whole.\n"
"""The first line of a textfile. A file without this line is never replaced."""
MOST_AUDITED = 64
"""The most audited environments whose refusals are in the metrics."""
MAX_TEXTFILE = 64 * 1024 * 1024


def families(host: Host) -> list[Family]:
    """Return all metrics of the host."""
    from netspace.environment import record as records
    from netspace.environment.container.oci_runtime import service_name
    from netspace.interface import claims

    names = sorted(files.record_names(host.layout.records(records.KIND)))
    statuses: Mapping[str, Status] = host.supervisor.observe(noticed=True)
    by = _labelled(names)
    interfaces = claims.index(host.layout).read(sealed=True)
    found = [
        _one("netspace_version", "The version of netspace, as a label.", 1, version=__version__),
        _one("netspace_supervisor_up", "Whether the supervisor runs.", _attended(host, statuses)),
        *_states({by[name]: statuses.get(service_name(name)) for name in names}),
        _tenants(host.layout, by),
        *_health(host.layout, by),
        *_use(host, {name: by[name] for name in names if _runs(statuses.get(service_name(name)))}),
        *_traffic(host.layout, by, interfaces),
        *_judged(host.layout, by, interfaces),
        _refused(host, by),
        *_trust(host.layout),
        *_links(host, statuses),
        *_programs(host.layout),
    ]
    return [one for one in found if one.values]


def _labelled(names: Sequence[str]) -> dict[str, str]:
    """Return the labels of each environment by its name."""
    if "".join(names).replace("-", "").isalnum():  # then no name needs an escape, and a call for each costs much more
        return {name: f'{{environment="{name}"}}' for name in names}
    return {name: labels(environment=name) for name in names}


def _one(name: str, about: str, value: float | None, **by: str) -> Family:
    return counted(name, "gauge", about, {labels(**by): value})


def _attended(host: Host, statuses: Mapping[str, Status]) -> bool | None:
    """Return whether the supervisor runs; None if no program is to be supervised.

    Without a program, netspace's own supervisor ends, or was never started.
    """
    up = host.supervisor.attended()
    return None if up and all(one.state in ("stopped", "failed") for one in statuses.values()) else up


def _runs(status: Status | None) -> bool:
    return status is not None and status.state in ("running", "frozen")


def _states(statuses: Mapping[str, Status | None]) -> Iterator[Family]:
    """Yield the metrics that the supervisor knows, with one sample for each environment."""
    name = "netspace_environment"
    up = [int(_runs(one)) for one in statuses.values()]
    yield Family(f"{name}_up", "gauge", "Whether the program runs.", statuses.keys(), up)
    states = [f'{key[:-1]},state="{status.state if status else "stopped"}"}}' for key, status in statuses.items()]
    about = "1 for the present state: running, starting, stopped, failed or frozen."
    yield Family(f"{name}_state", "gauge", about, states, [1] * len(states))
    known = {key: status for key, status in statuses.items() if status is not None}
    restarts = [status.restarts for status in known.values()]
    about = "Restarts since a start was last requested."
    yield Family(f"{name}_restarts", "counter", about, known.keys(), restarts)
    kills = [status.oom_kills for status in known.values()]
    yield Family(f"{name}_oom_kills", "counter", "OOM kills since a start was last requested.", known.keys(), kills)
    since = {key: status.since or None for key, status in known.items()}
    yield counted(f"{name}_state_timestamp_seconds", "gauge", "Time of the last change of state.", since)


def _tenants(layout: Layout, names: Mapping[str, str]) -> Family:
    """Return the metric that names each environment's tenant. By it, a query can join other metrics with the tenant."""
    from netspace.environment import claims

    samples: dict[str, float | None] = {}
    with contextlib.suppress(NetspaceError):  # a record is damaged, which other metrics and an apply show
        its = claims.index(layout).read(sealed=True)
        if any(one.tenant for one in its.examples().values()):  # else no claims are decoded
            whose = ((name, known.tenant) for name in names if (known := its.get(name)) is not None)
            samples = {f'{names[name][:-1]},tenant="{tenant}"}}': 1 for name, tenant in whose if tenant}
    return counted("netspace_environment_tenant", "gauge", "Always 1; the label has the tenant.", samples)


def _health(layout: Layout, names: Mapping[str, str]) -> Iterator[Family]:
    """Yield the health of environments with a health check, as the files of the health service show it."""
    from netspace.environment.health import record as verdict

    try:
        there = set(os.listdir(verdict.folder(layout)))
    except FileNotFoundError:
        there = set()
    healthy = {by: int(f"{name}.up" in there) for name, by in names.items() if f"{name}.json" in there}
    yield counted("netspace_environment_healthy", "gauge", "Whether the health check passes.", healthy)


def _use(host: Host, names: Mapping[str, str]) -> Iterator[Family]:
    from netspace.environment import counters
    from netspace.environment.container.oci_runtime import service_name
    from netspace.supervision.cgroup import payload_cgroups

    reader = counters.Reader()
    group = payload_cgroups(host.layout)
    groups = {by: group(service_name(name)) for name, by in names.items()}
    families: tuple[tuple[counters.Counter, str, Kind, str], ...] = (
        ("memory", "memory_bytes", "gauge", "Memory in use."),
        ("processor_seconds", "cpu_seconds", "counter", "Processor time used."),
    )
    for counter, name, kind, about in families:
        values = dict(zip(groups, reader.read_all(counter, list(groups.values())), strict=True))
        yield counted(f"netspace_environment_{name}", kind, about, values)


# -- interfaces -----------------------------------------------------------------
_DEV = {
    "received_bytes": (8, "Bytes that the environment received."),
    "received_packets": (9, "Packets that the environment received."),
    "sent_bytes": (0, "Bytes that the environment sent."),
    "sent_packets": (1, "Packets that the environment sent."),
    "sent_dropped": (3, "Packets from the environment that the host's end dropped."),
}
"""Columns of /proc/net/dev. The interface's end on the host receives what the environment sends."""
_WORDS = 17  # in a line: the device with a colon, and 16 columns


def _traffic(layout: Layout, names: Mapping[str, str], interfaces: Mapping[str, Claims]) -> Iterator[Family]:
    """Yield the traffic of environments whose interface has an end on the host."""
    ends = {its.host_end.encode() + b":": name for name, its in interfaces.items() if its.host_end}
    words: list[bytes] = []
    with contextlib.suppress(OSError), open(layout.root / "proc/net/dev", "rb") as table:
        # The names of devices have no white space, and two lines come before them. One call splits all lines.
        words = table.read().split(b"\n", 2)[-1].split()
    if len(words) % _WORDS:
        return
    rows = {names[name]: row for row, name in enumerate(map(ends.get, words[::_WORDS])) if name and name in names}
    for key, (column, about) in _DEV.items():
        values = list(map(int, map(words[1 + column :: _WORDS].__getitem__, rows.values())))
        yield Family(f"netspace_interface_{key}", "counter", about, rows.keys(), values)


def _judged(layout: Layout, names: Mapping[str, str], interfaces: Mapping[str, Claims]) -> Iterator[Family]:
    """Yield the packets that each rule accepted, and the dropped packets, by reason.

    Each rule has a sample even before its first packet, and so has the reason ``none`` (no rule covers the packet). The
    other reasons have a sample only after their first packet.
    """
    from netspace.interface import counts

    def ends(rules: Iterable[counts.Counted]) -> list[tuple[str, bytes]]:
        """Return a pair for each rule: the text that ends the labels of its samples, and its key in the counts."""
        return [(f",{labels(direction=one.direction, rule=one.what)[1:]}", one.key) for one in rules]

    always = ends(one for one in counts.REASONS if one.what == "none")
    seldom = ends(one for one in counts.REASONS if one.what != "none")
    further = {key for _, key in seldom}
    of_rules: dict[int, list[tuple[str, bytes]]] = {}  # many interfaces have the same rules, in one object
    accepted: list[str] = []
    dropped: list[str] = []
    passed: list[int] = []
    lost: list[int] = []
    found = counts.read(layout, interfaces)
    for name, label in names.items():
        if (its := found.get(name)) is None:
            continue
        if (allowed := of_rules.get(id(its.rules))) is None:
            allowed = of_rules[id(its.rules)] = ends(its.rules)
        by, packets = label[:-1], its.packets
        for end, key in allowed:
            accepted.append(by + end)
            passed.append(packets.get(key, 0))
        reasons = always if further.isdisjoint(packets) else [*always, *(one for one in seldom if one[1] in packets)]
        for end, key in reasons:
            dropped.append(by + end)
            lost.append(packets.get(key, 0))
    about = "Packets that a rule accepted, in the direction of the rule."
    yield Family("netspace_interface_accepted_packets", "counter", about, accepted, passed)
    about = "Packets that the packet filter dropped, by reason."
    yield Family("netspace_interface_dropped_packets", "counter", about, dropped, lost)


# -- refusals -------------------------------------------------------------------
def _refused(host: Host, names: Mapping[str, str]) -> Family:
    """Return the number of refusals of audited environments, by kind, without refused messages.

    Refused messages are left out, because only the broker has their number. Only environments whose calls are recorded
    are read, and at most ``MOST_AUDITED``, because the whole record of each is read.
    """
    samples: dict[str, float | None] = {}
    if os.path.lexists(host.layout.run / "refusals"):  # most hosts audit nothing
        from netspace.environment import record as records
        from netspace.environment.refusals import reading, recording
        from netspace.interface import refusals

        known, _ = records.read_each(host.layout, recording.names(host.layout) & names.keys())
        for name, record in list(known.items())[:MOST_AUDITED]:
            counts: dict[str, int] = {"files": 0, "packets": 0, "system_calls": 0}
            for call in reading.refusals(host.layout, name, record).found:
                counts["files" if call.has_path and call.by != "profile" else "system_calls"] += call.times
            with contextlib.suppress(NetspaceError):
                counts["packets"] = sum(one.times for one in refusals.refusals(host.layout, name).found)
            samples.update({f'{names[name][:-1]},kind="{kind}"}}': count for kind, count in counts.items()})
    about = "What an audited environment was refused, except messages."
    return counted("netspace_environment_refused", "counter", about, samples)


# -- trust ----------------------------------------------------------------------
def _trust(layout: Layout) -> Iterator[Family]:
    from netspace.attestation import result

    yield _one("netspace_trust_level", "The host's trust level, 0 to 5.", result.trust(layout).level)
    expires: float | None = None
    with contextlib.suppress(NetspaceError, OSError):
        known = result.load(layout)
        expires = None if known is None else known.expires
    about = "Time at which the host's attestation result ends."
    yield _one("netspace_trust_expiry_timestamp_seconds", about, expires)


# -- links ----------------------------------------------------------------------
def _links(host: Host, statuses: Mapping[str, Status]) -> list[Family]:
    from netspace.link import record
    from netspace.link.mail import counts

    known = record.read(host.layout)
    if known.broker is None or not known.links:
        return []
    return counts.families(host.layout, known, statuses)


def _programs(layout: Layout) -> Iterator[Family]:
    """Yield the numbers of children and of delegated rights, by the environment whose program asked for them."""
    from netspace.host import child_records, delegation_records

    given = (delegation_records.read(layout, name) for name in delegation_records.names(layout))
    children = (child_records.read(layout, place) for place in child_records.places(layout))
    held = collections.Counter(one.holder for one in given if one is not None)
    born = collections.Counter(one.parent for one in children if one is not None)
    for name, about, found in (
        ("netspace_environment_delegations", "Rights that its program delegated and that are valid.", held),
        ("netspace_environment_children", "Children that its program started and that run.", born),
    ):
        yield counted(name, "gauge", about, {labels(environment=one): count for one, count in found.items()})


# -- the textfile ---------------------------------------------------------------
def write(host: Host, path: Path) -> int:
    """Write the metrics to a file for the textfile collector of node_exporter; return the file's size in bytes.

    The collector's folder may belong to the collector's user. So the new file is made under an unused name, and only a
    file that begins with :data:`MARK` is replaced.

    :raises NetspaceError: the path is unsuitable, or the file there isn't netspace's.
    """
    if path.suffix != ".prom" or not paths.straight(path):
        raise NetspaceError(f"{path}: expected an absolute path without links that ends in .prom")
    if not path.parent.is_dir():
        raise NetspaceError(f"{path}: there is no folder {path.parent}; make it, or install the collector first")
    _check_ours(path)
    content = MARK + textfile(families(host)).encode()
    if len(content) > MAX_TEXTFILE:
        raise NetspaceError(f"{path}: {len(content)} bytes of metrics are too many for a file")
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with files.refusals_told():
        _tidy(path)
        try:
            fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            with open(fd, "wb") as stream:
                stream.write(content)
                os.fchmod(stream.fileno(), 0o644)
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    return len(content)


def _tidy(path: Path) -> None:
    """Remove the unfinished files of killed runs."""
    prefix = f".{path.name}."
    for name in os.listdir(path.parent):
        number = name.removeprefix(prefix)
        if not (name.startswith(prefix) and number.isascii() and number.isdigit()):
            continue
        if int(number) == os.getpid() or not os.path.exists(f"/proc/{number}"):
            path.with_name(name).unlink(missing_ok=True)


def _check_ours(path: Path) -> None:
    try:
        with files.opened(path) as stream:
            ours = stream.read(len(MARK)) == MARK
    except FileNotFoundError:
        return
    except OSError:
        ours = False
    if not ours:
        raise NetspaceError(f"{path}: is not netspace's; choose another name, or remove it")
