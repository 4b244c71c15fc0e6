"""Programs that work on images, and how their failure is told. Knows none of them."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

from netspace.errors import MissingError, NetspaceError

# The Debian package of each program.
_PACKAGES = {"mkfs.erofs": "erofs-utils", "fsck.erofs": "erofs-utils", "zstd": "zstd"}
_MOST = 600


def message(output: bytes) -> str:
    """The end of what a program complained of, on one line."""
    return " ".join(output.decode(errors="replace").split())[-_MOST:]


@contextlib.contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program with its stderr piped; it is gone at the end.

    :raises MissingError: when it is not installed.
    """
    program = command[0]
    try:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, **options)
    except FileNotFoundError as err:
        package = _PACKAGES.get(program, program)
        raise MissingError(f"the program {program}", f"install it: apt-get install {package}") from err
    with process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def run(command: Sequence[str], what: str) -> bytes:
    """Run a program that asks nothing; return what it printed.

    :param what: begins the error when it fails.
    :raises NetspaceError: with the end of what it complained of.
    """
    with started(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        output, complaint = process.communicate()
    if process.returncode != 0:
        raise NetspaceError(f"{what}: {message(complaint or output) or process.returncode}")
    return output
