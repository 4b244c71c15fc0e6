"""Records of applied environments: one file for each, with all data needed to rebuild the environment.

A record is written before the things in it are made, and removed after they are gone. It is replaced only while the
environment is stopped, or if the change doesn't affect the running program. So a running environment always matches its
record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from netspace import files
from netspace.environment import runtimes
from netspace.environment.container.seccomp_file import Profile
from netspace.environment.images import Image
from netspace.environment.images.sources import Defaults
from netspace.environment.runtimes import USUAL, Runtime
from netspace.errors import NetspaceError, StateError
from netspace.layout import Layout, below
from netspace.spec import parse
from netspace.spec.types import Environment

RunState = Literal["running", "present", "stopped"]
KIND = "environments"
BESIDE = "beside"  # notes of second instances, which run during a rolling update
_VERSION = 1


class Previous(msgspec.Struct, frozen=True):
    """The version of an environment before an update. It is kept until the updated environment is healthy."""

    spec: Environment
    image: Image
    profile: Profile | None = None
    runtime: Runtime = USUAL


class Failed(msgspec.Struct, frozen=True):
    """An update that was rolled back. It is not tried again until the declaration or the image changes.

    :param declared: the :func:`fingerprint` of the declaration.
    :param source: the image's source as the declaration named it.
    :param identity: the identity of the source's content.
    :param digest: the digest of the image that was built from it.
    :param reason: why the update was rolled back.
    """

    declared: str
    source: str
    identity: str
    digest: str
    reason: str


class Record(msgspec.Struct, frozen=True):
    """The applied configuration of an environment.

    :param state: the desired state that a declaration or an operator set last.
    :param base: host user id to which the environment's user id 0 is mapped.
    :param config: sha256 of the bundle's ``config.json``.
    :param revision: the revision of the hardening in ``config.json``.
    :param summary: a summary of the files in ``/run/netspace``, for the operator.
    :param profile: the operator's own system call profile, as it was read; None for a built-in profile.
    :param runtime: the OCI runtime and its settings.
    :param previous: while an update is on trial, the version to restore if it fails; otherwise None.
    :param failed: the last update that was rolled back, if the declaration still asks for it.
    :param confined: the AppArmor profile that ``config.json`` names; empty if none.
    """

    spec: Environment
    state: RunState
    base: int
    image: Image
    config: str
    revision: str
    summary: Mapping[str, Any] = msgspec.field(default_factory=dict)
    profile: Profile | None = None
    runtime: Runtime = USUAL
    previous: Previous | None = None
    failed: Failed | None = None
    confined: str = ""


# Keys that are younger than records of updates that were taken back, with their defaults.
_YOUNGER = {"apparmor": "prefer", "image_cache": "shared"}


def fingerprint(spec: Environment, profile: Profile | None, runtime: Runtime) -> str:
    """Return a digest of those keys of an environment's declaration that affect its program."""
    content = {
        "spec": {
            key: value
            for key, value in parse.encode(own(spec)).items()
            if key not in ("state", "settle", "host", "values", "secrets", "offers", "spawns", "tenant", "delegates")
            and (key not in _YOUNGER or value != _YOUNGER[key])
        },
        "profile": "" if profile is None else profile.digest,
        "runtime": _encoded_runtime(runtime),
    }
    return hashlib.sha256(files.encode(content)).hexdigest()


def own(spec: Environment) -> Environment:
    """Return the part of a declared environment that is recorded here: all keys except the interface.

    The interface has a separate record. Only the kind of an interface with devices is kept, since the environment's
    configuration depends on it.
    """
    interface = type(spec.interface)() if spec.interface is not None and spec.interface.DEVICES else None
    return msgspec.structs.replace(spec, interface=interface)


def path(layout: Layout, name: str) -> Path:
    return below(layout.records(KIND), f"{name}.json")


def write(layout: Layout, name: str, record: Record) -> bool:
    """Write the record; return whether it changed."""
    return files.write(path(layout, name), _encoded(record))


def write_all(layout: Layout, wanted: Mapping[str, Record]) -> dict[str, str]:
    """Write the records of these environments; return the errors, by environment."""
    paths = {path(layout, name): name for name in wanted}
    _, failed = files.write_all({where: _encoded(wanted[name]) for where, name in paths.items()})
    return {paths[where]: f"its record can't be written: {err}" for where, err in failed.items()}


def updating(layout: Layout) -> set[str]:
    """Return the names of the environments that may have a second instance."""
    return files.record_names(layout.records(BESIDE))


def _encoded(record: Record) -> bytes:
    return files.encode(
        {
            "version": _VERSION,
            "spec": _spec(record.spec),
            "state": record.state,
            "base": record.base,
            "image": _image(record.image),
            "config": record.config,
            "revision": record.revision,
            "summary": dict(record.summary),
            **_profile(record.profile),
            "runtime": _encoded_runtime(record.runtime),
            **({} if record.previous is None else {"previous": _previous(record.previous)}),
            **({} if record.failed is None else {"failed": msgspec.structs.asdict(record.failed)}),
            **({"confined": record.confined} if record.confined else {}),
        }
    )


