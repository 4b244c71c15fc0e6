"""Delegated rights, with real crun and a real broker: programs that let others send along links of their own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest
from msgspec.structs import replace
from support.hosts.whole_host import IDLE, python
from support.links.link_world import World
from support.waiting import until

from netspace.errors import SpecError
from netspace.host import delegation_records as record
from netspace.host import reach
from netspace.host.delegations import Limits
from netspace.host.host import Host
from netspace.host.peer.service import KEEPER
from netspace.layout import Layout
from netspace.plan import Plan, Result
from netspace.spec import parse
from netspace_client import HostRefused, LinkError, Mailbox

pytestmark = pytest.mark.root
LAYOUT = Layout()
VERBS = ["delegate", "revoke", "delegations"]
Work = Callable[[Mailbox], Coroutine[Any, Any, Any]]


def declaration(image: Path) -> dict[str, Any]:
    common = {"image": f"tar:{image}", "limits": {"memory": "64M"}, "stop_timeout": 2, "command": python(IDLE)}
    return {
        "environments": {
            "web": {
                **common,
                "host": VERBS,
                "delegates": {"orders": {"to": ["till"], "rate": 50, "size": "4K", "lifetime": 3600}},
            },
            "till": {**common, "host": VERBS, "delegates": {"orders": {"to": ["aid"], "size": "1K"}}},
            "aid": common,
            "orders": common,
        },
        "links": [
            {"from": "web", "to": "orders", "size": "8K", "as": "shop"},
            {"from": "web", "to": "till"},
            {"from": "till", "to": "aid"},
        ],
    }


def apply(declared: dict[str, Any], *, test: bool = False) -> set[tuple[str, str, str]]:
    """Apply a whole declaration, as an operator's run does; every step must succeed. Return the steps."""
    host, result = Host(LAYOUT), Result(Plan())
    for converge in host.each_kind(parse.declaration(declared), test=test).values():
        result = result.joined(converge())
    assert not result.failures and not result.plan.refusals, (result.failures, result.plan.refusals)
    return {(step.kind, step.name, step.action) for step in result.plan.steps}


def unchanged(declared: dict[str, Any]) -> None:
    until(lambda: apply(declared, test=True) == set())  # the keeper writes the cards last
    assert apply(declared) == set()


def asked(name: str, work: Work) -> Any:
    """Call *work* with the mailbox of an environment, in the environment's network namespace; return the result."""

    async def connected() -> Any:
        async with Mailbox(LAYOUT.inside(name)) as mailbox:
            return await work(mailbox)

    with World().inside(name):
        return asyncio.run(connected())


def delegate(name: str = "web", link: str = "shop", to: str = "till", **limits: Any) -> Any:
    return asked(name, lambda mailbox: mailbox.host.delegate(link, to, timeout=120, **limits))


def revoke(name: str = "web", link: str = "shop", to: str = "till") -> None:
    asked(name, lambda mailbox: mailbox.host.revoke(link, to, timeout=120))


def refused(work: Callable[[], object]) -> str:
    with pytest.raises(HostRefused) as err:
        work()
    return err.value.code


def send(name: str, body: str) -> str:
    """Send a message to orders; return the error's name, or nothing."""

    async def sent(mailbox: Mailbox) -> str:
        try:
            await mailbox.send("orders", body, timeout=30)
        except LinkError as err:
            return type(err).__name__
        return ""

    return str(asked(name, sent))


def waiting() -> list[tuple[str, str]]:
    """Take the messages that wait for orders; return sender and text of each."""

    async def taken(mailbox: Mailbox) -> list[tuple[str, str]]:
        found = []
        with pytest.raises(LinkError):  # until nothing comes
            while True:
                message = await mailbox.receive(timeout=3)
                async with message:
                    found.append((message.sender, message.text))
        return found

    return list(asked("orders", taken))


def links() -> set[str]:
    return {link.name for link in Host(LAYOUT).links.recorded()} & {"till.orders", "aid.orders"}


def log() -> str:
    return (LAYOUT.logs / "keeper.log").read_text()


