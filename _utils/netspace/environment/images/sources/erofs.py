"""``erofs:/srv/shop.erofs``: a ready image that is used unchanged. Its SHA-256 is the image's name.

The kernel will read the file as a file system. So erofs-utils first check the file, and its size and number of files
must be within the limits. These checks find damage and decompression bombs, but not a file that was made to attack the
kernel. **Use erofs files only from sources that you trust.**
"""

from __future__ import annotations

import re
from pathlib import Path

from netspace.environment.images import bounds, sources, tools
from netspace.environment.images.bounds import Budget

# The first bytes of the superblock, which stands at byte 1024 (little-endian 0xe0f5e1e2).
_MAGIC = b"\xe2\xe1\xf5\xe0"
_SUPERBLOCK = 1024
_COUNT = re.compile(rb"Filesystem total file count:\s*(\d{1,19})\b")
_SIZE = re.compile(rb"Filesystem total original file size:\s*(\d{1,19}) Bytes")


def split(location: str) -> tuple[str, str]:
    return location, ""


def fingerprint(location: str) -> str:
    return sources.of_stat(Path(location))


def identity(location: str) -> str:
    return sources.of_content(Path(location))


def build(location: str, target: Path, scratch: Path) -> sources.Defaults:
    import shutil

    budget = Budget(f"erofs:{location}")
    with sources.opened(Path(location)) as stream:
        budget.take_bytes(sources.whole(stream).size)
        stream.seek(_SUPERBLOCK)
        if stream.read(4) != _MAGIC:
            raise budget.refuse("not an erofs file")
        stream.seek(0)
        with target.open("wb") as copy:
            shutil.copyfileobj(stream, copy, 1 << 20)
    # Check the copy, which nobody else can change.
    tools.run(["fsck.erofs", str(target)], f"image source erofs:{location}: damaged: fsck.erofs")
    told = tools.run(["dump.erofs", "-S", str(target)], f"image source erofs:{location}: dump.erofs")
    count, size = _COUNT.search(told), _SIZE.search(told)
    if count is None or size is None:
        raise budget.refuse("dump.erofs doesn't show the image's size")
    if int(count[1]) > bounds.ENTRIES:
        raise budget.refuse(f"more than {bounds.ENTRIES} files")
    Budget(f"erofs:{location}").take_bytes(int(size[1]))
    return sources.Defaults()
