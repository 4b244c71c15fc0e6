"""The lines that the page on fleets begins with: two hosts, a real master, and a sealed request across."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import checkout
from support.fleet.small_lab import Lab, lab
from support.waiting import until

pytestmark = pytest.mark.root

PAGE = checkout.ROOT / "docs/fleet.md"


def lines() -> str:
    """Return the page's first declaration."""
    found = re.search(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="fl-") as folder, lab(Path(folder), lines()) as made:
        yield made


def test_the_pages_lines_carry_a_sealed_request_across(fleet: Lab) -> None:
    assert len([line for line in lines().splitlines() if not line.startswith("#")]) <= 8
    assert fleet.asked("*", "saltutil.sync_all")
    checked = fleet.runner("netspace_fleet.check")
    assert checked["ok"] and len(checked["missing"]) == 2, checked

    joined = fleet.runner("netspace_fleet.join", "h1", "h2", "timeout=300")
    assert all(one.get("changes", {}).keys() == {"authority", "public_key"} for one in joined.values()), joined
    assert all("state.apply" in str(one["missing"]) for one in joined.values()), joined
    for host in ("h2", "h1"):
        fleet.apply(host)
    again = fleet.runner("netspace_fleet.join", "h1", "h2", "timeout=300")
    assert again == {host: {"changes": {}, "missing": []} for host in ("h1", "h2")}, again
    assert fleet.runner("netspace_fleet.check")["missing"] == []

    def answered() -> bool:
        asked = json.dumps(["/usr/bin/web", "two apples"])
        done = fleet.call("h1", "netspace_environment.exec", "web", f"command={asked}", "timeout=200")
        return "orders@h2 True web@h1, True: two apples" in done["stdout"]

    until(answered, patience=600)
    assert fleet.apply("h1") == fleet.apply("h2") == 0

    # Each minion has its own part of the declaration, and no other.
    for host, own, other in (("h1", "/usr/bin/web", "/usr/bin/orders"), ("h2", "/usr/bin/orders", "/usr/bin/web")):
        declared = json.dumps(fleet.call(host, "config.get", "netspace"))  # Salt masks what pillar.items shows
        assert own in declared and other not in declared


def test_a_broken_declaration_leaves_the_last_good_one(fleet: Lab) -> None:
    before = fleet.runner("netspace_fleet.slice", "h1")
    fleet.declare(lines().replace("to: orders", "to: order"))
    try:
        checked = fleet.runner("netspace_fleet.check")
        (problem,) = checked["problems"]
        assert (problem["file"], problem["path"]) == ("salt://fleet.yaml", "links:0:to")
        assert fleet.runner("netspace_fleet.slice", "h1") == before
        assert "problems" in fleet.runner("netspace_fleet.join", "h1")["error"]
    finally:
        fleet.declare(lines())


def test_a_host_that_leaves_has_no_links_and_joins_again(fleet: Lab) -> None:
    left = fleet.runner("netspace_fleet.leave", "h2")
    assert left == {"h2": {"left": True, "apply": ["h1"]}}
    assert "hosts" not in fleet.runner("netspace_fleet.slice", "h1")["netspace"]["broker"]
    back = fleet.runner("netspace_fleet.join", "h2", "timeout=300")
    assert "authority" in back["h2"]["changes"] or "public_key" in back["h2"]["changes"], back
    assert fleet.runner("netspace_fleet.slice", "h1")["netspace"]["links"]
