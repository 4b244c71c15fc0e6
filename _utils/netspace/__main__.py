"""``python -m netspace``: commands that run without Salt.

Units and the supervisor's client start them. They read the instance's records, not a declaration.
``file-root`` is for the operator who installed netspace by pip.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from netspace.layout import Layout


def _readers(layout: Layout, environment: str) -> int:
    """Count the consumers of an environment's mailbox; the broker's client is imported when a check needs it."""
    from netspace.link import status

    return status.readers(layout, environment)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m netspace", description="The parts of netspace that run without Salt."
    )
    parser.add_argument("--instance", default="netspace", help="whose records to use (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    supervise = commands.add_parser(
        "supervise", help="keep the services running on a host without systemd; returns once it does"
    )
    supervise.add_argument("--foreground", action="store_true", help="stay, for an init of your own")
    # A descriptor of the lock, which a supervisor passes on to its successor.
    supervise.add_argument("--lock", type=int, help=argparse.SUPPRESS)
    commands.add_parser("health", help="watch the health of the environments that have a check; a service's program")
    commands.add_parser("restore", help="after a reboot: rebuild all that was volatile and start the services")
    commands.add_parser("file-root", help="print the folder with the SLS files, for Salt's file_roots")
    commands.add_parser("schema", help="print the JSON Schema of the declaration, for editors")
    commands.add_parser("forward", help="become the forwarder of the environments' links; a service's program")
    commands.add_parser("renew", help="replace the certificates of environments that are about to run out")
    return parser


def _file_root() -> int:
    """Print the folder of the SLS files that pip installed; return 1 if Salt synced this library without them."""
    from importlib.util import find_spec

    found = find_spec("netspace.sls")
    folders = list(found.submodule_search_locations or ()) if found is not None else []
    if not folders:
        print("netspace: no SLS files beside this library; take them from the checkout's file_root/", file=sys.stderr)
        return 1
    print(folders[0])
    return 0


def _schema() -> int:
    """Print the JSON Schema of the declaration. docs/declaration.schema.json is this text."""
    import json

    from netspace.spec import schema

    print(json.dumps(schema.schema(), indent=1))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "file-root":
        return _file_root()
    if options.command == "schema":
        return _schema()
    try:
        layout = Layout(options.instance)
    except ValueError as err:
        parser.error(str(err))
    if os.geteuid() != 0:
        parser.error("only root can do that")
    if options.command == "supervise":
        from netspace import library_copy
        from netspace.supervision.daemon import daemon

        return daemon.main(layout, library_copy.installed(layout), foreground=options.foreground, lock=options.lock)
    if options.command == "forward":
        from netspace.link.forwarder import launch

        launch.main(layout)
    if options.command == "renew":
        from netspace.host import renew

        return renew.run(layout)
    if options.command == "health":
        from netspace.environment.health import watcher

        return watcher.main(layout, lambda environment: _readers(layout, environment))
    from netspace.host import restore

    return restore.run(layout)


if __name__ == "__main__":
    sys.exit(main())
