"""``python -m netspace``: commands that run without Salt.

``check``, ``plan``, ``apply`` and ``list`` are for scripts and for tools other than Salt. ``schema`` is for editors,
and ``file-root`` for an operator who installed netspace by pip. systemd units and the supervisor's client start the
other commands, which read the instance's records, not a declaration.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from netspace.layout import Layout

_CODES = """\
exit codes: 0  well: nothing to do, or done
            1  a problem: on standard error as '<path>: <problem>; <remedy>'
            2  plan alone: there are changes to make, and no problem"""


class _Parser(argparse.ArgumentParser):
    """A parser that exits with 1 for wrong arguments, because 2 means that a plan has changes."""

    def error(self, message: str) -> NoReturn:
        import textwrap

        problem = message.partition(" (choose from ")[0]  # --help has the list, with a line for each
        text = f"{self.prog}: {problem}; {self.prog} --help tells more"
        self.exit(1, "\n".join(textwrap.wrap(text, 80, break_on_hyphens=False)) + "\n")


class _Platform(ModuleType):
    """A stand-in for the module ``platform``, with all that ``uuid`` calls while it is imported (before 3.13)."""

    @staticmethod
    def system() -> str:
        return os.uname().sysname


def _import_msgspec() -> None:
    """Import msgspec without typing_extensions and platform. Other packages can import both afterwards.

    If typing_extensions is installed, msgspec uses it in place of ``typing``. The library doesn't need it, and
    importing it costs each process 10 ms and 1 MB. msgspec also imports ``uuid``, which imports ``platform`` only for
    the name of the system: 3 ms. No other thread runs yet.
    """
    if "msgspec" in sys.modules:
        return
    every = {"typing_extensions": None, "platform": _Platform("platform")}
    standins = {name: module for name, module in every.items() if name not in sys.modules}
    sys.modules.update(standins)  # type: ignore[arg-type]
    try:
        import msgspec  # noqa: F401
    finally:
        for name in standins:
            sys.modules.pop(name, None)


def _readers(layout: Layout, environment: str) -> int:
    """Return the number of consumers of an environment's mailbox. Only this function imports the AMQP client."""
    from netspace.link import status

    return status.readers(layout, environment)


_DECLARED = {
    "check": "say whether a declaration can be applied on this host; changes nothing",
    "plan": "list what an apply of a declaration would change; changes nothing",
    "apply": "make this host as declared, and remove undeclared things",
    "list": "list this host's environments and links; those that need attention come first",
}
_COMMANDS = {
    **_DECLARED,
    "file-root": "print the folder with the SLS files, for Salt's file_roots",
    "schema": "print the JSON Schema of the declaration, for editors",
    "supervise": "supervise the services of a host without systemd, in the background",
    "names": "look up the names in rules of interfaces (run by a service)",
    "health": "watch the health of the environments that have a check (run by a service)",
    "restore": "after a boot: rebuild all volatile state, start the services (run by a service)",
    "forward": "become the forwarder of the environments' links (run by a service)",
    "peer": "answer the environments' requests to the host (run by a service)",
    "keeper": "start and end children of environments (run by a service)",
    "renew": "replace the environments' certificates that expire soon (run by a service)",
}
_STAYING = frozenset({"supervise", "names", "health", "forward", "peer", "keeper"})
"""Commands that run as long as the host does."""