def _spec(spec: Environment) -> dict[str, Any]:
    plain: dict[str, Any] = parse.encode(own(spec))
    if not spec.spawns:  # as in records from before there were templates; few environments have any
        del plain["spawns"]
    if spec.tenant is None:  # likewise
        del plain["tenant"]
    if not spec.delegates:
        del plain["delegates"]
    if not spec.secrets:
        del plain["secrets"]
    return plain


def _image(image: Image) -> dict[str, Any]:
    return {"digest": image.digest, "identity": image.identity, "defaults": image.defaults.encode()}


def _encoded_runtime(runtime: Runtime) -> dict[str, Any]:
    return {"name": runtime.name, "settings": dict(runtime.settings)}


def _previous(previous: Previous) -> dict[str, Any]:
    return {
        "spec": _spec(previous.spec),
        "image": _image(previous.image),
        **_profile(previous.profile),
        "runtime": _encoded_runtime(previous.runtime),
    }


def _profile(profile: Profile | None) -> dict[str, Any]:
    return {} if profile is None else {"profile": {"digest": profile.digest, "rules": dict(profile.rules)}}


def read(layout: Layout) -> dict[str, Record]:
    """Return every record, by the environment's name.

    This is for callers that change something and need the user ids, folders and order of all environments.

    :raises StateError: when a record can't be read; the text names it.
    """
    known, damaged = read_each(layout)
    for error in damaged.values():
        raise StateError(error)
    return known


def some(layout: Layout, names: Iterable[str]) -> dict[str, Record]:
    """Return the existing records of *names*, by name.

    :raises StateError: when a record can't be read; the text names it.
    """
    found = ((name, read_one(layout, name)) for name in sorted(files.record_names(layout.records(KIND), names)))
    return {name: record for name, record in found if record is not None}


def in_order(layout: Layout, names: Iterable[str]) -> dict[str, Record]:
    """Return the records of *names*, and of all environments that must be up before these.

    :raises StateError: when a record can't be read; the text names it.
    """
    found: dict[str, Record] = {}
    asked: set[str] = set()
    todo = set(names)
    while todo:
        more = some(layout, todo)
        found.update(more)
        asked |= todo
        todo = {other for record in more.values() for other in record.spec.after} - asked
    return found


def read_each(layout: Layout, names: Collection[str] | None = None) -> tuple[dict[str, Record], dict[str, str]]:
    """Return the readable records, and the errors of unreadable records, both by the environment's name.

    :param names: the environments whose records are read, if they exist; None: all.
    """
    known: dict[str, Record] = {}
    damaged: dict[str, str] = {}
    for name in sorted(files.record_names(layout.records(KIND), names)):
        try:
            record = read_one(layout, name)
        except StateError as err:
            damaged[name] = str(err)
        else:
            if record is not None:
                known[name] = record
    return known, damaged


def read_one(layout: Layout, name: str) -> Record | None:
    """Return one environment's record; None if there is none.

    :raises StateError: when the record can't be read.
    """
    data = files.read_json(path(layout, name))
    return None if data is None else _decode(path(layout, name), name, data)


def _decode(where: Path, name: str, data: dict[str, Any]) -> Record:
    try:
        if data["version"] != _VERSION:
            raise ValueError(f"version {data['version']}, expected {_VERSION}")
        before, failed = data.get("previous"), data.get("failed")
        return Record(
            parse.environment(name, data["spec"]),
            data["state"],
            int(data["base"]),
            _decoded_image(data["image"]),
            data["config"],
            data["revision"],
            data["summary"],
            _decoded_profile(data.get("profile")),
            _runtime(data.get("runtime", {})),
            None
            if before is None
            else Previous(
                parse.environment(name, before["spec"]),
                _decoded_image(before["image"]),
                _decoded_profile(before.get("profile")),
                _runtime(before.get("runtime", {})),
            ),
            None if failed is None else Failed(**failed),
            str(data.get("confined", "")),
        )
    except (NetspaceError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as err:
        raise StateError(f"{where}: {err}; remove the file and apply again to rebuild it") from err


def _runtime(data: dict[str, Any]) -> Runtime:
    # Records from before the choice of runtimes have none: it was crun.
    runtime = Runtime(data.get("name", runtimes.DEFAULT), data.get("settings", {}))
    if runtime.name not in runtimes.names():
        raise NetspaceError(
            f"the runtime {runtime.name!r} with which it was made is gone; install it again, or declare another runtime"
        )
    _ = runtime.typed  # raises for settings that the runtime doesn't have
    return runtime


def _decoded_image(data: dict[str, Any]) -> Image:
    return Image(data["digest"], data["identity"], Defaults.decode(data["defaults"]))


def _decoded_profile(data: dict[str, Any] | None) -> Profile | None:
    return None if data is None else Profile(data["digest"], data["rules"])
