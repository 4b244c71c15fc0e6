"""Images: read-only roots, kept under the sha256 of their erofs file, built once.

The erofs file is the image on every host, and its digest is what a host attests to. It is
mounted once, straight from the file, after its content was checked against its name (again
after each boot). Where the kernel can't do that (no erofs, older than 6.12, a file system
that can't back it), the file is checked just so and unpacked beside itself, and that folder
is mounted. Images don't know environments: who uses what is the caller's to say.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netspace import files
from netspace.environment import mounts
from netspace.environment.images import sources
from netspace.environment.images.sources import Defaults
from netspace.errors import MissingError, NetspaceError
from netspace.layout import Layout

_FLAGS = mounts.RDONLY | mounts.NOSUID | mounts.NODEV
_FILE = re.compile(r"sha256-([0-9a-f]{64})(\.erofs)?")
_BUILDING = ".building-"


@dataclass(frozen=True)
class Image:
    """A built image.

    :param digest: hexadecimal sha256 of the erofs file.
    :param identity: of the source's content it was built from.
    """

    digest: str
    identity: str
    defaults: Defaults


@dataclass(frozen=True)
class Seen:
    """What a source looks like now: its content's identity, or why it can't be told."""

    identity: str = ""
    error: str = ""


class Store:
    """The images of one host. Calls that change something need the layout's lock held."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._unchanged: dict[str, tuple[str, str]] = {}

    def file(self, digest: str) -> Path:
        return self._layout.images / f"sha256-{digest}.erofs"

    def mountpoint(self, digest: str) -> Path:
        return self._layout.run / "images" / f"sha256-{digest}"

    # -- building --------------------------------------------------------------

    def seen(self, image: str) -> Seen:
        """Look at a source without building it; hashes it only if it may have changed. Writes nothing."""
        try:
            source, location = sources.split(image)
            now = source.fingerprint(location)
            note = self._note(image)
            if note is None or note["fingerprint"] != now:
                identity = source.identity(location)
                if note is not None and note["identity"] == identity:
                    self._unchanged[image] = (now, identity)
            else:
                identity = str(note["identity"])
        except NetspaceError as err:
            return Seen(error=str(err))
        return Seen(identity)

    def note_seen(self) -> None:
        """Note which sources were seen to be touched but the same, so that they aren't hashed again."""
        for image, (fingerprint, identity) in self._unchanged.items():
            note = self._note(image)
            if note is not None and note["identity"] == identity:
                files.write_json(self._note_path(image), {**note, "fingerprint": fingerprint})
        self._unchanged.clear()

    def ensure(self, image: str) -> Image:
        """Have the image that ``<source>:<location>`` is now, building it if need be.

        :raises NetspaceError: when the source is missing, damaged or no image.
        """
        source, location = sources.split(image)
        now = source.fingerprint(location)
        note = self._note(image)
        if note is not None and note["fingerprint"] == now and self.file(note["digest"]).exists():
            return Image(note["digest"], note["identity"], Defaults.decode(note["defaults"]))
        identity = source.identity(location)
        if note is None or note["identity"] != identity or not self.file(note["digest"]).exists():
            digest, defaults = self._build(source, location)
        else:
            digest, defaults = note["digest"], Defaults.decode(note["defaults"])
        if source.fingerprint(location) != now:
            raise NetspaceError(f"image {image}: the source changed while it was read; apply again when it is complete")
        note = {
            "image": image,
            "fingerprint": now,
            "identity": identity,
            "digest": digest,
            "defaults": defaults.encode(),
        }
        files.write_json(self._note_path(image), note)
        return Image(digest, identity, defaults)

    def _build(self, source: sources.Source, location: str) -> tuple[str, Defaults]:
        with self._aside() as aside:
            scratch = aside / "scratch"
            scratch.mkdir()
            target = aside / "image"
            defaults = source.build(location, target, scratch)
            with target.open("rb") as stream:
                digest = sources.digest(stream)
                os.fchmod(stream.fileno(), 0o600)
                os.fsync(stream.fileno())
            if not self.file(digest).exists():  # else it may be mounted
                target.rename(self.file(digest))
        return digest, defaults

    @contextlib.contextmanager
    def _aside(self) -> Iterator[Path]:
        self._layout.images.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=self._layout.images))
        try:
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _note_path(self, image: str) -> Path:
        return self._layout.images / f"{hashlib.sha256(image.encode()).hexdigest()[:32]}.json"

    def _note(self, image: str) -> dict[str, Any] | None:
        return files.read_json(self._note_path(image))

    # -- mounting --------------------------------------------------------------

    def mount(self, digest: str, mounted: Collection[str]) -> Path:
        """Have the image mounted; return where.

        :param mounted: targets of the mounts that are there.
        :raises NetspaceError: when it is missing, or isn't what its name says.
        """
        target = self.mountpoint(digest)
        if str(target) in mounted:
            return target
        path = self.file(digest)
        try:
            with path.open("rb") as stream:
                found = sources.digest(stream)
        except FileNotFoundError as err:
            raise NetspaceError(f"image {path} is missing; apply again to build it from its source") from err
        if found != digest:
            raise NetspaceError(f"image {path} was changed (its sha256 is {found}): remove the file and apply again")
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            mounts.mount(path, target, "erofs", _FLAGS)
        except OSError as err:
            # ENODEV: no erofs. ENOTBLK, EINVAL: it can't mount a file (of this file system).
            if err.errno not in (errno.ENODEV, errno.ENOTBLK, errno.EINVAL):
                raise NetspaceError(str(err)) from err
            mounts.bind(self._unpack(digest), target, _FLAGS)
        return target

    def _unpack(self, digest: str) -> Path:
        """Unpack the checked image beside itself, afresh: what lies there may have been changed."""
        folder = self._layout.images / f"sha256-{digest}"
        with self._aside() as aside:
            root = aside / "root"
            try:
                done = subprocess.run(
                    ["fsck.erofs", "--preserve", "--xattrs", f"--extract={root}", str(self.file(digest))],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    check=False,
                )
            except FileNotFoundError as err:
                raise MissingError("the program fsck.erofs", "install it: apt-get install erofs-utils") from err
            if done.returncode != 0:
                message = " ".join(done.stderr.decode(errors="replace").split())[-600:]
                raise NetspaceError(f"image {self.file(digest)} can't be unpacked: {message}")
            if folder.exists():
                folder.rename(aside / "old")
            root.rename(folder)
        return folder

    # -- tidying ---------------------------------------------------------------

    def prune(self, used: Collection[str]) -> None:
        """Remove every image but those in *used*, and what an interrupted build left."""
        with contextlib.suppress(FileNotFoundError):
            for entry in sorted(os.scandir(self._layout.run / "images"), key=lambda entry: entry.name):
                match = _FILE.fullmatch(entry.name)
                if match and match[1] not in used:
                    mounts.unmount(Path(entry.path))
                    os.rmdir(entry.path)
        try:
            entries = list(os.scandir(self._layout.images))
        except FileNotFoundError:
            return
        for entry in entries:
            match = _FILE.fullmatch(entry.name)
            if entry.name.startswith(_BUILDING) or (match and not match[2] and match[1] not in used):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif match and match[1] not in used:
                files.remove(Path(entry.path))
            elif entry.name.endswith(".json"):
                note = files.read_json(Path(entry.path))
                if note is not None and note["digest"] not in used:
                    files.remove(Path(entry.path))
