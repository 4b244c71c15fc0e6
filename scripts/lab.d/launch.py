"""Write this process's PID into a file, then become a command.

usage: launch.py PIDFILE LOCK COMMAND...

*LOCK* is the inherited descriptor of the lab's lock. This process closes it once the PID is written. If the lab's
command is killed before that, the next command waits for the PID, and doesn't start a second process.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from processes import remember


def main() -> None:
    path, lock, *command = sys.argv[1:]
    remember(Path(path), os.getpid())
    os.close(int(lock))
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
