"""A program that asks its host who it is. Its environment needs ``host: [whoami]``."""

import asyncio

from netspace_client import HostRefused, Mailbox, NotDeclared


async def main() -> None:
    async with Mailbox() as mailbox:
        try:
            me = await mailbox.host.whoami()
        except (NotDeclared, HostRefused) as err:
            print(f"the host doesn't tell: {err}")
            return
        print(f"{me.name} runs {me.image} since {me.started}, on a host that says it has {me.trust.level}")


if __name__ == "__main__":
    asyncio.run(main())
