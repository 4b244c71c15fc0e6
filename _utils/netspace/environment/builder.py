"""Builder of environments: their mounts, configurations and files, for a batch and after a reboot.

The builder makes exactly what the environment's record says. Only *tune* and *hand_out* may change a running
environment. Only *restore* writes records, since a reboot can change a configuration.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from netspace import files
from netspace.environment import record as records
from netspace.environment import services
from netspace.environment.container import apparmor, cgroups, domain, oci_config, seccomp, unikernel
from netspace.environment.container import oci_runtime as runtime
from netspace.environment.container.seccomp_file import Profile
from netspace.environment.images import Image, Store
from netspace.environment.observe import assembled, own_disks
from netspace.environment.record import Record
from netspace.environment.runtimes import Runtime
from netspace.environment.storage import disks, injected_files, mounts, rootfs, volumes
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.spec.types import Environment, Io
from netspace.supervision.cgroup import booted, payload_cgroup
from netspace.supervision.cgroup import controllers as host_controllers
from netspace.supervision.service import Service

_THREADS = 8
_KEPT = 64  # contents of `config.json`, 10 kB each

T = TypeVar("T")


class Builder:
    """Builder of the environments of one layout (one instance of netspace).

    :param store: the store of the environments' images.
    """

    def __init__(self, layout: Layout, store: Store) -> None:
        self.layout = layout
        self.store = store
        self.confinement = apparmor.Confinement(layout)
        self._contents: dict[str, tuple[tuple[Any, ...], bytes]] = {}

    @functools.cached_property
    def controllers(self) -> frozenset[str]:
        """The cgroup controllers that can enforce limits here.

        ``sockets`` is among them if the kernel limits the memory of sockets separately.
        """
        return cgroups.limits(host_controllers()) | cgroups.sockets()

    @functools.cached_property
    def unified(self) -> bool:
        """True if the host's controllers are those of cgroup version 2."""
        return Path(cgroups.ROOT, "cgroup.controllers").exists()

    @functools.cached_property
    def _own_disk(self) -> cgroups.Device | None:
        return cgroups.disk(self.layout.layers)

    def devices(self, spec: Environment) -> frozenset[cgroups.Device]:
        """Return the disks on which the environment's layer and volumes are stored."""
        sources = [Path(volume.source) for volume in spec.volumes if volume.source is not None]
        found = {self._own_disk, *(cgroups.disk(source) for source in sources)}
        return frozenset(device for device in found if device is not None)

    def render(
        self,
        name: str,
        spec: Environment,
        base: int,
        image: Image,
        runtime: Runtime,
        profile: Profile | None = None,
        confined: str = "",
    ) -> bytes:
        """Return the environment's configuration for its runtime, such as ``config.json`` of an OCI bundle.

        A run asks twice for each environment: for the record and for the bundle. Of a few environments the first
        content is kept, unless it depends on more than the arguments: on files of a kernel or on disks.
        """
        if runtime.outside:
            return domain.configuration(self.layout, name, spec, runtime)
        given = (spec, base, image, runtime, profile, confined)
        kept = self._contents.get(name)
        if kept is not None and kept[0] == given:
            return kept[1]
        rules = None if profile is None else profile.rules
        opened: tuple[str, ...] = ()
        seen: list[dict[str, Any]] = []
        if spec.kernel is not None:
            spec = unikernel.program(self.layout, name, spec, runtime, image.defaults)
            opened = runtime.module.devices(runtime.typed)
            seen = unikernel.extra_mounts(self.layout, name, runtime)
            rules = rules or seccomp.tender(looks=runtime.module.LOOKS)
        content = oci_config.encode(
            oci_config.config(
                name,
                spec,
                layout=self.layout,
                base=base,
                cgroup=self.cgroup(name),
                controllers=self.controllers,
                disks=self.devices(spec) if spec.limits.io != Io() else (),
                unified=self.unified,
                defaults=image.defaults,
                rules=rules,
                lacks=runtime.jail.lacks,
                opened=opened,
                seen=seen,
                confined=confined,
            )
        )
        if given[0].kernel is None and spec.limits.io == Io() and len(self._contents) < _KEPT:
            self._contents[name] = given, content
        return content

    def cgroup(self, name: str) -> str:
        return payload_cgroup(self.layout, runtime.service_name(name))

    def assemble(self, name: str, record: Record) -> str:
        """Mount the root file system and write the runtime's configuration.

        The image must be mounted, and the environment must not run.

        :return: SHA-256 of the configuration, for the record.
        """
        spec = record.spec
        rootfs.dismantle(self.layout, name)
        for volume in spec.volumes:
            volumes.ensure(self.layout, name, volume, oci_config.user_of(spec, record.image.defaults))
        keep = record.previous.image.digest if record.previous is not None else ""
        with self._image(record) as image:
            rootfs.assemble(self.layout, name, spec, image, record.image.digest, record.base, keep)
        if "idmap" in record.runtime.jail.lacks:
            volumes.show(self.layout, name, spec.volumes)
        return self._configure(name, record, self._rendered(name, record))

    def _image(self, record: Record) -> contextlib.AbstractContextManager[Path]:
        """Return the mounted image of an environment's root: the shared image, or a copy of it."""
        digest = record.image.digest
        if record.spec.image_cache == "own":
            from netspace.environment.images import copies  # few environments want it

            return copies.mounted(self.store, digest)
        return contextlib.nullcontext(self.store.mountpoint(digest))

    def _rendered(self, name: str, record: Record) -> bytes:
        return self.render(
            *(name, record.spec, record.base, record.image, record.runtime, record.profile), record.confined
        )

    def _configure(self, name: str, record: Record, content: bytes) -> str:
        files.write(runtime.configuration(self.layout, name, record.runtime), content)
        return hashlib.sha256(content).hexdigest()

    def tuned(self, name: str, record: Record) -> bytes:
        """Return ``config.json`` as it was made, but with the limits of *record*.

        An environment that an earlier version of netspace made keeps all other settings of that version until it is
        rebuilt. So it may lack mounts that the present version's configuration has.
        """
        content = self._rendered(name, record)
        if record.revision == oci_config.revision(self.controllers):
            return content
        made = msgspec.json.decode(files.read(runtime.configuration(self.layout, name, record.runtime)))
        made["linux"]["resources"] = msgspec.json.decode(content)["linux"]["resources"]
        return oci_config.encode(made)

    def tune(self, name: str, record: Record, mounted: Mapping[str, mounts.Mount]) -> None:
        """Set the limits of an assembled, perhaps running, environment to the limits in its record.

        :raises NetspaceError: when a limit can't be changed in place.
        """
        self._configure(name, record, self.tuned(name, record))
        for place in disks.places(self.layout, name, record.spec, record.image.digest):
            mount = mounted.get(str(place.point))
            if mount is not None:
                disks.grow(place, mount.source)
        hierarchies = cgroups.Hierarchies(mounted, self.controllers)
        group = cgroups.Group(self.cgroup(name), hierarchies, unit=booted(), lacks=record.runtime.jail.lacks)
        group.change(record.spec.limits, self.devices(record.spec))

    def hand_out(self, name: str, record: Record, handed: Mapping[str, bytes]) -> None:
        """Write the files in *handed* to the environment's ``/run/netspace``.

        A unikernel also gets its own copy of its disk, if its runtime opens the disk for writing.
        """
        owner = (record.base, record.base + oci_config.group_of(record.spec, record.image.defaults))
        injected_files.show(self.layout, name, handed, owner)
        if record.spec.kernel is not None:
            unikernel.hand_out(self.layout, name, record.runtime, handed, owner)

    def mount_images(self, digests: Iterable[str], mounted: Collection[str]) -> dict[str, str]:
        """Mount the images that are not mounted yet; return the errors, by digest."""
        return each(set(digests), lambda digest: self.store.mount(digest, mounted))

    def service(self, name: str, spec: Environment, used: Runtime, mounted: Mapping[str, mounts.Mount]) -> Service:
        return services.service(self.layout, name, spec, used, mounted, self.controllers)

    def restore(self, known: Mapping[str, Record], ended: Collection[str] = ()) -> dict[str, str]:
        """Rebuild the missing mounts, bundles and files of these environments; return the errors, by environment.

        :param ended: the environments that don't run. They get the AppArmor profile that a new environment would get.
        """
        self.store.tidy()
        mounted = mounts.table()
        revision = oci_config.revision(self.controllers)

        def outdated(record: Record) -> bool:
            return record.revision != revision or self.confinement.outdated(
                record.spec, record.runtime, record.confined
            )

        def whole(name: str, record: Record) -> bool:
            own = own_disks(self.layout, name, record, mounted)
            return assembled(self.layout, name, record, mounted, own, revision)

        lost = {
            name: record
            for name, record in known.items()
            if (name in ended and outdated(record)) or not whole(name, record)
        }
        errors = self.mount_images({record.image.digest for record in lost.values()}, mounted)

        def rebuild(name: str) -> None:
            record = lost[name]
            if error := errors.get(record.image.digest):
                raise NetspaceError(error)
            confined = self.confinement.chosen(record.spec, record.runtime)
            record = msgspec.structs.replace(record, confined=confined, revision=revision)
            # Disks may have new device numbers: record the new digest, so that the plan finds no change.
            records.write(self.layout, name, msgspec.structs.replace(record, config=self.assemble(name, record)))
            self.hand_out(name, record, injected_files.read(self.layout, name))

        def complete(name: str) -> None:
            """Write the files in ``/run/netspace`` again.

            An interrupted restoration may have written only the configuration.
            """
            self.confinement.ensure(known[name].confined, known[name].spec.apparmor == "require")
            self.hand_out(name, known[name], injected_files.read(self.layout, name))

        return {**each(lost, rebuild), **each(known.keys() - lost.keys(), complete)}


def each(items: Iterable[T], act: Callable[[T], object]) -> dict[T, str]:
    """Call *act* for each item, several at once; return the errors, by item."""

    def attempt(item: T) -> tuple[T, str]:
        try:
            act(item)
        except (NetspaceError, OSError) as err:
            return item, str(err)
        except Exception as err:  # no error may stop the other items
            return item, f"{type(err).__name__}: {err}"
        return item, ""

    todo = list(items)
    if len(todo) < 2:
        done = [attempt(item) for item in todo]
    else:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(_THREADS) as pool:
            done = list(pool.map(attempt, todo))
    return {item: error for item, error in done if error}
