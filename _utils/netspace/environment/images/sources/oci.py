"""``oci:/srv/images/shop:orders``: a tagged image in an OCI layout folder.

Every blob is checked against its digest before umoci unpacks the layers. The layout's
digests are its identity, so an unchanged image is told by its small ``index.json``.
Written after the OCI image specification 1.1 (image-layout.md, manifest.md, config.md).
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
import subprocess
from pathlib import Path
from typing import Any

from netspace.environment.images import sources
from netspace.errors import MissingError, NetspaceError

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REF = "org.opencontainers.image.ref.name"
_INDEX = "application/vnd.oci.image.index.v1+json"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_MAX_JSON = 4 * 1024 * 1024
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")


def fingerprint(location: str) -> str:
    layout, tag = _split(location)
    return "manifest:" + str(_descriptor(layout, tag)["digest"])


identity = fingerprint


def build(location: str, target: Path, scratch: Path) -> sources.Defaults:
    layout, tag = _split(location)
    manifest = _blob_json(layout, _descriptor(layout, tag))
    config = _blob_json(layout, manifest.get("config"))
    layers = manifest.get("layers")
    if not isinstance(layers, list) or not layers:
        raise NetspaceError(f"image source oci:{location}: no layers")
    for layer in layers:
        _check_blob(layout, layer)
    root = scratch / "root"
    try:
        done = subprocess.run(
            ["umoci", "raw", "unpack", "--image", f"{layout}:{tag}", str(root)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError as err:
        raise MissingError("the program umoci", "install it: apt-get install umoci") from err
    if done.returncode != 0:
        message = " ".join(done.stderr.decode(errors="replace").split())[-600:]
        raise NetspaceError(f"image source oci:{location}: umoci can't unpack it: {message}")
    sources.make_erofs(target, [root], "--mkfs-time")
    return _defaults(config.get("config") or {})


def _split(location: str) -> tuple[Path, str]:
    layout, colon, tag = location.rpartition(":")
    if not colon or "/" in tag:
        layout, tag = location, "latest"
    return Path(layout), tag


def _descriptor(layout: Path, tag: str) -> dict[str, Any]:
    """The manifest's descriptor for *tag* and this machine."""
    try:
        index = _json((layout / "index.json").read_bytes(), f"{layout}/index.json")
    except OSError as err:
        raise NetspaceError(f"image source {layout}/index.json: {err.strerror}; is this an OCI layout?") from err
    entries = _manifests(index)
    named = [entry for entry in entries if (entry.get("annotations") or {}).get(_REF) == tag]
    if len(named) != 1:
        tags = sorted(str((entry.get("annotations") or {}).get(_REF)) for entry in entries)
        raise NetspaceError(f"image source {layout}: no single image is tagged {tag!r}; tags: {', '.join(tags)}")
    found = named[0]
    if found.get("mediaType") == _INDEX:
        machine = _ARCHITECTURES.get(os.uname().machine, os.uname().machine)
        fitting = [
            entry
            for entry in _manifests(_blob_json(layout, found))
            if (entry.get("platform") or {}).get("os") == "linux"
            and (entry.get("platform") or {}).get("architecture") == machine
        ]
        if not fitting:
            raise NetspaceError(f"image source {layout}:{tag}: has nothing for linux on {machine}")
        found = fitting[0]
    if not _DIGEST.fullmatch(str(found.get("digest"))):
        raise NetspaceError(f"image source {layout}:{tag}: {found.get('digest')!r} is no sha256 digest")
    return found


def _manifests(index: dict[str, Any]) -> list[dict[str, Any]]:
    entries = index.get("manifests")
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _blob(layout: Path, descriptor: Any) -> tuple[Path, str]:
    digest = str(descriptor.get("digest")) if isinstance(descriptor, dict) else ""
    if not _DIGEST.fullmatch(digest):
        raise NetspaceError(f"image source {layout}: {digest!r} is no sha256 digest")
    return layout / "blobs" / "sha256" / digest[7:], digest


def _check_blob(layout: Path, descriptor: Any) -> None:
    path, digest = _blob(layout, descriptor)
    if sources.of_content(path) != digest:
        raise NetspaceError(f"image source {path}: its content is not what its digest says; copy the image again")


def _blob_json(layout: Path, descriptor: Any) -> dict[str, Any]:
    path, digest = _blob(layout, descriptor)
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_JSON)
    except OSError as err:
        raise NetspaceError(f"image source {path}: {err.strerror}") from err
    if f"sha256:{hashlib.sha256(raw).hexdigest()}" != digest:
        raise NetspaceError(f"image source {path}: its content is not what its digest says; copy the image again")
    return _json(raw, str(path))


def _json(raw: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as err:
        raise NetspaceError(f"image source {where}: {err}") from err
    if not isinstance(value, dict):
        raise NetspaceError(f"image source {where}: not a JSON object")
    return value


def _defaults(config: dict[str, Any]) -> sources.Defaults:
    """What the image's config says; what it says badly is left out, the declaration can say it."""

    def texts(key: str) -> list[str]:
        value = config.get(key)
        return [str(item) for item in value] if isinstance(value, list) else []

    pairs = [item.partition("=") for item in texts("Env")]
    env = {name: value for name, equals, value in pairs if equals and _VARIABLE.fullmatch(name) and "\0" not in value}
    working_dir = config.get("WorkingDir")
    if not isinstance(working_dir, str) or not working_dir.startswith("/"):
        working_dir = ""
    user = str(config.get("User") or "").partition(":")[0]
    number = int(user) if re.fullmatch(r"\d{1,5}", user) and int(user) <= 65535 else 0
    return sources.Defaults(
        (*texts("Entrypoint"), *texts("Cmd")),
        tuple(sorted(env.items())),
        posixpath.normpath(working_dir) if working_dir else "",
        number,
    )
