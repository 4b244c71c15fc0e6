"""Operations on images: build, list, inspect, verify, remove.

Each change is planned and then applied, so a test run shows the plan. The caller tells this module which images are
used. Returned values can be written as JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from netspace.environment.images import Note, Store, mismatch, verity
from netspace.environment.images.sources import Defaults
from netspace.environment.storage import mounts
from netspace.errors import NetspaceError
from netspace.plan import Outcome, Plan, Refusal, Step
from netspace.spec import checks
from netspace.text import harmless

KIND = "image"
_SHORTEST = 12  # hexadecimal digits that name an image

# Names of environments, by the digest of the image they use.
Users = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Wanted:
    """A desired image.

    :param source: ``<source>:<location>``.
    :param source_hash: sha256 that the source must have; empty: any.
    :param digest: sha256 that the image must have; empty: any.
    """

    source: str
    source_hash: str = ""
    digest: str = ""


class Images:
    """The images of one host. For methods that change something, the caller must hold the layout's lock.

    :param users: returns the environments that use an image now, by image.
    """

    def __init__(self, store: Store, users: Callable[[], Users]) -> None:
        self._store = store
        self._users = users

    # -- seeing ------------------------------------------------------------------

    def list(self) -> dict[str, dict[str, Any]]:
        """Return ``sources``, ``size`` (bytes), ``built`` (seconds since 1970), ``used_by``, ``mounted`` per image."""
        users, mounted = self._users(), mounts.table()
        sources: dict[str, list[str]] = {}
        for note in self._store.notes():
            sources.setdefault(note.digest, []).append(note.image)
        return {
            f"sha256:{digest}": self._row(digest, sources.get(digest, []), users.get(digest, ()), mounted)
            for digest in sorted({*self._store.digests(), *users})
        }

    def _row(
        self, digest: str, sources: Sequence[str], users: Sequence[str], mounted: Collection[str]
    ) -> dict[str, Any]:
        try:
            info = self._store.file(digest).stat()
        except FileNotFoundError:
            info = None  # an environment uses it, but its file is missing
        return {
            "sources": list(sources),
            "size": info.st_size if info else None,
            "built": int(info.st_mtime) if info else None,
            "used_by": sorted(users),
            "mounted": str(self._store.mountpoint(digest)) in mounted,
        }

    def inspect(self, name: str) -> dict[str, Any]:
        """Return all facts about one image, without the values of variables.

        The result has the keys of :meth:`list`, and ``digest``, ``file``, ``unpacked`` (the folder, if this host can't
        mount the file), ``verity`` (the fs-verity digest, or why there is none), and for each source the image's own
        settings for running it.
        """
        digest = self.resolve(name)
        row = self.list()[f"sha256:{digest}"]
        file, folder = self._store.file(digest), self._store.folder(digest)
        measured, why = verity.measure(file) if file.exists() else ("", "the file is missing")
        return {
            "digest": f"sha256:{digest}",
            **row,
            "file": str(file),
            "unpacked": str(folder) if folder.is_dir() else None,
            "verity": measured or f"none: {why}",
            "sources": {note.image: _described(note) for note in self._store.notes() if note.digest == digest},
        }

    def resolve(self, name: str) -> str:
        """Return the digest of the image that *name* selects.

        :param name: a source, a digest, or the beginning of a digest.
        :raises NetspaceError: when *name* selects no image, or several.
        """
        note = self._store.note(name)
        if note is not None:
            return note.digest
        known = {*self._store.digests(), *self._users()}
        short = name.removeprefix("sha256:").lower()
        found = [digest for digest in known if len(short) >= _SHORTEST and digest.startswith(short)]
        if len(found) == 1:
            return found[0]
        if found:
            raise NetspaceError(f"image {name}: the digests of {len(found)} images begin like this; give more digits")
        raise NetspaceError(f"image {name}: there is no such image; netspace_image.list shows them")

    def verify(self, names: Collection[str] = ()) -> dict[str, str]:
        """Read whole images (by default all); return the damage of each image, empty for an undamaged image."""
        digests = [self.resolve(name) for name in names] or sorted({*self._store.digests(), *self._users()})
        return {f"sha256:{digest}": self._store.damage(digest) for digest in digests}

    # -- building ------------------------------------------------------------------

    def plan(self, wanted: Mapping[str, Wanted]) -> Plan:
        """Plan the builds of images.

        The method may ask a server for hashes, but fetches and writes nothing.

        :param wanted: the wanted images, by names that the caller chooses. The steps and refusals have these names.
        """
        steps, refusals = [], []
        for name, want in wanted.items():
            found = self._needed(name, want)
            if isinstance(found, Step):
                steps.append(found)
            elif found:
                refusals.append(Refusal(KIND, name, found))
        return Plan(steps, refusals)

    def _needed(self, name: str, want: Wanted) -> Step | str:
        """Return the step that builds the image, or why it can't be built; empty if it exists already."""
        if error := _invalid(want):
            return error
        seen = self._store.seen(want.source)
        if error := seen.error or mismatch(seen.identity, want.source_hash):
            return error
        note = self._store.note(want.source)
        old = None
        if note is not None and self._store.file(note.digest).exists():
            if note.identity == seen.identity:
                return _other(note.digest, want)
            old = f"sha256:{note.digest}"
        changes = {"digest": {"old": old, "new": f"the present {want.source}"}}
        return Step(KIND, name, "build", changes, data=want)

    def apply(self, steps: Sequence[Step]) -> Sequence[Outcome]:
        """Build the planned images; return the outcomes, which have the images' digests."""
        self._store.tidy()
        return [self._build(step) for step in steps]

    def _build(self, step: Step) -> Outcome:
        want: Wanted = step.data
        before = self._store.note(want.source)
        known = set(self._store.digests())
        try:
            image = self._store.ensure(want.source, want.source_hash)
        except (NetspaceError, OSError) as err:
            return Outcome(step, str(err))
        if error := _other(image.digest, want):
            if image.digest not in known:
                self._store.remove(image.digest)
            return Outcome(step, error)
        change = {"old": step.changes["digest"]["old"], "new": f"sha256:{image.digest}"}
        changes: dict[str, dict[str, Any]] = {"digest": change} if change["old"] != change["new"] else {}
        if before is not None and before.identity != image.identity:
            changes["source"] = {"old": before.identity, "new": image.identity}
        return Outcome(msgspec.structs.replace(step, changes=changes))

    # -- removing ------------------------------------------------------------------

    def plan_absent(self, name: str) -> Plan:
        """Plan the removal of the image *name*; refuse it while an environment uses the image."""
        try:
            digest = self.resolve(name)
        except NetspaceError as err:
            short = name.removeprefix("sha256:").lower()
            if short and any(digest.startswith(short) for digest in (*self._store.digests(), *self._users())):
                return Plan(refusals=[Refusal(KIND, name, f"{err}; name it by {_SHORTEST} digits or more")])
            return Plan()
        if users := self._users().get(digest):
            environments = ", ".join(sorted(users))
            return Plan(refusals=[Refusal(KIND, name, f"sha256:{digest} is used by {environments}; remove them first")])
        return Plan([self._removal(name, digest)])

    def plan_prune(self) -> Plan:
        """Plan the removal of every image that no environment uses."""
        return Plan([self._removal(f"sha256:{digest}", digest) for digest in self._store.unused(self._users())])

    def _removal(self, name: str, digest: str) -> Step:
        file = self._store.file(digest)
        size = file.stat().st_size if file.exists() else 0
        changes: dict[str, dict[str, Any]] = {
            "digest": {"old": f"sha256:{digest}", "new": None},
            "size": {"old": size, "new": None},
        }
        return Step(KIND, name, "remove", changes, data=digest)

    def apply_removal(self, steps: Sequence[Step]) -> Sequence[Outcome]:
        """Remove the planned images, and the remains of interrupted builds."""
        self._store.tidy()
        outcomes = []
        for step in steps:
            try:
                self._store.remove(step.data)
            except OSError as err:
                outcomes.append(Outcome(step, str(err)))
            else:
                outcomes.append(Outcome(step))
        return outcomes


def _invalid(want: Wanted) -> str:
    if message := checks.image(want.source):
        return message
    for key, value in (("source_hash", want.source_hash), ("digest", want.digest)):
        if value and (message := checks.source_hash(value)):
            return f"{key}: {message}"
    return ""


def _other(digest: str, want: Wanted) -> str:
    wanted = want.digest.lower()[-64:]
    return "" if wanted in ("", digest) else f"{want.source} makes sha256:{digest}, but digest says sha256:{wanted}"


def _described(note: Note) -> dict[str, Any]:
    return {"identity": note.identity, **shown(note.defaults)}


def shown(defaults: Defaults) -> dict[str, Any]:
    """Return an image's own settings for an operator, with control characters escaped."""
    return {
        "entrypoint": [*map(harmless, defaults.entrypoint)],
        "cmd": [*map(harmless, defaults.cmd)],
        "env": [name for name, _ in defaults.env],
        "user": defaults.user or None,
        "group": defaults.group or None,
        "working_dir": harmless(defaults.working_dir) or None,
        "notes": list(defaults.notes),
    }
