"""Records of services on disk: their definitions, the desired services, and their traces.

There are three kinds of file, owned by root, mode 0600:

``<state>/services/<name>.json``
    the definition. The client writes it; the daemon reads it at each start of the service.
``<state>/services/.desired.json``
    ``{"running": [names]}``: the services that shall run, also after a reboot. One file holds all of them, so that
    starting a thousand services takes one write.
``<run>/services/<name>.json``
    a trace: process, state and the definition that the service was started with. The child writes the first version
    before it becomes the program, so that no process is ever unrecorded; the daemon writes all later versions. A later
    daemon reads the trace to adopt the running service. Traces are gone after a reboot, like the processes.

All content is checked strictly. This module doesn't start, stop or signal a process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from netspace import files
from netspace.errors import NetspaceError, StateError
from netspace.layout import Layout
from netspace.patterns import pattern
from netspace.supervision.service import NOTHING, Service

NAME = pattern(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_NAMES = pattern(rf"{NAME.pattern}(?:\n{NAME.pattern})*")
USER = pattern(r"[A-Za-z_][A-Za-z0-9_-]{0,31}")
VARIABLE = pattern(r"[A-Za-z_][A-Za-z0-9_]*")
CONTROL = pattern(r"[\x00-\x08\x0a-\x1f\x7f]")
# Names that a service must not have, because netspace uses them: the oneshot unit and the daemon's files.
RESERVED = frozenset({"restore", "supervisor"})
LIMITS = frozenset({"memory", "cpus", "pids"})
AT_REST = ("stopped", "failed")  # states of a trace: nothing runs, and no start is due
POLICIES = ("always", "on-failure", "never")


# -- definitions ---------------------------------------------------------------
def encode(service: Service) -> dict[str, Any]:
    """Return *service* as plain JSON values; :func:`decode` is the inverse."""
    record: dict[str, Any] = {}
    for key, value in zip(service._fields, service, strict=True):
        if key == "init" and not value:  # so that definitions without init equal those of earlier versions
            continue
        if isinstance(value, Path):
            record[key] = str(value)
        elif isinstance(value, Mapping):
            record[key] = dict(value)
        elif key == "cleanup":
            record[key] = [list(argv) for argv in service.cleanup]
        elif key == "until":
            record[key] = [str(path) for path in service.until]
        else:
            record[key] = list(value) if isinstance(value, tuple) else value
    return record


def decode(record: Mapping[str, Any]) -> Service:
    """Return the service that *record* describes.

    :raises StateError: when *record* is not a valid definition.
    """
    name = record.get("name")
    check = _Check(f"service {name!r}" if isinstance(name, str) else "service")
    if unknown := set(record) - {*Service._fields}:
        raise check.error(f"unknown keys {', '.join(sorted(map(str, unknown)))}")
    get = record.get
    restart, timeout = get("restart", "always"), get("stop_timeout", 10.0)
    if restart not in POLICIES:
        raise check.error(f"restart {restart!r}: expected one of {', '.join(POLICIES)}")
    if type(timeout) not in (int, float) or not 0 < timeout <= 3600:
        raise check.error(f"stop_timeout {timeout!r}: expected seconds up to 3600")
    for key in ("delegate", "init"):
        if not isinstance(get(key, False), bool):
            raise check.error(f"{key}: expected true or false")
    cleanup = get("cleanup", [])
    if not isinstance(cleanup, list):
        raise check.error("cleanup: expected a list of argument vectors")
    service = Service(
        name=check.name(name),
        command=check.argv("command", get("command")),
        description=check.text("description", get("description", "")),
        variables=check.variables(get("variables", {})),
        working_dir=str(check.path("working_dir", get("working_dir", "/"))),
        pid_file=check.path("pid_file", get("pid_file")),
        cleanup=tuple(check.argv("cleanup", argv) for argv in cleanup),
        reload=check.argv("reload", get("reload")) if get("reload") else (),
        restart=cast(Literal["always", "on-failure", "never"], restart),
        stop_timeout=float(timeout),
        user=check.text("user", get("user", "")),
        after=tuple(check.name(other) for other in check.array("after", get("after", []))),
        until=tuple(check.paths("until", get("until", []))),
        condemned=check.path("condemned", get("condemned")),
        log=check.path("log", get("log")),
        limits=check.limits(get("limits", {})),
        delegate=get("delegate", False),
        init=get("init", False),
    )
    if service.user and not USER.fullmatch(service.user):
        raise check.error(f"user {service.user!r} is not a user's name")
    if service.user and service.pid_file is not None:
        raise check.error("user and pid_file exclude each other")
    return service


class _Check:
    """Checks of one definition's values; each error names the service."""

    def __init__(self, what: str) -> None:
        self.what = what

    def error(self, message: str) -> StateError:
        return StateError(f"{self.what}: {message}")

    def name(self, value: Any) -> str:
        if not isinstance(value, str) or not NAME.fullmatch(value) or value in RESERVED:
            raise self.error(f"{value!r} can't be a service's name")
        return value

    def text(self, key: str, value: Any) -> str:
        if not isinstance(value, str) or CONTROL.search(value):
            raise self.error(f"{key}: expected text without control characters")
        return value

    def array(self, key: str, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise self.error(f"{key}: expected a list")
        return value

    def argv(self, key: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(part, str) and "\0" not in part for part in value):
            raise self.error(f"{key}: expected a list of strings")
        if not value or not value[0].startswith("/"):
            raise self.error(f"{key}: expected the absolute path of a program first")
        return tuple(value)

    def path(self, key: str, value: Any) -> Path | None:
        if value is None:
            return None
        if not self.text(key, value).startswith("/"):
            raise self.error(f"{key}: expected an absolute path")
        return Path(value)

    def paths(self, key: str, value: Any) -> list[Path]:
        found = [self.path(key, one) for one in self.array(key, value)]
        return [one for one in found if one is not None]

    def variables(self, value: Any) -> dict[str, str]:
        if not isinstance(value, dict):
            raise self.error("variables: expected a mapping")
        for key, text in value.items():
            if not isinstance(key, str) or not VARIABLE.fullmatch(key) or not isinstance(text, str) or "\0" in text:
                raise self.error(f"variables: {key!r} is not a text")
        return dict(value)

    def limits(self, value: Any) -> dict[str, float]:
        if not isinstance(value, dict):
            raise self.error("limits: expected a mapping")
        for key, number in value.items():
            if key not in LIMITS or type(number) not in (int, float) or not 0 < number < 2**63:
                raise self.error(f"limits: {key!r}: {number!r}; expected memory, cpus or pids above 0")
        return dict(value)


def validate(services: Iterable[Service]) -> dict[str, dict[str, Any]]:
    """Check all services; return their records by name.

    :raises StateError: when a service is invalid, or two services have the same name.
    """
    checked: dict[str, dict[str, Any]] = {}
    for service in services:
        record = encode(service)
        decode(record)
        if service.name in checked:
            raise StateError(f"service {service.name!r} is defined twice")
        checked[service.name] = record
    return checked


def folder(layout: Layout) -> Path:
    """Return the folder of the definitions."""
    return layout.records("services")


def defined(layout: Layout, among: Iterable[str] | None = None) -> list[str]:
    """Return the names of the defined services, sorted.

    :param among: names to look up, one by one; None: all names, by reading one directory.
    """
    return _names(folder(layout), among)


def read(layout: Layout, name: str) -> Service | None:
    """Return the definition of *name*; None if the service is not defined."""
    record = files.read_json(folder(layout) / f"{name}.json")
    if record is None:
        return None
    service = decode(record)
    if service.name != name:
        raise StateError(
            f"{folder(layout) / name}.json defines another service, {service.name!r}; remove the file and apply again"
        )
    return service


def in_order(names: Iterable[str], after: Mapping[str, Iterable[str]]) -> list[str]:
    """Return *names* and all their dependencies, each service after its dependencies.

    A service that is not in *after* is left out. A cycle of services that wait for each other is cut at the service
    that is reached first, so that all of them are started.

    :param after: the dependencies of each service.
    """
    order: list[str] = []
    seen: set[str] = set()
    for first in names:
        stack = [(first, iter(after.get(first, ())))] if first in after and first not in seen else []
        seen.update(name for name, _ in stack)
        while stack:
            name, rest = stack[-1]
            for other in rest:
                if other in after and other not in seen:
                    seen.add(other)
                    stack.append((other, iter(after[other])))
                    break
            else:
                order.append(name)
                stack.pop()
    return order


# -- what shall run --------------------------------------------------------------
def desired(layout: Layout, decode: Callable[[bytes], Any] = json.loads) -> set[str]:
    """Return the names of the services that shall run.

    :param decode: decodes JSON; a caller that has loaded msgspec gives its decoder, which takes a tenth of the time.
    """
    path = folder(layout) / ".desired.json"
    try:
        record = decode(files.read(path, files.MAX_RECORD))
    except Exception:  # it isn't there, or is damaged, which is told below
        record = files.read_json(path) or {}
    names: Any = record.get("running", []) if isinstance(record, dict) else None
    try:
        # In one match, since a host may have thousands.
        text = "\n".join(names)
        sound = isinstance(names, list) and text.count("\n") == max(len(names) - 1, 0)
        sound = sound and (not names or _NAMES.fullmatch(text) is not None)
    except TypeError:
        sound = False
    if not sound:
        raise StateError(f"{folder(layout) / '.desired.json'} is damaged; remove the file and apply again")
    return set(names)


def desire(layout: Layout, add: Iterable[str] = (), drop: Iterable[str] = ()) -> None:
    """Record that *add* shall run and *drop* shall not."""
    from msgspec import json as quick  # the supervisor, which doesn't load it, never calls this function

    with files.locked(folder(layout) / ".lock"):
        path = folder(layout) / ".desired.json"
        names = (desired(layout, quick.decode) | set(add)) - set(drop)
        if names:
            files.write(path, quick.encode({"running": sorted(names)}) + b"\n")
        else:
            files.remove(path)


# -- traces ------------------------------------------------------------------------
class Trace(NamedTuple):
    """The trace of a service that was started since the host booted.

    :param state: a state of :class:`~netspace.supervision.service.Status`, or ``launching`` (a detached start is under
        way; ``pid`` is the launcher's), or ``stopping``.
    :param ticks: start time of the process *pid*, in clock ticks since boot (proc(5)). PID and ticks together identify
        a process.
    :param service: the definition that the service was started with.
    :param oom_kills: number of the service's processes that the OOM killer killed since the start was requested.
    :param oom_seen: the kernel's count of OOM kills in the service's control group, when it was last read.
    """

    state: str
    pid: int = 0
    ticks: int = 0
    since: float = 0.0
    restarts: int = 0
    exit: str = ""
    service: Mapping[str, Any] = NOTHING
    oom_kills: int = 0
    oom_seen: int = 0


TRACE_TYPES: dict[str, tuple[type, ...]] = {
    "state": (str,),
    "pid": (int,),
    "ticks": (int,),
    "since": (float, int),
    "restarts": (int,),
    "exit": (str,),
    "service": (dict,),
    "oom_kills": (int,),
    "oom_seen": (int,),
}
# Values for keys that are missing in traces of earlier versions.
UNCOUNTED = {"oom_kills": 0, "oom_seen": 0}


def traces(layout: Layout) -> Path:
    return layout.run / "services"


def traced(layout: Layout, among: Iterable[str] | None = None) -> list[str]:
    """Return the names of the services that have a trace, sorted; *among* as for :func:`defined`."""
    return _names(traces(layout), among)


def read_trace(layout: Layout, name: str) -> Trace | None:
    """Return the trace of *name*; None if the trace is missing or invalid."""
    try:
        with open(f"{traces(layout)}/{name}.json", "rb") as stream:
            record = json.loads(stream.read(files.MAX_RECORD))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    record = {**UNCOUNTED, **record}
    if record.keys() != TRACE_TYPES.keys():
        return None
    if any(type(record[key]) not in types for key, types in TRACE_TYPES.items()) or record["pid"] < 0:
        return None
    return Trace(**record)


def write_trace(layout: Layout, name: str, trace: Trace) -> None:
    """Replace the trace of *name* atomically. ``/run`` is memory, so the file is not synced."""
    path = f"{traces(layout)}/{name}.json"
    aside = f"{traces(layout)}/.{name}.{os.getpid()}"
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, json.dumps({**trace._asdict(), "service": dict(trace.service)}).encode())
    finally:
        os.close(fd)
    os.rename(aside, path)


def remove_trace(layout: Layout, name: str) -> None:
    files.remove(traces(layout) / f"{name}.json")


MANY = 16  # names above which one listing of a folder is faster than a look for each


def _names(directory: Path, among: Iterable[str] | None) -> list[str]:
    if among is not None and not (isinstance(among, Collection) and len(among) > MANY):
        return sorted(name for name in among if NAME.fullmatch(name) and os.path.exists(f"{directory}/{name}.json"))
    try:
        entries = os.listdir(directory)
    except FileNotFoundError:
        return []
    names = {entry[: -len(".json")] for entry in entries if entry.endswith(".json")}
    if among is not None:
        names &= set(among)
    if _NAMES.fullmatch("\n".join(names)):  # in one match, since a host may have thousands
        return sorted(names)
    return sorted(name for name in names if NAME.fullmatch(name))


def unknown(names: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Return an error text for each of *names* that is not in *known*."""
    there = set(known)
    return {name: f"the service {name} is not defined; apply its declaration first" for name in set(names) - there}


class SupervisorError(NetspaceError):
    """Error: the supervisor can't be reached, or failed to execute a request."""
