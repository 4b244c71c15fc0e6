"""Unikernels as environments: the image, the program and the disk of such an environment.

A unikernel (here: *kernel*) is the guest of a tender, such as qemu or solo5-spt. The tender is the only program of an
otherwise ordinary environment. This module builds the images of such environments. Their source has the scheme
:data:`SCHEME`, which no declaration may use. An image has only the kernel, the tender, and the tender's libraries and
data, under fixed names. So it is built, measured, compared and pruned like any other image. The kernel gets its files
as one read-only disk. Some tenders need their own copy of the disk (:func:`hand_out`).
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from netspace import files as written
from netspace.environment.images import sources
from netspace.environment.images.bounds import Budget
from netspace.environment.images.tree import FILE, Node, Tree
from netspace.environment.runtimes import Guest, Runtime
from netspace.environment.storage import elf
from netspace.errors import NetspaceError
from netspace.layout import TAP, Layout
from netspace.patterns import pattern
from netspace.spec.types import Environment

SCHEME = "kernel"
KERNEL = "/kernel"
FOLDER = "/tender"
SHARE = f"{FOLDER}/share"
_LIBRARIES = f"{FOLDER}/lib"
# The disk's name among the handed-out files, and its paths inside.
DISK = "handout.tar"
_DISK_INSIDE = f"/run/netspace/{DISK}"
_COPY_INSIDE = "/run/disk"
_TUN = "/dev/net/tun"

_LOADED = pattern(r"\s(/\S+) \(0x[0-9a-f]+\)$")
_PATIENCE = 30.0  # seconds for the loader to list a program's libraries


# -- from a declaration ---------------------------------------------------------------------


def source(spec: Environment, runtime: Runtime) -> str:
    """Return an environment's image source: the declared source, or a source for a tender with this kernel."""
    if spec.kernel is None:
        return spec.image
    settings = json.dumps(dict(sorted(runtime.settings.items())), separators=(",", ":")) if runtime.settings else ""
    return f"{SCHEME}:{runtime.name}{settings}:{spec.kernel}"


def program(layout: Layout, name: str, spec: Environment, runtime: Runtime, defaults: sources.Defaults) -> Environment:
    """Return the declaration *spec* of a unikernel, changed so that its program is the tender (see the module)."""
    tap = TAP if spec.interface is not None and _TUN in spec.interface.DEVICES else ""
    guest = Guest(
        kernel=KERNEL,
        found=defaults.cmd,
        arguments=spec.args or (),
        memory=int(spec.limits.memory) - int(runtime.module.RESERVE),
        disk=_disk_inside(runtime),
        tap=tap,
        mac=layout.mac(name) if tap else "",
    )
    command = (*defaults.entrypoint, *runtime.module.command(runtime.typed, guest))
    tender: Environment = msgspec.structs.replace(
        spec, kernel=None, command=command, args=None, env={}, working_dir="/", read_only=True
    )
    return tender


def copied(layout: Layout, name: str) -> Path:
    """Return the folder with a tender's own copy of the disk.

    Tenders that open their disk for writing need such a copy.
    """
    return layout.bundle(name) / "disk"


def extra_mounts(layout: Layout, name: str, runtime: Runtime) -> list[dict[str, Any]]:
    """Return the mounts that a tender needs, besides those that every environment has."""
    if not runtime.module.WRITES:
        return []
    options = ["bind", "nosuid", "nodev", "noexec", "private", "rw"]
    return [{"destination": _COPY_INSIDE, "type": "bind", "source": str(copied(layout, name)), "options": options}]


def hand_out(layout: Layout, name: str, runtime: Runtime, files: Mapping[str, bytes], owner: tuple[int, int]) -> None:
    """Write a tender's own copy of the disk if the tender opens its disk for writing.

    The kernel can change only this copy.
    """
    if not runtime.module.WRITES:
        return
    folder = copied(layout, name)
    folder.mkdir(exist_ok=True, mode=0o755)
    written.write(folder / DISK, files.get(DISK, disk({})), mode=0o660, owner=owner)


def _disk_inside(runtime: Runtime) -> str:
    return f"{_COPY_INSIDE}/{DISK}" if runtime.module.WRITES else _DISK_INSIDE


def disk(files: Mapping[str, bytes]) -> bytes:
    """Return a disk with these files, as a tar archive (ustar). Equal files give equal archives."""
    import tarfile

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o400
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


# -- an image source ---------------------------------------------------------------------------


