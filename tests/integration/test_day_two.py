"""The pages of ``docs/day-2``, ``docs/look.md`` and ``docs/roll-out.md``: each command is run exactly as printed.

All pages are followed one after another on the same fleet: a real master and two real minions, each on its own host,
with real crun and RabbitMQ. ``ssh`` is a stand-in that reaches the other hosts. A new release is a commit in a second
repository. When a host dies, its disk is lost.
"""

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
from support import checkout, pages
from support.hosts.machines import Machine, plug
from support.hosts.whole_host import IMAGE
from support.pages import Step
from support.returns import times_without_text
from support.waiting import until

pytestmark = pytest.mark.root

DOCS = checkout.ROOT / "docs/day-2"
ADDRESSES = {"master": "198.51.100.254", "h1": "198.51.100.1", "h2": "198.51.100.2"}
HOSTS = ("h1", "h2")
SETTLED = 30.0  # seconds that something gets to be seen
MASTER = f"interface: {ADDRESSES['master']}\nworker_threads: 3\nenable_gpu_grains: false\n"
MINION = "id: {}\nmaster: {}\nenable_fqdns_grains: false\nenable_gpu_grains: false\nacceptance_wait_time: 1\n"
LOOKS = re.compile(
    r"salt\S* (.* )?(netspace_environment\.(exec|list|logs)|netspace_link\.(list|health)|netspace\.(check|overview)|"
    r"manage\.up)\b"
)


