"""Hand each message to a program's standard input; the program's output answers a request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Sequence

from netspace_client.bridge.wire import BODY
from netspace_client.bridge.worker import Done
from netspace_client.message import Message

log = logging.getLogger("netspace_client.bridge")


class Execute:
    """A program that is run for each message.

    It finds ``NETSPACE_SENDER`` (certain), ``NETSPACE_MESSAGE_ID``, ``NETSPACE_CONTENT_TYPE`` and
    ``NETSPACE_REDELIVERED`` in its environment. Exit status 0: the message is done; 65 (``EX_DATAERR``, sysexits.h): it
    goes to the dead letters; any other: the program is run again for it.

    :param command: argument vector.
    :param timeout: seconds that it may take; then it is killed with all that it started, and the message comes again.
    """

    def __init__(self, command: Sequence[str], *, timeout: float = 60.0) -> None:
        self._command = list(command)
        self._timeout = timeout

    async def __call__(self, message: Message) -> Done:
        """Work on a message."""
        variables = {
            "NETSPACE_SENDER": message.sender,
            "NETSPACE_MESSAGE_ID": _clean(message.id or ""),
            "NETSPACE_CONTENT_TYPE": _clean(message.content_type or ""),
            "NETSPACE_REDELIVERED": "1" if message.redelivered else "0",
        }
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                env={**os.environ, **variables},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as err:
            log.error("%s: %s", self._command[0], err)
            return Done("later")
        try:
            printed = await asyncio.wait_for(_talk(process, message.body), self._timeout)
        except asyncio.TimeoutError:
            log.warning("%s took longer than %g s for %r", self._command[0], self._timeout, message)
            return Done("later")
        finally:
            if process.returncode is None:
                # With all that it started: they hold its output, whose end is waited for.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if printed is None:
            log.warning("%s printed more than %d bytes for %r", self._command[0], BODY, message)
            return Done("never")
        if process.returncode == 0:
            return Done("done", (printed, "application/octet-stream"))
        return Done("never" if process.returncode == os.EX_DATAERR else "later")


async def _talk(process: asyncio.subprocess.Process, body: bytes) -> bytes | None:
    """Write *body* and read the program's output until it ends; None where the output is too large."""
    assert process.stdin is not None and process.stdout is not None
    writing = asyncio.create_task(_write(process.stdin, body))
    printed = bytearray()
    try:
        while part := await process.stdout.read(65536):
            printed += part
            if len(printed) > BODY:
                return None
        await writing
        await process.wait()
        return bytes(printed)
    finally:
        writing.cancel()


async def _write(stream: asyncio.StreamWriter, body: bytes) -> None:
    """Write all of *body*; the program may end without reading it."""
    try:
        stream.write(body)
        await stream.drain()
        stream.close()
    except (BrokenPipeError, ConnectionResetError):
        pass


def _clean(text: str) -> str:
    """Return a sender's text without control characters, as the value of a variable."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)
