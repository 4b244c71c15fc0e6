"""Process 1 of environments with ``init: true``: forwards signals to the program, and reaps orphaned processes.

The program is the host's ``catatonit``, linked statically, so it needs no file of an image. An overlay layer above the
image adds it to an environment's root, so no file of the image can replace it. Environments share its pages in memory.
They share neither its locks nor its inotify events, as they would with a bind mount. The layer holds a copy of the
program. The layer's name is a digest of the content, and the layer is never changed, because a layer in use must not
change. A root gets a newer version when it is assembled the next time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from netspace import files, paths
from netspace.environment import runtimes
from netspace.environment.storage import elf, tree_removal
from netspace.errors import MissingError, NetspaceError
from netspace.layout import Layout
from netspace.spec.types import Environment

PROGRAM = PACKAGE = "catatonit"
NAME = ".netspace-init"
INSIDE = f"/{NAME}"
# Folders of distributions that install it for podman only.
_ELSEWHERE = "/usr/libexec/catatonit:/usr/libexec/podman:/usr/lib/podman"
_LARGEST = 16 * 1024**2

_copying = threading.Lock()


def before(spec: Environment) -> tuple[str, ...]:
    """Return the arguments (init and ``--``) that precede an environment's own command; none without ``init: true``."""
    return (INSIDE, "--") if spec.init else ()


def problem() -> str:
    """Return why this host has no usable init program; empty if it has one. Reads only."""
    try:
        with _opened():
            pass
    except NetspaceError as err:
        return str(err)
    return ""


def layer(layout: Layout) -> Path:
    """Return the folder of the overlay layer with the program; make the layer if it is missing.

    :raises MissingError: when the program is not installed.
    :raises NetspaceError: when the program can't be used.
    """
    with _opened() as stream:
        content = stream.read(_LARGEST)
    folder = layout.inits / hashlib.sha256(content).hexdigest()[:16]
    with _copying:  # several roots are made at the same time
        if not folder.is_dir():
            # The folder gets its name when it is complete: a killed run would leave a partial one.
            making = folder.with_suffix(".new")
            tree_removal.remove(making)
            making.mkdir(parents=True, mode=0o755)
            files.write(making / NAME, content, mode=0o555)
            making.chmod(0o755)  # whatever the umask is
            making.rename(folder)
    return folder


@contextlib.contextmanager
def _opened() -> Iterator[IO[bytes]]:
    """Open the init program's file for reading.

    :raises MissingError: when the program is not installed.
    :raises NetspaceError: when users other than root may change the file, when it needs a loader, or when it is no
        program.
    """
    found = paths.program(PROGRAM, f"{runtimes.SEARCHED}:{_ELSEWHERE}")
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
                    f"{found} is not used: users other than root may change {changeable}; chown root, and chmod go-w"
                )
            if info.st_size > _LARGEST:
                raise ValueError(f"more than {_LARGEST // 1024**2} MiB")
            if loader := elf.interpreter(stream):
                raise ValueError(f"it needs {loader}, which an image may lack or falsify")
            stream.seek(0)
            yield stream
    except (ValueError, OSError) as err:
        raise NetspaceError(f"{found} can't be an environment's process 1: {err}; install Debian's {PACKAGE}") from err
