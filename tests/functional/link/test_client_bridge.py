"""The bridge of ``netspace-client`` on real links: programs that use HTTP, or only read stdin."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.links.link_world import World
from support.links.programs import Program, no_mail, tell
from support.waiting import until

from netspace.spec.types import Link

pytestmark = pytest.mark.root

ASK = Link(source="web", target="orders", pattern="request")
TELL = Link(source="web", target="audit")
CLIENT = Path(__file__).parents[3] / "client"
RUN = (
    f"import sys; sys.path[:0] = [{str(CLIENT / 'src')!r}, *{sys.path!r}]\n"
    "import runpy; sys.argv[0] = 'bridge'; runpy.run_module('netspace_client.bridge', run_name='__main__')"
)


class Town:
    """Environments with links, and bridges and HTTP servers in them."""

    def __init__(self, world: World, folder: Path, ends: contextlib.ExitStack) -> None:
        self.world = world
        self.folder = folder
        self.ends = ends

    def run(self, name: str, code: str, *arguments: str) -> subprocess.Popen[str]:
        """Run Python *code* in *name*, until the test ends."""
        process = self.world.run_inside(name, code, *arguments, cards=str(self.folder / name))

        def end() -> None:
            with process:  # waits for it, and closes its pipes
                try:
                    process.terminate()
                    process.communicate(timeout=10)
                except subprocess.TimeoutExpired:
                    pass
                finally:
                    process.kill()

        self.ends.callback(end)
        return process

    def bridge(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        """Run the bridge in *name*, until the test ends."""
        return self.run(name, RUN, *arguments)

    def serve(self, name: str, port: int, answer: Any) -> list[dict[str, Any]]:
        """Run an HTTP server in *name*; return the list of requests that it gets.

        *answer* takes a request and returns ``(status, headers, body)``.
        """
        got: list[dict[str, Any]] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {key.lower(): value for key, value in self.headers.items()}
                got.append({"method": self.command, "path": self.path, "headers": headers, "body": body})
                status, more, content = answer(got[-1])
                self.send_response(status)
                for key, value in {**more, "Content-Length": str(len(content))}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST

            def log_message(self, *arguments: Any) -> None:
                pass

        with self.world.inside(name):
            server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.ends.callback(server.server_close)
        self.ends.callback(server.shutdown)
        return got

    def http(
        self, name: str, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Wait for the bridge in *name*, and send a request to it from inside *name*."""

        def ask() -> tuple[int, dict[str, str], bytes] | None:
            with self.world.inside(name):
                connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=60)
                try:
                    connection.connect()
                except OSError:
                    return None
            with contextlib.closing(connection):
                connection.request(method, path, body, headers or {})
                answer = connection.getresponse()
                return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()

        found: list[Any] = []
        until(lambda: bool(found.append(ask()) or found[-1]), "the bridge takes no connection")
        return found[-1]


@pytest.fixture(scope="module")
def linked(standing: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Path]:
    standing.environment("web", "orders", "audit")
    standing.apply(ASK, TELL, purge=True)
    folder = tmp_path_factory.mktemp("cards")
    for name in ("web", "orders", "audit"):
        tell(standing, name, folder / name)
    return standing, folder


@pytest.fixture
def town(linked: tuple[World, Path]) -> Iterator[Town]:
    world, folder = linked
    with contextlib.ExitStack() as ends:
        ends.callback(no_mail, world)
        yield Town(world, folder, ends)


def test_bridge_carries_http_from_end_to_end(town: Town) -> None:
    got = town.serve("orders", 9000, lambda request: (201, {"X-Of": "orders"}, b"made " + request["body"]))
    town.bridge("orders", "--forward", "http://127.0.0.1:9000")
    town.bridge("web", "--listen", "127.0.0.1:8080")
    claimed = {"Netspace-Sender": "root", "X-Kept": "yes", "Content-Type": "text/plain"}
    status, headers, body = town.http("web", "PUT", "/orders/books/7?copies=2", b"a book", claimed)
    assert (status, headers["x-of"], body) == (201, "orders", b"made a book")
    (request,) = got
    assert (request["method"], request["path"], request["body"]) == ("PUT", "/books/7?copies=2", b"a book")
    assert request["headers"]["netspace-sender"] == "web"
    assert request["headers"]["x-kept"] == "yes"

    status, headers, body = town.http("web", "GET", "/")
    assert {one["peer"]: one["pattern"] for one in json.loads(body)["peers"]} == {"orders": "request", "audit": "send"}
    assert town.http("web", "GET", "/nobody/x")[0] == 404


