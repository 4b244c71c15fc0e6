"""Execution of programs that work on images, and errors for their failures."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from netspace.errors import MissingError, NetspaceError

# The Debian package of each program.
_PACKAGES = {"mkfs.erofs": "erofs-utils", "fsck.erofs": "erofs-utils", "dump.erofs": "erofs-utils", "zstd": "zstd"}
_MOST = 600


def message(output: bytes) -> str:
    """Return the end of a program's error output, on one line."""
    return " ".join(output.decode(errors="replace").split())[-_MOST:]


@contextlib.contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Context manager that runs a program with its stderr piped.

    The program is killed if the body raises an exception, or if this process dies.

    :raises MissingError: when the program is not installed.
    """
    import shutil  # most runs build no image

    program = command[0]
    if shutil.which(program) is None:
        package = _PACKAGES.get(program, program)
        raise MissingError(f"the program {program}", f"install it: apt-get install {package}")
    # mkfs.erofs 1.8 doesn't end at the end of its input: without a parent it would run forever.
    tied = ["setpriv", "--pdeathsig", "KILL", "--", *command]
    with subprocess.Popen(tied, stderr=subprocess.PIPE, **options) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def end_those_in(folder: Path) -> None:
    """Kill remaining programs of a killed run that work on a file in *folder*."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            handle = os.pidfd_open(int(entry))
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                if any(word.startswith(os.fsencode(folder) + b"/") for word in words) and any(
                    os.path.basename(word).decode(errors="replace") in _PACKAGES for word in words
                ):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)


def run(command: Sequence[str], what: str) -> bytes:
    """Run a program without input; return its output.

    :param what: the beginning of an error's text.
    :raises NetspaceError: when the program fails; the text has the end of its output.
    """
    with started(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        output, complaint = process.communicate()
    if process.returncode != 0:
        raise NetspaceError(f"{what}: {message(complaint or output) or process.returncode}")
    return output
