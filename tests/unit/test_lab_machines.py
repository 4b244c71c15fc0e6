"""Machines of ``scripts/lab``, without booting one: image, command line, disk, arguments."""

from __future__ import annotations

import itertools
import json
import os
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from support import checkout

from netspace.fleet import parse as fleet_parse

NAMES = ("choices", "config", "hosts", "machine_home", "machine_image", "machines", "processes", "tpms")


@pytest.fixture(scope="module")
def lab() -> Iterator[SimpleNamespace]:
    """The lab's modules. They have common names, so they are forgotten after the tests."""
    folder = str(checkout.ROOT / "scripts/lab.d")
    sys.path.insert(0, folder)
    try:
        yield SimpleNamespace(**{name: __import__(name) for name in NAMES})
    finally:
        sys.path.remove(folder)
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder of the machine h2 in a lab."""
    made = tmp_path / "h2"
    made.mkdir()
    (tmp_path / "names").write_text("198.51.100.2 h2\n")
    (tmp_path / "hosts.json").write_text(json.dumps({"h1": "198.51.100.1", "h2": "198.51.100.2"}))
    return made


def test_image_has_what_a_host_with_links_runs(lab: SimpleNamespace) -> None:
    found = lab.machine_image.packages()
    needed = yaml.safe_load((checkout.ROOT / "states/netspace/packages.yaml").read_text())["host"]
    assert {*needed, "rabbitmq-server", "openssh-server", "systemd"} <= set(found)
    assert len(found) == len(set(found))


def test_image_of_another_recipe_has_another_folder(lab: SimpleNamespace) -> None:
    recipe = lab.machine_image.recipe()
    assert recipe.made.parent.name == "vm-lab", "the tests' machines keep their own image"
    others = (replace(recipe, packages=[*recipe.packages, "tree"]), replace(recipe, version=b"another"))
    assert len({recipe.made, *(other.made for other in others)}) == 3


def test_image_starts_a_minion_and_no_broker(lab: SimpleNamespace, tmp_path: Path) -> None:
    for folder in ("etc/systemd/system/multi-user.target.wants", "etc/ssh", "usr/local/sbin", "usr/local/bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc/ssh/ssh_host_rsa_key").write_text("the same in each machine")
    lab.machine_image.furnish(tmp_path)
    units = tmp_path / "etc/systemd/system"
    enabled = {link.name for link in units.glob("*.wants/*") if (link.parent / link.readlink()).is_file()}
    assert enabled == {"lab-home.service", "lab-shell.service", "salt-minion.service", "srv-netspace.mount"}
    for name in ("rabbitmq-server.service", "epmd.socket", "haproxy.service", "ssh.service"):
        assert (units / name).readlink() == Path("/dev/null")
    assert not list(tmp_path.glob("etc/ssh/ssh_host_*"))
    assert "PasswordAuthentication yes" not in (tmp_path / "etc/ssh/lab").read_text()


@pytest.mark.parametrize("tpm", [True, False])
def test_machine_has_secure_boot_and_no_cable_out(lab: SimpleNamespace, home: Path, tpm: bool) -> None:
    if tpm:
        lab.tpms.folder(home).mkdir()
    command = lab.machines.command_line(home, SimpleNamespace(), 2, native=False)
    given = list(itertools.pairwise(command))
    assert ("-global", "driver=cfi.pflash01,property=secure,value=on") in given
    assert any(value.endswith("OVMF_CODE_4M.secboot.fd") for _, value in given)
    assert ("-tpmdev" in command) == tpm and "kvm" not in command
    assert ("-kernel" in command) is False, "its firmware starts the boot loader"
    tap, shell = (value.split(",") for option, value in given if option == "-netdev")
    assert tap == ["tap", "id=eth0", "ifname=h2", "script=no", "downscript=no"]
    assert shell[0] == "user" and "restrict=on" in shell, "it can't connect to this machine, or beyond it"
    assert [part for part in shell if "fwd" in part] == ["hostfwd=tcp:127.0.0.1:22002-169.254.77.15:22"]
    # Another way out would be another device, or a default cable of QEMU's.
    assert "-nodefaults" in command and "-nic" not in command
    assert sum(value.startswith("virtio-net") for _, value in given) == 2
    assert "kvm" in ",".join(lab.machines.command_line(home, SimpleNamespace(), 2, native=True))


def test_disk_has_the_machines_own_files_and_keys(lab: SimpleNamespace, home: Path) -> None:
    assert lab.machine_home.write(home) == 1
    assert lab.machine_home.write(home) == 1, "it keeps its number"
    other = home.with_name("h1")
    other.mkdir()
    assert lab.machine_home.write(other) == 2
    found = {}
    for one in (home, other):
        with tarfile.open(one / "home.tar") as archive:
            found[one.name] = {entry.name: (entry.mode, archive.extractfile(entry).read()) for entry in archive}  # type: ignore[union-attr]
    own = found["h2"]
    assert own["etc/hostname"][1] == b"h2\n"
    assert b"address replace 198.51.100.2/32 dev eth0" in own["etc/lab-network"][1]
    assert own["etc/ssh/lab_host_key"][0] == 0o600
    assert own["etc/ssh/lab_host_key"][1] != found["h1"]["etc/ssh/lab_host_key"][1]
    assert not any(b"PRIVATE KEY" in data for name, (_, data) in own.items() if name != "etc/ssh/lab_host_key")
    minion = json.loads(own["etc/salt/minion"][1])
    assert minion["id"] == "h2" and minion["states_dirs"] == ["/srv/netspace/_states"]
    assert str(checkout.ROOT) not in own["etc/salt/minion"][1].decode()


def test_stage_of_a_boot_is_read_from_the_console(lab: SimpleNamespace, home: Path) -> None:
    machine, seen = lab.machines.Machine(home), []
    assert machine.state() == "off"
    lab.processes.remember(home / "pid", os.getpid())
    for said in (
        "",
        "BdsDxe: starting Boot0001\n",
        f"{lab.machine_image.CONNECTED}\n",
        "Server listening on 1 port 22.",
    ):
        with (home / "console").open("a") as console:
            console.write(said)
        seen.append(machine.state())
    assert seen == ["on: its firmware runs", "on: its kernel starts", "on: its services start", "on"]
    lab.machines.await_boot([machine])
    (home / "console").write_text("")
    (home / "pid").unlink()
    with pytest.raises(lab.processes.Failed, match="h2: it went off while it booted"):
        lab.machines.await_boot([machine])


def test_network_of_a_machine_with_ipv6(lab: SimpleNamespace) -> None:
    assert "address replace 2001:db8::2/128 dev eth0 nodad" in lab.machine_home.network("2001:db8::2")


def test_memory_that_does_not_suffice_is_refused(lab: SimpleNamespace) -> None:
    assert lab.machines.too_little(2, 4288) == ""
    assert lab.machines.too_little(3, 4288) == (
        "3 machines need 5920 MiB of memory, and 4288 MiB are free; declare fewer hosts"
    )


@pytest.mark.parametrize(
    ("arguments", "tpms"),
    [([], 0), (["--vm"], 3), (["--vm", "--tpm", "1"], 1), (["--vm", "--tpm", "0"], 0), (["--tpm", "2"], 2)],
)
def test_number_of_tpms_by_arguments(lab: SimpleNamespace, tmp_path: Path, arguments: list[str], tpms: int) -> None:
    chosen = lab.choices.parse(["--hosts", "3", *arguments], tmp_path / "fleet.yaml")
    assert chosen.tpms(3) == tpms
    fleet = fleet_parse.fleet({"fleet.yaml": yaml.safe_load(chosen.default_fleet())})
    assert list(fleet.hosts) == ["h1", "h2", "h3"]
    assert chosen.default_fleet().count("tpm: ") == tpms


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vm", "--tpm", "3"], "up: --tpm 3 is not between 0 and the number of hosts"),
        (["--vm", "--hosts", "2", "fleet.yaml"], "up: --hosts is for the default fleet"),
        (["--tpm", "1", "fleet.yaml"], "up: --tpm is for a new lab with the default fleet"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    lab: SimpleNamespace, tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(lab.processes.Failed, match=message):
        lab.choices.parse(arguments, tmp_path / "fleet.yaml")


@pytest.mark.parametrize("machines", [True, False])
def test_fleet_with_tpms_demands_one_for_orders(lab: SimpleNamespace, machines: bool) -> None:
    tpm = "device:/dev/tpmrm0" if machines else "swtpm:path=/run/tpm.sock"
    found, without = (yaml.safe_load(lab.config.default_fleet(2, tpms, machines=machines)) for tpms in (2, 1))
    assert found["hosts"]["h2"]["attestation"] == {"tpm": tpm, "roots": "/etc/tpm-roots"}
    assert found["environments"]["orders"]["attestation"] == {"policy": "require", "minimum": "L3"}
    assert "attestation" not in without["environments"]["orders"]
