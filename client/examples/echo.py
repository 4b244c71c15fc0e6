"""A service that answers each request with the request's text in capitals."""

import asyncio

from netspace_client import Mailbox, Message


async def echo(message: Message) -> str:
    return f"{message.sender} said {message.text.upper()}"


async def main() -> None:
    async with Mailbox() as mailbox:
        await mailbox.serve(echo)


if __name__ == "__main__":
    asyncio.run(main())