class Fleet:
    """The machines, and an operator at the master who follows the pages."""

    def __init__(self, folder: Path, after: contextlib.ExitStack) -> None:
        self._after = after
        self.machines: dict[str, Machine] = {}
        self.upstream = folder / "upstream"
        self._doors = folder / "doors"
        self._doors.mkdir()
        checkout.copy(self.upstream)
        self._git("init", "--quiet", "--initial-branch", "main")
        self.publish("0.1.0")
        self.master = self._machine("master", ("/etc", "/srv", "/var"))
        self.master.must("git", "clone", "--quiet", str(self.upstream), "/srv/netspace")
        self.master.must("mkdir", "-p", "/srv/salt", "/srv/pillar")
        self.master.must("ln", "-s", str(IMAGE), "/srv/salt/demo.tar")
        self.master.write("/etc/salt/master", MASTER)
        for step in pages.page(DOCS / "hosts.md"):
            if step.path.startswith("/etc/salt/"):
                self.step(step)
        self.master.must("salt-master", "--daemon")
        self.master.warm()
        for name in HOSTS:
            self.install(name)
        self.asks(set(HOSTS))
        self.master.must("salt-key", "--yes", "--accept-all")
        until(lambda: self.up() == set(HOSTS), pause=0.5)

    def install(self, name: str) -> None:
        """Add a new machine with a minion."""
        machine = self._machine(name, ("/etc", "/srv", "/var/cache", "/var/log"))
        machine.write("/etc/salt/minion", MINION.format(name, ADDRESSES["master"]))
        machine.must("salt-minion", "--daemon")

    def asks(self, names: set[str]) -> None:
        """Wait until the keys of these minions are pending at the master."""
        folder = "/etc/salt/pki/master/minions_pre"
        until(lambda: names <= set(self.master.run("ls", folder).out.split()), pause=0.2)

    def up(self) -> set[str]:
        """Return the minions that answer."""
        return set(json.loads(self.master.must("salt-run", "--out=json", "manage.up", "timeout=2")))

    def publish(self, version: str) -> None:
        """Publish another release in the upstream repository."""
        module = self.upstream / "_utils/netspace/__init__.py"
        module.write_text(re.sub(r'^__version__ = ".*"$', f'__version__ = "{version}"', module.read_text(), flags=re.M))
        self._git("add", "--all")
        self._git("-c", "user.name=n", "-c", "user.email=n@example.org", "commit", "--quiet", "--message", version)

    def follow(self, page: str, first: str = "", last: str = "") -> None:
        """Do the steps of a page in their order.

        :param first: the title of the first section to do; empty: begin with the page's first section.
        :param last: the title of the last section to do; empty: end with the page's last section.
        """
        text = (DOCS / f"{page}.md").read_text()
        if first:
            text = text[text.index(f"\n## {first}\n") :]
        if last:
            text = text[: text.index(f"\n## {last}\n")]
        self.do(pages.steps(text))

    def do(self, steps: list[Step]) -> None:
        """Do some steps of a page, in order."""
        said: dict[str, str] = {}
        for step in steps:
            said = self.step(step, said)

    def step(self, step: Step, said: dict[str, str] | None = None) -> dict[str, str]:
        """Do one step; return the output of each of its commands."""
        if step.kind == "file":
            self.master.write(step.path, step.text)
        elif step.kind == "edit":
            self.master.write(step.path, pages.edited(self.master.read(step.path), step.text))
        elif step.kind == "sh":
            return {line: self.type(line) for line in pages.commands(step.text)}
        else:
            assert said, step
            self._seen(step.text, said)
        return {}

    def type(self, line: str) -> str:
        """Type one line at the master; it must succeed. Return its output."""
        done = self.master.run("bash", "-euo", "pipefail", "-c", line)
        assert done.code == 0, f"{line}\n{done.out}{done.err}"
        return done.out

    def salt(self, host: str, *arguments: str) -> Any:
        """Call a function of a minion, in addition to the steps of the pages."""
        done = self.master.run("salt", "--out=json", "--static", host, *arguments)
        returned = json.loads(done.out)[host]
        assert not list(times_without_text(arguments[0], returned)), arguments
        return returned

    def inside(self, host: str, name: str, *command: str) -> str:
        """Run a command in an environment; it must succeed."""
        done = self.salt(host, "netspace_environment.exec", name, json.dumps(command))
        assert done["retcode"] == 0, done
        return str(done["stdout"])

    def pids(self) -> dict[str, int]:
        """Return the PID of each environment."""
        return {
            name: one["pid"] for host in HOSTS for name, one in self.salt(host, "netspace_environment.list").items()
        }

    def _seen(self, wanted: str, said: dict[str, str]) -> None:
        """Check that the output is as the page shows it.

        If a step changes nothing, repeat it for a while, because it may have come too early.
        """
        last = list(said)[-1]
        deadline = time.monotonic() + SETTLED
        while (line := pages.lacking(wanted, "".join(said.values()))) is not None:
            assert LOOKS.search(last) and time.monotonic() < deadline, f"{line!r} is not in:\n{said}"
            time.sleep(1.0)
            said[last] = self.type(last)

    def _machine(self, name: str, own: tuple[str, ...]) -> Machine:
        machine = self.machines[name] = Machine(name, self._doors, own)
        self._after.callback(machine.end)
        self._after.callback(machine.leave)  # all of them first
        plug(self.machines["master"], machine, ADDRESSES[name])
        return machine

    def _git(self, *arguments: str) -> None:
        subprocess.run(["git", "-C", str(self.upstream), *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    assert IMAGE.exists(), f"{IMAGE} is missing: run scripts/demo-image"
    with contextlib.ExitStack() as after:
        made = Fleet(tmp_path_factory.mktemp("fleet"), after)
        made.follow("hosts")
        yield made


def test_operator_looks_and_rolls_an_image_out_and_back(fleet: Fleet) -> None:
    before = fleet.pids()
    fleet.do(pages.page(DOCS.parent / "look.md"))
    assert fleet.pids() == before, "to look changes nothing"
    fleet.do(pages.page(DOCS.parent / "roll-out.md"))
    fleet.master.must("rm", "/srv/salt/demo-2.tar")


def test_fleet_is_upgraded_and_nothing_is_restarted(fleet: Fleet) -> None:
    before = fleet.pids()
    assert set(before) == {"web", "orders", "till"} and all(before.values())
    fleet.publish("0.1.1")
    fleet.follow("upgrade", last="netspace, installed by pip")
    fleet.follow("upgrade", first="Salt", last="RabbitMQ from 4.0 to 4.3")  # for that, Debian itself must be upgraded
    assert fleet.pids() == before


def test_volumes_and_mail_come_back_from_a_backup(fleet: Fleet) -> None:
    book = "import pathlib, sys; pathlib.Path('/data/book').write_text(sys.argv[1])"
    fleet.inside("h1", "orders", "/usr/bin/python3", "-c", book, "as it was")
    steps = pages.page(DOCS / "backup.md")
    kinds = [number for number, step in enumerate(steps) if step.kind == "sh"]
    fleet.do(steps[: kinds[1]])
    fleet.inside("h1", "orders", "/usr/bin/python3", "-c", book, "as it is later")
    fleet.do(steps[kinds[1] : kinds[2]])
    assert fleet.inside("h1", "orders", "/bin/cat", "/data/book") == "as it was"

    # A letter that waits during the backup and is read afterwards comes again.
    fleet.salt("h1", "netspace_environment.stop", "orders")
    fleet.inside("h2", "till", "/usr/bin/python3", "/demo/till.py", "orders@h1", "a letter")
    until(lambda: fleet.salt("h1", "netspace_link.list")["mailboxes"]["orders"]["messages"], pause=0.5)
    fleet.do(steps[kinds[2] : kinds[3]])
    fleet.salt("h1", "netspace_environment.start", "orders")
    until(lambda: letters(fleet) == 1, pause=0.5)
    fleet.do(steps[kinds[3] :])
    until(lambda: letters(fleet) == 2, pause=0.5)


def letters(fleet: Fleet) -> int:
    lines = fleet.salt("h1", "netspace_environment.logs", "orders")
    return sum("a letter" in line for line in lines)


def test_dead_host_is_replaced_with_its_data(fleet: Fleet) -> None:
    fleet.machines["h1"].end()
    steps = pages.page(DOCS / "replace.md")
    fleet.do(steps[:1])
    fleet.install("h1")
    fleet.asks({"h1"})
    fleet.do(steps[1:])
    assert fleet.inside("h1", "orders", "/bin/cat", "/data/book") == "as it was"
    until(lambda: letters(fleet) == 1, pause=0.5)
    assert fleet.salt("h1", "netspace_link.list")["links"]["till@h2.orders"]["state"] == "active"


def test_environment_moves_with_its_volume_and_a_host_is_drained(fleet: Fleet) -> None:
    fleet.follow("move")
    assert fleet.inside("h2", "orders", "/bin/cat", "/data/book") == "as it was"
    assert {one["state"] for one in fleet.salt("h2", "netspace_environment.list").values()} == {"running"}


def test_every_key_is_rotated(fleet: Fleet) -> None:
    fleet.master.must("salt-run", "netspace_attestation.ca_init")
    had = kid(fleet)
    keys = fleet.machines["h1"].read("/var/lib/netspace/link/names.json")
    fleet.follow("keys")
    assert kid(fleet) != had
    assert fleet.machines["h1"].read("/var/lib/netspace/link/names.json") != keys
    assert fleet.salt("h1", "netspace_link.health")["ok"], fleet.salt("h1", "netspace_link.health")


def test_published_service_is_reached_from_another_machine(fleet: Fleet) -> None:
    fleet.follow("publish")  # the page's curl is at the master, which is no host
    listed = fleet.salt("h1", "netspace_environment.list")
    assert "site" not in listed and "web" in listed
    assert fleet.master.run("curl", "-s", "--max-time", "5", "http://198.51.100.1/web.py").code == 7  # refused


def kid(fleet: Fleet) -> str:
    found: str = json.loads(fleet.master.must("salt-run", "--out=json", "netspace_attestation.jwks"))["keys"][0]["kid"]
    return found
