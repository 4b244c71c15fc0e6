"""Images: read-only root file systems, each built once as an erofs file whose name is its SHA-256.

The same source gives the same erofs file on every host, and hosts attest to its digest. After each boot, netspace
checks the file against its name, and mounts it once for all environments. If the kernel can't mount it (no erofs, a
kernel older than 6.12, an unsuitable file system under the file), netspace unpacks the checked file into a folder
beside it and mounts the folder. Only :meth:`Store.prune` and :meth:`Store.remove` remove images. The caller tells this
package which images environments use.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec

from netspace import files
from netspace.environment.images import remote as remotes
from netspace.environment.images import sources, tools, verity
from netspace.environment.images.remote import Remote
from netspace.environment.images.sources import Defaults
from netspace.environment.storage import mounts
from netspace.errors import NetspaceError, StateError
from netspace.layout import Layout
from netspace.log import Log
from netspace.patterns import pattern

FLAGS = mounts.RDONLY | mounts.NOSUID | mounts.NODEV
_FILE = pattern(r"sha256-([0-9a-f]{64})(\.erofs)?")
_NOTE = pattern(r"[0-9a-f]{32}\.json")
_BUILDING = ".building-"
MOUNTED = "mounted"  # in such a folder: where a copy of an image is mounted for a moment
_ASIDE = pattern(r"\..*\.new")  # of netspace.files

log = Log(__name__)


class Image(msgspec.Struct, frozen=True):
    """A built image.

    :param digest: hexadecimal sha256 of the erofs file.
    :param identity: the identity of the source's content at the build.
    """

    digest: str
    identity: str
    defaults: Defaults


class Seen(msgspec.Struct, frozen=True):
    """The state of a source: the identity of its content, or the error if it can't be read."""

    identity: str = ""
    error: str = ""


class Note(msgspec.Struct, frozen=True):
    """A record of the image that was built from a source."""

    image: str
    fingerprint: str
    identity: str
    digest: str
    defaults: Defaults


def mismatch(identity: str, source_hash: str) -> str:
    """Return the error if a source's *identity* differs from its declared hash; empty if they agree or one is empty."""
    if not source_hash or not identity:
        return ""
    _, marked, found = identity.rpartition("sha256:")
    if not marked:
        return "a folder has no source_hash: leave it out"
    wanted = source_hash.lower()[-64:]
    return "" if found == wanted else f"the source's hash is sha256:{found}, but source_hash says sha256:{wanted}"


