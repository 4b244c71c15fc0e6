"""Command line of the bridge: ``python -m netspace_client.bridge``; see ``--help``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

from netspace_client import CardError, Mailbox
from netspace_client import card as cards

log = logging.getLogger("netspace_client.bridge")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m netspace_client.bridge",
        description="Links for programs that don't use AMQP. See docs/client.md.",
    )
    parser.add_argument("--listen", metavar="ADDRESS:PORT", help="serve HTTP here: /PEER/PATH asks PEER for /PATH")
    parser.add_argument("--raw", action="append", default=[], metavar="PEER", help="send PEER only bodies, no HTTP")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--forward", metavar="URL", help="send each received message to this HTTP server")
    way.add_argument("--execute", action="store_true", help="run PROGRAM for each message, with the body as stdin")
    parser.add_argument("--at-once", type=int, metavar="N", help="messages worked on at once (8; 1 with --execute)")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="for an answer (%(default)s)")
    parser.add_argument(
        "--patience", type=float, default=60.0, metavar="SECONDS", help="for failing work (%(default)s)"
    )
    parser.add_argument("--folder", default=cards.FOLDER, help=argparse.SUPPRESS)
    parser.add_argument("program", nargs="*", metavar="-- PROGRAM", help="run this beside the bridge, until it ends")
    return parser


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"--listen {text}: expected ADDRESS:PORT, such as 127.0.0.1:8080")
    return host.strip("[]"), int(port)


async def _bridge(options: argparse.Namespace) -> int:
    """Run the bridge until its program ends or a signal comes; return the exit status."""
    from netspace_client.bridge import child, worker
    from netspace_client.bridge.execute import Execute
    from netspace_client.bridge.forward import Forward
    from netspace_client.bridge.server import Server

    address = _address(options.listen) if options.listen else None
    work: worker.Work | None = None
    if options.forward:
        work = Forward(options.forward, timeout=options.timeout)
    elif options.execute:
        work = Execute(options.program, timeout=options.timeout)
    async with Mailbox(options.folder) as mailbox:
        waits: list[Coroutine[Any, Any, int | None]] = []
        if address is not None:
            server = await Server(mailbox, timeout=options.timeout, raw=options.raw).listen(*address)
            waits.append(server.serve_forever())
        if work is not None:
            at_once = options.at_once or (1 if options.execute else 8)
            waits.append(worker.work_on(mailbox, work, at_once=at_once, patience=options.patience))
        waits.append(child.run(options.program) if options.program and not options.execute else _signalled())
        tasks = [asyncio.ensure_future(one) for one in waits]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return next(iter(done)).result() or 0
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _signalled() -> int:
    """Wait for SIGTERM or SIGINT; return the exit status 0."""
    end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    await end.wait()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bridge; return its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not (options.listen or options.forward or options.execute):
        parser.error("nothing to bridge: give --listen, --forward or --execute")
    if options.execute and not options.program:
        parser.error("--execute needs a program: --execute -- /usr/bin/handle")
    logging.basicConfig(level=logging.INFO, format="netspace bridge: %(message)s")
    try:
        return asyncio.run(_bridge(options))
    except (CardError, ValueError, OSError) as err:
        log.error("%s", err)
        return 1
    except ModuleNotFoundError as err:
        log.error("%s; install netspace-client[bridge]", err)
        return 1


if __name__ == "__main__":
    sys.exit(main())
