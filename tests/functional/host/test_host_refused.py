"""``audit: true``: the refusals of an environment are recorded, and the suggestion permits exactly these."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.hosts.whole_host import CLIENT, IDLE, Salt, python, shop
from support.waiting import until

pytestmark = pytest.mark.root

# A program that connects to a port of the host, sends a datagram, and asks a machine that there isn't.
TRIES = """
import socket, sys
for kind, address, port in ((1, sys.argv[1], 81), (2, sys.argv[1], 53), (2, sys.argv[1], 54), (2, "198.51.100.7", 9)):
    with socket.socket(socket.AF_INET, kind) as one:
        one.settimeout(0.3)
        try:
            one.connect((address, port))
            one.send(b"x")
        except OSError:
            pass
"""


@pytest.fixture
def audited(salt: Salt, image: Path, clean: None) -> Iterator[dict[str, Any]]:
    declared = shop(image)
    del declared["links"]
    declared["environments"] = {"stranger": {**declared["environments"]["stranger"], "command": python(IDLE)}}
    failed = {name: one for name, one in salt.apply(declared).items() if one["result"] is not True}
    assert not failed
    yield declared


def merged(declared: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Return *declared* with *more*, merged like pillars: a later list replaces an earlier one."""
    found = dict(declared)
    for key, value in more.items():
        found[key] = merged(found[key], value) if isinstance(value, dict) and key in found else value
    return found


def test_applied_suggestion_ends_the_refusals(salt: Salt, audited: dict[str, Any]) -> None:
    before = salt("netspace_environment.list")["stranger"]
    wanted = copy.deepcopy(audited)
    wanted["environments"]["stranger"]["audit"] = True
    assert all(one["result"] is True for one in salt.apply(wanted).values())
    assert salt("netspace_environment.list")["stranger"]["since"] == before["since"], "it was restarted"
    assert not any(one["changes"] for one in salt.apply(wanted).values())

    gateway = salt("netspace_interface.list")["stranger"]["gateways"]["ipv4"]
    assert salt.exec("stranger", ["/usr/bin/python3", "-c", TRIES, gateway])["retcode"] == 0
    rows = {row["what"]: row for row in salt("netspace.refused", "stranger")["rows"]}
    assert {what: row["permitted_now"] for what, row in rows.items()} == {
        f"out: tcp to {gateway}, port 81": False,
        f"out: udp to {gateway}, port 53": False,
        f"out: udp to {gateway}, port 54": False,
        "out: udp to 198.51.100.7, port 9": False,
    }
    told = salt("netspace.explain", "stranger")
    assert [one["command"] for one in told["findings"] if one["code"] == "refused"] == ["netspace.suggest stranger"]
    assert told["refused"]["packets"] == sum(row["count"] for row in rows.values())

    suggestion = salt("netspace.suggest", "stranger")
    assert max(map(len, suggestion.splitlines())) <= 80
    permitting = merged(wanted, yaml.safe_load(suggestion)["netspace"])
    allow = permitting["environments"]["stranger"]["interface"]["allow"]
    assert sorted(allow, key=lambda rule: str(rule["port"])) == [
        {"direction": "out", "cidr": gateway, "protocol": "udp", "port": "53-54"},
        {"direction": "out", "cidr": gateway, "protocol": "tcp", "port": 81},
        {"direction": "out", "cidr": "198.51.100.7", "protocol": "udp", "port": 9},
    ]
    assert salt("netspace.check", f"declaration={json.dumps(permitting)}") == {"valid": True, "problems": []}
    assert all(one["result"] is True for one in salt.apply(permitting).values())
    assert salt.exec("stranger", ["/usr/bin/python3", "-c", TRIES, gateway])["retcode"] == 0
    after = {row["what"]: row for row in salt("netspace.refused", "stranger")["rows"]}
    assert all(row["permitted_now"] for row in after.values())
    assert {what: row["count"] for what, row in after.items()} == {what: row["count"] for what, row in rows.items()}
    assert "refused" not in [one["code"] for one in salt("netspace.explain", "stranger")["findings"]]
    assert yaml.safe_load(salt("netspace.suggest", "stranger")) is None


WRITES = (
    CLIENT
    + """
try:
    channel.basic_publish("link.web.stranger", "", b"x")
except pika.exceptions.AMQPError as err:
    print(err)
"""
)


def test_link_that_was_wanted_is_suggested(salt: Salt, image: Path, clean: None) -> None:
    declared = shop(image)
    for name in ("web", "stranger"):
        declared["environments"][name]["audit"] = True
    assert all(one["result"] is True for one in salt.apply(declared).values())
    card = json.loads(salt.exec("web", ["/bin/cat", "/run/netspace/environment.json"])["stdout"])
    assert card["audit"] is True
    assert "refused" in salt.exec("web", ["/usr/bin/python3", "-c", WRITES])["stdout"]

    def messages() -> list[dict[str, Any]]:
        return [row for row in salt("netspace.refused", "web")["rows"] if row["kind"] == "messages"]

    until(messages, "the broker tells of it", patience=60)
    (row,) = messages()
    assert (row["count"], row["permitted_now"], row["why"]) == (1, False, "")
    assert "link.web.stranger" in row["what"]
    (link,) = yaml.safe_load(salt("netspace.suggest", "web"))["netspace"]["links"]
    assert link == {"from": "web", "to": "stranger", "pattern": "send"}
    declared["links"].append(link)
    assert all(one["result"] is True for one in salt.apply(declared).values())
    (row,) = messages()
    assert row["permitted_now"] is True
    assert yaml.safe_load(salt("netspace.suggest", "web")) is None

    # Another's attempts are its own: stranger can log in by now, and has asked for nothing.
    found = salt("netspace.refused", "stranger")
    assert found["rows"] == []
    assert set(found["not_recorded"]) == {"system calls", "files"}
    del declared["environments"]["web"]["audit"]
    assert all(one["result"] is True for one in salt.apply(declared).values())
    off = salt("netspace.refused", "web")
    assert (off["rows"], off["not_recorded"]["messages"]) == ([], "audit isn't true")