@pytest.fixture(scope="module")
def here(image: Path) -> Iterator[dict[str, Any]]:
    declared = declaration(image)
    assert Host(LAYOUT).teardown().ok
    apply(declared)
    yield declared
    assert Host(LAYOUT).teardown().ok
    assert not LAYOUT.records(record.KIND).exists()


def test_peer_sends_by_a_right_until_it_is_revoked(here: dict[str, Any]) -> None:
    assert links() == set() and send("till", "early") == "NotDeclared"
    found = delegate(size=2000)
    assert (found.environment, found.rate, found.size) == ("till", 50, 2000)
    assert found.until == pytest.approx(time.time() + 3600, abs=300)
    assert send("till", "one") == "" and waiting() == [("till", "one")]
    assert send("till", "x" * 2001) == "Refused"
    card = json.loads((LAYOUT.inside("till") / "environment.json").read_text())
    assert [(peer["rate"], peer["size"]) for peer in card["peers"] if peer["to"] == "orders"] == [(50, 2000)]
    below = delegate("till", "orders", "aid")
    assert (below.rate, below.size) == (50, 1024) and below.until <= found.until
    assert send("aid", "two") == "" and links() == {"till.orders", "aid.orders"}
    unchanged(here)
    drawn = reach.graph(Host(LAYOUT), "dot")
    assert '"till" -> "orders" [label="messages, by web", style=bold];' in drawn
    assert '"aid" -> "orders" [label="messages, by till", style=bold];' in drawn
    assert "delegated by" in (page := reach.graph(Host(LAYOUT), "html")) and "delegates it" not in page
    assert asked("web", lambda mailbox: mailbox.host.delegations(timeout=120)) == [found]
    assert asked("till", lambda mailbox: mailbox.host.delegations(timeout=120)) == [below]
    assert refused(lambda: delegate()) == "name-in-use"
    revoke()
    assert links() == set() and not record.names(LAYOUT)
    assert '"till" -> "orders" [label="messages, if web delegates it", style=dotted];' in reach.graph(
        Host(LAYOUT), "dot"
    )
    assert send("aid", "late") == send("till", "late") == "NotDeclared"
    assert waiting() == [], "what was sent by it and not delivered is gone"
    assert refused(revoke) == "delegation-unknown"
    assert asked("web", lambda mailbox: mailbox.host.delegations(timeout=120)) == []
    unchanged(here)


def test_request_beyond_the_declaration_is_refused(here: dict[str, Any]) -> None:
    assert refused(lambda: delegate(link="orders")) == "link-unknown", "web calls it shop"
    assert refused(lambda: delegate(to="aid")) == "link-unknown"
    assert refused(lambda: delegate(link="till", to="shop")) == "link-unknown"
    assert refused(lambda: delegate("till", "orders", "aid")) == "link-unknown", "till has no such right now"
    assert refused(lambda: delegate(size=5000)) == refused(lambda: delegate(rate=51)) == "beyond-right"
    assert refused(lambda: delegate(until=time.time() - 5)) == "arguments-invalid"
    assert refused(lambda: delegate(link="../x")) == "arguments-invalid"
    assert delegate(until=time.time() + 10**6).until <= time.time() + 3600
    revoke()
    with pytest.raises(SpecError, match=r"till\.orders: exists by a delegation of web"):
        Host(LAYOUT).converge_links(
            replace(parse.declaration({}), links=(parse.link({"from": "till", "to": "orders"}),))
        )
    world = reach.applied(Host(LAYOUT))
    assert {"till.orders", "aid.orders"} <= {link.name for link in world.links}, "what could be counts"


def test_right_ends_with_its_time_and_its_maker(here: dict[str, Any]) -> None:
    delegate(until=time.time() + 15)
    until(lambda: not links() and not record.names(LAYOUT))
    until(lambda: "its time is over" in log())
    delegate()
    os.kill(Host(LAYOUT).environments.list()["web"]["pid"], signal.SIGKILL)  # the supervisor restarts it
    until(lambda: not links() and not record.names(LAYOUT))
    until(lambda: Host(LAYOUT).environments.list()["web"]["state"] == "running")
    until(lambda: "the program that delegated it has ended" in log())
    unchanged(here)


