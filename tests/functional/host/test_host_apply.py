"""One declaration makes a whole host, by Salt's command line: tests of what README and the states promise."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pty
import subprocess
from pathlib import Path

import pytest
from support.hosts import snapshot
from support.hosts.whole_host import ASK, CLIENT, IDLE, all_true, by_id, changes, python, shop

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]


def pids(salt):
    return {name: entry["pid"] for name, entry in salt("netspace_environment.list").items()}


def test_a_test_run_before_anything_lists_everything_and_changes_nothing(salt, image):
    before = snapshot.rested()
    states = salt.apply(shop(image), "test=True")
    assert snapshot.settled(before) == before
    assert {state["result"] for state in states.values()} == {None}
    assert set(states["netspace environments"]["changes"]) == {"orders", "web", "stranger"}
    assert set(states["netspace interfaces"]["changes"]) == {"orders", "web", "stranger", "host:firewall"}
    assert "web.orders" in states["netspace links"]["changes"]
    assert states["netspace attestation"]["changes"]
    assert "netspace_supervisor_up" not in salt("netspace.metrics"), "no program needs a supervisor yet"


def test_a_declared_host_runs_talks_and_settles(salt, image):
    everything = shop(image)
    before = snapshot.rested()
    all_true(salt.apply(everything))

    # Along the declared link a request is answered, and the answerer knows who asks.
    answer = salt.exec("web", ["/usr/bin/python3", "-c", ASK, "orders", "two apples"])
    assert answer["retcode"] == 0, answer
    assert answer["stdout"].strip() == "orders to web: two apples"

    # What isn't declared isn't there: no account and no broker, and no way to send.
    alone = salt.exec("stranger", ["/usr/bin/python3", "-c", CLIENT])
    assert alone["retcode"] != 0 and "KeyError: 'broker'" in alone["stderr"]
    past = CLIENT + "channel.basic_publish('link.orders.web', '', b'x', mandatory=True)"
    refused = salt.exec("web", ["/usr/bin/python3", "-c", past])
    assert (refused["retcode"] != 0 and "AMQP" in refused["stderr"]) or "ACCESS_REFUSED" in refused["stderr"]

    # Again: nothing to do, and not a file is touched.
    files, running = own(snapshot.files(*snapshot.STATE)), pids(salt)
    again = salt.apply(everything)
    all_true(again)
    assert changes(again) == {}
    assert salt("netspace.drift")["notes"] == []
    assert own(snapshot.files(*snapshot.STATE)) == files
    assert pids(salt) == running
    assert {state["result"] for state in salt.apply(everything, "test=True").values()} == {True}

    # One key of one environment: where that needs a restart that one is restarted, and the key is named.
    changed = copy.deepcopy(everything)
    for key, value, old, new in (
        ("memory", "80M", "64M", "80M"),
        ("files", 512, 1024, 512),
    ):
        changed["environments"]["web"]["limits"][key] = value
        states = salt.apply(changed)
        all_true(states)
        assert changes(states) == {"netspace environments": {"web": {f"limits:{key}": {"old": old, "new": new}}}}
        after = pids(salt)
        assert (after["web"] == running["web"]) == (key == "memory")
        assert {**after, "web": 0} == {**running, "web": 0}

    # A new link reaches running environments without a restart; a revoked one is gone at once.
    link = {"from": "stranger", "to": "orders", "pattern": "request"}
    changed["links"] = [{**link, "seal": True, "monitor": True}]
    states = salt.apply(changed)
    all_true(states)
    assert {"web.orders", "stranger.orders"} <= set(states["netspace links"]["changes"])
    assert pids(salt) == after
    answer = salt.exec("stranger", ["/usr/bin/python3", "-c", ASK, "orders", "hello"])
    assert answer["stdout"].strip() == "orders to stranger: hello", answer
    refused = salt.exec("web", ["/usr/bin/python3", "-c", ASK, "orders", "still there?"])
    assert refused["retcode"] != 0

    # It is sealed: both ends have keys, which are renewed without a restart. The host seals nothing itself.
    assert keys(salt, "stranger") == keys(salt, "orders") == (2, 2)
    assert salt("netspace_link.renew_seals", "orders") == ["orders"]
    assert (keys(salt, "stranger"), keys(salt, "orders")) == ((2, 4), (4, 2))
    unknown = salt.run("netspace_link.renew_seals", "orders", "strangr")
    assert unknown.returncode != 0
    assert "strangr has no sealed link on this host; did you mean stranger?" in unknown.stderr
    assert (keys(salt, "stranger"), keys(salt, "orders")) == ((2, 4), (4, 2)), "nothing is renewed"
    assert changes(salt.apply(changed)) == {}
    assert pids(salt) == after

    # Certificates are replaced under running programs; keys are in memory only.
    assert salt("netspace_link.renew") == []
    assert salt("netspace_link.renew", "authority=True", "distrust=True") == ["orders", "stranger"]
    assert pids(salt) == after
    answer = salt.exec("stranger", ["/usr/bin/python3", "-c", ASK, "orders", "hello"])
    assert answer["stdout"].strip() == "orders to stranger: hello", answer
    assert not [*Path("/var/lib/netspace").rglob("identity.pem")]

    # What is no longer declared goes; the others don't notice.
    del changed["environments"]["web"]
    states = salt.apply(changed)
    all_true(states)
    assert set(pids(salt)) == {"orders", "stranger"}
    assert pids(salt)["orders"] == after["orders"]

    removed = salt("netspace.teardown")
    assert removed["result"] is True, removed
    assert snapshot.settled(before) == before


def keys(salt, name):
    """Return the number of an environment's own keys, and the number of keys of its sealed link's other end."""
    told = salt.exec(name, ["/usr/bin/python3", "-c", KEYS])
    assert told["retcode"] == 0, told
    return tuple(json.loads(told["stdout"]))


KEYS = """
import json
card = json.load(open("/run/netspace/environment.json"))
(other,) = [end["seal"]["keys"] for end in card["peers"] + card["senders"] if "seal" in end]
print(json.dumps([len(json.load(open(card["seal"]["keys_file"]))["keys"]), len(other)]))
"""


def own(files):
    """Return *files* without logs and without the broker's data, which change all the time."""
    return {path: value for path, value in files.items() if "broker" not in path and not path.startswith("/var/log/")}


