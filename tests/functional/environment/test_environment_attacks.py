"""Attacks from inside an environment that once succeeded: each is now refused or limited, under each runtime."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest
from support.environments import attackers
from support.environments.environment_host import Host
from support.waiting import until

from netspace.environment import runtimes

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def attacking(tmp_path_factory: pytest.TempPathFactory) -> attackers.Kit:
    return attackers.fill(tmp_path_factory.mktemp("attacking"))


def connect(host: Host, name: str) -> None:
    """Give an environment's namespace an interface that leads to the host's namespace, as the kind ``veth`` does."""
    host.namespace(name)
    space = host.layout.netns(name)
    for command in (
        f"nsenter --net={space} ip link set lo up",
        f"ip link add {name}-out type veth peer name eth0 netns {space.name}",
    ):
        subprocess.run(command.split(), check=True)


@pytest.mark.parametrize("runtime", runtimes.running("images"))
def test_what_once_succeeded_is_refused_under_each_runtime(host: Host, attacking: attackers.Kit, runtime: str) -> None:
    if why := runtimes.look(runtime, {}).error:
        pytest.skip(f"{runtime}: {why}")
    before = attackers.shares()
    connect(host, "web")
    host.run("web", **attackers.declared(attacking, runtime))
    until(lambda: attackers.found(host.operations.logs("web")["lines"]) is not None, patience=240)
    outcomes = attackers.found(host.operations.logs("web")["lines"])
    print(f"{runtime}: {outcomes}")
    allowed = attackers.ALLOWED if Path("/sys/fs/cgroup/cgroup.controllers").exists() else attackers.VERSION_1
    assert attackers.succeeded(outcomes or {}, allowed[runtime]) == {}
    # The attacker holds its booty. Under runc it is counted for root (docs/limits.md).
    if runtime != "runc":
        assert attackers.shares() == before == attackers.ALL


@pytest.mark.parametrize("runtime", ["crun", "runc"])  # gVisor lets no process of the host in
def test_who_enters_for_the_host_gives_nothing_away(host: Host, attacking: attackers.Kit, runtime: str) -> None:
    """A program attacks the runtime's process, which has all rights, during each ``exec``, and gets nothing."""
    host.run("web", **attackers.declared(attacking, runtime, "watch"))

    def told() -> list[str]:
        with contextlib.suppress(Exception):
            host.operations.exec("web", [attacking.command[0], attackers.SECRET])
        return list(host.operations.logs("web")["lines"])

    until(told, patience=240)
    assert attackers.reached(host.operations.logs("web")["lines"][-1]) == attackers.NOTHING
