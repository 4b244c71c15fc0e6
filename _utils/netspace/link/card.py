"""What an environment is told of its links: the content of ``/run/netspace/environment.json``.

Pure. The schema, with an example of its use, is ``docs/environment-json.md``. The
card holds no secret: the password is in a file of its own beside it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from netspace.link import model
from netspace.spec.types import Link

VERSION = 1
PORT = 5672
PASSWORD_FILE = "/run/netspace/password"  # noqa: S105 (a path)


def card(name: str, links: Collection[Link], vhost: str) -> dict[str, Any]:
    """Return the card of environment *name*; *links* not its own are left out.

    One without any link has no mailbox and no broker.
    """
    peers = []
    senders = []
    for link in sorted(links, key=lambda link: link.name):
        if link.source == name:
            peer: dict[str, Any] = {"to": link.target, "pattern": link.pattern, "exchange": model.exchange(link)}
            if link.pattern == "request":
                peer["replies"] = {"queue": model.replies(name), "exchange": model.reply(link.target)}
            peers.append(peer)
        elif link.target == name:
            sender: dict[str, Any] = {"from": link.source, "pattern": link.pattern, "exchange": model.exchange(link)}
            if link.pattern == "request":
                sender["reply_exchange"] = model.reply(name)
            senders.append(sender)
    content: dict[str, Any] = {"version": VERSION, "name": name, "peers": peers, "senders": senders}
    if peers or senders:
        content["mailbox"] = model.mailbox(name)
        content["broker"] = {
            "host": "127.0.0.1",
            "port": PORT,
            "vhost": vhost,
            "username": model.account(name),
            "password_file": PASSWORD_FILE,
        }
    return content
