"""The host as a peer of its environments, with real crun and a real broker: tests of ``docs/host-peer.md``."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hosts.whole_host import CLIENT, IDLE, python
from support.links.link_world import World
from support.waiting import until

from netspace import library_copy
from netspace.attestation import environment_token
from netspace.attestation.environment_token import Expected
from netspace.attestation.minion import host_key
from netspace.environment.health import record
from netspace.host import explain, restore
from netspace.host.host import Host
from netspace.host.peer import requests, told
from netspace.host.peer.service import NAME
from netspace.layout import Layout
from netspace.link import host_peer
from netspace.plan import Plan, Result
from netspace.spec import parse
from netspace_client import HostRefused, Mailbox, NotDeclared, Offer, confinement

pytestmark = pytest.mark.root
LAYOUT = Layout()

# Sends each body of its input (JSON: a list of [body, properties]), and prints the answers in their order.
ASK = (
    CLIENT
    + """
peer = next(peer for peer in card["peers"] if peer["to"] == "host")
key, replies, ids = uuid.uuid4().hex, peer["replies"], []
channel.queue_bind(replies["queue"], replies["exchange"], key)
for number, (body, more) in enumerate(json.loads(sys.stdin.read())):
    ids.append(str(number))
    way = {"reply_to": replies["exchange"] + "/" + key, "correlation_id": str(number), **more}
    channel.basic_publish(peer["exchange"], "", body.encode(), pika.BasicProperties(**way), mandatory=True)
answers = {}
for method, properties, body in channel.consume(replies["queue"], auto_ack=True, inactivity_timeout=float(sys.argv[1])):
    if method is None:
        break
    answers[properties.correlation_id] = json.loads(body)
    if len(answers) == len(ids):
        break
print(json.dumps([answers.get(one) for one in ids]))
"""
)
ILL = "import os, sys; sys.exit(os.path.exists('/tmp/ill'))"
CHECK = {"exec": python(ILL), "interval": 1, "retries": 1, "start_period": 300, "timeout": 60}
WHOAMI, VALUES = (json.dumps({"v": 1, "verb": verb}) for verb in ("whoami", "values"))


SHOP = {"name": "shop", "pattern": "send", "up": True, "health": None}


def declared(image: Path, **environments: dict[str, Any]) -> dict[str, Any]:
    """Return a declaration of idle environments with the given keys, and of one environment without them."""
    common = {"image": f"tar:{image}", "limits": {"memory": "64M"}, "stop_timeout": 2, "command": python(IDLE)}
    return {"environments": {name: {**common, **keys} for name, keys in {**environments, "silent": {}}.items()}}


def asking(image: Path) -> dict[str, Any]:
    found = declared(
        image,
        web={"host": ["whoami"], "offers": ["sales"]},
        other={"host": ["whoami", "values", "who"], "values": {"greeting": "hi"}},
        hidden={"offers": ["sales"]},
        prover={"host": ["attest"]},
        spare={"offers": ["stock"], "restart": "never", "health": CHECK},
    )
    return {**found, "links": [{"from": "other", "to": "web", "as": "shop"}, {"from": "other", "to": "spare"}]}


def apply(declaration: dict[str, Any], *, test: bool = False) -> Result:
    """Apply a whole declaration, as an operator's run does; every step must succeed."""
    host, result = Host(LAYOUT), Result(Plan())
    for converge in host.each_kind(parse.declaration(declaration), test=test).values():
        result = result.joined(converge())
    assert not result.failures and not result.plan.refusals, (result.failures, result.plan.refusals)
    return result


def steps(result: Result) -> set[tuple[str, str, str]]:
    return {(step.kind, step.name, step.action) for step in result.plan.steps}


def tried(name: str, *bodies: str, wait: float = 30.0, **properties: Any) -> dict[str, Any]:
    """Send bodies to the host from inside an environment; return how the sending program ended, and its output."""
    given = json.dumps([[body, properties] for body in bodies])
    done = Host(LAYOUT).operations.exec(name, ["/usr/bin/python3", "-c", ASK, str(wait)], timeout=120, stdin=given)
    return dict(done)


def ask(name: str, *bodies: str, wait: float = 30.0, **properties: Any) -> list[Any]:
    """Send bodies to the host from inside an environment; return the answers, None for each that didn't come."""
    done = tried(name, *bodies, wait=wait, **properties)
    assert done["retcode"] == 0, (done, log()[-2000:])
    found: list[Any] = json.loads(done["stdout"])
    return found


