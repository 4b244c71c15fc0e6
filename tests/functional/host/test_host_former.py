"""An upgrade from an earlier version of netspace, whose own library made the host.

The tests check that a program is restarted only if it can't keep running, that it is restarted only once, that the dry
run has named it before, and that its messages wait. These tests run on request: ``NETSPACE_FORMER=2431843`` names the
earlier version's commit, whose library is taken from the repository's history.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import checkout
from support.hosts import salt_modes
from support.hosts.whole_host import ASK, CLIENT, IDLE, SERVE, Salt, all_true, changes, python, unfolded
from support.waiting import until

FORMER = os.environ.get("NETSPACE_FORMER", "")
MESSAGES = 20

SEND = (
    CLIENT
    + """
exchange = next(peer["exchange"] for peer in card["peers"] if peer["to"] == sys.argv[1])
for number in range(int(sys.argv[2])):
    channel.basic_publish(exchange, "", b"%d" % number, pika.BasicProperties(delivery_mode=2), mandatory=True)
print("sent")
"""
)
READ = (
    CLIENT
    + """
found = []
for queue in card["queues"]:
    while (got := channel.basic_get(queue, auto_ack=True))[0] is not None:
        found.append(int(got[2]))
print(json.dumps(found))
"""
)

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not FORMER, reason="an upgrade is tried on request: NETSPACE_FORMER=2431843"),
]


def declaration(image: Path) -> dict[str, Any]:
    """Return a declaration for the earlier version, with an environment for each thing that an upgrade could break."""
    common = {"image": f"tar:{image}", "limits": {"memory": "64M", "pids": 32}, "stop_timeout": 2}
    idle = {**common, "command": python(IDLE)}
    opened = [{"direction": "in", "cidr": "10.0.0.0/8", "port": 80}, {"direction": "out", "cidr": "192.0.2.0/24"}]
    return {
        "environments": {
            "orders": {**common, "command": python(SERVE), "restart": "always", "interface": {"kind": "veth"}},
            "web": {**idle, "interface": {"kind": "veth", "allow": opened, "rate": "10M"}},
            "checked": {**idle, "health": {"exec": ["/bin/true"], "interval": 1}},
            "stored": {**idle, "volumes": [{"target": "/data", "size": "16M"}], "read_only": True},
            "bounded": {**idle, "limits": {**common["limits"], "disk": "32M", "cpus": 0.5}, "target": True},
            "archive": {**idle, "after": ["orders"]},
        },
        "links": [
            {"from": "web", "to": "orders", "pattern": "request"},
            {"from": "web", "to": "archive"},
            {"from": "orders", "to": "archive", "length": 50, "ttl": 86400},
        ],
    }


@dataclass(frozen=True)
class Process:
    """A process, identified by its PID and start time."""

    pid: int
    start: int
    command: str = field(compare=False)


@dataclass(frozen=True)
class Host:
    """A host that the earlier version made.

    :param inside: the programs of its environments.
    :param beside: netspace's own processes.
    """

    salt: Salt
    declared: dict[str, Any]
    inside: set[Process]
    beside: set[Process]


def processes() -> tuple[set[Process], set[Process]]:
    """Return two sets: the environments' programs without health probes, and netspace's own processes."""
    own = os.readlink("/proc/self/ns/pid")
    inside, beside = set(), set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # proc_pid_stat(5): the 22nd field, and the name in parentheses may have any character.
            start = int((folder / "stat").read_text().rpartition(")")[2].split()[19])
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:120]
            there = os.readlink(folder / "ns/pid")
        except (OSError, IndexError):
            continue
        one = Process(int(folder.name), start, command)
        if there != own and "import signal" in command:
            inside.add(one)
        elif there == own and any(name in command for name in ("beam.smp", "haproxy", "-m netspace")):
            beside.add(one)
    return inside, beside


def source(folder: Path) -> Path:
    """Unpack the earlier version; return its folder."""
    packed = subprocess.run(["git", "-C", checkout.ROOT, "archive", FORMER], capture_output=True, check=False)
    if packed.returncode:
        pytest.skip(f"{FORMER} is not in this repository's history: {packed.stderr.decode()}")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def apply(salt: salt_modes.Salt, declared: dict[str, Any]) -> None:
    """Apply *declared* by the earlier version."""
    states, log = salt.call("state.apply", "netspace", f"pillar={json.dumps({'netspace': declared})}")
    assert isinstance(states, dict), (states, log)
    failed = {one["__id__"]: one["comment"] for one in states.values() if one["result"] is not True}
    assert not failed, failed


@pytest.fixture(scope="module")
def host(salt: Salt, image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    made = tmp_path_factory.mktemp("former")
    former = source(made / "source")
    config = salt_modes.configure(made / "salt", former)
    settings = yaml.safe_load(config.read_text())
    settings["file_roots"]["base"].append(str(former / "states"))
    config.write_text(yaml.safe_dump(settings))
    its = salt_modes.Salt(Path(sys.executable), config, former, former / "_utils")
    declared = declaration(image)
    salt("netspace.teardown")
    its.call("saltutil.sync_all")
    apply(its, declared)
    until(lambda: "serving" in "".join(salt("netspace_environment.logs", "orders")), "orders serves")
    apply(its, declared)
    one = Host(salt, declared, *processes())
    send(one)
    yield one
    salt("netspace.teardown")


def send(host: Host) -> None:
    """Send messages to ``archive``: they wait in its mailbox and in a link's dedicated queue."""
    for name in ("web", "orders"):
        sent = host.salt.exec(name, python(SEND, "archive", str(MESSAGES)))
        assert "sent" in sent["stdout"], sent


