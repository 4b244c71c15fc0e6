"""Image sources for tests: tar archives member by member, OCI layouts, docker's archives."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
MACHINE = MACHINES.get(os.uname().machine, os.uname().machine)


def member(name: str, content: bytes = b"", **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    """Return one member of a tar. A name that ends in ``/`` makes a folder, and ``linkname`` makes a symbolic link."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mode = 0o644
    if name.endswith("/"):
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    if "linkname" in attributes:
        info.type = tarfile.SYMTYPE
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


def hard(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, linkname=target, type=tarfile.LNKTYPE)


def tar(members: Iterable[tuple[tarfile.TarInfo, bytes]], kind: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    for info, content in members:
        out.write(info.tobuf(kind, "utf-8", "surrogateescape"))
        out.write(content + bytes(-len(content) % 512))
    out.write(bytes(1024))
    return out.getvalue()


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Layout:
    """An OCI layout: ``files`` by name, to be written as a folder or a tar."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
        self.entries: list[dict[str, Any]] = []

    def blob(self, content: bytes, kind: str, **more: Any) -> dict[str, Any]:
        digest = sha256(content)
        self.files[f"blobs/sha256/{digest[7:]}"] = content
        return {"mediaType": kind, "digest": digest, "size": len(content), **more}

    def image(
        self,
        layers: Iterable[bytes],
        config: Mapping[str, Any] | None = None,
        *,
        pack: Any = lambda layer: gzip.compress(layer, mtime=0),
        machine: str = MACHINE,
    ) -> dict[str, Any]:
        """Add an image; return its manifest's descriptor."""
        layers = list(layers)
        rootfs = {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]}
        about = {"os": "linux", "architecture": machine, "config": dict(config or {}), "rootfs": rootfs}
        manifest = {
            "schemaVersion": 2,
            "config": self.blob(json.dumps(about).encode(), "application/vnd.oci.image.config.v1+json"),
            "layers": [self.blob(pack(layer), "application/vnd.oci.image.layer.v1.tar+gzip") for layer in layers],
        }
        kind = "application/vnd.oci.image.manifest.v1+json"
        return self.blob(json.dumps(manifest).encode(), kind, platform={"os": "linux", "architecture": machine})

    def index(self, descriptors: Iterable[dict[str, Any]]) -> dict[str, Any]:
        content = json.dumps({"schemaVersion": 2, "manifests": list(descriptors)}).encode()
        return self.blob(content, "application/vnd.oci.image.index.v1+json")

    def tag(self, descriptor: dict[str, Any], name: str | None) -> None:
        notes = {} if name is None else {"annotations": {"org.opencontainers.image.ref.name": name}}
        self.entries.append({**descriptor, **notes})
        self.files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": self.entries}).encode()

    def write(self, folder: Path) -> Path:
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder

    def archive(self) -> bytes:
        return tar(member(name, content) for name, content in self.files.items())


def saved(layers: Iterable[bytes], tags: list[str], config: Mapping[str, Any] | None = None) -> bytes:
    """Return an archive in the form of ``docker save`` before version 25, with links for shared layers."""
    layers = list(layers)
    rootfs = {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]}
    about = json.dumps(
        {"os": "linux", "architecture": MACHINE, "config": dict(config or {}), "rootfs": rootfs}
    ).encode()
    name = f"{hashlib.sha256(about).hexdigest()}.json"
    members = [member(name, about)]
    for number, layer in enumerate(layers):
        members += [member(f"{number}/"), member(f"{number}/data", layer)]
        members.append(member(f"{number}/layer.tar", linkname="data"))
    manifest = [{"Config": name, "RepoTags": tags, "Layers": [f"{n}/layer.tar" for n in range(len(layers))]}]
    return tar([*members, member("manifest.json", json.dumps(manifest).encode())])
