"""Faults between hosts in a lab: a partition in a rollout, a minion killed in an apply, a master that is down."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fleet import lab_faults
from support.fleet.lab_faults import IMAGE, rolled_out
from support.hosts.lab import Lab
from support.waiting import until

pytestmark = pytest.mark.root

READER = (
    "import sys; sys.path.insert(0, '/demo'); import mailbox; "
    "mailbox.forever(lambda card, opened: mailbox.serve(card, opened, lambda _, text: mailbox.log(f'got {text}')))"
)
FLEET = f"""\
hosts:
  h1: {{address: 198.51.100.1}}
  h2: {{address: 198.51.100.2}}
environments:
  web:    {{on: h1, image: "{IMAGE}", command: [/usr/bin/web]}}
  orders: {{on: h2, image: "{IMAGE}", command: [/usr/bin/orders]}}
  store:  {{on: h2, image: "{IMAGE}", command: [/usr/bin/python3, -c, "{READER}"]}}
links:
  - {{from: web, to: orders, pattern: request, seal: true}}
  - {{from: web, to: store, via: buffered}}
"""
ENDS = "apply: planned\nrollout: {canary: [h2], settle: 0, deadline: 45}\n"
SENDER = """
import sys
sys.path.insert(0, "/demo")
import mailbox
card = mailbox.read_card()
with mailbox.channel(card) as opened:
    for text in sys.argv[1:]:
        mailbox.send(card, opened, "store@h2", text)
        mailbox.log(text)
"""
MINION = "salt-minion --config-dir"
"""Part of the command of each process of a minion: of the daemon, and of the jobs that it began."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab_faults.joined(tmp_path_factory.mktemp("lab"), FLEET) as made:
        yield made


@pytest.fixture
def planned(lab: Lab) -> Iterator[str]:
    """Yield the id of a plan that restarts the environments of both hosts. The test leaves a fleet that is settled."""
    lab.fleet.write_text(FLEET.replace("command: [", "env: {TRY: again}, command: [") + ENDS)
    plan = lab.runner("netspace_fleet.plan")
    assert plan["counts"]["change"] == 2 and plan["without_plan"] == [], plan
    yield str(plan["plan"])
    lab.fleet.write_text(FLEET)
    back = lab.runner("netspace_fleet.plan")
    assert lab.runner("netspace_fleet.apply", back["plan"])["counts"]["failed"] == 0
    lab_faults.settle(lab)


def sent(lab: Lab, *texts: str) -> list[str]:
    """Send texts from ``web`` to ``store``; return those that the broker acknowledged."""
    command = f"python3 -c {shlex.quote(SENDER)} {shlex.join(texts)}"
    found = lab.salt("h1", "netspace_environment.exec", "web", command)["h1"]
    return [line for line in str(found["stdout"]).splitlines() if line in texts]  # else it says why the broker refused


def arrived(lab: Lab, texts: list[str]) -> bool:
    """Return whether ``store`` has read all *texts*."""
    log = str(lab.salt("h2", "netspace_environment.logs", "store", "1000")["h2"])
    return all(f"got {text}" in log for text in texts)


def given(lab: Lab) -> list[bool]:
    """Return whether h1, and whether h2, has the plan's change in its slice."""
    return ["TRY" in str(lab.runner("netspace_fleet.slice", host)) for host in ("h1", "h2")]


def written(folder: Path) -> float:
    """Return the time of the newest file below a folder."""
    newest = 0.0
    for path in folder.rglob("*.json"):
        with contextlib.suppress(OSError):
            newest = max(newest, path.stat().st_mtime)
    return newest


def test_a_partition_in_a_rollout_loses_no_mail(lab: Lab, planned: str) -> None:
    until(lambda: sent(lab, "first"), "the outbox takes mail", patience=300)
    until(lambda: arrived(lab, ["first"]), "mail arrives before the fault", patience=300)
    with rolled_out(lab, planned) as rollout:
        rollout.read_to("rollout: h2 apply")
        lab.do("cut", "h1", "h2")
        # Both hosts still reach their master. The gate judges each by itself, so it finds them good.
        found = rollout.ended()
    assert (found["state"], found["hosts"]) == ("done", {"good": 2}), f"{found} {rollout.lines}"
    assert given(lab) == [True, True]
    texts = [f"cut-{number}" for number in range(20)]
    acknowledged = sent(lab, *texts)
    assert acknowledged == texts, "the outbox takes mail"
    assert not arrived(lab, texts[:1]) and lab.asks("1 pear").startswith("no answer: ")
    lab.do("mend", "h1", "h2")
    until(lambda: arrived(lab, acknowledged), "all that was acknowledged arrives", patience=300)
    until(lambda: "sealed order of 2 pears" in lab.asks("2 pears"), "orders answers again", patience=300)


