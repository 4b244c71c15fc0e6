"""A host with an unresolvable name and a silent name server: links work, and no DNS question is sent."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from netspace.spec.types import Link

pytestmark = pytest.mark.root

SPACE = "silent"
SERVER = "198.18.7.2"
FILES = {
    "/etc/resolv.conf": f"nameserver {SERVER}\n",
    "/etc/hosts": "127.0.0.1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


class NameServer:
    """A name server that receives questions and answers none."""

    def __init__(self, heard: socket.socket) -> None:
        self._heard = heard

    def questions(self) -> list[bytes]:
        """Return the DNS questions that arrived since the last call."""
        found = []
        while True:
            try:
                found.append(self._heard.recv(4096))
            except BlockingIOError:
                return found


@pytest.fixture(scope="module")
def name_server(world, tmp_path_factory) -> Iterator[NameServer]:
    """A DNS server that answers nothing. The fixture requires *world*, so that the node ends before the server."""
    with ExitStack() as undo:

        def run(*command: str, back: tuple[str, ...] = ()) -> None:
            subprocess.run(command, check=True)
            if back:
                undo.callback(subprocess.run, back, check=True)

        world.environment(SPACE)  # a namespace of its own, where the name server is
        space = world.layout.netns_name(SPACE)
        run(
            "ip",
            "link",
            "add",
            "up0",
            "type",
            "veth",
            "peer",
            "name",
            "x",
            "netns",
            space,
            back=("ip", "link", "del", "up0"),
        )
        run("ip", "addr", "add", "198.18.7.1/24", "dev", "up0")
        run("ip", "link", "set", "up0", "up")
        run("ip", "-n", space, "addr", "add", f"{SERVER}/24", "dev", "x")
        run("ip", "-n", space, "link", "set", "x", "up")
        run("ip", "route", "add", "default", "via", SERVER)
        folder = tmp_path_factory.mktemp("etc")
        for path, content in FILES.items():
            own = folder / os.path.basename(path)
            own.write_text(content)
            own.chmod(0o644)
            run("mount", "--bind", str(own), path, back=("umount", path))
        with world.inside(SPACE):
            heard = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        heard.bind((SERVER, 53))
        heard.setblocking(False)
        yield NameServer(heard)
        world.links.purge()


def test_a_look_up_of_the_hosts_name_does_reach_the_name_server(name_server):
    once = {"RES_OPTIONS": "timeout:1 attempts:1", "PATH": os.environ["PATH"]}
    subprocess.run(["getent", "ahostsv4", socket.gethostname()], env=once, capture_output=True, check=False)
    assert name_server.questions()


def test_links_are_made_and_used_without_a_question_to_the_name_server(world, name_server):
    world.environment("web", "orders")
    world.apply(Link(source="web", target="orders"))
    with world.api() as api:  # each call gives up after ten seconds
        assert api.get("overview")["node"] == "netspace@localhost"
        assert api.get("definitions")["vhosts"]
        assert api.get("nodes")[0]["running"]
    with world.client("web") as channel:
        channel.basic_publish(world.n("link.web.orders"), "", b"hello", mandatory=True)
    with world.client("orders") as channel:
        assert channel.basic_get(world.n("mailbox.orders"), auto_ack=True)[2] == b"hello"
    assert name_server.questions() == []
