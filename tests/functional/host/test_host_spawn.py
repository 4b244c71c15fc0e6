"""Children of environments, with real crun and a real broker: programs that spawn others through their host."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from msgspec.structs import replace
from support.hosts.whole_host import CLIENT, IDLE, python
from support.links.link_world import World
from support.sampling import todays
from support.waiting import until

from netspace.errors import SpecError
from netspace.host import child_records as record
from netspace.host import restore
from netspace.host.host import Host
from netspace.host.peer.service import KEEPER, NAME
from netspace.layout import Layout
from netspace.plan import Plan, Result
from netspace.spec import parse
from netspace_client import Child, HostRefused, Mailbox

pytestmark = pytest.mark.root
LAYOUT = Layout()
SPAWNS = 500 if os.environ.get("NETSPACE_FAULTS") == "all" else 5

# The child says to its parent which value it has, then sends more than its parent may to orders, and waits.
WORK = (
    CLIENT
    + """
import signal
peers = {peer["to"]: peer for peer in card["peers"]}
channel.basic_publish(peers["web"]["exchange"], "", json.dumps([card["name"], card["values"]]).encode())
channel.basic_publish(peers["orders"]["exchange"], "", b"done")
print("worked", flush=True)
signal.pause()
"""
)
# A program of the parent that spawns, as a program without netspace-client does.
SPAWN = (
    CLIENT
    + """
peer = next(peer for peer in card["peers"] if peer["to"] == "host")
replies, key = peer["replies"], uuid.uuid4().hex
channel.queue_bind(replies["queue"], replies["exchange"], key)
channel.basic_publish(peer["exchange"], "", sys.argv[1].encode(),
    pika.BasicProperties(reply_to=replies["exchange"] + "/" + key, message_id=key), mandatory=True)
for method, properties, body in channel.consume(replies["queue"], auto_ack=True, inactivity_timeout=60):
    print(body.decode() if method else "null")
    break
"""
)

NOTES = re.compile("/broker/|/peer/own/uses.json$")
"""Files that the broker and the host's peer write when they like."""


def declaration(image: Path) -> dict[str, Any]:
    common = {"image": f"tar:{image}", "limits": {"memory": "64M"}, "stop_timeout": 2, "command": python(IDLE)}
    worker = {
        "image": f"tar:{image}",
        "command": python(WORK),
        "limits": {"memory": "64M"},
        "at_most": 2,
        "lifetime": 3600,
        "host": ["whoami"],
        "links": {"orders": {"size": "1K"}},
        "to_parent": {},
        "values": {"task": "none", "count": 0},
    }
    small = {"image": f"tar:{image}", "command": ["/bin/sleep", "3600"], "at_most": 1}
    return {
        "environments": {
            "web": {
                **common,
                "host": ["whoami", "spawn", "end", "children", "attest", "seal", "unseal", "sign"],
                "spawns": {
                    "worker": worker,
                    "small": small,
                    "brief": {**small, "lifetime": 1},
                    "pair": {**small, "at_most": 2},
                },
            },
            "orders": common,
        },
        "links": [{"from": "web", "to": "orders", "size": "4K", "length": 100}],
    }


def apply(declared: dict[str, Any], *, test: bool = False) -> Result:
    """Apply a whole declaration, as an operator's run does; every step must succeed."""
    host, result = Host(LAYOUT), Result(Plan())
    for converge in host.each_kind(parse.declaration(declared), test=test).values():
        result = result.joined(converge())
    assert not result.failures and not result.plan.refusals, (result.failures, result.plan.refusals)
    return result


def steps(result: Result) -> set[tuple[str, str, str]]:
    return {(step.kind, step.name, step.action) for step in result.plan.steps}


def asked(work: Callable[[Mailbox], Coroutine[Any, Any, Any]]) -> Any:
    """Call *work* with the mailbox of web, in the network namespace of web; return the result."""

    async def connected() -> Any:
        async with Mailbox(LAYOUT.inside("web")) as mailbox:
            return await work(mailbox)

    with World().inside("web"):
        return asyncio.run(connected())


def spawn(template: str, name: str, values: dict[str, Any] | None = None) -> Child:
    found: Child = asked(lambda mailbox: mailbox.host.spawn(template, name, values, timeout=120))
    return found


