"""``audit: true``: refusals of an environment are recorded, and the suggested declaration permits exactly these."""

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

# User ids follow from names, and the kernel counts by user ids. So these names are no other test's, whose environments
# may run on the same kernel.
LONER, WATCHED, BESIDE = "loner", "watched", "unwatched"

# Python would try to write its modules' bytecode beside them, and be refused.
QUIET = {"PYTHONDONTWRITEBYTECODE": "1"}

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
    stranger = {**declared["environments"]["stranger"], "command": python(IDLE), "env": QUIET}
    declared["environments"] = {LONER: stranger}
    failed = {name: one for name, one in salt.apply(declared).items() if one["result"] is not True}
    assert not failed
    yield declared


def merged(declared: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Return *declared* with *more*, merged like pillars: a later list replaces an earlier one."""
    found = dict(declared)
    for key, value in more.items():
        found[key] = merged(found[key], value) if isinstance(value, dict) and key in found else value
    return found


def counted(salt: Salt, name: str, kind: str) -> dict[str, dict[str, Any]]:
    return {row["what"]: row for row in salt("netspace.refused", name)["rows"] if row["kind"] == kind}


def test_applied_suggestion_ends_the_refusals(salt: Salt, audited: dict[str, Any]) -> None:
    before = salt("netspace_environment.list")[LONER]
    wanted = copy.deepcopy(audited)
    wanted["environments"][LONER]["audit"] = True
    assert all(one["result"] is True for one in salt.apply(wanted).values())
    assert salt("netspace_environment.list")[LONER]["since"] == before["since"], "it was restarted"
    assert not any(one["changes"] for one in salt.apply(wanted).values())

    gateway = salt("netspace_interface.list")[LONER]["gateways"]["ipv4"]
    assert salt.exec(LONER, ["/usr/bin/python3", "-c", TRIES, gateway])["retcode"] == 0
    rows = counted(salt, LONER, "packets")
    assert {what: row["permitted_now"] for what, row in rows.items()} == {
        f"out: tcp to {gateway}, port 81": False,
        f"out: udp to {gateway}, port 53": False,
        f"out: udp to {gateway}, port 54": False,
        "out: udp to 198.51.100.7, port 9": False,
    }
    told = salt("netspace.explain", LONER)
    assert [one["command"] for one in told["findings"] if one["code"] == "refused"] == [f"netspace.suggest {LONER}"]
    newest = salt("netspace.glance")["refused"][LONER]
    glanced = {row["what"]: row["count"] for row in newest if row["kind"] == "packets"}
    assert glanced == {what: row["count"] for what, row in rows.items()}
    assert told["refused"]["packets"] == sum(row["count"] for row in rows.values())

    suggestion = salt("netspace.suggest", LONER)
    assert max(map(len, suggestion.splitlines())) <= 80
    permitting = merged(wanted, yaml.safe_load(suggestion)["netspace"])
    allow = permitting["environments"][LONER]["interface"]["allow"]
    assert sorted(allow, key=lambda rule: str(rule["port"])) == [
        {"direction": "out", "cidr": gateway, "protocol": "udp", "port": "53-54"},
        {"direction": "out", "cidr": gateway, "protocol": "tcp", "port": 81},
        {"direction": "out", "cidr": "198.51.100.7", "protocol": "udp", "port": 9},
    ]
    assert salt("netspace.check", f"declaration={json.dumps(permitting)}") == {"valid": True, "problems": []}
    assert all(one["result"] is True for one in salt.apply(permitting).values())
    assert salt.exec(LONER, ["/usr/bin/python3", "-c", TRIES, gateway])["retcode"] == 0
    after = counted(salt, LONER, "packets")
    assert all(row["permitted_now"] for row in after.values())
    assert {what: row["count"] for what, row in after.items()} == {what: row["count"] for what, row in rows.items()}
    assert "refused" not in [one["code"] for one in salt("netspace.explain", LONER)["findings"]]
    assert yaml.safe_load(salt("netspace.suggest", LONER)) is None


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
        declared["environments"][name].update(audit=True, env=QUIET)
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
    assert found["not_recorded"] == {}
    assert not [row for row in found["rows"] if row["kind"] in ("packets", "messages")]
    del declared["environments"]["web"]["audit"]
    assert all(one["result"] is True for one in salt.apply(declared).values())
    off = salt("netspace.refused", "web")
    assert off["rows"] == []
    assert off["not_recorded"].pop("packets")
    assert off["not_recorded"] == dict.fromkeys(("messages", "system calls", "files"), "audit isn't true")


# Begins with what profile "strict" refuses and "standard" permits, and with a file in a root that is read-only. Prints
# the error of each call, 0 if it passed.
WORKS = """
import ctypes, os, platform
libc = ctypes.CDLL(None, use_errno=True)
arm = platform.machine() == "aarch64"
context = ctypes.c_ulong(0)
def call(*arguments):
    return ctypes.get_errno() if libc.syscall(*map(ctypes.c_long, arguments)) < 0 else 0
def written(path):
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    except OSError as err:
        return err.errno
    return 0
answers = [call(0 if arm else 206, 8, ctypes.addressof(context)), call(186 if arm else 68, 0, 0o1600)]
answers += [written("/var/tmp/own"), written("/var/tmp/own")]
"""
# What no line permits: a file of netspace's, a call that leaves the root, a socket of another family.
NEVER = """
answers += [written("/run/netspace/mine"), call(51 if arm else 161, 0), call(198 if arm else 41, 17, 3, 768)]
"""
SAYS = "print(*answers, flush=True)\n"


def test_calls_and_files_end_with_the_suggestion(salt: Salt, image: Path, clean: None) -> None:
    declared = shop(image)
    del declared["links"]
    common = {**declared["environments"]["web"], "env": QUIET, "read_only": True, "user": 1000}
    told = {"command": python(WORKS + SAYS + IDLE), "audit": True}
    declared["environments"] = {WATCHED: {**common, **told}, BESIDE: {**common, "command": python(WORKS + SAYS + IDLE)}}
    assert all(one["result"] is True for one in salt.apply(declared).values())
    assert not any(one["changes"] for one in salt.apply(declared).values())
    until(lambda: "idle" in salt("netspace_environment.logs", WATCHED), "its program has tried", patience=60)
    # Its first calls count, though its program began at once.
    calls = counted(salt, WATCHED, "system calls")
    assert {what: row["count"] for what, row in calls.items()} == {"io_setup": 1, "msgget": 1}
    files = counted(salt, WATCHED, "files")
    assert {what: row["count"] for what, row in files.items()} == {"openat /var/tmp/own: Read-only file system": 2}
    assert not any(row["permitted_now"] or row["why"] for row in (*calls.values(), *files.values()))
    # Nobody else's are counted; and nothing more passes.
    assert salt("netspace.refused", BESIDE)["rows"] == []
    assert salt("netspace_environment.logs", WATCHED)[:2] == ["38 1 30 30", "idle"]

    suggestion = salt("netspace.suggest", WATCHED)
    assert suggestion.count("# RISKY: ") == 2 and max(map(len, suggestion.splitlines())) <= 80
    lines = yaml.safe_load(suggestion)["netspace"]
    assert lines == {"environments": {WATCHED: {"seccomp": "standard", "read_only": False}}}
    permitting = merged(declared, lines)
    assert all(one["result"] is True for one in salt.apply(permitting).values())
    until(lambda: salt("netspace_environment.logs", WATCHED).count("idle") == 2, "it has tried again", patience=60)
    assert salt("netspace_environment.logs", WATCHED)[-2:] == ["0 0 0 0", "idle"]
    assert salt("netspace.refused", WATCHED)["rows"] == []  # the record has begun anew with the settings
    assert yaml.safe_load(salt("netspace.suggest", WATCHED)) is None

    assert salt.exec(WATCHED, ["/usr/bin/python3", "-c", WORKS + NEVER + SAYS])["stdout"].split()[-2:] == ["1", "1"]
    assert yaml.safe_load(salt("netspace.suggest", WATCHED)) is None
    why = {row["what"]: row["why"] for row in salt("netspace.refused", WATCHED)["rows"] if not row["permitted_now"]}
    assert len(why) == 3 and why["chroot"] and why["socket(17, 3, 768)"]


# Refused calls that all differ, from four processes at once.
FLOOD = """
import ctypes, os, platform
libc = ctypes.CDLL(None, use_errno=True)
socket = ctypes.c_long(198 if platform.machine() == "aarch64" else 41)
children = []
for process in range(4):
    child = os.fork()
    if child == 0:
        for number in range(process, 4000, 4):
            assert libc.syscall(socket, ctypes.c_long(17), ctypes.c_long(3), ctypes.c_long(number)) == -1
            try:
                os.open(f"/var/tmp/{number}-" + "x" * 3000, os.O_WRONLY | os.O_CREAT)
            except OSError as err:
                assert err.errno in (30, 36), err
            try:
                os.open(f"/var/tmp/{number}\\33[31m", os.O_WRONLY | os.O_CREAT)
            except OSError as err:
                assert err.errno == 30, err
        os._exit(0)
    children.append(child)
assert not any(os.waitpid(child, 0)[1] for child in children)
print("flooded")
"""
ONE = "import os\nos.chroot('/')"


def test_flood_of_refused_calls_is_bounded(salt: Salt, image: Path, clean: None) -> None:
    declared = shop(image)
    del declared["links"]
    common = {**declared["environments"]["web"], "env": QUIET, "read_only": True, "audit": True}
    declared["environments"] = {WATCHED: common, BESIDE: common}
    assert all(one["result"] is True for one in salt.apply(declared).values())
    first = salt("netspace_environment.list")
    assert salt.exec(WATCHED, ["/usr/bin/python3", "-c", FLOOD])["stdout"] == "flooded\n"

    for kind in ("system calls", "files"):
        rows = counted(salt, WATCHED, kind)
        assert len(rows) <= 256, kind
        assert rows["others"]["count"] >= 3000, kind
        assert sum(row["count"] for row in rows.values()) == 4000, kind
    assert 'netspace_environment_refused_total{environment="watched",kind="system_calls"} 4000\n' in salt(
        "netspace.metrics"
    )
    # What a program chose is shown without effect on a terminal, and a suggestion stays short.
    suggestion = salt("netspace.suggest", WATCHED)
    assert "\33" not in suggestion and len(suggestion.splitlines()) < 250
    # The neighbour's record has its own calls alone, and room for them; nothing was restarted.
    assert "not permitted" in salt.exec(BESIDE, ["/usr/bin/python3", "-c", ONE])["stderr"]
    rows = counted(salt, BESIDE, "system calls")
    assert {what: row["count"] for what, row in rows.items()} == {"chroot": 1}
    assert counted(salt, BESIDE, "files") == {}
    assert {name: one["since"] for name, one in salt("netspace_environment.list").items()} == {
        name: one["since"] for name, one in first.items()
    }
    # Nothing of it is left once nobody is audited.
    assert mounted()
    for one in declared["environments"].values():
        one["audit"] = False
    assert all(one["result"] is True for one in salt.apply(declared).values())
    assert not mounted()


def mounted() -> bool:
    return "/run/netspace/refusals" in Path("/proc/self/mounts").read_text()