def test_right_that_ends_while_a_request_waits_is_not_handed_on(here: dict[str, Any]) -> None:
    """While till's request to delegate waits for the lock, till's own right ends: nothing is delegated."""
    ends = time.time() + 15
    delegate(until=ends)
    with ThreadPoolExecutor(1) as pool:
        with Host(LAYOUT)._lock(False):
            asking = pool.submit(refused, lambda: delegate("till", "orders", "aid"))
            time.sleep(max(0.0, ends + 2 - time.time()))
        assert asking.result(120) == "link-unknown"
    until(lambda: not links() and not record.names(LAYOUT))
    unchanged(here)


def test_right_ends_with_what_it_was_made_of(here: dict[str, Any]) -> None:
    less = json.loads(json.dumps(here))
    less["links"][0]["size"] = "2K"
    less["environments"]["web"]["delegates"]["orders"]["size"] = "1K"
    delegate(size=2000)
    assert send("till", "lost") == ""
    assert ("link", "till.orders", "remove") in apply(less, test=True)
    assert ("link", "till.orders", "remove") in apply(less)
    assert links() == set() and not record.names(LAYOUT)
    apply(here)
    for end in (
        lambda: Host(LAYOUT).remove_links(["web.orders"]),
        lambda: Host(LAYOUT).remove_links(["till.orders"]),
        lambda: Host(LAYOUT).remove_environments(["web"]),
    ):
        delegate()
        assert links() == {"till.orders"} and end().ok
        assert links() == set() and not record.names(LAYOUT)
        apply(here)
    assert waiting() == []


def pid(service: str) -> int:
    found: int = Host(LAYOUT).supervisor.observe([service])[service].pid
    return found


def kill_keeper() -> None:
    """Kill the keeper, and wait for the next one."""
    until(lambda: pid(KEEPER) != 0)
    before = pid(KEEPER)
    os.kill(before, signal.SIGKILL)
    until(lambda: pid(KEEPER) not in (0, before))


def test_right_survives_its_keeper_and_not_a_reboot(here: dict[str, Any]) -> None:
    delegate()
    kill_keeper()
    assert send("till", "on") == "" and waiting() == [("till", "on")]
    one = record.read(LAYOUT, "till.orders")
    assert one is not None
    record.write(LAYOUT, replace(one, within=replace(one.within, boot="an earlier boot")))
    kill_keeper()
    until(lambda: not links() and not record.names(LAYOUT))
    unchanged(here)


def test_killed_delegation_leaves_nothing(here: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> NoReturn:
        assert record.names(LAYOUT) == {"till.orders"}, "its record is written first, and removed last"
        raise Killed

    for name in ("_links", "_refresh_cards", "_tell_peer"):
        host = Host(LAYOUT)
        with monkeypatch.context() as patch:
            patch.setattr(host, name, kill)
            with pytest.raises(Killed):
                host.delegate("web", "shop", "till", Limits())
        kill_keeper()
        until(lambda: not links() and not record.names(LAYOUT))
    delegate()
    host = Host(LAYOUT)
    with monkeypatch.context() as patch:
        patch.setattr(host, "_links", kill)
        with pytest.raises(Killed):
            host.revoke("web", "shop", "till")
    assert send("till", "late") != "", "it was severed first"
    kill_keeper()
    until(lambda: not links() and not record.names(LAYOUT))
    unchanged(here)


def test_revocation_is_soon(here: dict[str, Any]) -> None:
    """Print how long a revocation takes, which the documentation states. Nothing depends on the figure."""
    spent = []
    for _ in range(3):
        delegate()
        host, began = Host(LAYOUT), time.monotonic()
        severed = host.links.sever

        def timed(doomed: Any, began: float = began, severed: Any = severed) -> None:
            severed(doomed)
            spent.append(time.monotonic() - began)

        host.links.sever = timed  # type: ignore[method-assign]
        host.revoke("web", "shop", "till")
    print(f"severed after {[round(1000 * one) for one in spent[::2]]} ms")
    assert links() == set()
