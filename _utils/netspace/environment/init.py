"""Process 1 of environments with ``init: true``: it hands on signals to the program, and reaps what loses its parent.

It is the host's own ``catatonit``, linked statically, so it needs nothing of an image. Each root has it as one more
layer above its image's (overlay): nothing that an image holds can take its place, and environments share its
memory, but neither its locks nor its notices (inotify), as they would by a bind mount. The layer holds a copy, named by
its content and never changed, since a layer in use must not change: a newer version is used when a root is
made the next time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from netspace import files, paths
from netspace.environment import elf, runtimes, trees
from netspace.errors import MissingError, NetspaceError
from netspace.layout import Layout
from netspace.spec.types import Environment

PROGRAM = PACKAGE = "catatonit"
NAME = ".netspace-init"
INSIDE = f"/{NAME}"
# Where other distributions have it, which run it for podman alone.
_ELSEWHERE = "/usr/libexec/catatonit:/usr/libexec/podman:/usr/lib/podman"
_LARGEST = 16 * 1024**2

_copying = threading.Lock()


def before(spec: Environment) -> tuple[str, ...]:
    """Return the words before the command of an environment's own program."""
    return (INSIDE, "--") if spec.init else ()


def problem() -> str:
    """Return why this host can give environments no process 1; empty if it can. Reads only."""
    try:
        with _opened():
            pass
    except NetspaceError as err:
        return str(err)
    return ""


def layer(layout: Layout) -> Path:
    """Return the folder that is a root's uppermost lower layer; make it if it isn't there.

    :raises MissingError: when the program is not installed.
    :raises NetspaceError: when it can't be used.
    """
    with _opened() as stream:
        content = stream.read(_LARGEST)
    folder = layout.inits / hashlib.sha256(content).hexdigest()[:16]
    with _copying:  # roots are made several at once
        if not folder.is_dir():
            # It has its name only once it is whole: a run that was killed would leave a part.
            making = folder.with_suffix(".new")
            trees.remove(making)
            making.mkdir(parents=True, mode=0o755)
            files.write(making / NAME, content, mode=0o555)
            making.chmod(0o755)  # whatever the umask is
            making.rename(folder)
    return folder


@contextlib.contextmanager
def _opened() -> Iterator[IO[bytes]]:
    """Open the program to read.

    :raises MissingError: when it is not installed.
    :raises NetspaceError: when others than root may change it, or it needs a loader or is no program.
    """
    found = shutil.which(PROGRAM, path=f"{runtimes.SEARCHED}:{_ELSEWHERE}")
    if found is None:
        raise MissingError(
            f"the program {PROGRAM}",
            f"install it: apt-get install {PACKAGE} (netspace.packages does), or leave out init",
        )
    real = Path(os.path.realpath(found))
    try:
        with files.opened(real) as stream:
            info = os.fstat(stream.fileno())
            changeable = real if info.st_uid != 0 or info.st_mode & 0o022 else paths.loose(real)
            if changeable:
                raise NetspaceError(
                    f"{found} is not used: others than root may change {changeable}; chown it to root, and chmod go-w"
                )
            if info.st_size > _LARGEST:
                raise ValueError(f"more than {_LARGEST // 1024**2} MiB")
            if loader := elf.interpreter(stream):
                raise ValueError(f"it needs {loader}, which an image may lack or falsify")
            stream.seek(0)
            yield stream
    except (ValueError, OSError) as err:
        raise NetspaceError(f"{found} can't be an environment's process 1: {err}; install Debian's {PACKAGE}") from err
