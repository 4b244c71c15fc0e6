"""What there is of our environments: reads, never writes.

What was applied is in the records; what is there (mounts, configuration, files, the
service) is looked at once for all of them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from netspace.environment import handout, images, mounts, oci, records, rootfs, runtime
from netspace.environment.images import Store
from netspace.environment.records import Record
from netspace.layout import Layout
from netspace.supervision import Status, Supervisor


@dataclass(frozen=True)
class Seen:
    """One environment as it was found.

    :param status: of its service; None where none is defined.
    :param assembled: its root is mounted and its configuration is as recorded.
    :param files: sha256 of each file handed out; None where they are damaged.
    :param namespace: whether it runs in the network namespace that has its name.
    :param halted: it was stopped by us, and not started since.
    """

    record: Record
    status: Status | None
    assembled: bool
    files: Mapping[str, str] | None
    namespace: bool = True
    halted: bool = False


@dataclass(frozen=True)
class Observed:
    """All environments, and their images' sources (by the text in the declaration).

    :param unkept: the limits that nothing on this host can keep.
    """

    environments: Mapping[str, Seen]
    sources: Mapping[str, images.Seen]
    revision: str
    unkept: tuple[str, ...] = ()


def observe(layout: Layout, supervisor: Supervisor, store: Store, controllers: Collection[str]) -> Observed:
    """Look at everything once: records, services, mounts, files, image sources. Changes nothing.

    :param controllers: the cgroup controllers that can keep limits here.
    """
    known = records.read(layout)
    statuses = supervisor.observe() if known else {}
    mounted = mounts.table() if known else {}
    found = {}
    for name, record in known.items():
        status = statuses.get(runtime.service_name(name))
        found[name] = Seen(
            record,
            status,
            assembled(layout, name, record, mounted),
            handout.observe(layout, name),
            _in_namespace(layout, name, status),
            runtime.halt_mark(layout, name).exists(),
        )
    sources = {image: store.seen(image) for image in sorted({record.spec.image for record in known.values()})}
    unkept = tuple(key for key, needed in oci.CONTROLLERS.items() if needed not in controllers)
    return Observed(found, sources, oci.revision(controllers), unkept)


def assembled(layout: Layout, name: str, record: Record, mounted: Collection[str]) -> bool:
    """Whether the root is mounted and the configuration is as recorded."""
    if not rootfs.is_assembled(layout, name, mounted):
        return False
    try:
        written = (layout.bundle(name) / "config.json").read_bytes()
    except OSError:
        return False
    return hashlib.sha256(written).hexdigest() == record.config


def _in_namespace(layout: Layout, name: str, status: Status | None) -> bool:
    if status is None or status.state != "running" or not status.pid:
        return True
    try:
        return os.path.samestat(os.stat(f"/proc/{status.pid}/ns/net"), os.stat(layout.netns(name)))
    except FileNotFoundError:
        # The process just ended (then its status will tell), or the namespace is gone.
        return not os.path.exists(f"/proc/{status.pid}")


def describe(record: Record, status: Status | None) -> dict[str, Any]:
    """One environment in a table; see ``Environments.list``."""
    status = status or Status("stopped")
    return {
        "state": status.state,
        "pid": status.pid,
        "since": status.since,
        "restarts": status.restarts,
        "exit": status.exit,
        "image": record.spec.image,
        "digest": f"sha256:{record.image.digest}",
        "wanted": record.state,
    }
