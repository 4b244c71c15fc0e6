"""``python -m netspace plan|apply|list``: one declaration becomes one host, without Salt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.hosts.whole_host import CHECKOUT, IDLE, python

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]


class Answer(NamedTuple):
    """An ended command, and the JSON that it printed."""

    code: int
    said: Any


def netspace(*arguments: str, declared: object = None) -> Answer:
    done = subprocess.run(
        [sys.executable, "-m", "netspace", *arguments, "--json"],
        input=json.dumps({"netspace": declared}),
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / "_utils")},
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    return Answer(done.returncode, json.loads(done.stdout))


def test_commands_plan_apply_and_list_as_salt_does(salt, image: Path) -> None:
    web = {"image": f"tar:{image}", "command": python(IDLE), "interface": {"kind": "veth"}}
    declared = {"attestation": {"policy": "off"}, "environments": {"web": web}}
    planned = netspace("plan", "-", declared=declared)
    assert planned.code == 2 and planned.said["changed"] and not planned.said["problems"]
    assert netspace("list").said["environments"] == {}

    applied = netspace("apply", "-", declared=declared)
    assert applied.code == 0 and applied.said["changed"], applied
    named = [[(step["action"], step["name"]) for step in answer.said["steps"]] for answer in (planned, applied)]
    assert named[0] == named[1] and ("create", "web") in named[0]
    assert netspace("list").said["environments"]["web"]["state"] == "running"
    settled = {"changed": False, "steps": [], "problems": [], "notes": []}
    for command in ("plan", "apply"):
        assert netspace(command, "-", declared=declared) == Answer(0, settled)
    # Salt finds the same host: nothing is left for its states to change.
    assert {state["result"] for state in salt.apply(declared, "test=True").values()} == {True}

    # Something is wrong: the rest is done, and the path is told.
    more = {**declared["environments"], "lost": {"image": "tar:/no/such.tar"}, "idle": {**web, "state": "stopped"}}
    failed = netspace("apply", "-", declared={**declared, "environments": more})
    assert failed.code == 1 and failed.said["changed"]
    assert [problem["path"] for problem in failed.said["problems"]] == ["netspace:environments:lost"]
    assert netspace("list").said["environments"]["idle"]["state"] == "stopped"
    for command in ("plan", "check"):
        fetched = netspace(command, "-", declared={"environments": {"web": {"image": "tar:salt://web.tar"}}})
        assert fetched.code == 1
        assert fetched.said["problems"][0]["path"] == "netspace:environments:web:image"
