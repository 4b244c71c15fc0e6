"""A program that uses its host: each argument is a step of ``scripts/demo --programs``; without any, it waits."""

import asyncio
import hashlib
import json
import signal
import sys
import time

from netspace_client import LinkError, Mailbox

MORE = {"sale": "1 melon"}


def say(text):
    print(text, flush=True)


async def refused(what, attempt):
    """Print how *attempt* is refused; end with an error if it isn't."""
    try:
        await attempt
    except LinkError as err:
        say(f"{what}: refused: {err}")
    else:
        sys.exit(f"{what}: this wasn't refused")


def secret_refused_as(what, mailbox):
    """Print how the secret is refused; end with an error if the program has it."""
    try:
        mailbox.secret("db")
    except LinkError as err:
        say(f"{what}: refused: {err}")
    else:
        sys.exit(f"{what}: it is here")


async def ask(mailbox, to, **question):
    return json.loads((await mailbox.call(to, json.dumps(question), timeout=60)).text)


async def values(mailbox):
    say(f"values of its card: {json.dumps(dict(mailbox.values))}")
    me = await mailbox.host.whoami()
    say(f"whoami: {me.name}, image {me.image[:19]}..., on a host of level {me.trust.level}")
    await refused("a verb that isn't in its declaration", mailbox.host.delegations())


async def find(mailbox):
    for service in ("sales", "payroll"):
        found = [offer.name for offer in await mailbox.host.who(service)]
        say(f"who({service}): {', '.join(found) or 'nobody that it may reach'}")
    await refused("a message to books", mailbox.send("books", "What do others earn?"))


async def spawn(mailbox):
    began = time.monotonic()
    child = await mailbox.host.spawn("worker", "w1", {"task": "2 figs"})
    say(f"spawn: its child {child.environment} runs after {(time.monotonic() - began) * 1000:.0f} ms")
    async with await mailbox.receive(child.environment, timeout=60) as message:
        for line in json.loads(message.body):
            say(f"{child.environment}: {line}")
    await refused("a second child", mailbox.host.spawn("worker", "w2"))
    await refused("a value of another type", mailbox.host.spawn("worker", "w2", {"task": 7}))
    await refused("a value that the template lacks", mailbox.host.spawn("worker", "w2", {"admin": "yes"}))


async def shown(mailbox, evidence, expected, why=""):
    """Show a proof to orders, and print its judgement; end with an error if it isn't the expected one."""
    text = (await ask(mailbox, "orders", evidence=evidence))["text"]
    say(f"orders{why}: {text}")
    if not text.startswith(expected):
        sys.exit(f"expected: {expected}")


async def prove(mailbox):
    question = await ask(mailbox, "orders", nonce=True)
    evidence = await mailbox.host.attest(question["nonce"])
    say(f"attest: a proof of {len(evidence)} bytes")
    await shown(mailbox, evidence, "proved: ")
    await ask(mailbox, "orders", nonce=True)
    await shown(mailbox, evidence, "refused: ", ", to the same proof once more")
    child = (await mailbox.host.children())[0].environment
    await mailbox.send(child, json.dumps({"do": "prove"}))
    async with await mailbox.receive(child, timeout=60) as message:
        theirs = await mailbox.host.attest(message.text)  # to its child's question, with its own name
    await mailbox.send(child, theirs)
    async with await mailbox.receive(child, timeout=60) as message:
        say(f"orders, to its child that shows a proof for web: {message.text}")
        if not message.text.startswith("refused: "):
            sys.exit("this wasn't refused")


async def delegate(mailbox):
    await refused("larger messages for till", mailbox.host.delegate("orders", "till", size=4096))
    await refused("a right for its worker", mailbox.host.delegate("orders", "web-worker-1"))
    right = await mailbox.host.delegate("orders", "till", size=512, until=time.time() + 600)
    say(f"delegate: {right.environment} may send to {right.link}, at most {right.size} bytes, for ten minutes")


async def revoke(mailbox):
    began = time.monotonic()
    await mailbox.host.revoke("orders", "till")
    say(f"revoke: done after {(time.monotonic() - began) * 1000:.0f} ms")


async def secret(mailbox):
    held = mailbox.secret("db")
    say(f"secret db: {len(held)} bytes, SHA-256 {hashlib.sha256(held).hexdigest()}")


async def seal(mailbox):
    sealed = await mailbox.host.seal(b"the price of melons", at_least="tpm")
    say(f"seal: {len(sealed.text)} characters, by a key in the {sealed.kept_in}")
    say(f"unseal: {(await mailbox.host.unseal(sealed.text)).decode()}")
    made = await mailbox.host.sign(b"I sell melons", at_least="tpm")
    say(f"sign: {len(made.signature)} bytes, by a key in the {made.kept_in}")
    say(f"sealed={sealed.text}")


async def unseal_refused(mailbox, text):
    await refused("the value that web sealed", mailbox.host.unseal(text))


async def over(mailbox):
    await refused("whoami", mailbox.host.whoami())
    await refused("an order", mailbox.send("orders", json.dumps(MORE)))
    secret_refused_as("its secret", mailbox)


async def sale(mailbox):
    said = await ask(mailbox, "orders", **MORE)
    say(f"orders: {said['text']}")


async def sale_refused(mailbox):
    await refused("a sale", mailbox.send("orders", json.dumps(MORE), timeout=20))


async def secret_refused(mailbox):
    secret_refused_as("the secret of web", mailbox)


async def do(steps):
    async with Mailbox() as mailbox:
        for step in steps:
            name, *given = step.split("=", 1)
            await globals()[name](mailbox, *given)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
if len(sys.argv) > 1:
    try:
        asyncio.run(do(sys.argv[1:]))
    except LinkError as err:
        sys.exit(f"{type(err).__name__}: {err}")
else:
    while True:
        signal.pause()
