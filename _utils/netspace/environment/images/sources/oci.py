"""``oci:/srv/images/shop:orders``: a tagged image in an OCI layout folder, or in a tar of such a folder.

A tar may contain an OCI layout (``skopeo copy ... oci-archive:``) or the output of ``docker save``; the module
recognizes both. It checks every blob and every layer against its digest while reading. Layers are combined in memory,
and nothing is unpacked on the host. Sources: the OCI image specification 1.1 (image-layout.md, manifest.md, config.md,
layer.md) and Docker's image specification 1.2.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import posixpath
import re
from pathlib import Path
from typing import Any, Protocol, cast

import msgspec

from netspace.environment.images import archive, bounds, sources, streams, users
from netspace.environment.images.bounds import Budget
from netspace.environment.images.tree import FILE, Piece, Tree
from netspace.spec import checks

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NAMED_BY_DIGEST = re.compile(r"(?:.*/)?([0-9a-f]{64})(?:\.json)?")
_REF = "org.opencontainers.image.ref.name"
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_NESTED = 4  # the deepest nesting of indexes
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def split(location: str) -> tuple[str, str]:
    path, colon, tag = location.rpartition(":")
    if not colon or "/" in tag:
        return location, ""
    return path, colon + tag


def pin(path: Path, folder: Path) -> Path:
    """Copy only the index into *folder*; return the copy's path.

    The index has the digests of all other files, which are checked when they are read.
    """
    with sources.opened(path / "index.json") as stream:
        (folder / "index.json").write_bytes(stream.read(bounds.JSON + 1))
    (folder / "blobs").symlink_to(path.absolute() / "blobs")
    return folder


def fingerprint(location: str) -> str:
    path, tag = _split(location)
    if path.is_dir():
        return "manifest:" + _manifest_digest(_Folder(path), tag, location)
    return sources.of_stat(path)


def identity(location: str) -> str:
    """Return a layout folder's manifest digest, or the sha256 of an archive's content."""
    path, _ = _split(location)
    return fingerprint(location) if path.is_dir() else sources.of_content(path)


def build(location: str, target: Path, scratch: Path) -> sources.Defaults:
    budget = Budget(f"oci:{location}")
    with contextlib.ExitStack() as stack:
        tree, defaults = _tree(location, scratch, budget, stack)
        sources.pack(tree, target, budget)
        return defaults


def listed(location: str, scratch: Path) -> tuple[Tree, sources.Defaults]:
    with contextlib.ExitStack() as stack:
        return _tree(location, scratch, Budget(f"oci:{location}"), stack)


def _tree(location: str, scratch: Path, budget: Budget, stack: contextlib.ExitStack) -> tuple[Tree, sources.Defaults]:
    """Return the tree of all layers, and the image's settings. File contents can be read until *stack* closes."""
    path, tag = _split(location)
    blobs = _open(path, scratch, budget, stack)
    found = _find(blobs, tag, budget)
    _check_platform(found.config, budget)
    tree = Tree(budget)
    for number, layer in enumerate(found.layers, 1):
        sources.log.info("image source %s: layer %d of %d", budget.where, number, len(found.layers))
        piece = blobs.open(layer.name, stack)
        if piece is None:
            raise budget.refuse(f"its layer {layer.name} is missing; copy the image again")
        with streams.reader(piece, budget, scratch, packed=layer.packed, unpacked=layer.unpacked) as reader:
            tree.apply(archive.members(reader, budget), layer=True)
    return tree, _defaults(found.config.get("config"), tree)


# -- places of blobs -------------------------------------------------------------


class _Blobs(Protocol):
    def open(self, name: str, stack: contextlib.ExitStack) -> Piece | None:
        """Return the content of the blob *name*; None if there is no such blob. It can be read until *stack* closes."""
        ...


class _Folder(msgspec.Struct, frozen=True):
    path: Path

    def open(self, name: str, stack: contextlib.ExitStack) -> Piece | None:
        path = self.path / name
        return sources.whole(stack.enter_context(sources.opened(path))) if path.exists() else None


class _Archive(msgspec.Struct, frozen=True):
    tree: Tree

    def open(self, name: str, stack: contextlib.ExitStack) -> Piece | None:
        node = self.tree.find(name.encode())
        if node is None or node.kind != FILE:
            return None
        return cast(Piece, node.content)


def _open(path: Path, scratch: Path, budget: Budget, stack: contextlib.ExitStack) -> _Blobs:
    if path.is_dir():
        return _Folder(path)
    stream = stack.enter_context(sources.opened(path))
    # The outer archive has its own budget: the image's budget counts the content of the layers.
    outer = Budget(budget.where)
    tree = Tree(outer)
    with streams.reader(sources.whole(stream), outer, scratch) as reader:
        tree.apply(archive.members(reader, outer))
    return _Archive(tree)