def card(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((LAYOUT.inside(name) / "environment.json").read_text())
    return found


def pid(name: str = NAME) -> int:
    """Return the PID of a service's process."""
    found: int = Host(LAYOUT).supervisor.observe([name])[name].pid
    assert found, (name, log()[-2000:])
    return found


def log() -> str:
    return (LAYOUT.logs / "peer.log").read_text()


def dead() -> int:
    found: int = Host(LAYOUT).links.health()["dead"]
    return found


@pytest.fixture(scope="module")
def here(image: Path) -> Iterator[dict[str, Any]]:
    """A host with its declaration: the environments web and other may ask the host, and silent may not."""
    host, declaration = Host(LAYOUT), asking(image)
    assert host.teardown().ok
    planned = steps(apply(declaration, test=True))
    assert {("link", "web.host", "create"), ("service", "netspace-peer", "start")} <= planned
    assert steps(apply(declaration)) == planned
    yield declaration
    assert Host(LAYOUT).teardown().ok
    assert not host_peer.folder(LAYOUT).exists()


def test_permitted_verbs_are_answered_with_what_is_so(here: dict[str, Any]) -> None:
    (answer,) = ask("web", WHOAMI)
    assert answer["v"] == 1 and answer["verb"] == "whoami", answer
    said, row = answer["answer"], Host(LAYOUT).environments.list()["web"]
    assert (said["name"], said["image"], said["host"]) == ("web", row["digest"], None)
    assert said["configuration"].startswith("sha256:")
    assert said["started"] is not None and abs(said["started"] - row["since"]) < 60
    assert said["trust"]["told_by"] == "host" and said["trust"]["level"] == Host(LAYOUT).trust().name
    service = json.dumps({"v": 1, "verb": "who", "arguments": {"service": "sales"}})
    values, who = ask("other", VALUES, service)
    assert values["answer"] == {"values": {"greeting": "hi"}}
    assert who["answer"] == {"peers": [SHOP], "state": who["answer"]["state"]}


def test_client_asks_as_its_page_says(here: dict[str, Any]) -> None:
    async def asked(name: str) -> tuple[Any, ...]:
        async with Mailbox(LAYOUT.inside(name)) as mailbox:
            me = await mailbox.host.whoami()
            try:
                values = await mailbox.host.values()
            except HostRefused as err:
                return me.name, me.trust.told_by, err.code
            assert mailbox.values == values and mailbox.host.verbs == ("whoami", "values", "who")
            return me.name, values, await mailbox.host.who("sales"), await mailbox.host.who("nothing")

    def inside(name: str) -> tuple[Any, ...]:
        with World().inside(name):
            return asyncio.run(asked(name))

    assert inside("other") == ("other", {"greeting": "hi"}, [Offer("shop", "send", True)], [])
    assert inside("web") == ("web", "host", "verb-not-permitted")
    with pytest.raises(NotDeclared, match="silent may not send whoami to its host"):
        inside("silent")


def test_evidence_of_an_environment_proves_where_it_runs(here: dict[str, Any]) -> None:
    async def asked(name: str, nonce: str) -> str:
        async with Mailbox(LAYOUT.inside(name)) as mailbox:
            return await mailbox.host.attest(nonce, key="A" * 43)

    nonce, row = "b3duLXF1ZXN0aW9uLTE", Host(LAYOUT).environments.list()["prover"]
    with World().inside("prover"):
        text = asyncio.run(asked("prover", nonce))
    key = host_key.public(LAYOUT, host_key.settings(LAYOUT))["key"].encode()
    wanted = Expected(nonce, "prover", image=row["digest"], key="A" * 43)
    found = environment_token.verify(text, key, wanted, time.time())
    assert found.level == "L1" and found.started is not None and abs(found.started - row["since"]) < 60
    assert found.configuration == f"sha256:{Host(LAYOUT).environments.recorded()['prover'].config}"
    bad = json.dumps({"v": 1, "verb": "attest", "arguments": {"nonce": "short"}})
    good = json.dumps({"v": 1, "verb": "attest", "arguments": {"nonce": nonce}})
    refused, permitted = ask("prover", bad, good)
    assert refused["error"]["code"] == "arguments-invalid" and permitted["answer"]["evidence"]
    assert ask("web", good)[0]["error"]["code"] == "verb-not-permitted"


def test_peer_knows_a_new_configuration_before_its_start(
    here: dict[str, Any], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, kind, seen = Host(LAYOUT), type(Host(LAYOUT).supervisor), list[str]()
    file, begin = host_peer.folder(LAYOUT) / told.FILE, kind.start

    def start(self: Any, names: Collection[str]) -> Any:
        if any("prover" in name for name in names):
            seen.append(json.loads(file.read_text())["environments"]["prover"]["configuration"])
        return begin(self, names)

    def recorded() -> str:
        return f"sha256:{host.environments.recorded()['prover'].config}"

    monkeypatch.setattr(kind, "start", start)
    changed, before = asking(image), recorded()
    changed["environments"]["prover"]["env"] = {"NEW": "1"}
    apply(changed)
    assert seen == [recorded()] and seen != [before]
    file.write_text(file.read_text().replace(recorded(), before))  # as if a run had been killed before it told
    assert host.operations.restart(["prover"]) == {"prover": ""}
    assert seen[1:] == [recorded()]
    apply(here)


def test_client_is_told_when_the_answer_of_who_changes(here: dict[str, Any]) -> None:
    def run(script: str) -> None:
        assert Host(LAYOUT).operations.exec("spare", ["/usr/bin/python3", "-c", script])["retcode"] == 0

    async def seen() -> list[Offer]:
        found: list[Offer] = []
        async with Mailbox(LAYOUT.inside("other")) as mailbox:
            async for (offer,) in mailbox.host.who_changes("stock"):
                found.append(offer)
                if offer.health == "healthy" and len(found) < 3:
                    await asyncio.to_thread(run, "open('/tmp/ill', 'w')")
                elif offer.health == "unhealthy":
                    await asyncio.to_thread(Host(LAYOUT).operations.stop, ["spare"])
                elif not offer.up:
                    return found
        raise AssertionError("there are no more changes")

    with World().inside("other"):
        changes = asyncio.run(asyncio.wait_for(seen(), 300))
    states = [(offer.up, offer.health) for offer in changes if (offer.up, offer.health) != (True, "starting")]
    assert states == [(True, "healthy"), (True, "unhealthy"), (False, None)]
    assert {offer.name for offer in changes} == {"spare"}
    Host(LAYOUT).operations.start(["spare"])


def test_peer_sees_marks_of_health_alone(here: dict[str, Any]) -> None:
    user, folder = host_peer.ids(LAYOUT), record.folder(LAYOUT)
    assert (folder.stat().st_gid, stat.S_IMODE(folder.stat().st_mode)) == (user, 0o710)
    until(record.up(LAYOUT, "spare").exists)
    as_peer = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    for command, permitted in (
        (["stat", record.up(LAYOUT, "spare").name], True),
        (["cat", "spare.json"], False),
        (["ls", "."], False),
    ):
        done = subprocess.run([*as_peer, *command], cwd=folder, capture_output=True, check=False)
        assert (done.returncode == 0) is permitted, (command, done)


CONFINE = """
import os, sys
exec(compile(sys.stdin.read(), "confinement", "exec"))
confine(read=["/run/netspace"], mailbox=False)
print(len(os.listdir("/run/netspace")) > 0)
for path in ("/proc/self/status", "/tmp"):
    try:
        os.open(path, os.O_RDONLY)
        print(path)
    except PermissionError:
        pass
"""


def test_program_confines_itself_within_an_environment(here: dict[str, Any]) -> None:
    command = ["/usr/bin/python3", "-c", CONFINE]
    done = Host(LAYOUT).operations.exec("silent", command, stdin=Path(confinement.__file__).read_text())
    assert (done["retcode"], done["stdout"].split()) == (0, ["True"]), done


def test_card_names_the_host_and_its_verbs(here: dict[str, Any]) -> None:
    peer, *_ = card("other")["peers"]
    assert (peer["to"], peer["pattern"], peer["verbs"]) == ("host", "request", ["whoami", "values", "who"])
    assert card("other")["values"] == {"greeting": "hi"}
    assert card("silent")["peers"] == [] and "broker" not in card("silent")


def test_bad_requests_are_refused_and_the_next_is_answered(here: dict[str, Any]) -> None:
    unknown = '{"v": 1, "verb": "reboot"}'
    bodies = ["{", '{"v": 2, "verb": "whoami"}', unknown, VALUES, " " * (requests.SIZE + 1), WHOAMI]
    *refused, answered = ask("web", *bodies)
    assert [one["error"]["code"] for one in refused] == [
        "request-malformed",
        "version-unknown",
        "verb-unknown",
        "verb-not-permitted",
        "request-too-large",
    ]
    assert answered["answer"]["name"] == "web"


def test_forged_address_and_sender_get_no_answer(here: dict[str, Any]) -> None:
    before, letters = pid(), dead()
    for forged in (card("other")["peers"][0]["exchange"], "", "amq.direct"):
        assert ask("web", WHOAMI, wait=2.0, reply_to=f"{forged}/key") == [None]
    until(lambda: log().count("web: no address for the answer") >= 3)
    assert dead() == letters
    done = tried("web", WHOAMI, user_id="env.other")  # the broker itself refuses another's name
    assert done["retcode"] != 0 and "user_id" in done["stderr"], done
    assert ask("other", WHOAMI)[0]["answer"]["name"] == "other" and pid() == before


FLOOD = (
    CLIENT
    + """
import time
peer, end = card["peers"][0], time.time() + float(sys.argv[1])
channel = connection.channel()  # without confirmations, so that nothing slows it down
sent = 0
while time.time() < end:
    channel.basic_publish(peer["exchange"], "", b"{" * 4000, pika.BasicProperties(reply_to=sys.argv[2]))
    sent += 1
print(sent)
"""
)


def test_flood_of_one_delays_no_other(here: dict[str, Any]) -> None:
    before, lines = pid(), log().count(": web: ")
    way, done = card("web")["peers"][0]["replies"]["exchange"], []

    def flood() -> None:
        command = ["/usr/bin/python3", "-c", FLOOD, "6", f"{way}/x"]
        done.append(Host(LAYOUT).operations.exec("web", command, timeout=120))

    running = threading.Thread(target=flood)
    running.start()
    until(lambda: log().count(": web: ") > lines)
    assert ask("other", WHOAMI)[0]["answer"]["name"] == "other"
    while running.is_alive():
        assert ask("other", WHOAMI)[0]["answer"]["name"] == "other"
    running.join()
    assert done[0]["retcode"] == 0 and int(done[0]["stdout"]) > 200, done
    assert pid() == before
    assert log().count(": web: ") - lines < int(done[0]["stdout"]) / 4
    until(lambda: ask("web", WHOAMI)[0] is not None)


def test_process_has_given_up_roots_rights(here: dict[str, Any]) -> None:
    process, user = Path("/proc", str(pid())), host_peer.ids(LAYOUT)
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    assert status["Uid"].split() == [str(user)] * 4 and status["Gid"].split() == [str(user)] * 4
    assert status["Groups"].strip() == "" and status["NoNewPrivs"] == "1"
    for name in ("CapPrm", "CapEff", "CapInh", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert os.readlink(process / "ns/net") != os.readlink("/proc/self/ns/net")
    devices = (process / "net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in devices] == ["lo"]

    def asleep() -> bool:  # once nothing is left to do
        before = (process / "schedstat").read_text()
        time.sleep(3)
        return (process / "schedstat").read_text() == before

    until(asleep)


def test_uses_are_told_by_explain(here: dict[str, Any]) -> None:
    ask("other", WHOAMI, "{")

    def told_of(name: str) -> dict[str, Any]:
        found: dict[str, Any] = explain.explain(Host(LAYOUT), name, None)["host"]
        return found

    until(lambda: "? request-malformed" in told_of("other")["uses"])
    assert told_of("other")["may"] == ["whoami", "values", "who"] and told_of("other")["uses"]["whoami"]["times"] >= 1
    assert told_of("silent") == {"may": [], "uses": {}}


@pytest.mark.parametrize("service", [NAME, "broker", "forwarder"])
def test_killed_service_costs_no_more_than_a_pause(here: dict[str, Any], service: str) -> None:
    os.kill(pid(service), signal.SIGKILL)

    def answered() -> bool:
        done = tried("web", WHOAMI)
        return done["retcode"] == 0 and json.loads(done["stdout"])[0] is not None

    until(answered, patience=180)


def test_changed_value_is_told_without_a_restart(here: dict[str, Any], image: Path) -> None:
    before = ask("other", WHOAMI)[0]["answer"]
    changed = asking(image)
    changed["environments"]["other"]["values"] = {"greeting": "hello", "more": [1]}
    result = apply(changed)
    (step,) = result.plan.steps
    assert (step.name, step.action) == ("other", "update")
    assert step.changes["values:greeting"] == {"old": "hi", "new": "hello"}
    values = {"greeting": "hello", "more": [1]}
    assert card("other")["values"] == values and ask("other", VALUES)[0]["answer"] == {"values": values}
    assert ask("other", WHOAMI)[0]["answer"] == before
    apply(here)


def test_lost_files_and_service_are_made_again(here: dict[str, Any]) -> None:
    Host(LAYOUT).supervisor.remove([NAME])  # as a run that was killed leaves it
    for file in (told.FILE, told.CARD):
        (host_peer.folder(LAYOUT) / file).unlink()
    assert steps(apply(here, test=True)) == {("service", "netspace-peer", "start")}
    assert steps(Result(Host(LAYOUT).drift())) == {("service", "netspace-peer", "start")}
    found = Host(LAYOUT).links.health()
    assert any("the host's peer is missing" in text for text in found["problems"]), found
    assert NAME not in Host(LAYOUT).supervisor.observe([NAME])
    apply(here)
    assert ask("web", WHOAMI)[0]["answer"]["name"] == "web"
    assert not steps(apply(here)) and not Host(LAYOUT).drift().steps
    assert not any("peer" in text for text in Host(LAYOUT).links.health()["problems"])


def test_restoration_makes_the_files_of_the_peer(here: dict[str, Any]) -> None:
    host = Host(LAYOUT)
    host.supervisor.stop([NAME])
    for file in (told.FILE, told.CARD, "identity.pem", "ca.pem"):
        (host_peer.folder(LAYOUT) / file).unlink()
    host.supervisor.start([NAME])
    assert host.supervisor.observe([NAME])[NAME].state == "starting"  # until its files are there
    assert restore.run(LAYOUT) == 0
    until(lambda: host.supervisor.observe([NAME])[NAME].state == "running")
    assert ask("web", WHOAMI)[0]["answer"]["name"] == "web"


def is_same_start(one: float, other: float) -> bool:
    """Return whether two answers are of one start. The host computes it from two clocks, which differ by hundredths."""
    return abs(one - other) < 0.5


def test_dry_run_foretells_the_restarts_by_a_new_version(
    here: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upgrade restarts services of netspace's own, and no program. A dry run and a difference list each of them."""
    before, since, version = pid(), ask("web", WHOAMI)[0]["answer"]["started"], library_copy.installed(LAYOUT)
    newer = tmp_path / "netspace"
    shutil.copytree(library_copy.source(), newer, ignore=shutil.ignore_patterns("__pycache__"))
    (newer / "text.py").write_text((newer / "text.py").read_text() + "# newer\n")
    monkeypatch.setattr(library_copy, "source", lambda: newer)
    monkeypatch.setattr(library_copy, "_known", ({}, ""))
    planned = steps(apply(here, test=True))
    assert planned == {("service", "netspace-peer", "restart"), ("environment", "spare", "update")}
    assert steps(Result(Host(LAYOUT).diff(parse.declaration(here)))) == planned
    assert not Host(LAYOUT).drift().steps, "a version that no apply has brought yet is no drift"
    assert pid() == before and library_copy.installed(LAYOUT) == version
    assert steps(apply(here)) == planned
    assert pid() != before and library_copy.installed(LAYOUT) == library_copy.coming(LAYOUT) != version
    assert is_same_start(ask("web", WHOAMI)[0]["answer"]["started"], since)
    assert not steps(apply(here))
    monkeypatch.undo()
    assert steps(apply(here, test=True)) == steps(apply(here)) == planned


def test_revoked_right_is_gone_and_others_go_on(here: dict[str, Any], image: Path) -> None:
    before, since = pid(), ask("web", WHOAMI)[0]["answer"]["started"]
    result = apply(declared(image, web={"host": ["whoami"]}, other={}))
    assert ("link", "other.host", "remove") in steps(result)
    (step,) = (step for step in result.plan.steps if step.name == "other")
    assert step.action == "update" and step.changes["host"] == {"old": ("whoami", "values", "who"), "new": ()}
    assert not (host_peer.folder(LAYOUT) / told.KEY).exists(), "nobody may ask for a token any more"
    assert card("other")["peers"] == [] and "broker" not in card("other")
    assert "other.host" not in Host(LAYOUT).links.list()["links"]
    assert is_same_start(ask("web", WHOAMI)[0]["answer"]["started"], since) and pid() == before


def test_last_right_ends_the_process_and_leaves_nothing(here: dict[str, Any], image: Path) -> None:
    nobody = declared(image, web={}, other={})
    planned = steps(apply(nobody, test=True))
    assert ("service", "netspace-peer", "remove") in planned and steps(apply(nobody)) == planned
    assert NAME not in Host(LAYOUT).supervisor.observe()
    assert not host_peer.folder(LAYOUT).exists() and not Host(LAYOUT).links.names()
    seen = record.folder(LAYOUT).stat()
    assert (seen.st_gid, stat.S_IMODE(seen.st_mode)) == (0, 0o700)
    assert not steps(apply(nobody))
