"""``scripts/lab``: a real master and two minions, which an operator starts, disconnects, kills and ends."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from support import checkout
from support.hosts.lab import LAB, Lab
from support.hosts.lab import lab as lab_of
from support.waiting import until

pytestmark = pytest.mark.root

PAGE = checkout.ROOT / "docs/fleet.md"
ANSWER = "orders@h2: sealed: thank you, web@h1, for the sealed order of {}"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab_of(tmp_path_factory.mktemp("lab") / "lab") as made:
        # Killed in the middle: the next one goes on from there.
        first = subprocess.Popen([LAB, "up"], stdout=subprocess.PIPE, text=True, env=made.environment)
        assert first.stdout is not None
        assert any(line.startswith("h1:") for line in first.stdout)
        first.send_signal(signal.SIGKILL)
        first.wait()
        first.stdout.close()
        assert "up in " in made.do("up")
        made.warm()
        yield made


def test_minions_answer_with_the_plugins_of_the_checkout(lab: Lab) -> None:
    answers = lab.salt("*", "netspace.version")
    assert set(answers) == {"h1", "h2"} and len(set(answers.values())) == 1
    assert lab.do("up").count("198.51.100.") == 3, "run again, it starts no host"


def test_a_cut_parts_two_hosts_and_mend_joins_them(lab: Lab) -> None:
    lab.do("cut", "h1", "master")
    assert "cut: h1 master" in lab.do("status")
    assert not lab.reaches_master("h1") and lab.reaches_master("h2")
    lab.do("mend", "master", "h1")
    assert "cut:" not in lab.do("status")
    assert lab.reaches_master("h1")


def test_the_pages_lines_carry_a_sealed_request_across(lab: Lab) -> None:
    (page,) = re.findall(r"^```yaml\n(# the whole of a fleet.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert yaml.safe_load(page) == yaml.safe_load(lab.fleet.read_text())
    checked = lab.runner("netspace_fleet.check")
    assert checked["ok"] and len(checked["missing"]) == 2, checked
    joined = lab.runner("netspace_fleet.join", "h1", "h2")
    assert all(one["changes"].keys() == {"authority", "public_key"} for one in joined.values()), joined
    assert all("state.apply" in str(one["missing"]) for one in joined.values()), joined
    lab.apply()
    again = lab.runner("netspace_fleet.join", "h1", "h2")
    assert again == {host: {"changes": {}, "missing": []} for host in ("h1", "h2")}, again
    assert lab.runner("netspace_fleet.check")["missing"] == []
    until(lambda: lab.asks("3 pears") == ANSWER.format("3 pears"), patience=120)
    assert lab.apply() == 0, "applied again, it changes nothing"
    seen = lab.runner("netspace_fleet.status")
    assert seen["summary"] == "2 of 2 hosts are well, and 2 of 2 replicas of environments", seen
    page = lab.do("salt-run", "--out=newline_values_only", "netspace_fleet.graph", "format=html", "live=True")
    assert "<!DOCTYPE html>" in page and "State of 20" in page and '"orders@h2"' in page, page[:500]
    explained = lab.runner("netspace_fleet.explain", "orders")
    assert explained["placement"]["hosts"] == ["h2"] and explained["hosts"]["h2"]["state"] == "running", explained
    # Each minion has its own part of the declaration, and no other; nor can it fetch the whole.
    for host, own in (("h1", "web"), ("h2", "orders")):
        assert lab.salt(host, "pillar.keys", "netspace:environments") == {host: [own]}
        listed = lab.salt(host, "cp.list_master")[host]
        assert "images/shop.tar" in listed and not any("fleet" in name for name in listed)


def test_a_cut_and_a_power_failure_lose_no_link(lab: Lab) -> None:
    lab.do("cut", "h1", "h2")
    assert lab.asks("4 plums").startswith("no answer: ")
    lab.do("mend", "h1", "h2")
    until(lambda: lab.asks("4 plums") == ANSWER.format("4 plums"), patience=120)
    # As a power failure does: what runs is lost, the disk is kept, and a boot restores what ran.
    lab.do("sh", "h2", "touch", "/var/lib/netspace/kept", "/run/lost")
    lab.do("kill", "h2")
    assert "off" in lab.do("status").splitlines()[2]
    seen = lab.runner("netspace_fleet.list", "timeout=30")
    rows = {row["environment"]: (row["host"], row["mark"]) for row in seen["environments"]}
    assert rows == {"web": ("h1", rows["web"][1]), "orders": ("h2", "unknown")}, "a host that is off is not waited for"
    assert "it is off; start it: lab start h2" in lab.do("sh", "h2", "true", code=1)
    lab.do("start", "h2")
    found = lab.do("sh", "h2", "ls", "/var/lib/netspace", "/run")
    assert "kept" in found and "lost" not in found
    until(lambda: lab.asks("5 figs") == ANSWER.format("5 figs"), "orders answers again", patience=120)


def test_a_broken_declaration_leaves_the_last_good_one(lab: Lab) -> None:
    before, text = lab.runner("netspace_fleet.slice", "h1"), lab.fleet.read_text()
    lab.fleet.write_text(text.replace("to: orders", "to: order"))
    try:
        checked = lab.runner("netspace_fleet.check", code=1)
        (problem,) = checked["problems"]
        assert (problem["file"], problem["path"]) == (str(lab.fleet), "links:0:to")
        assert lab.runner("netspace_fleet.slice", "h1") == before
        assert "problems" in lab.runner("netspace_fleet.join", "h1", code=1)["error"]
    finally:
        lab.fleet.write_text(text)


def test_a_host_that_loses_trust_loses_its_links(lab: Lab, record_property: Callable[[str, object], None]) -> None:
    (key,) = lab.runner("netspace_attestation.jwks")["keys"]
    required = {"verifier": "master", "verifier_keys": [key["kid"]], "policy": "require", "minimum": "L1"}
    before = lab.fleet.read_text()
    lab.fleet.write_text(f"{before}defaults:\n  attestation: {json.dumps(required)}\n")
    assert lab.runner("netspace_fleet.check")["problems"] == []
    until(lambda: "attestation" in lab.runner("netspace_fleet.slice", "h2")["netspace"], patience=60)
    lab.salt("*", "saltutil.refresh_pillar", "wait=True")
    lab.runner("netspace_attestation.attest")
    lab.apply()
    assert lab.runner("netspace_trust.look") == {"hosts": 2, "distrusted": {}, "asked_again": {}, "waiting": {}}
    until(lambda: lab.asks("6 nuts") == ANSWER.format("6 nuts"), patience=120)

    def links(host: str) -> str:
        path = lab.folder / host / "disk/netspace/link/applied.json"
        return path.read_text() if path.exists() else ""  # a host without links has no record

    def judged(state: str) -> float:
        """Return the time at which the master appraised h2 and sent the event."""
        lines = (lab.folder / "master/attestation/audit.log").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        (*_, last) = [one for one in records if one["event"] == "state" and one["data"]["minion"] == "h2"]
        assert last["data"]["new"] == state, last
        return float(last["time"])

    def revised(after: str = "") -> list[tuple[str, list[str]]]:
        """Return the jobs that told minions of a change of trust, as pairs: the job's id, and the minions."""
        jobs = lab.runner("jobs.list_jobs", "search_function=netspace_link.signed_answer").items()
        asked = [(job, one["Target"], one["Arguments"][0]["asked"]["function"]) for job, one in sorted(jobs)]
        return [(job, who) for job, who, function in asked if function == "netspace_trust.revise" and job > after]

    assert "orders@h2" in links("h1")
    former = max((job for job, _ in revised()), default="")
    # Somebody took h2's place: another key answers.
    kept = "/var/lib/netspace/attestation/key"
    lab.do("sh", "h2", "mv", f"{kept}.json", f"{kept}.kept")
    assert lab.runner("netspace_attestation.attest", "h2", code=1)["h2"]["state"] == "failed"
    until(lambda: "orders@h2" not in links("h1"), "h1 has no link to h2", patience=120)
    took = time.time() - judged("failed")
    record_property("seconds from the event to the cut", took)
    print(f"cut {took:.1f} s after the event")
    assert not lab.asks("7 figs").startswith("orders@h2")
    until(lambda: lab.salt("h2", "netspace_environment.list")["h2"]["orders"]["state"] == "stopped", patience=120)
    until(lambda: lab.runner("netspace_trust.status", code=1)["waiting"] == {}, patience=120)
    # The master told each of them once, the peer first, and looked only because of the event: nothing polls.
    assert [who for _, who in revised(former)] == [["h1"], ["h2"]]
    shown = lab.runner("netspace_trust.status", code=1)["distrusted"]["h2"]
    assert (shown["state"], shown["code"], shown["cut"]) == ("failed", "ak-unknown", ["web@h1.orders"]), shown

    # Whatever events a minion sends: the master goes by its own results.
    for forged in ("netspace/attestation/h2/trusted", "netspace/attestation/h1/failed"):
        told = {"minion": forged.split("/")[2], "old": "x", "new": forged.split("/")[3], "reason": "forged"}
        lab.salt("h1", "event.send", forged, json.dumps(told))
    looked = lab.runner("netspace_trust.look", code=1)
    assert set(looked["distrusted"]) == {"h2"} and looked["waiting"] == {}
    assert lab.apply_failures("h1") == [] and "orders@h2" not in links("h1")

    lab.do("sh", "h2", "mv", f"{kept}.kept", f"{kept}.json")
    assert lab.runner("netspace_attestation.attest", "h2")["h2"]["state"] == "trusted"
    until(lambda: lab.asks("8 figs") == ANSWER.format("8 figs"), "orders answers again", patience=120)
    until(lambda: lab.runner("netspace_trust.status").get("waiting") == {}, patience=120)
    assert lab.apply() == 0, "all was restored"


