"""Operations of an operator on existing environments. They return values that can be written as JSON.

A start or stop by an operator is written to the environment's record, so that, for example, a new ``environment.json``
doesn't start a stopped environment. The next apply follows the declaration again. No operation returns the value of a
variable or the content of a file in ``/run/netspace``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from netspace import files
from netspace.environment import execute, moments, output, sigterm, user_ids
from netspace.environment import record as records
from netspace.environment.container import oci_config, oci_runtime
from netspace.environment.health import record as verdict
from netspace.environment.observe import AS_DECLARED, Around, around, current, describe, own_disks
from netspace.environment.reconciler import Environments
from netspace.environment.record import Record, RunState
from netspace.environment.storage import disk_sizes, mounts
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.spec import parse, spawns
from netspace.spec.types import Environment
from netspace.supervision import process
from netspace.supervision.cgroup import booted
from netspace.supervision.service import Status, Supervisor
from netspace.text import hint

MAX_LINES = 10_000
_LOOK = 0.1  # seconds between two looks while waiting
_WELL = ("", "healthy")


class Operations:
    """Operations on the environments of one host. Operations that change something take the layout's lock.

    :param withheld: returns those of the given environments that must not be started now, each with the reason.
    :param tell: publishes the environments' records to the host's peer (the process that answers their requests).
        Called before the start of environments that may send such requests.
    """

    def __init__(
        self,
        layout: Layout,
        supervisor: Supervisor,
        withheld: Callable[[Mapping[str, Environment]], Mapping[str, str]],
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        self._layout = layout
        self._supervisor = supervisor
        self._withheld = withheld
        self._kind = Environments(layout, supervisor, tell=tell)

    def list(self) -> dict[str, Any]:
        """Return a row of :func:`observe.describe` per environment: ``state``, ``health``, ``image`` and so on."""
        return self._kind.list()

    def inspect(self, name: str) -> dict[str, Any]:
        """Return all known facts about one environment.

        The keys are those of :meth:`list`, and

        - ``spec`` (values of variables hidden), ``user`` (``inside``, ``host``), ``apparmor`` (the profile; empty if
          none), ``ids`` (``base``, ``count``), ``cgroup``, ``netns``, ``layer``, ``log``, ``files`` (names),
          ``sigterm`` (see :func:`sigterm.told`);
        - ``usage``: while the environment runs, ``memory`` in bytes and ``pids``; and ``disk`` and ``volumes`` in
          bytes, if their size is limited;
        - ``check``, if the environment runs with a health check: ``since``, ``failures`` (in a row), ``detail`` (text
          of the last failure);
        - ``taken_back``, if an update was rolled back.
        """
        record = self.known([name])[name]
        status = self._status(name)
        spec = parse.encode(records.own(record.spec))
        spec.pop("interface", None)
        spec["env"] = dict.fromkeys(spec["env"], "(not shown)")
        user = oci_config.user_of(record.spec, record.image.defaults)
        cgroup = self._kind.making.cgroup(name)
        inside = self._layout.inside(name)
        mounted = mounts.Single()
        return {
            **describe(self._layout, name, self._around([name])),
            "spec": spec,
            "user": {"inside": user, "host": record.base + user},
            "apparmor": record.confined,
            "ids": {"base": record.base, "count": user_ids.COUNT},
            "cgroup": cgroup,
            "netns": str(self._layout.netns(name)),
            "layer": str(self._layout.environment(name)),
            "log": str(oci_runtime.output(self._layout, name)),
            "usage": {**oci_runtime.usage(cgroup, mounted), **_disk_usage(self._layout, name, record, mounted)},
            "sigterm": sigterm.told(record, status.pid),
            "files": sorted(os.listdir(inside)) if inside.is_dir() else [],
            **({"check": _judged(found)} if (found := current(self._layout, name, record, status)) else {}),
            **({"taken_back": msgspec.structs.asdict(record.failed)} if record.failed is not None else {}),
        }

    def start(self, names: Collection[str]) -> dict[str, str]:
        """Start the environments that neither run nor are withheld; return an error for each name, empty if it runs."""

        def act(known: Mapping[str, Record]) -> dict[str, str]:
            statuses = self._statuses(known)
            idle = [name for name in known if _idle(statuses, name)]
            lost = self._kind.making.restore({name: known[name] for name in idle}, idle)
            return {**lost, **self._kind.start([name for name in idle if name not in lost])}

        return self._change(names, "running", act)

    def stop(self, names: Collection[str]) -> dict[str, str]:
        """Stop these environments and wait for their end; return an error for each name, empty if it stopped."""
        return self._change(names, "stopped", self._kind.stop)

    def restart(self, names: Collection[str]) -> dict[str, str]:
        """Stop these environments and start them again, except withheld environments, which stay unchanged.

        Return an error for each name, empty if it runs.
        """

        def act(known: Mapping[str, Record]) -> dict[str, str]:
            failed = self._kind.stop(known)
            failed.update(self._kind.making.restore(known, known.keys() - failed.keys()))
            return {**failed, **self._kind.start([name for name in known if name not in failed])}

        return self._change(names, "running", act)

    def wait(self, names: Collection[str], timeout: float = 60.0) -> dict[str, Any]:
        """Wait until all environments are healthy or, without a check, run; return their rows of :meth:`list`.

        :param timeout: seconds.
        :raises NetspaceError: when an environment isn't ready in time, or has ended and is not started again; the text
            has its state.
        """
        deadline = time.monotonic() + timeout
        while True:
            self.known(names)
            seen = self._around(names)
            rows = {name: describe(self._layout, name, seen) for name in names}
            left = {name: row for name, row in rows.items() if row["state"] != "running" or row["health"] not in _WELL}
            late = time.monotonic() > deadline
            over = {name: row for name, row in left.items() if late or row["state"] in ("stopped", "failed")}
            if over:
                why = "; ".join(_how(name, row) for name, row in over.items())
                raise NetspaceError(f"not healthy within {timeout:g} s: {why}" if late else why)
            if not left:
                return rows
            time.sleep(_LOOK)

    def retry(self, names: Collection[str]) -> None:
        """Let the next apply try rolled-back updates again."""
        with files.locked(self._layout.lock):
            for name, record in self.known(names).items():
                if record.failed is not None:
                    records.write(self._layout, name, msgspec.structs.replace(record, failed=None))

    def logs(
        self, name: str, lines: int = 100, since: str | float | None = None, times: bool = False
    ) -> dict[str, Any]:
        """Return the last *lines* lines of the program's output: ``{"lines": [...]}``; see :func:`text.harmless`.

        :param since: return only lines after this time; see :func:`moments.since`.
        :param times: begin lines with their times, and add lines for the starts of the program; see
            :meth:`output.Line.stamped`.
        :raises NetspaceError: when *lines* isn't a whole number, *since* isn't a time, or *since* is given and no line
            has a time.
        """
        try:
            count = min(max(int(lines), 0), MAX_LINES)
        except (TypeError, ValueError, OverflowError) as err:
            raise NetspaceError(f"lines: expected a whole number, got {lines!r}") from err
        begin = None if since is None else moments.since(since, time.time())
        self.known([name])
        own = oci_runtime.output(self._layout, name)
        if not own.exists() and booted():
            service = self._layout.service(oci_runtime.service_name(name))
            return {"lines": output.shown(output.in_journal(service, count, begin, times) if count else [], times)}
        found = output.in_files(own, count, times)
        if begin is not None:
            if found and all(line.moment is None for line in found):
                raise NetspaceError(
                    f"since: {own} has no times for these lines, which an earlier version wrote; leave out since, or "
                    "restart the environment"
                )
            found = [line for line in found if line.moment is not None and line.moment >= begin]
        return {"lines": output.shown(found, times)}

    def exec(
        self,
        name: str,
        command: Sequence[str],
        timeout: float = 60.0,
        stdin: bytes | str = b"",
        *,
        folder: str | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Run an additional program in a running environment, with the rights of the environment's own program.

        :param command: argument vector; the program is looked up inside.
        :param timeout: seconds after which the program is killed.
        :param folder: the new program's working directory inside; None: the working directory of the environment's own
            program.
        :param variables: the new program's environment variables, in addition to the environment's own.
        :return: ``retcode`` (124 after a timeout), ``stdout`` and ``stderr`` (text, at most 1 MiB each; see
            :func:`text.harmless`), ``truncated`` (whether output was cut off) and ``timed_out``.
        :raises NetspaceError: when the environment doesn't run or is a unikernel, or the program can't be run.
        """
        record = self.known([name])[name]
        arguments = [str(argument) for argument in command]
        if not arguments or not arguments[0]:
            raise NetspaceError("exec: no command is given")
        if record.spec.kernel is not None:
            raise NetspaceError(f"environment {name} is a unikernel; it can run no other program")
        if self._status(name).state != "running":
            raise NetspaceError(f"environment {name} does not run")
        spec = record.spec
        if variables:
            spec = msgspec.structs.replace(spec, env={**spec.env, **variables})
        if folder is not None:
            spec = msgspec.structs.replace(spec, working_dir=folder)
        fed = stdin.encode() if isinstance(stdin, str) else stdin
        ran = msgspec.structs.replace(record, spec=spec)
        return execute.enter(self._layout, name, ran, arguments, timeout, fed).shown()

    def known(self, names: Collection[str]) -> dict[str, Record]:
        """Return the records of these environments.

        :raises StateError: when a record can't be read.
        :raises NetspaceError: when an environment doesn't exist; the text has its name.
        """
        known = records.some(self._layout, names)
        for name in names:
            if name not in known:
                raise NetspaceError(f"there is no environment {name}; {hint(name, self._kind.names())}")
        return known

    # -- parts -------------------------------------------------------------------

    def _around(self, names: Collection[str]) -> Around:
        known, _ = records.read_each(self._layout, names)
        others = {other for record in known.values() for other in record.spec.after}
        others |= {parent for name in names for parent in spawns.possible_parents(name)}
        before, _ = records.read_each(self._layout, others - known.keys())
        return around(self._layout, self._supervisor, {**before, **known}, names)

    def _status(self, name: str) -> Status:
        return self._statuses([name]).get(oci_runtime.service_name(name), Status("stopped"))

    def _statuses(self, names: Collection[str]) -> dict[str, Status]:
        return self._supervisor.observe({oci_runtime.service_name(name) for name in names})

    def _change(
        self, names: Collection[str], state: RunState, act: Callable[[Mapping[str, Record]], Mapping[str, str]]
    ) -> dict[str, str]:
        with files.locked(self._layout.lock):
            known = self.known(names)
            self._kind.sweep()
            specs = {name: record.spec for name, record in known.items()}
            refused = self._withheld(specs) if state == "running" else {}
            permitted = {
                name: msgspec.structs.replace(record, state=state)
                for name, record in known.items()
                if name not in refused
            }
            for name, record in permitted.items():
                if known[name].state != state:
                    records.write(self._layout, name, record)
            errors = {**act(permitted), **refused}
            self._kind.note(known)
            return {name: errors.get(name, "") for name in known}


