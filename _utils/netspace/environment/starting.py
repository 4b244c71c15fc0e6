"""Start of assembled environments, and a watch over the first moments of their programs.

An apply reports a program that ends right after its start. It notices an end by a pidfd (pidfd_open(2)). It waits no
longer than needed: if all threads of a program sleep, and none has run since the previous look, the program has started
and waits for work. A program that is still at work is watched for at most ``PATIENCE`` seconds. ``settle`` in a
declaration makes the apply watch longer.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import msgspec

from netspace import files
from netspace.environment import record as records
from netspace.environment import runs
from netspace.environment.builder import each
from netspace.environment.container import oci_runtime
from netspace.environment.record import Record
from netspace.environment.runtimes import USUAL
from netspace.environment.storage import mounts
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.supervision import process, weights
from netspace.supervision.cgroup import payload_cgroup
from netspace.supervision.service import Status, Supervisor

# Seconds to watch a program that is at work, or that runs on a kernel of its own, where its sleep can't be seen.
PATIENCE = 0.1
# The most seconds to wait until a toolstack has made a domain (1 s where it isn't emulated).
MAKING = 60.0
# Seconds until the supervisor must have noted an end that was seen here.
NOTING = 10.0
# The first pause between two looks (seconds); each is longer than the one before.
_FIRST, _LONGER, _LONGEST = 0.001, 1.5, 0.1
_DESCRIPTORS = 64  # the most programs whose end is waited for; of more, each look asks the kernel


class _Started(msgspec.Struct):
    """A program that was just started and is being watched.

    :param status: the supervisor's status of its service.
    :param until: the monotonic time at which netspace stops watching it.
    :param least: the monotonic time from which on a sleeping program counts as started.
    :param cgroup: the cgroup of its processes.
    :param seen: whether the host's kernel can see its threads sleep; false for a program on another kernel.
    :param mark: the file that will have its PID once it has begun; None: it begins at once.
    :param pidfd: a descriptor of its process; -1 if there is none.
    :param switches: the number of its threads' context switches at the last look, if all threads slept; else None.
    """

    status: Status
    until: float
    least: float
    cgroup: str
    seen: bool
    mark: Path | None = None
    pidfd: int = -1
    switches: int | None = None

    def open(self) -> None:
        """Open a pidfd, which becomes readable when the program ends. If that fails, ``/proc`` is read instead."""
        with contextlib.suppress(OSError):
            self.pidfd = os.pidfd_open(self.status.pid)

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)

    def ended(self) -> bool:
        if self.pidfd >= 0:
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            return bool(poll.poll(0))
        there = process.stat(self.status.pid)
        return there is None or there.state in "ZX"

    def _begun(self) -> bool:
        assert self.mark is not None
        try:
            return self.mark.read_text().strip() == str(self.status.pid)
        except OSError:
            return False

    def stays(self, now: float) -> bool:
        """Return whether the watch can end: the program has slept since the last look, or its time is up."""
        if now >= self.until:
            return True
        if self.mark is not None:
            if self._begun():
                self.mark, self.until = None, max(now + PATIENCE, self.least)
            return False
        if not self.seen or now < self.least:
            return False
        before, self.switches = self.switches, process.asleep(self.status.pid, self.cgroup)
        return self.switches is not None and self.switches == before


def tell_host(tell: Callable[[], None], known: Mapping[str, Record]) -> dict[str, str]:
    """Publish records to the host's peer before environments with these records start; return the errors, by name.

    Nothing is published if none of the environments may send requests to the host. A program may ask for a proof of its
    image with its first request, so the peer must know the present image by then.
    """
    asking = [name for name, record in known.items() if record.spec.host]
    try:
        if asking:
            tell()
    except (NetspaceError, OSError) as err:
        return dict.fromkeys(asking, f"not started, since its record can't be published to the host's peer: {err}")
    return {}


def start(
    layout: Layout, supervisor: Supervisor, names: Collection[str], known: Mapping[str, Record] | None = None
) -> dict[str, str]:
    """Start assembled environments; return errors, by name, of those that don't run.

    :param known: the records of the environments; None: they are read.
    """
    services = {oci_runtime.service_name(name): name for name in names}
    if not services:
        return {}
    if known is None:
        known, _ = records.read_each(layout, names)
    for name in names:
        files.remove(oci_runtime.log(layout, name))
    weights.lower(layout)
    # A container that a runtime still knows from the last run would make the start fail.
    unforgotten = [name for name in names if oci_runtime.known(layout, name)]
    if unforgotten:
        # The runtime also knows an environment that the supervisor is just starting: that one must not be deleted.
        now, idle = supervisor.observe({oci_runtime.service_name(name) for name in unforgotten}), Status("stopped")
        unforgotten = [
            name
            for name in unforgotten
            if now.get(oci_runtime.service_name(name), idle).state not in ("running", "starting", "frozen")
        ]
    if unforgotten:
        mounted: Mapping[str, mounts.Mount] = mounts.Single() if len(unforgotten) == 1 else mounts.table()
        used = {name: known[name].runtime if name in known else USUAL for name in unforgotten}
        stuck = each(unforgotten, lambda name: oci_runtime.delete(layout, name, mounted, used[name]))
        if stuck:
            return {**stuck, **start(layout, supervisor, [name for name in names if name not in stuck], known)}
    try:
        runs.starting(layout, {name: known[name] for name in names if name in known})
        failed = supervisor.start(list(services))
        errors = problems(layout, supervisor, names, known, failed)
    except (NetspaceError, OSError) as err:
        return dict.fromkeys(names, str(err))
    for name in names:
        files.remove(oci_runtime.halt_mark(layout, name))
    return errors


def problems(
    layout: Layout,
    supervisor: Supervisor,
    names: Collection[str],
    known: Mapping[str, Record],
    failed: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Watch just started environments until each stays up or has ended; return the errors, by name.

    :param known: the environments' records; an environment without a record is watched as if it ran on the host's
        kernel.
    :param failed: the supervisor's errors of the start, by service.
    """
    failed = failed or {}
    statuses = _watched(layout, supervisor, names, known)
    errors = {}
    for name in names:
        service = oci_runtime.service_name(name)
        status = statuses.get(service, Status("stopped"))
        complaint = oci_runtime.failure(layout, name)
        if complaint and status.state != "running":
            errors[name] = f"can't be started: {complaint}"
        elif service in failed:
            errors[name] = failed[service]
        elif status.state == "failed" or (status.state != "running" and status.exit not in ("", "exit 0")):
            again = "; it is started again and again" if status.state == "starting" else ""
            errors[name] = (
                f"ended right after its start ({status.exit or 'no reason known'}){again}; its logs may say why: "
                f"netspace_environment.logs {name}"
            )
    return errors


