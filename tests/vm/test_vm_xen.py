"""``runtime: xen`` on Debian's Xen: domains of the tests' own kernel, in a machine that QEMU translates.

On request (``NETSPACE_XEN=1``): it fetches 120 MB once, and takes some minutes on two processors.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.environments import xen_kernel
from support.waiting import until
from vmlab import xen

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(not os.environ.get("NETSPACE_XEN"), reason="NETSPACE_XEN is not set"),
]

ADDRESS, HOST = "10.203.7.8", "10.203.0.1/32"
PATIENCE = 120.0
DRIVER = Path(xen.__file__).with_name("dom0_driver.py")


class Dom0:
    """A running dom0, and requests to the library in it."""

    def __init__(self, machine: xen.XenMachine) -> None:
        self.machine = machine

    def begin(self) -> None:
        """Start the driver, and wait until it answers."""
        self.machine.put("/driver.py", DRIVER.read_text())
        self.machine.sh(f"PYTHONPATH=/site {xen.sys.executable} /driver.py >/run/driver.log 2>&1 </dev/null &")
        until(lambda: self.machine.ask("/run/driver", '{"list": 1}') is not None, "no driver", patience=PATIENCE)

    def ask(self, **request: Any) -> Any:
        told = self.machine.ask("/run/driver", json.dumps(request))
        assert told is not None and "failed" not in told, told
        return told["result"]

    def apply(self, **environments: Any) -> dict[str, Any]:
        told: dict[str, Any] = self.ask(apply={"environments": environments})
        assert told["errors"] == [] and told["refused"] == [], told
        return told

    def row(self, name: str = "tiny") -> dict[str, Any]:
        found: dict[str, Any] = self.ask(list=1)[name]
        return found

    def lines(self, name: str = "tiny") -> list[str]:
        found: list[str] = self.ask(operation="logs", arguments=[name, 1000])["lines"]
        return found

    def written(self, text: str, times: int = 1, name: str = "tiny") -> None:
        until(lambda: self.lines(name).count(text) >= times, f"not written: {text}", patience=PATIENCE, pause=0.3)

    def domains(self) -> list[str]:
        return [line.split()[0] for line in self.machine.sh("xl list").splitlines()[2:]]

    def kill(self, pattern: str) -> None:
        """Kill all processes with such a command line at once. It shall not match itself."""
        self.machine.sh(f"kill -9 $(grep -al '{pattern}' /proc/[0-9]*/cmdline | cut -d/ -f3)")

    def links(self) -> set[str]:
        """Return the names of the links in the host's own network namespace."""
        return set(self.machine.sh("ls /sys/class/net").split())


@pytest.fixture(scope="module")
def booted() -> Iterator[Dom0]:
    folder = Path(tempfile.mkdtemp(prefix="vm-xen-", dir="/var/tmp"))
    try:
        kernels = [xen_kernel.build(folder / type_, xen.headers(), type_) for type_ in xen_kernel.TYPES]
        (folder / "dom0").mkdir()
        image = xen.Dom0(folder / "dom0").build(kernels)
        with xen.XenMachine(image, folder / "machine") as machine:
            machine.on()
            dom0 = Dom0(machine)
            dom0.begin()
            yield dom0
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def dom0(booted: Dom0) -> Iterator[Dom0]:
    before = booted.links()
    yield booted
    booted.apply()
    assert booted.domains() == [], "a domain is left"
    assert booted.links() == before, "a link is left"


def declared(*arguments: str, type_: str = "pvh", wired: bool = True, **keys: Any) -> dict[str, Any]:
    allow = [
        {"direction": "in", "cidr": HOST, "protocol": "icmp"},
        {"direction": "in", "cidr": HOST, "protocol": "udp", "port": 7},
        {"direction": "out", "cidr": HOST, "protocol": "udp", "port": 7000},
    ]
    interface = {"interface": {"kind": "tap", "ipv4": ADDRESS, "allow": allow}} if wired else {}
    address = (f"ip={ADDRESS}",) if wired else ()
    usual = {"runtime": "xen", "limits": {"memory": "8M", "cpus": 0.5}, "restart": "never", "stop_timeout": 60}
    return {"kernel": f"/guests/{type_}", "args": [*address, *arguments], **usual, **interface, **keys}


def answered(dom0: Dom0, text: str = "hello") -> bool:
    return bool(dom0.ask(udp=text, to=ADDRESS, port=7) == text)