def test_a_rename_in_a_plan_is_one_change_and_keeps_mail(lab: Lab) -> None:
    """Rename a stopped receiver, for which messages wait: the plan has one line for it, and its mail arrives."""
    renamed = FLEET.replace("store:  {on: h2,", "shelf: {on: h2, formerly: store,").replace("to: store", "to: shelf")
    planned = "apply: planned\n"
    try:
        lab.fleet.write_text(FLEET.replace("store:  {on: h2,", "store: {on: h2, state: stopped,"))
        plan = lab.runner("netspace_fleet.plan")
        assert lab.runner("netspace_fleet.apply", plan["plan"])["counts"]["failed"] == 0
        texts = ["kept-1", "kept-2"]
        until(lambda: sent(lab, *texts) == texts, "the outbox takes mail", patience=300)
        lab.fleet.write_text(renamed + planned)

        def counted() -> list[str]:
            found = lab.runner("netspace_fleet.plan")
            plan.update(found)
            return [one["reason"] for one in found["changes"] if one["action"] == "rename" and one["kind"] != "link"]

        kept = "renamed from store; its mailbox is kept (2 messages)"
        until(lambda: counted() == [kept], "the broker has counted what waits", patience=60)
        of_h2 = [one for one in plan["changes"] if "h2" in one["places"][0]["hosts"]]
        assert [(one["kind"], one["places"][0]["names"]) for one in of_h2] == [("environment", ["shelf"])], of_h2
        assert lab.runner("netspace_fleet.apply", plan["plan"])["counts"]["failed"] == 0

        def read() -> bool:
            log = str(lab.salt("h2", "netspace_environment.logs", "shelf", "1000")["h2"])
            return all(f"got {text}" in log for text in texts)

        until(read, "it reads what waited under its former name", patience=120)
    finally:
        back = FLEET.replace("store:  {on: h2,", "store: {on: h2, formerly: shelf,")
        for text in (back, FLEET):
            lab.fleet.write_text(text)
            again = lab.runner("netspace_fleet.plan")
            assert lab.runner("netspace_fleet.apply", again["plan"])["counts"]["failed"] == 0
        lab_faults.settle(lab)


def test_a_minion_killed_in_an_apply_is_repaired_next(lab: Lab, planned: str) -> None:
    disk, before = lab.folder / "h2/disk/netspace", lab.salt("h1", "netspace_environment.list")["h1"]["web"]["since"]
    with rolled_out(lab, planned) as rollout:
        rollout.read_to("rollout: h2 apply")
        began = written(disk)
        until(lambda: written(disk) > began, "the apply has written its first record", patience=120, pause=0.0)
        lab.do("sh", "h2", "pkill", "-KILL", "-f", MINION)
        found = rollout.ended()
    # Only the host whose minion was killed may be bad, and the other one wasn't asked.
    assert found["state"] == "stopped" and set(found.get("bad", ())) <= {"h2"}, f"{found} {rollout.lines}"
    assert given(lab) == [False, False], "it has its former part again"
    assert lab.salt("h1", "netspace_environment.list")["h1"]["web"]["since"] == before, "h1 was left alone"
    until(lambda: lab.answering() == {"h1", "h2"}, "the minion is back", patience=300)
    lab_faults.settle(lab)
    again = lab.runner("netspace_fleet.plan")
    with rolled_out(lab, again["plan"]) as second:
        found = second.ended()
    assert found["state"] == "done" and "bad" not in found, f"{found} {second.lines}"
    assert given(lab) == [True, True] and lab.apply() == 0


def test_a_master_that_is_down_grants_and_revokes_nothing(lab: Lab) -> None:
    def links() -> list[str]:
        return [(lab.folder / host / "disk/netspace/link/applied.json").read_text() for host in ("h1", "h2")]

    def asks(text: str) -> str:
        exec_ = ("netspace_environment.exec", "web", f"/usr/bin/web {text}")
        return lab.do("sh", "h1", "salt-call", "--local", "--out=json", *exec_)

    before = links()
    lab.do("kill", "master")
    try:
        # The new declaration revokes one link and makes another one. Nobody gives it to the hosts.
        lab.fleet.write_text(FLEET.replace("from: web, to: store", "from: store, to: orders"))
        apply = "timeout 40 salt-call --out=json state.apply netspace || true"
        assert '"result": true' not in lab.do("sh", "h1", "sh", "-c", apply)
        assert links() == before
        until(lambda: "sealed order of 3 pears" in asks("3 pears"), "the link works without a master", patience=300)
    finally:
        lab.fleet.write_text(FLEET)
        lab.do("start", "master")
        lab.warm()
    until(lambda: lab.answering() == {"h1", "h2"}, "the minions are back", patience=300)
    assert lab.apply() == 0


def test_a_master_with_an_older_declaration_is_refused(lab: Lab) -> None:
    """A master is replaced by a copy from before the last change: hosts refuse its older declaration."""
    first, second = (
        f"{FLEET}edition: 1\n",
        FLEET.replace("command: [", "env: {TRY: again}, command: [") + "edition: 2\n",
    )
    lab.fleet.write_text(first)
    number = lab.folder / "master/fleet/edition.json"
    until(lambda: lab.runner("netspace_fleet.slice", "h1") and number.exists(), "it is in force", patience=60)
    assert lab.apply() == 0, "a number alone changes nothing"
    book, copy = lab.folder / "master/fleet", lab.folder / "master/fleet.copy"
    shutil.copytree(book, copy)
    lab.fleet.write_text(second)
    until(lambda: all(given(lab)), "the new edition is in force", patience=60)
    assert lab.apply() > 0
    lab.fleet.write_text(first)
    (problem,) = lab.runner("netspace_fleet.check", code=1)["problems"]
    assert problem["path"] == "edition" and "lower than 2" in problem["reason"], problem
    assert all(given(lab)), "the same master keeps the newer one"
    shutil.rmtree(book)
    copy.rename(book)
    until(lambda: not any(given(lab)), "the older one is in force there", patience=60)
    failures = lab.apply_failures("h2")
    assert any("this host was given edition 2 before" in one for one in failures), failures
    plan = lab.runner("netspace_fleet.plan")
    assert "edition 2" in str(plan["without_plan"]), plan
    lab.fleet.write_text(second)
    until(lambda: all(given(lab)), "it was brought up to date", patience=60)
    assert lab.apply() == 0
