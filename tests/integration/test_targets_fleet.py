"""Environments of a real minion as a real master's targets: addresses, identities, and actions inside.

All other addresses mean hosts, as without targets: the test runs each command of the pages with ``'*'``.
"""

from __future__ import annotations

import json
import re
import secrets
import shlex
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import salt.client
import salt.loader
import salt.utils.event
import salt.utils.minions
from saltfactories.cli.run import SaltRun
from saltfactories.cli.salt import SaltCli
from saltfactories.manager import FactoriesManager
from saltfactories.utils import random_string
from support import checkout
from support.hosts.whole_host import IDLE, IMAGE, all_true, by_id, python
from support.sampling import EVERY, todays
from support.waiting import until

from netspace.environment import runtimes

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not hasattr(salt.loader, "resource"), reason="this Salt has no resources: 3008 brought them"),
]

SLS = """
/tmp/made/card:
  file.managed:
    - source: salt://inside/card
    - template: jinja
    - makedirs: true
    - mode: '0640'
read:
  cmd.run:
    - name: cat /tmp/made/card
    - onchanges: [{file: /tmp/made/card}]
"""
# The second can't be done inside: then the first isn't either.
PARTLY = """
/tmp/partly:
  file.managed:
    - contents: x
/tmp/all:
  file.recurse:
    - source: salt://inside
"""
CARD = "{{ grains.id }} {{ grains.environment }} {{ pillar.told }} {{ salt['cmd.run']('id -u') }}\n"


@dataclass
class Fleet:
    """A master and its minion. The minion's pillar declares ``web``, which is a target, and ``shy``, which is not."""

    cli: SaltCli
    run: SaltRun
    minion: str
    pillar: Path
    declared: dict[str, Any]
    client: Any = None

    def at(self, target: str, function: str, *arguments: Any, timeout: int = 60) -> dict[str, Any]:
        """Return the value of each target that answered, by the target's id."""
        found = self.client.cmd(target, function, arguments, timeout=timeout, tgt_type="compound", gather_job_timeout=1)
        return {name: value for name, value in found.items() if not str(value).startswith("Minion did not return")}

    def until_answered(self, *wanted: str, silent: str = "") -> None:
        """Wait until all targets in *wanted* answer a ping, and *silent* (if it is given) doesn't."""
        asked = " or ".join(f"T@netspace:{target}" for target in (*wanted, silent) if target)
        timeout = 2 if silent else 10  # Salt waits for it
        until(lambda: self.at(asked, "test.ping", timeout=timeout) == dict.fromkeys(wanted, True), patience=300)

    def everywhere(self, function: str, *arguments: str) -> dict[str, Any]:
        """Call ``salt '*' ...``; return the full answers, by their ids."""
        found: dict[str, Any] = self.client.cmd("*", function, arguments, timeout=120, full_return=True)
        return found

    def host(self, function: str, *arguments: str) -> Any:
        return self.client.cmd(self.minion, function, arguments, timeout=120, tgt_type="list").get(self.minion)

    def declare(self, **environments: Any) -> None:
        self.declared["environments"].update(environments)
        content = {"netspace": self.declared, "resources": {"netspace": {}}, "told": "by-pillar"}
        (self.pillar / "declared.sls").write_text("#!json\n" + json.dumps(content))

    def apply(self) -> None:
        self.host("saltutil.refresh_pillar", "wait=True")
        states = self.host("state.apply", "netspace.environments")
        all_true(by_id(states))


