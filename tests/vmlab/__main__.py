"""Start a virtual machine, run commands in it, and keep it on request.

    scripts/vm [--flavour measured|unlogged|plain] [--keep FOLDER] [COMMAND...]
    scripts/vm --build

The command boots a machine (and first builds a missing image), copies this checkout into it as /srv/netspace, and runs
COMMAND there, or reads commands line by line. With --keep, the machine's disk, firmware variables and TPM stay in
FOLDER, and the next call with the same folder boots from them. Otherwise nothing of the machine is left.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from vmlab import image
from vmlab.flavours import FLAVOURS
from vmlab.lab import furnish
from vmlab.machine import Machine


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/vm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flavour", choices=sorted(FLAVOURS), default="plain")
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("--build", action="store_true", help="only build the image, if it is missing")
    parser.add_argument("command", nargs="*", metavar="COMMAND")
    arguments = parser.parse_args()
    if arguments.build:
        image.build()
        return 0
    with tempfile.TemporaryDirectory(prefix="vm-") as scratch:
        folder = (arguments.keep or Path(scratch)).resolve()
        with Machine(image.build(), FLAVOURS[arguments.flavour], folder) as machine:
            print(f"vm: booting {arguments.flavour}", file=sys.stderr)
            machine.on()
            furnish(machine)
            if arguments.command:
                return show(machine, " ".join(arguments.command))
            while line := _line():
                show(machine, line)
            machine.run("sync")
    return 0


def show(machine: Machine, script: str) -> int:
    done = machine.run("sh", "-c", script, check=False, timeout=3600)
    sys.stdout.write(done.out)
    sys.stderr.write(done.err)
    return done.code


def _line() -> str:
    try:
        return input("vm# ") or ":"
    except EOFError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