def test_a_domain_answers_behind_its_filter_and_stops(dom0: Dom0) -> None:
    machine = dom0.machine
    dom0.apply(tiny=declared("one", "two"))
    row = dom0.row()
    assert (row["state"], row["runtime"]) == ("running", "xen")
    assert dom0.domains() == ["netspace-tiny"]
    dom0.written("kernel: ready")
    assert f"kernel: started: ip={ADDRESS} one two" in dom0.lines()
    assert any(line.startswith("disk: environment.json {") for line in dom0.lines()), dom0.lines()
    until(lambda: answered(dom0), "no answer", patience=PATIENCE)
    assert machine.run("ping", "-c", "2", ADDRESS).code == 0
    assert dom0.ask(udp="hello", to=ADDRESS, port=9) == "PermissionError"  # the filter of the host's own

    # Nothing differs from what is declared, and nothing is done again.
    assert dom0.ask(apply={"environments": {"tiny": declared("one", "two")}})["steps"] == []
    assert dom0.ask(drift=1) == []

    # The domain has its limits, and a device that leads only to the filter.
    shown = machine.sh("xl list netspace-tiny").splitlines()[1].split()
    assert shown[2:4] == ["8", "1"]
    assert re.search(r"\b50$", machine.sh("xl sched-credit2 -d netspace-tiny").splitlines()[-1])
    inside = machine.sh("ip -n netspace-tiny -br link")
    assert {line.split("@")[0].split()[0] for line in inside.splitlines()} >= {"lo", "eth0", "xen0", "xen1"}
    assert re.search(r"^vif\d+\.0 ", inside, re.MULTILINE)
    assert not any(link.startswith("vif") for link in dom0.links())
    assert machine.sh("ip -n netspace-tiny -o addr show scope global") == ""

    assert dom0.ask(operation="stop", arguments=[["tiny"]]) == {"tiny": ""}
    assert (dom0.row()["state"], dom0.row()["exit"]) == ("stopped", "exit 0")
    assert dom0.domains() == []
    assert "vif" not in machine.sh("ip -n netspace-tiny -br link")
    assert dom0.ask(operation="start", arguments=[["tiny"]]) == {"tiny": ""}
    until(lambda: answered(dom0), "no answer after a new start", patience=PATIENCE)
    # And by itself, as it is told to.
    dom0.ask(udp="stop", to=ADDRESS, port=7)
    until(lambda: dom0.row()["state"] == "stopped", "it did not end", patience=PATIENCE)
    assert dom0.row()["exit"] == "exit 0"


def test_forged_frames_of_a_domain_reach_nobody(dom0: Dom0) -> None:
    """The kernel sends three datagrams at its start: from another MAC, from another address, and an honest one."""
    dom0.ask(hear=7000)
    dom0.apply(tiny=declared())
    dom0.written("kernel: ready")
    until(lambda: answered(dom0), "no answer", patience=PATIENCE)
    assert dom0.ask(heard=7000) == [[ADDRESS, "true"]]


def test_a_paravirtual_domain_works_too(dom0: Dom0) -> None:
    told = dom0.ask(
        apply={"runtimes": {"xen": {"type": "pv"}}, "environments": {"tiny": declared(type_="pv")}},
    )
    assert told["errors"] == [] and told["refused"] == []
    dom0.written("kernel: ready")
    until(lambda: answered(dom0), "no answer", patience=PATIENCE)


@pytest.mark.parametrize(
    ("argument", "state", "end"),
    [("exit=0", "stopped", "exit 0"), ("exit=1", "stopped", "exit 0"), ("exit=7", "failed", "exit 3")],
)
def test_how_a_domain_ends_is_told(dom0: Dom0, argument: str, state: str, end: str) -> None:
    dom0.ask(apply={"environments": {"tiny": declared(argument, wired=False)}})
    until(lambda: dom0.row()["state"] == state, f"not {state}: {dom0.row()}", patience=PATIENCE)
    assert dom0.row()["exit"] == end
    assert f"kernel: started: {argument}" in dom0.lines()
    assert dom0.domains() == []


def test_a_kernel_that_can_is_asked_to_power_off(dom0: Dom0) -> None:
    dom0.apply(tiny=declared("polite=1", wired=False))
    dom0.written("kernel: polite")
    assert dom0.ask(operation="stop", arguments=[["tiny"]]) == {"tiny": ""}
    assert dom0.row()["exit"] == "exit 0"
    assert "kernel: asked to power off" in dom0.lines()


