"""``state: stopped`` by Salt, in pillar and in SLS: the environment's mailbox still receives messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.hosts.whole_host import CLIENT, IDLE, Salt, all_true, by_id, changes, python, shop
from support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]

SEND = (
    CLIENT
    + """
peer = next(peer for peer in card["peers"] if peer["to"] == "orders")
channel.basic_publish(peer["exchange"], "", b"while you were away", mandatory=True)
"""
)
READ = (
    CLIENT
    + """
for method, properties, body in channel.consume(card["mailbox"], auto_ack=True):
    print(body.decode(), flush=True)
"""
)
STOPPED = {"orders": {"state": {"old": "running", "new": "stopped"}}}
STARTED = {"orders": {"state": {"old": "stopped", "new": "running"}}}


def states(salt: Salt) -> dict[str, str]:
    return {name: row["state"] for name, row in salt("netspace_environment.list").items()}


def applied(salt: Salt, declared: dict[str, Any]) -> dict[str, Any]:
    """Apply; return the changes. A dry run before must show the same changes, and a second apply none."""
    tested = salt.apply(declared, "test=True")
    assert tested["netspace environments"]["result"] is None
    made = salt.apply(declared)
    all_true(made)
    assert changes(made) == changes(tested)
    again = salt.apply(declared)
    all_true(again)
    assert changes(again) == {}
    return changes(made)


def test_one_that_is_declared_to_be_stopped_gets_its_mail_once_it_is_declared_to_run(salt: Salt, image: Path) -> None:
    declared = shop(image)
    orders = declared["environments"]["orders"]
    orders["command"] = python(READ)
    declared["links"][0]["pattern"] = "send"
    orders["state"] = "stopped"
    all_true(salt.apply(declared))
    assert states(salt) == {"orders": "stopped", "web": "running", "stranger": "running"}
    done = salt.exec("web", ["/usr/bin/python3", "-c", SEND], timeout=50)
    assert done["retcode"] == 0, done
    until(lambda: salt("netspace_link.list")["mailboxes"]["orders"]["messages"] == 1, pause=0.5)
    assert salt("netspace_link.health") == {"ok": True, "problems": [], "findings": [], "dead": 0, "late": 0}

    # By hand it runs, and reads what came; the next apply stops it again.
    assert salt("netspace_environment.start", "orders") is True
    until(lambda: salt("netspace_environment.logs", "orders") == ["while you were away"], pause=0.5)
    assert applied(salt, declared) == {"netspace environments": STOPPED}
    assert states(salt)["orders"] == "stopped"
    waited = salt.run("netspace_environment.wait", "orders")
    assert "environment orders is stopped, as it is declared (state: stopped)" in waited.stderr

    del orders["state"]
    assert applied(salt, declared) == {"netspace environments": STARTED}
    assert states(salt)["orders"] == "running"
    orders["state"] = "stopped"
    assert applied(salt, declared) == {"netspace environments": STOPPED}

    orders["state"] = "paused"
    salt.declare(declared)
    (problem,) = json.loads(salt.run("netspace.check", "host=False").stdout)["local"]["problems"]
    assert problem["path"] == "netspace:environments:orders:state"
    assert problem["message"] == "'paused' is not accepted here; choose from running, stopped"


def test_states_of_an_sls_say_it_too(salt: Salt, image: Path, tmp_path: Path) -> None:
    salt.declare({})
    common = [{"image": f"tar:{image}"}, {"command": python(IDLE)}, {"stop_timeout": 2}]

    def apply(sls: dict[str, Any], *arguments: str) -> dict[str, dict[str, Any]]:
        (tmp_path / "shop.sls").write_text("#!json\n" + json.dumps(sls))
        returned = salt("state.apply", "shop", f"--file-root={tmp_path}", *arguments, check=False)
        assert isinstance(returned, dict), returned
        return by_id(returned)

    def those(function: str, *more: dict[str, Any]) -> dict[str, Any]:
        return {name: {f"netspace_environment.{function}": [*common, *more]} for name in ("one", "two")}

    for _ in range(2):
        made = apply(those("stopped", {"aggregate": True}))
        all_true(made)
        assert states(salt) == {"one": "stopped", "two": "stopped"}
    assert changes(made) == {}
    tested = apply(those("running"), "test=True")
    assert {name: state["result"] for name, state in tested.items()} == {"one": None, "two": None}
    assert states(salt) == {"one": "stopped", "two": "stopped"}
    made = apply(those("running"))
    assert changes(made) == changes(tested) == dict.fromkeys(("one", "two"), STARTED["orders"])
    all_true(made)
    # A whole declaration that an SLS gives to one state.
    one = {"image": f"tar:{image}", "command": python(IDLE), "stop_timeout": 2}
    whole = {"environments": {"one": {**one, "state": "stopped"}, "two": one}}

    def both_ran(states: dict[str, dict[str, Any]]) -> bool:
        ran = {states[name].get("__state_ran__", True) for name in ("then", "before")}  # Salt notes what didn't run
        assert len(ran) == 1, states
        return True in ran

    sls = {
        "all": {"netspace_environment.managed": [{"declaration": whole}]},
        "then": {"test.nop": [{"onchanges": [{"netspace_environment": "all"}]}]},
        "before": {"test.nop": [{"prereq": [{"netspace_environment": "all"}]}]},
    }
    tested = apply(sls, "test=True")
    assert tested["all"]["result"] is None and both_ran(tested)
    made = apply(sls)
    all_true(made)
    assert changes(made) == changes(tested) == {"all": {"one": STOPPED["orders"]}}
    # A requisite sees that the state changed something, even if the rows have what.
    assert both_ran(made)
    assert not both_ran(apply(sls))
    assert states(salt) == {"one": "stopped", "two": "running"}