# -- the image, and its layers -----------------------------------------------------


class _Layer(msgspec.Struct, frozen=True):
    """A layer: its blob's name, and the digests of the packed bytes (empty if not declared) and the unpacked bytes."""

    name: str
    packed: str
    unpacked: str


class _Image(msgspec.Struct, frozen=True):
    config: dict[str, Any]
    layers: tuple[_Layer, ...]


def _split(location: str) -> tuple[Path, str]:
    path, tag = split(location)
    return Path(path), tag[1:]


def _find(blobs: _Blobs, tag: str, budget: Budget) -> _Image:
    if _exists(blobs, "index.json"):
        manifest = _blob(blobs, _descriptor(blobs, tag, budget), budget)
        config = _blob(blobs, manifest.get("config"), budget)
        layers = manifest.get("layers")
        names = []
        for layer in layers if isinstance(layers, list) else []:
            kind = str(layer.get("mediaType")) if isinstance(layer, dict) else ""
            if "tar" not in kind or "encrypted" in kind:
                raise budget.refuse(f"a layer of the unknown kind {kind!r}")
            digest = _digest(layer, budget)
            names.append((f"blobs/sha256/{digest}", digest))
    elif isinstance(blobs, _Archive) and _exists(blobs, "manifest.json"):
        entry = _saved(blobs, tag, budget)
        name = str(entry.get("Config"))
        raw = _read(blobs, name, budget)
        named = _NAMED_BY_DIGEST.fullmatch(name)
        if named and hashlib.sha256(raw).hexdigest() != named[1]:
            raise budget.refuse(f"{name}: its content does not match its digest; copy the image again")
        config = _object(raw, name, budget)
        layers = entry.get("Layers")
        names = [(str(layer), "") for layer in layers] if isinstance(layers, list) else []
    else:
        raise budget.refuse("neither an OCI layout (index.json) nor an archive of `docker save` (manifest.json)")
    rootfs = config.get("rootfs")
    unpacked = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not names:
        raise budget.refuse("no layers")
    if len(names) > bounds.LAYERS:
        raise budget.refuse(f"more than {bounds.LAYERS} layers")
    if not isinstance(unpacked, list) or len(unpacked) != len(names) or not all(map(_is_digest, unpacked)):
        raise budget.refuse("its configuration lacks the digest of a layer (rootfs.diff_ids)")
    return _Image(config, tuple(_Layer(name, packed, diff[7:]) for (name, packed), diff in zip(names, unpacked)))  # noqa: B905


def _manifest_digest(blobs: _Blobs, tag: str, location: str) -> str:
    budget = Budget(f"oci:{location}")
    if not _exists(blobs, "index.json"):
        raise budget.refuse("no index.json; is this an OCI layout?")
    return "sha256:" + _digest(_descriptor(blobs, tag, budget), budget)


def _descriptor(blobs: _Blobs, tag: str, budget: Budget) -> dict[str, Any]:
    """Return the manifest's descriptor for *tag* and this machine."""
    entries = _manifests(_object(_read(blobs, "index.json", budget), "index.json", budget))
    found = _pick({index: _refs(entry) for index, entry in enumerate(entries)}, tag, budget)
    descriptor = entries[found]
    for _ in range(_NESTED):
        if descriptor.get("mediaType") not in _INDEXES:
            return descriptor
        machine = _machine()
        fitting = [
            entry
            for entry in _manifests(_blob(blobs, descriptor, budget))
            if entry.get("mediaType") in _INDEXES or _platform(entry) == ("linux", machine)
        ]
        if not fitting:
            raise budget.refuse(f"has no image for linux on {machine}")
        descriptor = fitting[0]
    raise budget.refuse("indexes nested too deep")