def _parser(program: str, arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser of *arguments*.

    If the arguments name commands, only these are added, because adding all takes 5 ms.
    """
    parser = _Parser(prog=program, description="The parts of netspace that run without Salt.")
    parser.add_argument("--instance", default="netspace", help="whose records to use (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in [name for name in _COMMANDS if name in arguments] or _COMMANDS:
        if name in _DECLARED:
            _add_declared(commands, name)
        else:
            text = _COMMANDS[name]
            command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
            if name == "supervise":
                _add_supervise(command)
    return parser


def _add_supervise(command: _Parser) -> None:
    """Add the options of ``supervise``."""
    command.add_argument("--foreground", action="store_true", help="stay in the foreground, for an init of your own")
    # The descriptor of the lock, which a supervisor passes on to its successor.
    command.add_argument("--lock", type=int, help=argparse.SUPPRESS)


def _add_declared(commands: argparse._SubParsersAction[_Parser], name: str) -> None:
    """Add a command for a declaration in a file (``check``, ``plan``, ``apply``), or ``list``."""
    text = _DECLARED[name]
    command = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_CODES,
    )
    command.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    if name != "list":
        command.add_argument(
            "file",
            metavar="FILE",
            help="YAML or JSON with the declaration under the key 'netspace', such as a pillar file without "
            "Jinja; '-' is standard input. A file that begins with '{' is read as JSON; YAML needs PyYAML",
        )
    if name == "check":
        command.add_argument(
            "--no-host",
            action="store_true",
            help="check the declaration alone, not this host; needs no root",
        )


def _file_root() -> int:
    """Print the folder of the SLS files that pip installed. Return 1 if Salt synced this library without SLS files."""
    from importlib.util import find_spec

    found = find_spec("netspace.sls")
    folders = list(found.submodule_search_locations or ()) if found is not None else []
    if not folders:
        print("netspace: no SLS files beside this library; take them from the checkout's file_root/", file=sys.stderr)
        return 1
    print(folders[0])
    return 0


def _schema() -> int:
    """Print the JSON Schema of the declaration. The file docs/declaration.schema.json has the same text."""
    import json

    from netspace.spec import schema

    print(json.dumps(schema.schema(), indent=1))
    return 0


def _declared(layout: Layout, options: argparse.Namespace) -> int:
    """Run ``list``, or one of the commands about a declaration."""
    from netspace.host import commands

    if options.command == "list":
        return commands.overview(layout, as_json=options.json)
    if options.command == "check":
        return commands.check(layout, options.file, as_json=options.json, host=not options.no_host)
    return commands.converge(layout, options.file, as_json=options.json, test=options.command == "plan")


def main(arguments: Sequence[str] | None = None, program: str = "python -m netspace") -> int:
    """Run one command; return its exit code.

    :param program: the words by which the operator calls this program, for its help and errors.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser(program, arguments)
    options = parser.parse_args(arguments)
    if options.command == "file-root":
        return _file_root()
    if options.command == "schema":
        return _schema()
    try:
        layout = Layout(options.instance)
    except ValueError as err:
        parser.error(str(err))
    if os.geteuid() != 0 and not (options.command == "check" and options.no_host):
        parser.error("only root can do that")
    if options.command == "supervise":
        from netspace import library_copy
        from netspace.supervision.daemon import daemon

        return daemon.main(layout, library_copy.installed(layout), foreground=options.foreground, lock=options.lock)
    if options.command == "forward":
        from netspace.link.forwarder import launch

        launch.main(layout)
    _import_msgspec()
    if options.command in ("check", "plan", "apply", "list"):
        return _declared(layout, options)
    if options.command == "renew":
        from netspace.host import renew

        return renew.run(layout)
    if options.command == "health":
        from netspace.environment.health import watcher

        return watcher.main(layout, lambda environment: _readers(layout, environment))
    if options.command == "peer":
        from netspace.host.peer import process

        return process.main(layout)
    if options.command == "keeper":
        from netspace.host import keeper

        return keeper.main(layout)
    if options.command == "names":
        from netspace.interface.names import refresher

        return refresher.main(layout)
    from netspace.host import restore

    return restore.run(layout)


def run(program: str = "python -m netspace") -> NoReturn:
    """Run one command in a process of its own, and end the process.

    Most commands end soon, and their garbage goes with the process. So Python looks for garbage only after many new
    objects, and not at its end: that takes 25 ms of processor time otherwise.
    """
    brief = _STAYING.isdisjoint(sys.argv)
    if brief:
        gc.set_threshold(100_000)
    code = main(program=program)
    if brief:
        gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    run()