def _watched(
    layout: Layout, supervisor: Supervisor, names: Collection[str], known: Mapping[str, Record]
) -> dict[str, Status]:
    """Return the supervisor's statuses, by service, once each program has stayed up or its end is recorded."""
    began = time.monotonic()
    statuses = supervisor.observe({oci_runtime.service_name(name) for name in names})
    watched: dict[str, _Started] = {}
    ended: dict[str, Status] = {}
    for name in names:
        service = oci_runtime.service_name(name)
        status = statuses.get(service)
        if status is None or status.state != "running":
            continue
        record = known.get(name)
        settle = record.spec.settle if record is not None else 0.0
        own_kernel = record is not None and record.runtime.module.OWN_KERNEL
        outside = record is not None and record.runtime.outside
        watched[service] = _Started(
            *(status, began + max(MAKING if outside else PATIENCE, settle), began + settle),
            *(payload_cgroup(layout, service), not own_kernel),
            oci_runtime.pid_file(layout, name) if outside else None,
        )
    try:
        if len(watched) <= _DESCRIPTORS:
            for one in watched.values():
                one.open()
        pause = _FIRST
        while True:
            now = time.monotonic()
            for service, one in list(watched.items()):
                if one.ended():
                    ended[service] = one.status
                elif not one.stays(now):
                    continue
                watched.pop(service).close()
            if not watched:
                break
            poll = select.poll()  # unlike select(2), it takes any descriptor
            for one in watched.values():
                if one.pidfd >= 0:
                    poll.register(one.pidfd, select.POLLIN)
            latest = max(one.until for one in watched.values())
            poll.poll(1000 * max(0.0, min(pause, latest - now)))
            pause = min(pause * _LONGER, _LONGEST)
    finally:
        for one in watched.values():
            one.close()
    return {**statuses, **_noted(supervisor, ended)}


def _noted(supervisor: Supervisor, ended: Mapping[str, Status]) -> dict[str, Status]:
    """Return the statuses of programs that have ended.

    It waits until the supervisor has recorded the ends, but at most ``NOTING`` seconds.
    """
    found: dict[str, Status] = {}
    late, pause = time.monotonic() + NOTING, _FIRST
    while ended.keys() - found.keys():
        for service, now in supervisor.observe(ended.keys() - found.keys()).items():
            if (now.state, now.pid) != ("running", ended[service].pid) or time.monotonic() > late:
                found[service] = now
        if ended.keys() - found.keys():
            if time.monotonic() > late:  # its definition was removed meanwhile
                break
            time.sleep(pause)
            pause = min(pause * _LONGER, _LONGEST)
    return found