def mail(host: Host) -> list[int]:
    """Read all messages that wait for ``archive``; return their numbers."""
    read: list[int] = json.loads(host.salt.exec("archive", python(READ))["stdout"])
    return sorted(read)


def is_settled(host: Host) -> None:
    """Check that one more apply changes nothing."""
    states = host.salt.apply(host.declared)
    all_true(states)
    assert changes(states) == {}


@pytest.fixture(scope="module")
def foretold(host: Host) -> dict[str, Any]:
    """Return the changes that a dry run reports before the upgrade."""
    return changes(host.salt.apply(host.declared, "test=True"))


def idle(host: Host) -> set[Process]:
    """Return the programs that have no connection to the broker.

    The test's server is left out, because it ends itself when it loses its connection.
    """
    return {one for one in host.inside if "pika" not in one.command}


def keys(changed: dict[str, Any]) -> dict[str, dict[str, set[str]]]:
    """Return the names of the changed keys, by state and thing."""
    return {state: {name: set(row) for name, row in things.items()} for state, things in changed.items()}


def hardening(states: dict[str, Any]) -> list[str]:
    """Return the state's notes on environments that still have the hardening of the earlier version."""
    return [line for line in unfolded(states["netspace environments"]["comment"]).split(";") if "hardening" in line]


def test_upgrade_from_a_former_version_is_foretold(host: Host, foretold: dict[str, Any]) -> None:
    """The dry run names all restarts and their reasons: environments for their hardening, the broker for its plugin."""
    assert "restarted" in foretold["netspace links"]["broker"]["configuration"]["new"]
    assert "hardening" not in str(foretold.get("netspace environments", {}))
    assert foretold["netspace interfaces"].keys() == {"host:firewall"}
    inside, beside = processes()
    assert host.inside <= inside and host.beside == beside


def test_upgrade_from_a_former_version_ends_no_program(host: Host, foretold: dict[str, Any]) -> None:
    """Programs, the forwarder and the supervisor go on, and mail waits meanwhile. The next apply changes nothing."""
    states = host.salt.apply(host.declared)
    all_true(states)
    # Reasons differ where netspace's own processes begin again with the new library, which a dry run doesn't install.
    assert keys(changes(states)) == keys(foretold)
    assert all(name in str(hardening(states)) for name in host.declared["environments"])
    inside, beside = processes()
    assert idle(host) <= inside
    assert {one for one in host.beside if "beam.smp" not in one.command} <= beside
    is_settled(host)
    assert idle(host) <= processes()[0]
    until(lambda: "serving" in host.salt("netspace_environment.logs", "orders")[-1], "orders serves again")
    asked = host.salt.exec("web", python(ASK, "orders", "apples"))
    assert "orders to web: apples" in asked["stdout"], asked
    assert mail(host) == sorted([*range(MESSAGES)] * 2)


def test_former_environment_restarted_has_the_present_hardening(host: Host) -> None:
    """After an upgrade, ``netspace_environment.restart`` gives all programs the present hardening.

    Before the restart, a limit can be changed while the program runs, and a program that is killed is started again
    with its earlier configuration.
    """
    host.declared["environments"]["web"]["limits"] = {"memory": "80M", "pids": 32}
    all_true(host.salt.apply(host.declared))
    assert idle(host) <= processes()[0]
    before = host.salt("netspace_environment.list")["orders"]
    os.kill(before["pid"], signal.SIGKILL)
    until(
        lambda: host.salt("netspace_environment.list")["orders"]["pid"] not in (0, None, before["pid"]), "orders again"
    )
    assert host.salt("netspace_environment.restart", *host.declared["environments"]) is True
    assert not host.inside & processes()[0]
    states = host.salt.apply(host.declared)
    all_true(states)
    assert (changes(states), hardening(states)) == ({}, [])
    until(lambda: "serving" in "".join(host.salt("netspace_environment.logs", "orders")), "orders serves")
    asked = host.salt.exec("web", python(ASK, "orders", "apples"))
    assert "orders to web: apples" in asked["stdout"], asked
