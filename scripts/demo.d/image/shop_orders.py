#!/usr/bin/python3
"""The program of ``orders``, with netspace-client: it answers each request in its mailbox."""

import asyncio
import signal
import sys

from netspace_client import Mailbox


async def answer(message):
    sealed = "sealed" if message.sealed_at is not None else "not sealed"
    return f"thank you, {message.sender}, for the {sealed} order of {message.text}"


async def serve():
    async with Mailbox() as mailbox:
        await mailbox.serve(answer)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
asyncio.run(serve())