class Store:
    """The images of one host. For methods that change something, the caller must hold the layout's lock.

    :param remote: fetches sources that are not on this host; None if this is impossible.
    """

    def __init__(self, layout: Layout, remote: Remote | None = None) -> None:
        self._layout = layout
        self._remote = remote
        self._unchanged: dict[str, tuple[str, str]] = {}

    def file(self, digest: str) -> Path:
        return self._layout.images / f"sha256-{digest}.erofs"

    def folder(self, digest: str) -> Path:
        """Return the folder of the unpacked image, on hosts that can't mount the file."""
        return self._layout.images / f"sha256-{digest}"

    def mountpoint(self, digest: str) -> Path:
        return self._layout.run / "images" / f"sha256-{digest}"

    # -- building --------------------------------------------------------------

    def seen(self, image: str) -> Seen:
        """Return the state of a source without building it. Writes nothing.

        The source is hashed only if it may have changed.
        """
        try:
            source, location = sources.split(image)
            note = self.note(image)
            at = remotes.locate(source, location, self._remote)
            if at.url:
                # If there is no master to ask, the content at the last build counts as current.
                return Seen(self._remote.hash(at.url) if self._remote else note.identity if note else "")
            now = source.fingerprint(at.location)
            if note is None or note.fingerprint != now:
                identity = source.identity(at.location)
                if note is not None and note.identity == identity:
                    self._unchanged[image] = (now, identity)
            else:
                identity = note.identity
        except NetspaceError as err:
            return Seen(error=str(err))
        return Seen(identity)

    def problem(self, image: str) -> str:
        """Return why an image can't be built from its source now; empty if the source exists.

        This checks names, sizes and times, not the content, so the build may still refuse the source.
        """
        try:
            source, location = sources.split(image)
            at = remotes.locate(source, location, self._remote)
            if not at.url:
                source.fingerprint(at.location)
            elif self._remote is not None:
                self._remote.hash(at.url)
        except NetspaceError as err:
            return str(err)
        return ""

    def note_seen(self) -> None:
        """Write the new fingerprints of sources whose times changed, but whose contents stayed the same.

        Otherwise, the contents of these sources would be hashed again each time.
        """
        for image, (fingerprint, identity) in self._unchanged.items():
            note = self.note(image)
            if note is not None and note.identity == identity:
                self._write_note(msgspec.structs.replace(note, fingerprint=fingerprint))
        self._unchanged.clear()

    def ensure(self, image: str, source_hash: str = "") -> Image:
        """Return the image of the present content of ``<source>:<location>``; build it if it doesn't exist.

        :param source_hash: sha256 that the source must have.
        :raises NetspaceError: when the source is missing, damaged, not an image, or has another hash. In these cases no
            file of the build stays.
        """
        source, location = sources.split(image)
        note = self.note(image)
        at = remotes.locate(source, location, self._remote)
        if at.url:
            if self._remote is None:
                raise NetspaceError(f"image {image}: only Salt can fetch {at.url}; apply by Salt")
            now = identity = self._remote.hash(at.url)
        else:
            now = source.fingerprint(at.location)
            identity = note.identity if note is not None and note.fingerprint == now else source.identity(at.location)
        if error := mismatch(identity, source_hash):
            raise NetspaceError(f"image {image}: {error}")
        if note is not None and note.identity == identity and self.file(note.digest).exists():
            self._write_note(msgspec.structs.replace(note, fingerprint=now))
            return Image(note.digest, identity, note.defaults)
        log.info("image %s: building", image)
        with self._telling(image), self.aside() as aside:
            if at.url:
                digest, defaults = self._build_fetched(source, at, identity, aside)
            else:
                location = self._pinned(source, at.location, identity, aside) if source_hash else at.location
                digest, defaults = self._build(source, location, aside)
                if source.fingerprint(at.location) != now:
                    raise NetspaceError("the source changed while it was read; apply again when it is complete")
            new = not self.file(digest).exists()
            if new:  # an existing image may be mounted
                (aside / "image").rename(self.file(digest))
            try:
                self._write_note(Note(image, now, identity, digest, defaults))
            except OSError:
                if new:
                    files.remove(self.file(digest))
                raise
        log.info("image %s: built sha256:%s", image, digest)
        return Image(digest, identity, defaults)

    def _build(self, source: sources.Source, location: str, aside: Path) -> tuple[str, Defaults]:
        scratch = aside / "scratch"
        scratch.mkdir()
        target = aside / "image"
        defaults = source.build(location, target, scratch)
        with target.open("rb") as stream:
            digest = sources.digest(stream)
            os.fchmod(stream.fileno(), 0o600)
            os.fsync(stream.fileno())
        verity.enable(target)
        return digest, defaults

    @staticmethod
    def _pinned(source: sources.Source, location: str, identity: str, aside: Path) -> str:
        """Copy a source with a declared hash, so that nobody changes it between check and use; return the copy."""
        folder = aside / "pinned"
        folder.mkdir()
        copy = sources.pinned(source, location, folder)
        if source.identity(copy) != identity:
            raise NetspaceError("the source changed while it was read; apply again when it is complete")
        return copy

    def _build_fetched(
        self, source: sources.Source, at: remotes.Located, identity: str, aside: Path
    ) -> tuple[str, Defaults]:
        assert self._remote is not None
        log.info("image source %s: fetching", at.url)
        folder = aside / "remote"
        folder.mkdir()
        fetched = self._remote.fetch(at.url, folder)
        found = sources.of_content(fetched)
        if found != identity:
            raise NetspaceError(f"{at.url}: the fetched file is {found}, but the server said {identity}; apply again")
        try:
            return self._build(source, f"{fetched}{at.rest}", aside)
        except NetspaceError as err:
            raise NetspaceError(str(err).replace(str(fetched), at.url)) from err

    @contextlib.contextmanager
    def _telling(self, image: str) -> Iterator[None]:
        """Context manager that adds the image's name to every error, and the remedy if the disk is full."""
        try:
            yield
        except (NetspaceError, OSError) as err:
            message = str(err)
            full = isinstance(err, OSError) and err.errno in (errno.ENOSPC, errno.EDQUOT)
            if full or os.strerror(errno.ENOSPC) in message:
                message += f"; make room in {self._layout.images}, for example by netspace_image.prune, and apply again"
            raise NetspaceError(message if image in message else f"image {image}: {message}") from err

    @contextlib.contextmanager
    def aside(self) -> Iterator[Path]:
        """Context manager that makes a temporary folder beside the images.

        If the run is killed, the next apply removes the folder.
        """
        import shutil
        import tempfile

        self._layout.images.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=self._layout.images))
        try:
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def tidy(self) -> None:
        """Remove the remains of interrupted builds. The caller holds the lock, so no build runs."""
        for entry in self._entries():
            if entry.name.startswith(_BUILDING):
                import shutil  # only after a kill

                tools.end_those_in(Path(entry.path))
                mounts.unmount(Path(entry.path) / MOUNTED)
                shutil.rmtree(entry.path, ignore_errors=True)
            elif _ASIDE.fullmatch(entry.name):
                files.remove(Path(entry.path))

    # -- notes: which source became which image ----------------------------------

    def note(self, image: str) -> Note | None:
        """Return the note on the image of a source; None if there is none or it can't be read."""
        return self._read_note(self._note_path(image))

    def notes(self) -> list[Note]:
        """Return all notes, ordered by source."""
        paths = [Path(entry.path) for entry in self._entries() if _NOTE.fullmatch(entry.name)]
        found = [note for note in map(self._read_note, paths) if note is not None]
        return sorted(found, key=lambda note: note.image)

    def digests(self) -> list[str]:
        """Return the digests of all images on this host."""
        matches = (_FILE.fullmatch(entry.name) for entry in self._entries())
        return sorted(match[1] for match in matches if match and match[2])

    def _entries(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self._layout.images) as found:
                return list(found)
        except FileNotFoundError:
            return []

    def _note_path(self, image: str) -> Path:
        return self._layout.images / f"{hashlib.sha256(image.encode()).hexdigest()[:32]}.json"

    def _write_note(self, note: Note) -> None:
        files.write_json(
            self._note_path(note.image),
            {
                "image": note.image,
                "fingerprint": note.fingerprint,
                "identity": note.identity,
                "digest": note.digest,
                "defaults": note.defaults.encode(),
            },
        )

    @staticmethod
    def _read_note(path: Path) -> Note | None:
        # A note only saves work, so ignore an invalid one.
        with contextlib.suppress(StateError, KeyError, TypeError, AttributeError, ValueError):
            data = files.read_json(path)
            if data is not None and re.fullmatch(r"[0-9a-f]{64}", data["digest"]):
                return Note(
                    str(data["image"]),
                    str(data["fingerprint"]),
                    str(data["identity"]),
                    data["digest"],
                    Defaults.decode(data["defaults"]),
                )
        return None

    # -- checking and mounting -----------------------------------------------------

    def damage(self, digest: str) -> str:
        """Read the whole image; return its damage and the remedy, or an empty text if the content matches the name."""
        path = self.file(digest)
        remedy = f"remove it and apply again: rm {path}"
        try:
            with path.open("rb") as stream:
                found = sources.digest(stream)
        except FileNotFoundError:
            return f"image {path} is missing; apply again to build it from its source"
        except OSError as err:
            return f"image {path} can't be read ({err.strerror}); {remedy}"
        return "" if found == digest else f"image {path} was changed (its sha256 is {found}); {remedy}"

    def mount(self, digest: str, mounted: Collection[str]) -> Path:
        """Mount the image if it isn't mounted; return its mount point.

        :param mounted: targets of the existing mounts.
        :raises NetspaceError: when the image is missing, or its content doesn't match its name.
        """
        target = self.mountpoint(digest)
        if str(target) in mounted:
            return target
        if error := self.damage(digest):
            raise NetspaceError(error)
        path = self.file(digest)
        verity.enable(path)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if target.parent.stat().st_mode & 0o077:  # made by an older version
            target.parent.chmod(0o700)
        target.mkdir(exist_ok=True, mode=0o700)
        try:
            mounts.mount(path, target, "erofs", FLAGS)
        except OSError as err:
            # ENODEV: the kernel has no erofs. ENOTBLK, EINVAL: it can't mount a file, or none of this file system.
            if err.errno not in (errno.ENODEV, errno.ENOTBLK, errno.EINVAL):
                raise NetspaceError(str(err)) from err
            mounts.bind(self._unpack(digest), target, FLAGS)
        return target

    def _unpack(self, digest: str) -> Path:
        """Unpack the checked image into a folder beside it; replace an existing folder, which may have been changed."""
        folder, path = self.folder(digest), self.file(digest)
        log.info("image sha256:%s: unpacking, since this host can't mount it", digest)
        with self._telling(str(path)), self.aside() as aside:
            root = aside / "root"
            tools.run(
                ["fsck.erofs", "--preserve", "--xattrs", f"--extract={root}", str(path)],
                f"image {path} can't be unpacked",
            )
            if folder.exists():
                folder.rename(aside / "old")
            root.rename(folder)
        return folder

    # -- removing ------------------------------------------------------------------

    def remove(self, digest: str) -> None:
        """Remove an unused image with its notes, its unpacked folder and its mount."""
        import shutil

        target = self.mountpoint(digest)
        with contextlib.suppress(FileNotFoundError):
            mounts.unmount(target)
            os.rmdir(target)
        for note in self.notes():
            if note.digest == digest:
                files.remove(self._note_path(note.image))
        files.remove(self.file(digest))
        shutil.rmtree(self.folder(digest), ignore_errors=True)

    def unused(self, used: Collection[str]) -> list[str]:
        """Return the digests of all images, and of remains of images, that are not in *used*."""
        found = {match[1] for entry in self._entries() if (match := _FILE.fullmatch(entry.name))}
        with contextlib.suppress(FileNotFoundError), os.scandir(self._layout.run / "images") as entries:
            found |= {match[1] for entry in entries if (match := _FILE.fullmatch(entry.name))}
        found |= {note.digest for note in self.notes()}
        return sorted(found - set(used))

    def prune(self, used: Collection[str]) -> None:
        """Remove every image that is not in *used*, and the remains of interrupted builds."""
        self.tidy()
        for digest in self.unused(used):
            self.remove(digest)