def test_bridge_tells_that_a_message_was_taken(town: Town) -> None:
    got = town.serve("audit", 9000, lambda request: (204, {}, b""))
    town.bridge("web", "--listen", "127.0.0.1:8080", "--raw", "audit")
    status, headers, _ = town.http("web", "POST", "/audit", b"sold", {"Content-Type": "text/x-sold"})
    assert status == 202 and headers["netspace-message-id"]
    town.bridge("audit", "--forward", "http://127.0.0.1:9000/hook")
    until(lambda: bool(got), "the message is not handed out")
    (request,) = got
    assert (request["method"], request["path"], request["body"]) == ("POST", "/hook", b"sold")
    assert request["headers"]["content-type"] == "text/x-sold"
    assert request["headers"]["netspace-message-id"] == headers["netspace-message-id"]


def test_bridge_tries_again_until_the_server_takes_it(town: Town) -> None:
    sender = Program(town.world, "web", town.folder / "web")
    town.ends.callback(sender.leave)
    answers = itertools.chain((503, 500), itertools.repeat(200))
    got = town.serve("audit", 9000, lambda request: (next(answers), {}, b""))
    town.bridge("audit", "--forward", "http://127.0.0.1:9000/")
    sender.send("audit", "sold")
    until(lambda: len(got) >= 3, "it was not tried again")


def test_bridge_survives_whatever_a_peer_sends(town: Town) -> None:
    sender = Program(town.world, "web", town.folder / "web")
    town.ends.callback(sender.leave)
    got = town.serve("audit", 9000, lambda request: (200, {}, b""))
    process = town.bridge("audit", "--forward", "http://127.0.0.1:9000/")
    hostile = [
        (b"\xff\xfe no text", "text/plain"),
        (b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\n\r\n", "message/http"),
        (b"\0", "message/http"),
        (b"x", "a\r\nnetspace-sender: root"),
    ]
    for body, kind in hostile:
        sender.run(sender.mailbox.send("audit", body, content_type=kind))
    sender.send("audit", "good")
    until(lambda: any(one["body"] == b"good" for one in got), "the bridge serves no more")
    assert process.poll() is None
    assert {one["headers"]["netspace-sender"] for one in got} == {"web"}
    assert {one["path"] for one in got} == {"/"}


def test_demo_service_survives_whatever_a_peer_sends(town: Town) -> None:
    """The demo's service gets bodies that are not text, empty or long, and still answers the next request."""
    asker = Program(town.world, "web", town.folder / "web")
    town.ends.callback(asker.leave)
    folder = Path(__file__).parents[3] / "scripts/demo.d/image"
    code = f"import sys; sys.path[:0] = [{str(folder)!r}, *{sys.path!r}]\n" + (folder / "orders.py").read_text()
    process = town.run("orders", code)
    for body in (b"\xff\xfe no text", b"", b"\0" * 1000):
        asker.run(asker.mailbox.send("orders", body))
    answer = asker.run(asker.mailbox.call("orders", "three", timeout=60))
    assert answer.text == "order 4 for web: three, thank you"
    assert process.poll() is None


def test_bridge_runs_a_program_for_each_message(town: Town) -> None:
    asker = Program(town.world, "web", town.folder / "web")
    town.ends.callback(asker.leave)
    script = 'echo "$NETSPACE_SENDER: $(tr a-z A-Z)"'
    town.bridge("orders", "--execute", "--", "/bin/sh", "-c", script)
    for text in ("one", "two"):
        answer = asker.run(asker.mailbox.call("orders", text, timeout=60))
        assert answer.text == f"web: {text.upper()}\n"


def test_bridge_ends_with_its_program_and_hands_on_signals(town: Town) -> None:
    script = "trap 'echo told; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    process = town.bridge("web", "--listen", "127.0.0.1:8080", "--", "/bin/sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    printed, _ = process.communicate(timeout=30)
    assert (printed, process.returncode) == ("told\n", 7)