def end(name: str) -> None:
    asked(lambda mailbox: mailbox.host.end(name, timeout=120))


def names() -> list[str]:
    return [child.name for child in asked(lambda mailbox: mailbox.host.children(timeout=120))]


def refused(work: Callable[[], object]) -> str:
    with pytest.raises(HostRefused) as err:
        work()
    return err.value.code


def said(work: Callable[[], object]) -> object:
    """Call *work*; return its result, or the code with which the host refused it."""
    try:
        return work()
    except HostRefused as err:
        return err.code


def state(name: str) -> str:
    return str(Host(LAYOUT).environments.list()[name]["state"])


def log() -> str:
    return (LAYOUT.logs / "keeper.log").read_text()


def free(place: str) -> bool:
    return place not in record.places(LAYOUT)


@pytest.fixture(scope="module")
def here(image: Path) -> Iterator[dict[str, Any]]:
    declared = declaration(image)
    assert Host(LAYOUT).teardown().ok
    apply(declared)
    yield declared
    assert Host(LAYOUT).teardown().ok
    assert not LAYOUT.records(record.KIND).exists()


def unchanged(declared: dict[str, Any]) -> None:
    """Check that neither a dry run nor an apply has anything to do."""
    assert steps(apply(declared, test=True)) == steps(apply(declared)) == set()


def test_program_spawns_a_worker_with_less_than_it_has(here: dict[str, Any]) -> None:
    request = {"template": "worker", "name": "w1", "values": {"task": "add", "count": 3}}
    body = json.dumps({"v": 1, "verb": "spawn", "arguments": request})
    done = Host(LAYOUT).operations.exec("web", ["/usr/bin/python3", "-c", SPAWN, body], timeout=120)
    said = json.loads(done["stdout"])["answer"]
    assert (said["name"], said["environment"]) == ("w1", "web-worker-1"), (done, log()[-2000:])
    until(lambda: "worked" in Host(LAYOUT).operations.logs("web-worker-1")["lines"])

    async def heard(mailbox: Mailbox) -> str:
        message = await mailbox.receive("web-worker-1", timeout=60)
        async with message:
            return message.text

    assert json.loads(asked(heard)) == ["web-worker-1", {"task": "add", "count": 3}]
    card = json.loads((LAYOUT.inside("web-worker-1") / "environment.json").read_text())
    assert {peer["to"]: peer.get("size") for peer in card["peers"]} == {"host": 16384, "orders": 1024, "web": None}
    assert next(peer for peer in card["peers"] if peer["to"] == "host")["verbs"] == ["whoami"]
    row = Host(LAYOUT).environments.list()["web-worker-1"]
    assert (row["state"], row["parent"]) == ("running", "web") and state("web-worker-2") == "stopped"
    assert names() == ["w1"]
    unchanged(here)
    assert state("web-worker-1") == "running"
    end("w1")
    assert state("web-worker-1") == "stopped" and free("web-worker-1") and names() == []
    unchanged(here)


EXAMPLES = Path(__file__).parents[3] / "examples"
BRIDGE = (
    f"import sys; sys.path[:0] = {sys.path!r}\n"
    "import runpy; sys.argv[0] = 'bridge'; runpy.run_module('netspace_client.bridge', run_name='__main__')"
)


def built(example: str, folder: Path) -> list[str]:
    """Return the command of an example, built by its language's own tools."""
    program, source = str(folder / "mail"), str(EXAMPLES / example)
    if example.endswith(".py"):
        return [sys.executable, source]
    if example.endswith(".c"):
        libraries = ["-lrabbitmq", "-ljson-c"]
        subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", "-o", program, source, *libraries], check=True)
    else:
        more = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOCACHE": str(EXAMPLES.parent / ".cache/go")}
        subprocess.run(["go", "build", "-o", program, source], env={**os.environ, **more}, check=True, timeout=400)
    return [program]