@pytest.fixture(scope="module")
def fleet(salt_factories: FactoriesManager, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    assert IMAGE.exists(), f"{IMAGE} is missing: run scripts/demo-image"
    folder = tmp_path_factory.mktemp("targets")
    source = folder / "source"  # served are the targets alone, because a sync of all takes long
    shutil.copytree(checkout.ROOT / "_resources", source / "_resources")
    (source / "inside").mkdir()
    (source / "inside/init.sls").write_text(SLS)
    (source / "inside/card").write_text(CARD)
    (source / "inside/partly.sls").write_text(PARTLY)
    pillar = folder / "pillar"
    pillar.mkdir()
    (pillar / "top.sls").write_text("base: {'*': [declared]}\n")
    instance = f"target{secrets.token_hex(4)}"
    master = salt_factories.salt_master_daemon(
        random_string("master-"),
        overrides={
            "interface": "127.0.0.1",
            "worker_threads": 3,
            "file_roots": {"base": [str(source), str(checkout.ROOT / "states")]},
            "pillar_roots": {"base": [str(pillar)]},
            "fileserver_list_cache_time": 0,
            "runner_dirs": [str(checkout.ROOT / "_runners")],
            "utils_dirs": [str(checkout.ROOT / "_utils")],
            "netspace.attestation": {"folder": str(folder / "attestation")},
        },
    )
    minion = master.salt_minion_daemon(
        random_string("shop-"),
        overrides={"enable_fqdns_grains": False, "netspace.instance": instance, **checkout.in_place()},
    )
    common = {"image": f"tar:{IMAGE}", "command": python(IDLE), "stop_timeout": 2, "limits": {"pids": 16}}
    made = Fleet(
        master.salt_cli(timeout=120), master.salt_run_cli(timeout=120), minion.id, pillar, {"environments": {}}
    )
    made.declare(web={**common, "target": True}, shy=common)
    with master.started(start_timeout=120), minion.started(start_timeout=120):
        made.client = salt.client.LocalClient(mopts=dict(master.config))  # reads the key that the master made
        assert "resources.netspace_targets" in made.host("saltutil.sync_all")["resources"]
        try:
            made.apply()
            made.until_answered(f"{made.minion}-web")
            yield made
        finally:
            made.host("netspace.teardown")


def test_only_what_is_declared_a_target_answers(fleet: Fleet) -> None:
    web = f"{fleet.minion}-web"
    assert fleet.at(f"T@netspace:{web}", "test.ping") == {web: True}
    everybody = (web, f"{fleet.minion}-shy", f"{fleet.minion}-none", "other-web", "web")
    # Salt waits for those whom nobody knows.
    asked = " or ".join(f"T@netspace:{target}" for target in everybody)
    assert fleet.at(asked, "test.ping", timeout=5) == {web: True}


def test_master_sees_an_apply_as_it_goes_on(fleet: Fleet) -> None:
    """The bus and the watching runner show a new environment's progress, and no progress of a refused one."""
    common = fleet.declared["environments"]["shy"]
    doing, changed = (f"netspace/apply/{fleet.minion}/{kind}" for kind in ("doing", "changed"))
    seen: list[tuple[str, dict[str, Any]]] = []
    with salt.utils.event.get_event("master", opts=fleet.client.opts, listen=True) as bus, ThreadPoolExecutor() as pool:
        watched = pool.submit(fleet.run.run, "netspace_fleet.watch", "timeout=45")
        until(lambda: bus.get_event(wait=1, tag="salt/run/", match_type="startswith") is not None)
        fleet.declare(brief=common, lost={**common, "image": "tar:/no/such.tar"})
        fleet.host("saltutil.refresh_pillar", "wait=True")
        fleet.host("state.apply", "netspace.environments")
        while found := bus.get_event(wait=1, tag="netspace/apply/", match_type="startswith", full=True):
            seen.append((found["tag"], found["data"]))
        fleet.host("state.apply", "netspace.environments", "test=True")
        told = watched.result()
    assert {tag for tag, _ in seen} == {doing, changed} and {event["id"] for _, event in seen} == {fleet.minion}
    rows = [row for tag, event in seen if tag == changed for row in event["data"]["changes"]]
    brief = {"kind": "environment", "name": "brief", "action": "create", "error": ""}
    assert brief in rows
    at = [event["data"]["doing"] for tag, event in seen if tag == doing]
    assert "starting brief" in at and not any("lost" in one for one in at if one.startswith("starting"))
    lines = told.stderr.splitlines()
    assert f"{fleet.minion}: starting brief" in lines and f"{fleet.minion}: create environment brief" in lines, told
    assert told.data["changes"] == len([row for row in rows if not row["error"]]) > 0
    del fleet.declared["environments"]["brief"], fleet.declared["environments"]["lost"]
    fleet.declare()
    fleet.apply()


def test_an_operator_addresses_one_on_the_command_line(fleet: Fleet) -> None:
    web = f"{fleet.minion}-web"
    done = fleet.cli.run("-C", "cmd.run", "id -u", minion_tgt=f"T@netspace:{web}")
    assert (done.returncode, done.data) == (0, {web: "1000"}), done


def test_a_command_runs_inside_as_its_user(fleet: Fleet) -> None:
    web = f"{fleet.minion}-web"
    found = fleet.at(f"T@netspace:{web}", "cmd.run", "cat /proc/sys/kernel/hostname; id -u")
    assert found[web].split() == ["web", "1000"]
    done = fleet.at(f"T@netspace:{web}", "cmd.run_all", ["/bin/sh", "-c", "echo out; echo err >&2; exit 7"])
    assert done[web] == {"retcode": 7, "stdout": "out", "stderr": "err", "truncated": False}
    assert fleet.at(f"T@netspace:{web}", "cmd.retcode", "exit 3") == {web: 3}
    refused = fleet.at(f"T@netspace:{web}", "cmd.run", "id", "runas=root")
    assert "in an environment, cmd has no runas" in refused[web]


def test_a_target_has_grains_of_its_own(fleet: Fleet) -> None:
    web = f"{fleet.minion}-web"
    grains = fleet.at(f"T@netspace:{web}", "grains.items")[web]
    assert (grains["id"], grains["minion"], grains["environment"]) == (web, fleet.minion, "web")
    assert grains["image_digest"].startswith("sha256:") and grains["os_id"] == "debian"
    assert grains["trust"]["level"] == "L0"
    # Those of a host find hosts alone, and its targets with nothing but their ids.
    assert fleet.at("G@kernel:Linux", "test.ping") == {fleet.minion: True}
    assert fleet.at(f"T@netspace:{web} and not G@environment:web", "test.ping", timeout=2) == {}


def test_states_act_inside_and_settle(fleet: Fleet) -> None:
    web = f"{fleet.minion}-web"

    def apply(*arguments: str) -> dict[str, Any]:
        states = fleet.at(f"T@netspace:{web}", "state.apply", "inside", *arguments)[web]
        return {state["__id__"]: state for state in states.values()}

    planned = apply("test=True")
    assert {state["result"] for state in planned.values()} == {None}, planned
    assert fleet.at(f"T@netspace:{web}", "cmd.retcode", "test -e /tmp/made") == {web: 1}
    made = apply()
    assert made["read"]["changes"]["stdout"] == f"{web} web by-pillar 1000"
    assert made["/tmp/made/card"]["changes"]["mode"] == {"old": None, "new": "0640"}
    again = apply()
    assert {name: state["changes"] for name, state in again.items()} == {"/tmp/made/card": {}, "read": {}}
    assert not Path("/tmp/made").exists()


def test_what_acts_on_a_host_is_refused_and_nothing_of_it_applied(fleet: Fleet) -> None:
    web = f"{fleet.minion}-web"
    refused = fleet.at(f"T@netspace:{web}", "state.apply", "netspace.environments")[web]
    assert (
        "netspace environments: state netspace_environment acts on a host; an environment has only: cmd, file, test"
        in refused
    )
    refused = fleet.at(f"T@netspace:{web}", "state.apply", "inside.partly")[web]
    there = "file.absent, file.directory, file.managed, file.symlink"
    assert refused == [f"/tmp/all: an environment has no file.recurse; use one of: {there}"]
    assert fleet.at(f"T@netspace:{web}", "cmd.retcode", "test -e /tmp/partly") == {web: 1}
    assert "is not supported for resource type" in fleet.at(f"T@netspace:{web}", "pkg.install", "x")[web]
    for function in ("network.interfaces", "netspace.teardown"):
        assert "is not supported for resource type" in fleet.at(f"T@netspace:{web}", function)[web]


def test_targets_come_and_go_with_an_apply(fleet: Fleet) -> None:
    web, shy = (f"{fleet.minion}-{name}" for name in ("web", "shy"))
    environments = fleet.declared["environments"]
    fleet.declare(shy={**environments["shy"], "target": True})
    fleet.apply()
    fleet.until_answered(web, shy)
    assert fleet.host("netspace_environment.stop", "shy") is True
    fleet.until_answered(web, silent=shy)
    assert fleet.host("netspace_environment.start", "shy") is True
    fleet.until_answered(web, shy)
    fleet.declare(shy={**environments["shy"], "target": False})
    fleet.apply()
    fleet.until_answered(web, silent=shy)


def test_under_a_kernel_of_its_own_commands_run_and_files_are_refused(fleet: Fleet) -> None:
    if error := runtimes.look("runsc", {}).error:
        pytest.skip(f"runsc: {error}")
    target = f"{fleet.minion}-apart"
    web = fleet.declared["environments"]["web"]
    fleet.declare(apart={**web, "runtime": "runsc", "limits": {"memory": "256M", "pids": 96}})
    fleet.apply()
    asked = f"T@netspace:{target}"
    fleet.until_answered(target)
    assert fleet.at(asked, "cmd.run", "cat /proc/sys/kernel/hostname; id -u")[target].split() == ["apart", "1000"]
    made = fleet.at(asked, "state.single", "cmd.run", "echo x >/tmp/made", "onlyif=test ! -e /tmp/made")[target]
    assert [one["result"] for one in made.values()] == [True], made
    again = fleet.at(asked, "state.single", "cmd.run", "echo x >/tmp/made", "onlyif=test ! -e /tmp/made")[target]
    assert [one["changes"] for one in again.values()] == [{}], again
    refused = fleet.at(asked, "state.single", "cmd.run", "echo y >/tmp/made", "creates=/tmp/made")[target]
    assert "no creates here: only this environment's own kernel has its files" in str(refused)
    refused = fleet.at(asked, "state.apply", "inside")[target]
    assert "no file here: only this environment's own kernel has its files" in str(refused)
    assert fleet.at(asked, "cmd.retcode", "test -e /tmp/made/card") == {target: 1}


def test_a_host_and_its_targets_each_return_for_themselves(fleet: Fleet) -> None:
    web = f"{fleet.minion}-web"
    both = fleet.at(f"{fleet.minion} or T@netspace:{web}", "state.single", "test.nop", "name=hello")
    assert {name: [row["__id__"] for row in rows.values()] for name, rows in both.items()} == {
        fleet.minion: ["hello"],
        web: ["hello"],
    }
    both = fleet.at(f"{fleet.minion} or T@netspace:{web}", "cmd.run", "id -u")
    assert both == {fleet.minion: "0", web: "1000"}
    # A target of a host is not the host.
    assert fleet.at(f"other or T@netspace:{web}", "cmd.run", "id -u") == {web: "1000"}
    states = fleet.at(f"other or T@netspace:{web}", "state.single", "cmd.run", "name=id -u")
    assert {name: [row["changes"]["stdout"] for row in rows.values()] for name, rows in states.items()} == {
        web: ["1000"]
    }


def test_a_fleet_wide_command_and_a_batch_are_for_hosts_alone(fleet: Fleet) -> None:
    """Commands with ``'*'``, also in batches, give one answer per host and none for a target, and exit with 0."""
    for arguments in (
        ("netspace_environment.list",),
        ("state.single", "test.nop", "name=hello"),
        ("cmd.run", "id -u"),
        ("-b", "1", "state.single", "test.nop", "name=hello"),
    ):
        done = fleet.cli.run(*arguments, minion_tgt="*")
        assert done.returncode == 0, done
        assert f"{fleet.minion}-web" not in done.stdout.replace(f"'target': '{fleet.minion}-web'", ""), done


def test_runners_for_all_hosts_ask_hosts_alone(fleet: Fleet) -> None:
    """Runners send requests only to hosts, even if a minion has reported targets to the master.

    A minion reports targets if it is unpatched or hostile.
    """

    def run(function: str, *arguments: str) -> Any:
        found = fleet.run.run(function, *arguments).data
        return {key: value for key, value in found.items() if key != "retcode"} if isinstance(found, dict) else found

    for told in ({}, {"netspace": [f"{fleet.minion}-web"]}):
        salt.utils.minions.update_resource_index(dict(fleet.run.config), fleet.minion, told)
        known = salt.utils.minions.CkMinions(dict(fleet.run.config)).check_minions("*", "glob")["minions"]
        assert (f"{fleet.minion}-web" in known) == bool(told), known
        assert set(run("netspace_attestation.attest")) == {fleet.minion}
        assert set(run("netspace_attestation.status")) == {fleet.minion}
        assert fleet.minion in run("netspace_attestation.learn", "*")["reason"]  # it is the only one to enrol first
        assert run("netspace_link.exchange_seals") == {"exchanged": {}, "problems": []}
    salt.utils.minions.update_resource_index(dict(fleet.run.config), fleet.minion, {})
    assert run("manage.up") == [fleet.minion]


# Run last: they take away what the others look at.
LAST = ("netspace_environment.remove", "netspace.teardown")


def commands() -> list[tuple[str, ...]]:
    """Return the commands after ``salt '*'`` in README and the pages, each once.

    From the plugins' own pages (made from their docstrings), take one command for each function that no other page has.
    """
    found: dict[tuple[str, ...], None] = {}
    written = (checkout.ROOT / "README.md", *sorted((checkout.ROOT / "docs").rglob("*.md")))
    for page in (*written, *sorted((checkout.ROOT / "_modules").glob("*.py"))):
        for line in re.findall(r"salt '\*' ([^`\n]+)", page.read_text()):
            words = tuple(shlex.split(line, comments=True))
            if page in written or words[0] not in {function for function, *_ in found}:
                found[words] = None
    return sorted(
        (words for words in found if "..." not in words),
        key=lambda words: LAST.index(words[0]) + 1 if words[0] in LAST else 0,
    )


def test_each_command_of_the_pages_for_all_hosts_is_answered_by_hosts_alone(fleet: Fleet, tmp_path: Path) -> None:
    every = commands()
    assert len(every) > 50 and {("netspace.teardown",), ("mine.send", "netspace_link.public_key")} <= set(every)
    last = [words for words in every if words[0] in LAST]
    for function, *arguments in (*todays([words for words in every if words not in last], 3, every=EVERY), *last):
        # The packages and files of this machine are not the test's.
        arguments = [one for one in arguments if not one.startswith("file=")]
        if "netspace_link.public_key" in (function, *arguments):
            arguments.append(f"folder={tmp_path}")
        if arguments and arguments[0].startswith("netspace.packages"):
            arguments.append("test=True")
        found = fleet.everywhere(function, *arguments)
        assert set(found) == {fleet.minion}, (function, arguments, found)
        text = str(found[fleet.minion]["ret"])
        assert not re.search("is not available|not supported|invalid arguments", text), (function, arguments, text)
