"""A program that sends a request to a peer and prints the answer: ``asker.py PEER TEXT``."""

import asyncio
import sys

from netspace_client import LinkError, Mailbox


async def main(peer: str, text: str) -> int:
    async with Mailbox() as mailbox:
        try:
            answer = await mailbox.call(peer, text, timeout=30)
        except LinkError as err:
            print(f"{type(err).__name__}: {err}", file=sys.stderr)
            return 1
        print(answer.text)
        return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
