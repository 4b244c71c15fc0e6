"""An upgrade of the Debian package from the previous version, and of Salt, while environments run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from support.hosts import debian_salt, fresh_host
from support.hosts.systemd_host import SystemdHost
from support.waiting import until

pytestmark = [pytest.mark.systemd, pytest.mark.root]

FORMER_SALT, SALT = "3007.*", "3008.*"


@pytest.fixture(scope="module")
def host(boot: Callable[[], SystemdHost], former: list[Path]) -> Iterator[SystemdHost]:
    """A host whose environments were made by the previous version, with the previous Salt."""
    with boot() as machine:
        fresh_host.put(machine, fresh_host.IMAGE, "/srv/demo.tar")
        mask, *_ = fresh_host.installation()
        fresh_host.run(machine, mask)
        fresh_host.install(machine, former)
        debian_salt.place(machine, FORMER_SALT)
        debian_salt.configure(machine, fresh_host.DECLARATION)
        debian_salt.call(machine, "saltutil.sync_all")
        debian_salt.call(machine, "state.apply", "netspace")
        until(lambda: "thank you" in fresh_host.told(machine, "web"), patience=300)
        yield machine


@pytest.fixture(scope="module")
def before(host: SystemdHost) -> Mapping[str, str]:
    """Return the units that run before the upgrade."""
    found = fresh_host.units(host)
    assert {"netspace-environment-web.service", "netspace-environment-orders.service"} <= found.keys()
    return found


def of_environments(units: Mapping[str, str]) -> dict[str, str]:
    return {name: at for name, at in units.items() if name.startswith("netspace-environment-")}


def test_upgraded_package_restarts_no_unit(host: SystemdHost, before: Mapping[str, str], packages: list[Path]) -> None:
    fresh_host.install(host, packages)
    shown = host.run("dpkg-query", "-W", "-f", "${Version}", "netspace").stdout
    assert "~" not in shown
    assert fresh_host.units(host) == before


def test_upgraded_salt_applies_without_a_restart(host: SystemdHost, before: Mapping[str, str]) -> None:
    """After Salt's upgrade, the new Salt loads the new plugins, and an apply finds the environments as declared."""
    former = json.loads(debian_salt.call(host, "--out=json", "test.version"))["local"]
    debian_salt.place(host, SALT)
    now = json.loads(debian_salt.call(host, "--out=json", "test.version"))["local"]
    assert (former.split(".")[0], now.split(".")[0]) == (FORMER_SALT[:4], SALT[:4])
    debian_salt.call(host, "saltutil.sync_all")
    debian_salt.call(host, "state.apply", "netspace")
    assert of_environments(fresh_host.units(host)) == of_environments(before)
    again = json.loads(debian_salt.call(host, "--out=json", "state.apply", "netspace"))["local"]
    changed = {one["__id__"]: one["changes"] for one in again.values() if one["changes"]}
    assert not changed


def test_upgraded_host_comes_back_after_a_reboot(host: SystemdHost, before: Mapping[str, str]) -> None:
    """After a reboot, the host's copy of the new library starts all environments, and web gets its answer."""
    host.reboot()
    until(lambda: of_environments(fresh_host.units(host)).keys() == of_environments(before).keys(), patience=300)
    until(lambda: "thank you" in since_boot(host, "web"), patience=300)


def since_boot(host: SystemdHost, name: str) -> str:
    """Return the output of an environment's program since the machine's boot."""
    return host.run("journalctl", "--no-pager", "-b", "-u", f"netspace-environment-{name}").stdout