def _how(name: str, row: Mapping[str, Any]) -> str:
    """Return a sentence on the state of an environment that is not ready."""
    state = row["health"] if row["state"] == "running" and row["health"] else row["state"]
    if state == "stopped" and row["declared_stopped"]:
        return f"environment {name} is stopped{AS_DECLARED}"
    said = row["problem"] or row["exit"]
    return f"environment {name} is {state}{f' ({said})' if said else ''}"


def _judged(found: verdict.HealthVerdict) -> dict[str, Any]:
    judgement = found.judgement
    return {"since": found.since, "failures": judgement.failures, "detail": judgement.detail}


def _disk_usage(layout: Layout, name: str, record: Record, mounted: Mapping[str, mounts.Mount]) -> dict[str, Any]:
    used = {key: there.used for key, there in own_disks(layout, name, record, mounted).items()}
    found: dict[str, Any] = {"disk": used.pop(disk_sizes.LAYER)} if disk_sizes.LAYER in used else {}
    return {**found, "volumes": used} if used else found


def _idle(statuses: Mapping[str, Status], name: str) -> bool:
    """Return whether an environment has to be started.

    This is so if it doesn't run, or if it is ending and the supervisor hasn't noticed yet.
    """
    status = statuses.get(oci_runtime.service_name(name), Status("stopped"))
    return status.state not in ("running", "starting") or (status.state == "running" and process.dying(status.pid))
