"""``scripts/lab``: a real master and two minions, which an operator starts, cuts, kills and ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import checkout
from support.waiting import until

pytestmark = pytest.mark.root

LAB = checkout.ROOT / "scripts/lab"
MASTER_PORT = "/dev/tcp/198.51.100.254/4505"


class Lab:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "NETSPACE_LAB": str(folder)}

    def do(self, *arguments: str, code: int = 0) -> str:
        """Run a command of the lab; return what it prints, and on stderr."""
        done = subprocess.run(
            [LAB, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
            timeout=900,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def salt(self, target: str, *arguments: str) -> dict[str, Any]:
        printed = self.do("salt", "--out=json", "--static", "--timeout=60", target, *arguments)
        answer: dict[str, Any] = json.loads(printed)
        return answer

    def reaches_master(self, name: str) -> bool:
        command = f"timeout 3 bash -c '<{MASTER_PORT}' && echo reached || echo cut"
        return self.do("sh", name, "bash", "-c", command).splitlines()[-1] == "reached"

    def asks(self, text: str) -> str:
        """Return what web prints when it asks orders, without the number of the order."""
        ask = f"/usr/bin/python3 /demo/web.py {text}"
        printed = self.salt("h1", "netspace_environment.exec", "web", ask)["h1"]["stdout"].strip()
        return re.sub(r"^order \d+ ", "", printed)


def traces() -> list[str]:
    """Return all that a lab could leave on this machine."""
    groups = sorted(str(path) for path in Path("/sys/fs/cgroup").rglob("netspace-sandbox-*") if path.is_dir())
    commands = (["ip", "netns"], ["ip", "-o", "link"], ["findmnt", "-rno", "TARGET"], ["pgrep", "-f", "lab.d/inside"])
    return [*groups, *(subprocess.run(command, capture_output=True, text=True).stdout for command in commands)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    before = traces()
    made = Lab(tmp_path_factory.mktemp("lab") / "lab")
    # Killed in the middle: the next one goes on from there.
    first = subprocess.Popen([LAB, "up"], stdout=subprocess.PIPE, text=True, env=made.environment)
    try:
        assert first.stdout is not None
        assert any(line.startswith("h1:") for line in first.stdout)
        first.send_signal(signal.SIGKILL)
        first.wait()
        first.stdout.close()
        assert "up in " in made.do("up")
        yield made
    finally:
        made.do("down")
    assert not made.folder.exists()
    with contextlib.suppress(AssertionError):
        until(lambda: traces() == before)
    assert traces() == before


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


def test_a_declared_fleet_is_joined_applied_and_comes_back(lab: Lab) -> None:
    lab.do("salt-run", "netspace_fleet.join", "h1", "h2")
    applied = lab.salt("*", "state.apply", "netspace")
    assert [state["comment"] for host in applied.values() for state in host.values() if not state["result"]] == []
    assert lab.asks("3 pears") == "for web@h1: 3 pears, thank you"
    lab.do("cut", "h1", "h2")
    assert "refused: the broker doesn't answer" in lab.asks("4 plums")
    lab.do("mend", "h1", "h2")
    assert lab.asks("4 plums") == "for web@h1: 4 plums, thank you"
    # As a power failure does: what runs is lost, the disk is kept, and a boot restores what ran.
    lab.do("sh", "h2", "touch", "/var/lib/netspace/kept", "/run/lost")
    lab.do("kill", "h2")
    assert "off" in lab.do("status").splitlines()[2]
    assert "it is off; start it: lab start h2" in lab.do("sh", "h2", "true", code=1)
    lab.do("start", "h2")
    found = lab.do("sh", "h2", "ls", "/var/lib/netspace", "/run")
    assert "kept" in found and "lost" not in found
    until(lambda: lab.asks("5 figs") == "for web@h1: 5 figs, thank you", "orders answers again", patience=120)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sh", "h9"), "h9: the lab has no such host; it has master, h1, h2"),
        (("cut", "h1"), "cut: it needs two hosts"),
        (("cut", "h1", "h1"), "h1 is named twice"),
        (("up", "--hosts", "1"), "h2 is on and no longer declared; switch it off: lab kill h2"),
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
        ("hosts: {h1: {address: x}}", "hosts: h1: address: 'x' is no IP address"),
        ("hosts: {master: {address: 198.51.100.9}}", "'master' is no name for a host of a lab"),
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
