"""The child of ``scripts/demo --programs``: it tells its parent what it has, and tries what it hasn't."""

import asyncio
import json
import signal
import sys

from netspace_client import LinkError, Mailbox


async def attempt(what, work):
    try:
        await work
    except LinkError as err:
        return f"{what}: refused: {err}"
    return f"{what}: NOT REFUSED"


async def ask(mailbox, **question):
    return json.loads((await mailbox.call("orders", json.dumps(question), timeout=60)).text)


async def report(mailbox):
    me = await mailbox.host.whoami()
    sold = await ask(mailbox, sale=mailbox.values["task"])
    return [
        f"whoami: {me.name}; its values: {json.dumps(dict(mailbox.values))}",
        f"it may send to: {', '.join(sorted(mailbox.card.peers))}; orders: {sold['text']}",
        await attempt("spawn", mailbox.host.spawn("worker", "w")),
        await attempt("9000 bytes to orders", mailbox.send("orders", "x" * 9000)),
        await attempt("a message to till", mailbox.send("till", "psst")),
    ]


async def work():
    async with Mailbox() as mailbox:
        await mailbox.send("web", json.dumps(await report(mailbox)))
        async for message in mailbox.messages("web"):  # asked to prove something: as its parent
            async with message:
                pass
            await mailbox.send("web", (await ask(mailbox, nonce=True))["nonce"])
            async with await mailbox.receive("web", timeout=60) as evidence:
                told = await ask(mailbox, evidence=evidence.text)
            await mailbox.send("web", told["text"])


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
asyncio.run(work())
