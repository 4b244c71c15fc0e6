"""``tar:/srv/shop.tar``: a tar archive of a root file system, plain or compressed (gzip, xz, bzip2, zstd).

The archive is never unpacked onto the host, so a member can't overwrite a file of the host. The image keeps file times
to the second, since Python checks by the times whether compiled modules are current. So archives with different file
times give different images. The order of the members makes no difference.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

from netspace.environment.images import archive, sources, streams
from netspace.environment.images.bounds import Budget
from netspace.environment.images.tree import Tree


def split(location: str) -> tuple[str, str]:
    return location, ""


def fingerprint(location: str) -> str:
    return sources.of_stat(Path(location))


def identity(location: str) -> str:
    return sources.of_content(Path(location))


def build(location: str, target: Path, scratch: Path) -> sources.Defaults:
    budget = Budget(f"tar:{location}")
    with sources.opened(Path(location)) as stream:
        tree = _tree(stream, budget, scratch)
        sources.pack(tree, target, budget)
    return sources.Defaults(notes=tree.notes())


def listed(location: str, scratch: Path) -> tuple[Tree, sources.Defaults]:
    with sources.opened(Path(location)) as stream:
        return _tree(stream, Budget(f"tar:{location}"), scratch), sources.Defaults()


def _tree(stream: IO[bytes], budget: Budget, scratch: Path) -> Tree:
    tree = Tree(budget)
    with streams.reader(sources.whole(stream), budget, scratch) as reader:
        tree.apply(archive.members(reader, budget))
    return tree