def test_what_is_no_kernel_is_refused_with_xens_reason(dom0: Dom0) -> None:
    dom0.machine.put("/guests/none", "not a kernel\n")
    told = dom0.ask(apply={"environments": {"tiny": {**declared(wired=False), "kernel": "/guests/none"}}})
    assert len(told["errors"]) == 1 and "can't be started: " in told["errors"][0], told
    assert "error" in told["errors"][0]
    assert dom0.domains() == []


@pytest.mark.parametrize("victim", ["xl", "shell"])
def test_a_domain_whose_monitor_is_killed_starts_anew(dom0: Dom0, victim: str) -> None:
    dom0.apply(tiny=declared(restart="always"))
    dom0.written("kernel: ready")
    before = dom0.machine.sh("xl domid netspace-tiny")
    shell = dom0.row()["pid"]
    children = dom0.machine.sh(f"cat /proc/{shell}/task/{shell}/children").split()
    (toolstack,) = [pid for pid in children if dom0.machine.sh(f"cat /proc/{pid}/comm") == "xl"]
    dom0.machine.sh(f"kill -9 {toolstack if victim == 'xl' else shell}")
    dom0.written("kernel: ready", times=2)
    assert dom0.machine.sh("xl domid netspace-tiny") != before
    assert dom0.domains() == ["netspace-tiny"]
    until(lambda: answered(dom0), "no answer", patience=PATIENCE)
    assert dom0.row()["restarts"] == 1


def test_a_domain_outlives_its_supervisor(dom0: Dom0) -> None:
    dom0.apply(tiny=declared())
    dom0.written("kernel: ready")
    before = dom0.machine.sh("xl domid netspace-tiny")
    dom0.kill("supervis[e]")
    dom0.ask(attend=1)
    assert dom0.row()["state"] == "running"
    assert dom0.machine.sh("xl domid netspace-tiny") == before
    until(lambda: answered(dom0), "no answer", patience=PATIENCE)
    dom0.ask(udp="fail", to=ADDRESS, port=7)
    until(lambda: dom0.row()["state"] == "failed", "its end was not seen", patience=PATIENCE)


def test_a_namespace_that_goes_first_leaves_no_device(dom0: Dom0) -> None:
    before = dom0.links()
    dom0.apply(tiny=declared())
    dom0.written("kernel: ready")
    # The processes of the environment keep it, until the next apply restarts them.
    dom0.machine.sh("ip netns del netspace-tiny")
    assert not any(link.startswith("vif") for link in dom0.links())
    dom0.apply(tiny=declared())
    dom0.written("kernel: ready", times=2)
    until(lambda: answered(dom0), "no answer", patience=PATIENCE)
    # All of them are killed at once, while the namespace has no name any more.
    dom0.machine.sh("ip netns del netspace-tiny")
    dom0.kill("netspace-tin[y]")
    until(lambda: dom0.row()["state"] != "running", "its end was not seen", patience=PATIENCE)
    until(lambda: dom0.domains() == [], "the domain is left", patience=PATIENCE)
    assert {link for link in dom0.links() if link.startswith(("vif", "xen", "tap"))} <= before


def test_a_loud_console_fills_no_disk(dom0: Dom0) -> None:
    dom0.apply(tiny=declared("loud=1", wired=False))
    time.sleep(10)
    log = "/var/log/netspace/environment-tiny.log"
    sizes = [int(size) for size in dom0.machine.sh(f"cat {log}* | wc -c").split()]
    assert 1000 < sizes[0] <= 41 * 1024**2
    assert dom0.row()["state"] == "running"


def test_hostile_arguments_reach_the_kernel_and_nothing_else(dom0: Dom0) -> None:
    hostile = ['"', "\\", '";pci=["x"]', "'", "]", "#", "$(touch${IFS}/run/owned)", "`x`", "ü", "-x", "%n"]
    dom0.apply(tiny=declared(*hostile, wired=False))
    dom0.written("kernel: started: " + " ".join(hostile))
    # As xl itself reads it.
    told = json.loads(dom0.machine.sh("xl create -n /run/netspace/environments/tiny/domain.cfg 2>/dev/null"))
    assert told["b_info"]["cmdline"] == " ".join(hostile)
    assert not {"pcidevs", "disks", "nics"} & told.keys()
    assert dom0.machine.sh("ls /run/owned 2>/dev/null; true") == ""