def test_a_mistake_is_named_with_its_path_and_nothing_is_changed(salt, image):
    everything = shop(image)
    everything["environments"]["web"]["limits"]["memroy"] = "1M"
    before = snapshot.rested()
    states = salt.apply(everything)
    for state in states.values():
        assert state["result"] is False
    message = "netspace:environments:web:limits:memroy: unknown; did you mean memory?"
    assert message in states["netspace attestation"]["comment"]
    assert str(states).count("memroy") == 1, "it is told once; the other states refer to it"
    assert str(states).count("Nothing done: first solve the problem") == 3
    assert snapshot.settled(before) == before
    done = salt.run("netspace.check")
    assert done.returncode == 1, done
    checked = json.loads(done.stdout)["local"]
    assert checked["valid"] is False
    assert checked["problems"][0]["path"] == "netspace:environments:web:limits:memroy"


def test_states_by_hand_make_the_same_host(salt, image):
    run = salt
    made = run(
        "state.single", "netspace_environment.running", "name=alone", f"image=tar:{image}", f"command={python(IDLE)}"
    )
    (state,) = made.values()
    assert state["result"] is True, state
    assert state["changes"]["image"] == {"old": None, "new": f"tar:{image}"}
    again = run(
        "state.single", "netspace_environment.running", "name=alone", f"image=tar:{image}", f"command={python(IDLE)}"
    )
    assert next(iter(again.values()))["changes"] == {}
    assert run("netspace_environment.inspect", "alone")["state"] == "running"
    removed = run("state.single", "netspace_environment.absent", "name=alone")
    assert next(iter(removed.values()))["result"] is True
    assert run("netspace_environment.list") == {}


def test_states_by_hand_can_be_aggregated(salt, image, tmp_path):
    """States in an SLS file run as one batch; each has its own result and changes, and a wrong state fails alone."""
    names = [f"batch-{number}" for number in range(4)]
    states = {
        name: {
            "netspace_environment.running": [
                {"image": f"tar:{image}"},
                {"command": python(IDLE)},
                {"stop_timeout": 1},
                {"aggregate": True},
            ]
        }
        for name in names
    }
    states["wrong"] = {"netspace_environment.running": [{"image": f"tar:{image}"}, {"user": 0}, {"aggregate": True}]}
    # What a condition or a requisite forbids is not made by another's batch.
    common = states[names[0]]["netspace_environment.running"]
    states["unwanted"] = {"netspace_environment.running": [*common, {"onlyif": "/bin/false"}]}
    states["waiting"] = {"netspace_environment.running": [*common, {"require": [{"netspace_environment": "wrong"}]}]}
    (tmp_path / "batch.sls").write_text("#!json\n" + json.dumps(states))
    returned = salt("state.apply", "batch", f"--file-root={tmp_path}", check=False)
    results = by_id(returned)
    assert results.pop("wrong")["result"] is False
    assert results.pop("waiting")["result"] is False
    assert results.pop("unwanted")["changes"] == {}
    all_true(results)
    assert {name: state["changes"]["image"]["new"] for name, state in results.items()} == dict.fromkeys(
        names, f"tar:{image}"
    )
    listed = salt("netspace_environment.list")
    assert {name: entry["state"] for name, entry in listed.items()} == dict.fromkeys(names, "running")
    assert salt("netspace_environment.remove", *names) is True
    assert salt("netspace_environment.list") == {}


def in_a_terminal(command: list[str]) -> tuple[int, str]:
    """Run a command whose standard streams are one terminal; return its exit code and what the terminal shows."""
    ours, its = pty.openpty()
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, start_new_session=True) as running:
        os.close(its)
        shown = bytearray()
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while part := os.read(ours, 65536):
                shown += part
        os.close(ours)
    return running.returncode, shown.decode().replace("\r\n", "\n")


def test_terminal_shows_an_apply_as_it_goes_on(salt, image):
    """Without a master, an apply prints a line for each step before Salt has its result."""
    one = {**shop(image)["environments"]["web"], "command": python(IDLE)}
    salt.declare({"environments": {"lone": one}})
    code, shown = in_a_terminal([*salt.command("state.apply", "netspace.environments"), "--log-level=quiet"])
    lines = shown.split("\n")
    assert code == 0, shown
    told = ["netspace: starting lone", "netspace: environment: 1 change made"]
    places = [lines.index(line) for line in told]
    assert places == sorted(places) and places[-1] < next(at for at, line in enumerate(lines) if line.startswith("{"))
