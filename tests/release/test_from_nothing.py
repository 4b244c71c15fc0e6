"""A fresh Debian 13 with systemd: the package is installed, ten lines are applied, two environments communicate."""

from __future__ import annotations

import os
import re
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import checkout, pages
from support.hosts import debian_salt, fresh_host
from support.hosts.systemd_host import SystemdHost
from support.waiting import until

pytestmark = [pytest.mark.systemd, pytest.mark.root]

FILE = "/etc/netspace/declaration.yaml"
SECONDS = 60
"""Processor time from nothing to two environments that communicate. A machine that has nothing else to do needs no
longer: little of this is waited for, and little is done by two processors at once."""


@pytest.fixture(scope="module")
def host(boot: Callable[[], SystemdHost]) -> Iterator[SystemdHost]:
    with boot() as machine:
        yield machine


def spent(host: SystemdHost) -> float:
    """Return the seconds of processor time that the machine, and what was run in it, have used."""
    used = re.search(r"^usage_usec (\d+)$", host.run("cat", "/sys/fs/cgroup/cpu.stat").stdout, re.MULTILINE)
    assert used is not None
    run = resource.getrusage(resource.RUSAGE_CHILDREN)
    return int(used[1]) / 1e6 + run.ru_utime + run.ru_stime


@pytest.fixture(scope="module")
def installed(host: SystemdHost, packages: list[Path]) -> float:
    """The host after the commands of docs/installation.md, which install the packages and apply the declaration.

    :return: the seconds of processor time that this took.
    """
    began, before, marks = time.monotonic(), spent(host), []

    def mark(name: str) -> None:
        marks.append(f"{name} {time.monotonic() - began:.0f} s")

    fresh_host.put(host, fresh_host.IMAGE, "/srv/demo.tar")
    host.path("/etc/netspace").mkdir()
    host.path(FILE).write_text(fresh_host.DECLARATION)
    mask, install, apply = fresh_host.installation()
    fresh_host.run(host, mask)
    mark("masked")
    fresh_host.install(host, packages, install)
    mark("installed")
    fresh_host.run(host, apply)
    mark("applied")
    until(lambda: "thank you" in fresh_host.told(host, "web"), patience=300)
    mark("talking")
    took, load = spent(host) - before, os.getloadavg()[0]
    print(f"\nfrom nothing: {', '.join(marks)}; {took:.0f} s of a processor; load {load:.0f}")
    return took


def test_two_environments_talk_from_ten_lines(host: SystemdHost, installed: float) -> None:
    assert 1 < installed < SECONDS
    assert len(fresh_host.DECLARATION.splitlines()) == 10
    assert "from web: 1 apples" in fresh_host.told(host, "orders")
    assert host.run("netspace", "plan", FILE, check=False).returncode == 0


@pytest.mark.usefixtures("installed")
def test_no_service_runs_that_netspace_did_not_start(host: SystemdHost) -> None:
    shown = host.run("systemctl", "list-units", "--plain", "--no-legend", "--type=service", "--state=running").stdout
    running = {line.split()[0] for line in shown.splitlines()}
    assert not {"rabbitmq-server.service", "haproxy.service", "epmd.service"} & running
    assert {"netspace-environment-web.service", "netspace-environment-orders.service"} <= running
    enabled = host.run("systemctl", "is-enabled", "netspace-apply.service", check=False).stdout.strip()
    assert enabled == "disabled"


@pytest.mark.usefixtures("installed")
def test_removed_package_leaves_environments_running(host: SystemdHost, packages: list[Path]) -> None:
    """The package is removed, purged and installed again; environments keep running, and the next plan is empty."""
    before = fresh_host.units(host)
    assert len(before) >= 3, before
    for verb in ("remove", "purge"):
        fresh_host.run(host, f"apt-get {verb} netspace python3-netspace")
        assert fresh_host.units(host) == before, verb
    left = host.run("find", "/usr", "-name", "*netspace*")
    assert left.stdout == ""
    fresh_host.install(host, packages)
    assert host.run("netspace", "plan", FILE, check=False).returncode == 0
    assert fresh_host.units(host) == before


@pytest.mark.usefixtures("installed")
def test_empty_declaration_removes_all(host: SystemdHost) -> None:
    host.path(FILE).write_text("netspace: {}\n")
    fresh_host.run(host, f"netspace apply {FILE}")
    assert fresh_host.units(host) == {}


def is_wide(line: str) -> bool:
    """Return whether a line is too wide. A metric, a program's own line and a line with a digest may be wide."""
    return len(line) > 80 and not line.startswith(("    #", "    netspace_", "    - ")) and "sha256:" not in line


def output(host: SystemdHost, lines: list[str]) -> str:
    """Return the output of command lines."""
    return "".join(host.run("sh", "-c", line, timeout=1200, check=False).stdout for line in lines)


def settled(host: SystemdHost, lines: list[str], wanted: str) -> str:
    """Repeat command lines that only read, until their output has all of *wanted*; return it."""
    printed = ""

    def is_whole() -> bool:
        nonlocal printed
        printed = output(host, lines)
        return pages.lacking(wanted, printed) is None

    until(is_whole, "a table or a log lacks lines of the page", patience=300, pause=1)
    return printed


@pytest.mark.usefixtures("installed")
def test_quick_start_works_as_written(host: SystemdHost) -> None:
    """The quick start page works as printed. Keep this test last: at its end nothing of netspace is left."""
    debian_salt.place(host, "3008.*")
    debian_salt.configure(host)
    lines: list[str] = []
    printed = ""
    for step in pages.page(checkout.ROOT / "docs/quick-start.md"):
        if step.kind == "file":
            host.path(step.path).parent.mkdir(parents=True, exist_ok=True)
            host.path(step.path).write_text(step.text)
        elif step.kind == "sh":
            lines = pages.commands(step.text)
            printed = output(host, lines)
        else:
            if "netspace.overview" in lines[0]:
                printed = settled(host, lines, step.text)
            assert pages.lacking(step.text, printed) is None, printed
            assert [line for line in printed.splitlines() if is_wide(line)] == []
    assert fresh_host.units(host) == {}
    left = host.run("find", "/usr", "/etc/systemd", "/run/systemd", "-name", "*netspace*")
    assert left.stdout == ""