def test_a_host_that_leaves_has_no_links_and_joins_again(lab: Lab) -> None:
    assert lab.runner("netspace_fleet.leave", "h2") == {"h2": {"left": True, "apply": ["h1"]}}
    assert "hosts" not in lab.runner("netspace_fleet.slice", "h1")["netspace"]["broker"]
    back = lab.runner("netspace_fleet.join", "h2")
    assert "authority" in back["h2"]["changes"] or "public_key" in back["h2"]["changes"], back
    assert lab.runner("netspace_fleet.slice", "h1")["netspace"]["links"]


def test_a_plan_is_applied_exactly_or_the_host_refuses(lab: Lab) -> None:
    lab.apply()
    text = lab.fleet.read_text()
    changed = text.replace("command: [", "limits: {memory: 96M}, command: [")
    lab.fleet.write_text(f"{changed}\napply: planned\n")
    plan = lab.runner("netspace_fleet.plan")
    assert plan["counts"]["change"] == 2 and plan["without_plan"] == [], plan
    (entry,) = [one for one in plan["changes"] if one["kind"] == "environment"]
    assert entry["changes"].keys() == {"limits:memory"}, entry
    assert entry["places"] == [{"names": ["orders"], "hosts": ["h2"]}, {"names": ["web"], "hosts": ["h1"]}]
    assert lab.runner("netspace_fleet.plan")["plan"] == plan["plan"]
    assert lab.apply() == 0, "what is only saved gives no host anything"
    # Changed by hand, h2 refuses, and h1 does its plan.
    lab.salt("h2", "netspace_environment.stop", "orders")
    applied = lab.runner("netspace_fleet.apply", plan["plan"], code=1)
    assert applied["done"] == [{"reason": "", "hosts": ["h1"]}], applied
    ((reason, hosts),) = [(one["reason"], one["hosts"]) for one in applied["failed"]]
    assert hosts == ["h2"] and "its plan is no longer the same" in reason
    given = {host: str(lab.runner("netspace_fleet.slice", host)) for host in ("h1", "h2")}
    assert "96M" in given["h1"] and "96M" not in given["h2"]
    heard = subprocess.Popen(
        [LAB, "salt-run", "--out=json", "state.event", "netspace/fleet/drift", "count=1"],
        stdout=subprocess.PIPE,
        text=True,
        env=lab.environment,
    )
    drift = lab.runner("netspace_fleet.drift", code=1)
    assert {host for one in drift["changes"] for place in one["places"] for host in place["hosts"]} == {"h2"}, drift
    try:
        until(lambda: lab.runner("netspace_fleet.drift", code=1) and heard.poll() is not None, patience=120)
    finally:
        heard.kill()
        printed, _ = heard.communicate()
    assert drift["drift"] in printed and '"h2"' in printed
    again = lab.runner("netspace_fleet.plan")
    told = lab.do("salt-run", "--out=netspace", "netspace_fleet.diff", plan["plan"], again["plan"])
    assert "alone would:" in told and "h1" in told
    assert lab.runner("netspace_fleet.apply", again["plan"])["counts"] == {"hosts": 1, "done": 1, "failed": 0}
    assert lab.runner("netspace_fleet.drift")["changes"] == []
    assert lab.apply() == 0, "a highstate agrees"
    lab.fleet.write_text(text)
    back = lab.runner("netspace_fleet.plan")
    assert lab.runner("netspace_fleet.apply", back["plan"])["counts"]["failed"] == 0
    assert "96M" not in str(lab.runner("netspace_fleet.slice", "h2")) and lab.apply() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sh", "h9"), "h9: the lab has no such host; it has master, h1, h2"),
        (("cut", "h1"), "cut: it needs two hosts"),
        (("cut", "h1", "h1"), "h1 is named twice"),
        (("up", "--hosts", "1"), "--hosts is for a new lab; edit "),
        (("up", str(PAGE)), "this lab declares its fleet in "),
    ],
)
def test_wrong_arguments_are_refused_and_change_nothing(lab: Lab, arguments: tuple[str, ...], message: str) -> None:
    before = lab.do("status")
    assert message in lab.do(*arguments, code=1)
    assert lab.do("status") == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hosts: []", "it declares no hosts"),
        ("hosts: {h1: {address: x}}", "hosts: h1: address: 'x' is not an IP address"),
        ("hosts: {srv: {address: 198.51.100.9}}", "'srv' can't be the name of a lab's host"),
        ("hosts: {h1: {address: 198.51.100.254}}", "198.51.100.254 is taken"),
        ("hosts: {a: {address: 198.51.100.9}, b: {address: 198.51.100.9}}", "198.51.100.9 is taken"),
    ],
)
def test_a_file_without_usable_hosts_is_refused_by_path(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "fleet.yaml").write_text(text)
    refused = Lab(tmp_path / "lab")
    printed = refused.do("up", str(tmp_path / "fleet.yaml"), code=1)
    assert f"lab: {tmp_path / 'fleet.yaml'}: " in printed and message in printed
    assert not refused.folder.exists()


