"""Work of the bridge: run a program for each message, with the body as input; its output answers a request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from netspace_client.bridge.wire import BODY
from netspace_client.bridge.worker import Done
from netspace_client.message import Message

log = logging.getLogger("netspace_client.bridge")


class Execute:
    """A program that is run for each message.

    The program has the variables ``NETSPACE_SENDER`` (can't be forged), ``NETSPACE_MESSAGE_ID``,
    ``NETSPACE_CONTENT_TYPE`` and ``NETSPACE_REDELIVERED``. Its exit status is the outcome: 0: the message is done; 65
    (``EX_DATAERR``, sysexits.h): the message becomes a dead letter; any other: the program is run again.

    :param command: argument vector.
    :param timeout: seconds for one run. After this time its process group is killed, and the message is tried again.
    """

    def __init__(self, command: Sequence[str], *, timeout: float = 60.0) -> None:
        self._command = list(command)
        self._timeout = timeout

    async def __call__(self, message: Message) -> Done:
        """Run the program for a message; return the outcome."""
        variables = {
            "NETSPACE_SENDER": message.sender,
            "NETSPACE_MESSAGE_ID": _clean(message.id or ""),
            "NETSPACE_CONTENT_TYPE": _clean(message.content_type or ""),
            "NETSPACE_REDELIVERED": "1" if message.redelivered else "0",
        }
        try:
            process, output = await self._start(message.body, variables)
        except OSError as err:
            log.error("%s: %s", self._command[0], err)
            return Done("later")
        printed = None
        with output:
            try:
                printed = await asyncio.wait_for(_printed(process, output), self._timeout)
            except asyncio.TimeoutError:
                log.warning("%s took longer than %g s for %r", self._command[0], self._timeout, message)
                return Done("later")
            finally:
                if printed is None:
                    await _end(process)
        if printed is None:
            log.warning("%s printed more than %d bytes for %r", self._command[0], BODY, message)
            return Done("never")
        if process.returncode == 0:
            return Done("done", (printed, "application/octet-stream"))
        return Done("never" if process.returncode == os.EX_DATAERR else "later")

    async def _start(self, body: bytes, variables: Mapping[str, str]) -> tuple[asyncio.subprocess.Process, BinaryIO]:
        """Start the program in its own session with *body* as its input; return the process and its output pipe.

        asyncio's own pipes are not used, because asyncio's wait() also waits for their end. A pipe doesn't end as long
        as a child that outlives the program holds it open, or if nothing reads it any more.
        """
        number, given = os.pipe()
        output = os.fdopen(number, "rb", 0)
        try:
            with open(os.memfd_create("body", os.MFD_CLOEXEC), "wb+") as body_file:
                body_file.write(body)
                body_file.seek(0)
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    env={**os.environ, **variables},
                    stdin=body_file,
                    stdout=given,
                    start_new_session=True,
                )
        except BaseException:
            output.close()
            raise
        finally:
            os.close(given)
        return process, output


async def _printed(process: asyncio.subprocess.Process, output: BinaryIO) -> bytes | None:
    """Read a program's output, wait for the program's end, and return the output; None: the output is too large."""
    stream = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), output)
    printed = bytearray()
    try:
        while part := await stream.read(65536):
            printed += part
            if len(printed) > BODY:
                return None
        await process.wait()
        return bytes(printed)
    finally:
        pipe.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the program and its process group. Processes of the group may still run after the program has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _clean(text: str) -> str:
    """Return a sender's text as the value of a variable, with ``?`` for control characters."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)