class _File(msgspec.Struct, frozen=True):
    """The content of a file in the image's tree."""

    path: str
    size: int

    def chunks(self) -> Iterator[bytes]:
        left = self.size
        with sources.opened(Path(self.path)) as stream:
            while left:
                chunk = stream.read(min(left, 1 << 20))
                if not chunk:
                    raise NetspaceError(f"{self.path} changed while it was read; apply again when it is complete")
                left -= len(chunk)
                yield chunk


def fingerprint(location: str) -> str:
    _, kernel, files, _ = _parts(location)
    state = hashlib.sha256()
    for inside, path in sorted({**files, KERNEL: kernel}.items()):
        state.update(f"{inside}\0{path}\0{sources.of_stat(Path(path))}\0".encode())
    return "stat:" + state.hexdigest()


def identity(location: str) -> str:
    """Return a hash of the tender's files, and the kernel's ``sha256:<hex>``.

    The kernel's digest is compared with ``source_hash``.
    """
    runtime, kernel, files, start = _parts(location)
    state = hashlib.sha256(json.dumps([runtime.name, start]).encode())
    for inside, path in sorted(files.items()):
        state.update(f"{inside}\0{sources.of_content(Path(path))}\0".encode())
    return f"tender:{state.hexdigest()} {sources.of_content(Path(kernel))}"


def build(location: str, target: Path, scratch: Path) -> sources.Defaults:
    runtime, kernel, files, start = _parts(location)
    budget = Budget(f"{SCHEME}:{location}")
    tree = Tree(budget)
    for inside, path in sorted({**files, KERNEL: kernel}.items()):
        size = Path(path).stat().st_size
        budget.take_entry()
        budget.take_bytes(size)
        mode = 0o444 if inside == KERNEL or inside.startswith(f"{SHARE}/") else 0o555
        tree.add(inside.lstrip("/").encode(), Node(FILE, mode, content=_File(path, size)))
    reads = getattr(runtime.module, "reads", None)
    found = () if reads is None else reads(kernel, _disk_inside(runtime))
    sources.pack(tree, target, budget)
    return sources.Defaults(entrypoint=start, cmd=found)


def _parts(location: str) -> tuple[Runtime, str, dict[str, str], tuple[str, ...]]:
    """Return the tender, the kernel's path, the tender's files (host path by path inside), and its start command."""
    name, rest = re.fullmatch(r"([a-z0-9_]+)(.*)", location, re.DOTALL).groups()  # type: ignore[union-attr]
    settings, end = json.JSONDecoder().raw_decode(rest) if rest.startswith("{") else ({}, 0)
    runtime, kernel = Runtime(name, settings), rest[end + 1 :]
    if runtime.outside:  # its program runs on the host
        return runtime, kernel, {}, ()
    own = runtime.program
    inside = f"{FOLDER}/{runtime.module.PROGRAM}"
    files = {inside: own, **runtime.module.files(runtime.typed)}
    start: tuple[str, ...] = (inside,)
    loader = _interpreter(own)
    if loader:
        for path in _libraries(own, loader, sources.of_stat(Path(own))):
            files[f"{_LIBRARIES}/{os.path.basename(path)}"] = path
        first = f"{_LIBRARIES}/{os.path.basename(loader)}"
        files[first] = loader
        start = (first, "--library-path", _LIBRARIES, inside)
    return runtime, kernel, files, start


def _interpreter(program: str) -> str:
    """Return the loader (ELF interpreter) of a tender's program; empty if the program is linked statically.

    :raises NetspaceError: when the tender is no 64-bit little-endian ELF program.
    """
    with sources.opened(Path(program)) as stream:
        try:
            return elf.interpreter(stream)
        except (ValueError, OSError) as err:
            raise NetspaceError(f"{program} can't be a tender: {err}") from err


@functools.lru_cache(maxsize=16)
def _libraries(program: str, loader: str, state: str) -> tuple[str, ...]:
    """Return the libraries that the loader would load for a program, without running it (ld.so(8), --list).

    :param state: the program's fingerprint; part of the key of the cache.
    :raises NetspaceError: when a library is missing.
    """
    done = subprocess.run(
        [loader, "--list", program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=_PATIENCE,
        env={"PATH": os.defpath},
    )
    if done.returncode != 0 or "not found" in done.stdout:
        told = [
            line.strip() for line in (done.stdout + done.stderr).splitlines() if "not found" in line or "rror" in line
        ]
        raise NetspaceError(f"{program} lacks libraries: {'; '.join(told) or f'exit {done.returncode}'}")
    return tuple(sorted({match[1] for line in done.stdout.splitlines() if (match := _LOADED.search(line))}))
