"""Metrics of one host for a monitoring system: environments, links, interfaces, trust, expiries. Changes nothing.

Labels are names from the declaration and words of this module, so their number is bounded by the declaration. The
values contain no secret, and no text of a program. A call lists each folder once, calls the supervisor and the broker
once each, and reads a few small files of the kernel for each environment.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from netspace import __version__, files, paths
from netspace.errors import NetspaceError
from netspace.host.host import Host
from netspace.layout import Layout
from netspace.openmetrics import Family, Kind, Sample, counted, labels, textfile

if TYPE_CHECKING:
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

    names = sorted(files.record_names(host.layout.records(records.KIND)))
    statuses: Mapping[str, Status] = host.supervisor.observe(noticed=True)
    by = {name: labels(environment=name) for name in names}
    found = [
        _one("netspace_version", "The version of netspace, as a label.", 1, version=__version__),
        _one("netspace_supervisor_up", "Whether the supervisor runs.", host.supervisor.attended()),
        *_states({by[name]: statuses.get(service_name(name)) for name in names}),
        *_health(host.layout, by),
        *_use(host, {name: by[name] for name in names if _runs(statuses.get(service_name(name)))}),
        *_traffic(host.layout, by),
        *_judged(host.layout, by),
        _refused(host, by),
        *_trust(host.layout),
        *_links(host, statuses),
    ]
    return [one for one in found if one.samples]


def _one(name: str, about: str, value: float | None, **by: str) -> Family:
    return counted(name, "gauge", about, {labels(**by): value})


def _runs(status: Status | None) -> bool:
    return status is not None and status.state in ("running", "frozen")


def _states(statuses: Mapping[str, Status | None]) -> Iterator[Family]:
    """Return the metrics that the supervisor knows, with one sample for each environment."""
    name = "netspace_environment"
    known = {key: status for key, status in statuses.items() if status is not None}
    yield counted(
        f"{name}_up", "gauge", "Whether the program runs.", {key: _runs(one) for key, one in statuses.items()}
    )
    yield Family(
        f"{name}_state",
        "gauge",
        "1 for the present state: running, starting, stopped, failed or frozen.",
        [(f'{key[:-1]},state="{status.state if status else "stopped"}"}}', 1) for key, status in statuses.items()],
    )
    restarts = {key: status.restarts for key, status in known.items()}
    yield counted(f"{name}_restarts", "counter", "Restarts since a start was last requested.", restarts)
    kills = {key: status.oom_kills for key, status in known.items()}
    yield counted(f"{name}_oom_kills", "counter", "OOM kills since a start was last requested.", kills)
    since = {key: status.since or None for key, status in known.items()}
    yield counted(f"{name}_state_timestamp_seconds", "gauge", "Time of the last change of state.", since)


def _health(layout: Layout, names: Mapping[str, str]) -> Iterator[Family]:
    """Return the health of environments with a health check, as the files of the health service show it."""
    from netspace.environment.health import record as verdict

    try:
        there = os.listdir(verdict.folder(layout))
    except FileNotFoundError:
        there = []
    up = {entry[:-3] for entry in there if entry.endswith(".up")}
    judged = {entry[:-5] for entry in there if entry.endswith(".json")}
    healthy = {by: name in up for name, by in names.items() if name in judged}
    yield counted("netspace_environment_healthy", "gauge", "Whether the health check passes.", healthy)


def _use(host: Host, names: Mapping[str, str]) -> Iterator[Family]:
    from netspace.environment import counters
    from netspace.environment.container import cgroups
    from netspace.environment.container.oci_runtime import service_name
    from netspace.environment.storage import mounts
    from netspace.supervision.cgroup import payload_cgroups

    reader = counters.Reader(cgroups.Hierarchies(mounts.table(), ()))
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
_USED = 10  # columns from the first to the last of these


def _traffic(layout: Layout, names: Mapping[str, str]) -> Iterator[Family]:
    """Return the traffic of environments whose interface has an end on the host."""
    from netspace.interface.endpoints import host_name

    ends = {host_name(layout.instance, name): by for name, by in names.items()}
    seen: dict[str, list[bytes]] = {}
    with contextlib.suppress(OSError), open(layout.root / "proc/net/dev", "rb") as table:
        for line in table.read().splitlines():
            device, _, counts = line.partition(b":")
            if by := ends.get(device.strip().decode()):
                seen[by] = counts.split(None, _USED)
    known = sorted(seen.items())
    for key, (column, about) in _DEV.items():
        samples = [(by, int(counts[column])) for by, counts in known]
        yield Family(f"netspace_interface_{key}", "counter", about, samples)


def _judged(layout: Layout, names: Mapping[str, str]) -> Iterator[Family]:
    """Return the packets that each rule accepted, and those that were dropped, by reason.

    A rule's count and that of packets without a rule are there from 0 on; the others once there is such a packet.
    """
    from netspace.interface import counts

    @functools.cache  # many interfaces have the same rules
    def ends(rules: tuple[counts.Counted, ...]) -> list[tuple[str, bytes]]:
        """Return the end of a sample's labels, and the key of its count."""
        return [(f",{labels(direction=one.direction, rule=one.what)[1:]}", one.key) for one in rules]

    always = ends(tuple(one for one in counts.REASONS if one.what == "none"))
    seldom = ends(tuple(one for one in counts.REASONS if one.what != "none"))
    accepted: list[Sample] = []
    dropped: list[Sample] = []
    for name, its in counts.read(layout).items():
        if name in names:
            by, packets = names[name][:-1], its.packets
            accepted += [(by + end, packets.get(key, 0)) for end, key in ends(its.rules)]
            dropped += [(by + end, packets.get(key, 0)) for end, key in always]
            dropped += [(by + end, packets[key]) for end, key in seldom if key in packets]
    about = "Packets that a rule accepted, in the direction of the rule."
    yield Family("netspace_interface_accepted_packets", "counter", about, accepted)
    about = "Packets that the packet filter dropped, by reason."
    yield Family("netspace_interface_dropped_packets", "counter", about, dropped)


# -- refusals -------------------------------------------------------------------
def _refused(host: Host, names: Mapping[str, str]) -> Family:
    """Return the refusals of audited environments by kind; the broker's are left out, since they need a request.

    Only environments whose calls are recorded are looked at, and at most ``MOST_AUDITED``, because the whole record of
    each is read.
    """
    samples: list[tuple[str, float]] = []
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
            samples += [(f'{names[name][:-1]},kind="{kind}"}}', count) for kind, count in counts.items()]
    about = "What an audited environment was refused, except messages."
    return Family("netspace_environment_refused", "counter", about, samples)


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
