#!/usr/bin/python3
"""The program of ``web``, with netspace-client: sends its arguments to 'orders' as a request, or waits without any."""

import asyncio
import signal
import sys

from netspace_client import LinkError, Mailbox


async def ask(text):
    async with Mailbox() as mailbox:
        answer = await mailbox.call("orders", text, timeout=20)
        print(answer.sender, "sealed" if answer.sealed_at is not None else "not sealed", answer.text, sep=": ")


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
if len(sys.argv) > 1:
    try:
        asyncio.run(ask(" ".join(sys.argv[1:])))
    except (LinkError, OSError) as err:
        sys.exit(f"no answer: {err or type(err).__name__}")
else:
    while True:
        signal.pause()