@pytest.mark.parametrize("example", ["mail_pika.py", *todays(["mail.c", "mail.go", "host.sh"], 3)])
def test_program_of_each_language_asks_its_host(here: dict[str, Any], example: str, tmp_path: Path) -> None:
    command = [] if example == "host.sh" else built(example, tmp_path)

    def ask(verb: str, **arguments: Any) -> Any:
        place = World().place("web", str(LAYOUT.inside("web")))
        if command:
            body = json.dumps({"v": 1, "verb": verb, "arguments": arguments})
            program = [*command, "request", "host", body]
        else:
            shell = [str(EXAMPLES / "host.sh"), verb, json.dumps(arguments)]
            listen = ["--listen", "127.0.0.1:8080", "--raw", "host"]
            wait = 'until curl -so /dev/null 127.0.0.1:8080/; do sleep 0.1; done; exec "$@"'
            program = [sys.executable, "-c", BRIDGE, *listen, "--", "sh", "-c", wait, "sh", *shell]
        done = subprocess.run([*place, *program], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        return found["answer"] if command else found

    assert ask("whoami")["name"] == "web"
    assert json.loads(ask("attest", nonce="b3duLXF1ZXN0aW9uLTE")["evidence"])["token"]
    assert ask("spawn", template="small", name="s")["environment"] == "web-small-1"
    assert [child["name"] for child in ask("children")["children"]] == ["s"]
    assert ask("end", name="s") == {"name": "s"}
    sealed = ask("seal", value="YSB2YWx1ZQ")
    assert ask("unseal", sealed=sealed["sealed"])["value"] == "YSB2YWx1ZQ"
    assert ask("sign", digest="A" * 43)["key"]["crv"] == "P-256"
    unchanged(here)


def test_request_beyond_the_template_is_refused_with_its_code(here: dict[str, Any]) -> None:
    first = spawn("small", "s1")
    assert first.environment == "web-small-1"
    assert refused(lambda: spawn("small", "s1")) == "name-in-use"
    assert refused(lambda: spawn("small", "s2")) == "too-many"
    assert refused(lambda: spawn("large", "s2")) == "template-unknown"
    assert refused(lambda: spawn("worker", "w", {"task": 7})) == "arguments-invalid"
    assert refused(lambda: spawn("worker", "w", {"more": "x"})) == "arguments-invalid"
    assert refused(lambda: spawn("worker", "../w")) == "arguments-invalid"
    assert refused(lambda: end("w")) == "child-unknown"
    end("s1")


def test_link_declared_alone_can_not_name_a_child(here: dict[str, Any]) -> None:
    declared = replace(parse.declaration({}), links=(parse.link({"from": "web-worker-1", "to": "web"}),))
    with pytest.raises(SpecError, match=r"web-worker-1 is a child"):
        Host(LAYOUT).converge_links(declared)
    assert Host(LAYOUT).operations.start(["web-small-1"]) == {"web-small-1": ""}
    assert refused(lambda: spawn("small", "s")) == "too-many", "the operator's own program has the place"
    assert Host(LAYOUT).operations.stop(["web-small-1"]) == {"web-small-1": ""}
    unchanged(here)


def test_child_ends_with_its_parent_and_its_lifetime(here: dict[str, Any]) -> None:
    spawn("brief", "b")
    until(lambda: free("web-brief-1"))
    assert state("web-brief-1") == "stopped" and "its lifetime is over" in log()
    spawn("worker", "w1")
    os.kill(Host(LAYOUT).environments.list()["web"]["pid"], signal.SIGKILL)  # the supervisor restarts it
    until(lambda: free("web-worker-1"))
    assert state("web-worker-1") == "stopped" and "its parent has ended" in log()
    until(lambda: state("web") == "running")
    spawn("worker", "w1")
    assert Host(LAYOUT).operations.stop(["web"]) == {"web": ""}
    until(lambda: free("web-worker-1"))
    Host(LAYOUT).operations.start(["web"])
    spawn("small", "s")
    os.kill(Host(LAYOUT).environments.list()["web-small-1"]["pid"], signal.SIGKILL)
    until(lambda: free("web-small-1"))
    unchanged(here)


def pid(service: str) -> int:
    found: int = Host(LAYOUT).supervisor.observe([service])[service].pid
    return found


def test_killed_keeper_leaves_nothing_unfinished(here: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    spawn("pair", "kept")
    for service in (KEEPER, NAME):
        before = pid(service)
        os.kill(before, signal.SIGKILL)
        until(lambda before=before, service=service: pid(service) not in (0, before))  # type: ignore[misc]
    until(lambda: said(names) == ["kept"])
    # A start that was killed after each of its steps, as the next keeper finds it.
    host, run = Host(LAYOUT), record.run_of(LAYOUT, "web")
    assert run is not None

    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> NoReturn:
        assert not free("web-pair-2"), "the child's record is written first"
        raise Killed

    def late(_: Layout, name: str) -> record.Run | None:
        """Stand in for the look-up of an environment's run: return the run of web.

        When it is asked about the child, the child's record is written already; kill the keeper at this moment.
        """
        return run if name == "web" else None if free("web-pair-2") else kill()

    for place, name in ((host.links, "empty"), (host, "_become"), (record, "run_of")):
        with monkeypatch.context() as patch:
            if name == "run_of":
                patch.setattr(record, name, late)
            else:
                patch.setattr(place, name, kill)
            with pytest.raises(Killed):
                host.spawn("web", "pair", "halfway", {})
        os.kill(pid(KEEPER), signal.SIGKILL)
        until(lambda: free("web-pair-2"))
        assert state("web-pair-2") == "stopped"
    unchanged(here)
    end("kept")


def test_reboot_ends_children_and_apply_repairs(here: dict[str, Any]) -> None:
    spawn("worker", "w1")
    keeper = pid(KEEPER)
    os.kill(keeper, signal.SIGSTOP)
    try:
        assert restore.run(LAYOUT) == 0
        assert state("web-worker-1") == "stopped"
    finally:
        os.kill(keeper, signal.SIGCONT)
    until(lambda: free("web-worker-1"))
    unchanged(here)


def test_removed_template_and_link_end_what_they_gave(here: dict[str, Any]) -> None:
    spawn("worker", "w1")
    spawn("small", "s1")
    less = json.loads(json.dumps(here))
    del less["environments"]["web"]["spawns"]["small"]
    planned = steps(apply(less, test=True))
    assert ("environment", "web-small-1", "remove") in planned
    assert steps(apply(less)) == planned
    until(lambda: free("web-small-1"))
    assert "web-small-1" not in Host(LAYOUT).environments.list() and names() == ["w1"]
    assert Host(LAYOUT).remove_links(["web.orders"]).ok
    assert not [link for link in Host(LAYOUT).links.recorded() if link.target == "orders"]
    assert refused(lambda: spawn("large", "x")) == "template-unknown"
    apply(here)
    assert Host(LAYOUT).remove_environments(["web"]).ok
    until(lambda: not record.places(LAYOUT))
    assert set(Host(LAYOUT).environments.list()) == {"orders"}
    apply(here)


def test_many_spawns_leave_nothing(here: dict[str, Any]) -> None:
    def left() -> dict[str, Any]:
        mounts = Path("/proc/self/mountinfo").read_text().count("\n")
        groups = sorted(map(str, Path("/sys/fs/cgroup").rglob("environment-web-small-*")))
        folders = (LAYOUT.state, LAYOUT.run)
        files = sorted(str(path) for folder in folders for path in folder.rglob("*") if not NOTES.search(str(path)))
        namespaces = subprocess.run(["ip", "netns"], capture_output=True, check=True, text=True).stdout
        links = Host(LAYOUT).links
        with links.management(links.recorded_broker()) as api:
            broker = [len(api.get(kind)) for kind in ("queues", "users", "exchanges")]
        return {
            "mounts": mounts,
            "groups": groups,
            "files": files,
            "netns": namespaces,
            "broker": broker,
        }

    async def some(mailbox: Mailbox, count: int) -> list[float]:
        spent = []
        for number in range(count):
            began = time.monotonic()
            await mailbox.host.spawn("small", f"s{number}", timeout=120)
            spent.append(time.monotonic() - began)
            await mailbox.host.end(f"s{number}", timeout=120)
        return spent

    asked(lambda mailbox: some(mailbox, 3))
    before = left()
    spent = sorted(asked(lambda mailbox: some(mailbox, SPAWNS)))
    print(f"{SPAWNS} spawns: median {spent[len(spent) // 2] * 1000:.0f} ms, longest {spent[-1] * 1000:.0f} ms")
    differing: dict[str, Any] = {}

    def same() -> bool:
        now = left()
        differing.clear()
        differing.update({key: (before[key], value) for key, value in now.items() if value != before[key]})
        if "files" in differing:
            differing["files"] = sorted(set(before["files"]) ^ set(now["files"]))
        return not differing

    try:
        until(same)
    except AssertionError:
        raise AssertionError(differing) from None
    unchanged(here)
