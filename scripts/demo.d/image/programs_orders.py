"""The service of ``scripts/demo --programs``: it takes sales, and checks proofs by code that has nothing of netspace.

``check_evidence.py`` beside it is ``client/examples/check_evidence.py``.
"""

import asyncio
import json
import secrets
import signal
import sys
import time

import check_evidence

from netspace_client import Mailbox

asked = {}
"""By sender: the nonce that it has to prove next; each counts once."""


def checked(sender, evidence, trusted):
    """Return whether a sender has proved what it is, as text."""
    try:
        found = check_evidence.check(
            evidence,
            trusted["host_key"].encode(),
            asked.pop(sender, "none was given"),
            time.time(),
            environment=sender,
            image=trusted["image"],
        )
    except check_evidence.Refused as err:
        return f"refused: {err}"
    return f"proved: {found['environment']} runs the image that I expect, on the host whose key I have"


async def serve():
    async with Mailbox() as mailbox:

        async def answer(message):
            question = json.loads(message.text)
            if "nonce" in question:
                asked[message.sender] = secrets.token_urlsafe(24)
                return json.dumps({"nonce": asked[message.sender]})
            if "evidence" in question:
                return json.dumps({"text": checked(message.sender, question["evidence"], mailbox.values)})
            return json.dumps({"text": f"sold to {message.sender}: {question['sale']}"})

        await mailbox.serve(answer)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
asyncio.run(serve())