def _saved(blobs: _Blobs, tag: str, budget: Budget) -> dict[str, Any]:
    """Return the entry for *tag* in ``manifest.json`` of ``docker save``."""
    try:
        value = json.loads(_read(blobs, "manifest.json", budget))
    except (ValueError, RecursionError) as err:
        raise budget.refuse(f"manifest.json: {err}") from err
    entries = [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
    named = {
        index: [str(name) for name in entry.get("RepoTags") or [] if isinstance(entry.get("RepoTags"), list)]
        for index, entry in enumerate(entries)
    }
    return entries[_pick(named, tag, budget)]


def _pick(named: dict[int, list[str]], tag: str, budget: Budget) -> int:
    """Return the index of the only image that is named *tag* or ``...:tag``.

    Without *tag*, return the index of ``latest``, or of the only image.
    """
    wanted = tag or "latest"
    exact = [index for index, names in named.items() if wanted in names]
    ending = [index for index, names in named.items() if any(name.endswith(f":{wanted}") for name in names)]
    for found in (exact, ending):
        if len(found) == 1:
            return found[0]
    if not tag and len(named) == 1:
        return next(iter(named))
    names = sorted(name for names in named.values() for name in names)
    raise budget.refuse(f"no single image is tagged {wanted!r}; tags: {', '.join(names) or 'none'}")


def _refs(entry: dict[str, Any]) -> list[str]:
    annotations = entry.get("annotations")
    name = annotations.get(_REF) if isinstance(annotations, dict) else None
    return [name] if isinstance(name, str) else []


def _manifests(index: dict[str, Any]) -> list[dict[str, Any]]:
    entries = index.get("manifests")
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _platform(entry: dict[str, Any]) -> tuple[object, object]:
    platform = entry.get("platform")
    return (platform.get("os"), platform.get("architecture")) if isinstance(platform, dict) else (None, None)


def _machine() -> str:
    return _ARCHITECTURES.get(os.uname().machine, os.uname().machine)


def _check_platform(config: dict[str, Any], budget: Budget) -> None:
    system, machine = config.get("os") or "linux", config.get("architecture") or _machine()
    if (system, machine) != ("linux", _machine()):
        raise budget.refuse(f"is for {system} on {machine}; this is linux on {_machine()}")


# -- reading and checking small blobs ------------------------------------------------


def _exists(blobs: _Blobs, name: str) -> bool:
    with contextlib.ExitStack() as stack:
        return blobs.open(name, stack) is not None


def _read(blobs: _Blobs, name: str, budget: Budget) -> bytes:
    with contextlib.ExitStack() as stack:
        piece = blobs.open(name, stack)
        if piece is None:
            raise budget.refuse(f"{name} is missing; copy the image again")
        if piece.size > bounds.JSON:
            raise budget.refuse(f"{name}: more than {bounds.JSON} bytes")
        return b"".join(piece.chunks())


def _is_digest(text: object) -> bool:
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def _digest(descriptor: Any, budget: Budget) -> str:
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    if not _is_digest(digest):
        raise budget.refuse(f"{digest!r} is not a sha256 digest")
    return str(digest)[7:]


def _blob(blobs: _Blobs, descriptor: Any, budget: Budget) -> dict[str, Any]:
    digest = _digest(descriptor, budget)
    raw = _read(blobs, f"blobs/sha256/{digest}", budget)
    if hashlib.sha256(raw).hexdigest() != digest:
        raise budget.refuse(f"blobs/sha256/{digest}: its content does not match its digest; copy the image again")
    return _object(raw, f"blobs/sha256/{digest}", budget)


def _object(raw: bytes, name: str, budget: Budget) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as err:
        raise budget.refuse(f"{name}: {err}") from err
    if not isinstance(value, dict):
        raise budget.refuse(f"{name}: not a JSON object")
    return value


# -- settings for running it -------------------------------------------------------


def _defaults(config: Any, tree: Tree) -> sources.Defaults:
    """Return the valid settings in the image's config.

    Invalid settings are left out. A declaration can give values in their place.
    """
    config = config if isinstance(config, dict) else {}

    def texts(key: str) -> tuple[str, ...]:
        value = config.get(key)
        return tuple(value) if isinstance(value, list) and all(map(_plain, value)) else ()

    def read(path: str, most: int) -> bytes:
        node = tree.find(path.encode())
        return next(node.content.chunks(), b"")[:most] if node is not None and node.content is not None else b""

    pairs = [item.partition("=") for item in texts("Env")]
    env = {name: value for name, equals, value in pairs if equals and checks.VARIABLE.fullmatch(name)}
    working_dir = config.get("WorkingDir")
    if not _plain(working_dir) or not working_dir.startswith("/"):
        working_dir = ""
    user = config.get("User")
    uid, gid, note = users.resolve(user if _plain(user) else "", read)
    return sources.Defaults(
        texts("Entrypoint"),
        texts("Cmd"),
        tuple(sorted(env.items())),
        posixpath.normpath(working_dir) if working_dir else "",
        uid,
        gid,
        (*tree.notes(), *([note] if note else [])),
    )


def _plain(value: Any) -> bool:
    """Return whether the value is a text that would be valid in a declaration."""
    return isinstance(value, str) and checks.plain(value, checks.MAX_ARGUMENT)