def test_a_folder_that_is_no_labs_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir(mode=0o700)
    (tmp_path / "lab/work").write_text("mine")
    other = Lab(tmp_path / "lab")
    assert "has files and is not a lab's folder" in other.do("up", code=1)
    assert "is not a lab's folder; nothing is removed" in other.do("down", code=1)
    assert (tmp_path / "lab/work").read_text() == "mine"


def test_a_rollout_takes_back_and_survives_its_master(lab: Lab) -> None:
    lab.apply()
    text = lab.fleet.read_text()
    ends = "\napply: planned\nrollout: {canary: [h2], settle: 2, deadline: 20}\n"
    sick = "health: {exec: [/bin/false], interval: 5, retries: 2}, update: {rolling: false, rollback: false}, "

    def planned(memory: str, orders: str = "") -> str:
        """Declare the memory limit *memory*, and the keys *orders* for orders; return the plan's id."""
        changed = text.replace("command: [", f"limits: {{memory: {memory}}}, command: [")
        lab.fleet.write_text(changed.replace("orders: {", f"orders: {{{orders}") + ends)
        plan = lab.runner("netspace_fleet.plan")
        assert plan["counts"]["change"] == 2 and plan["without_plan"] == [], plan
        return str(plan["plan"])

    def given() -> list[str]:
        slices = [lab.runner("netspace_fleet.slice", host)["netspace"]["environments"] for host in ("h1", "h2")]
        return [str(body.get("limits")) for environments in slices for body in environments.values()]

    # The canary's new version applies, but it isn't healthy: it is taken back, and the other host is left alone.
    plan, web = planned("96M", sick), lab.salt("h1", "netspace_environment.list")["h1"]["web"]["since"]
    shown = lab.runner("netspace_fleet.rollout", plan, "test=True")
    assert [(one["hosts"], one["canary"]) for one in shown["batches"]] == [(["h2"], True), (["h1"], False)], shown
    events = [str(LAB), "salt-run", "--out=json", "state.event", "netspace/fleet/rollout/*/h2", "count=1"]
    heard = subprocess.Popen(events, stdout=subprocess.PIPE, text=True, env=lab.environment)
    try:
        stopped = lab.runner("netspace_fleet.rollout", plan, code=1)
        assert (stopped["state"], stopped["hosts"]) == ("stopped", {"waiting": 1, "taken back": 1}), str(stopped)
        assert "the canary h2 failed: orders: " in stopped["why"] and "bad" not in stopped
        until(lambda: heard.poll() is not None, "the bus had an event of it", patience=120)
    finally:
        heard.kill()
        printed, _ = heard.communicate()
    assert plan in printed
    assert given() == ["None", "None"]
    assert lab.salt("h1", "netspace_environment.list")["h1"]["web"]["since"] == web, "web was not restarted"
    until(lambda: lab.asks("6 nuts") == ANSWER.format("6 nuts"), "orders answers again", patience=120)
    assert lab.apply() == 0, "what was taken back is applied"
    # The master is killed while the canary applies. The rollout goes on from there.
    plan = planned("96M")
    command = [str(LAB), "salt-run", "--out=json", "netspace_fleet.rollout", plan]
    under_way = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=lab.environment
    )
    try:
        assert under_way.stdout is not None
        assert any("rollout: h2 apply (0 of 2 hosts are good)" in line for line in under_way.stdout)
        lab.do("kill", "master")
    finally:
        under_way.kill()
        under_way.communicate()
    lab.do("start", "master")
    lab.warm()
    until(lambda: lab.answering() == {"h1", "h2"}, "the minions are back", patience=300)
    found = lab.runner("netspace_fleet.rollout")
    assert found["state"] == "interrupted" and set(found.get("bad", ())) <= {"h2"}, found
    assert "isn't finished" in lab.runner("netspace_fleet.rollout", plan, code=1)["error"]
    resumed = lab.runner("netspace_fleet.resume")
    assert (resumed["state"], resumed["hosts"]) == ("done", {"good": 2}), resumed
    assert given() == ["{'memory': '96M'}"] * 2 and lab.apply() == 0
    lab.fleet.write_text(text)
    back = lab.runner("netspace_fleet.plan")
    assert lab.runner("netspace_fleet.apply", back["plan"])["counts"]["failed"] == 0 and lab.apply() == 0
