"""Statuses of many units by one question to systemd: which units get a status, and which must be asked about singly."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.waiting import until

from netspace.layout import Layout
from netspace.supervision import process
from netspace.supervision.service import Service, Status
from netspace.supervision.systemd import dbus, survey, unit_file


@pytest.fixture
def running() -> Iterator[int]:
    """A process of a service."""
    with subprocess.Popen(["sleep", "1000"]) as one:
        yield one.pid
        one.kill()


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, running: int) -> Layout:
    """A host with the unit ``web``, which systemd calls active."""
    layout = Layout(root=tmp_path)
    monkeypatch.setattr(dbus, "active", lambda pattern: [unit_file.name(layout, "web")])
    pid_file = tmp_path / "100% web.pid"
    pid_file.write_text(f"{running}\n")
    os.utime(pid_file, (0, 0))  # the host's clock was wrong when it booted
    service = Service("web", ("/usr/bin/crun", "run"), pid_file=pid_file)
    (tmp_path / unit_file.name(layout, "web")).write_text(unit_file.render(layout, service))
    return layout


def test_unit_that_never_ended_is_told_of(host: Layout, running: int) -> None:
    (found,) = survey.running(host, host.root).values()
    assert found == Status("running", running, found.since)
    assert 0 <= time.time() - found.since < 100


def test_stopped_process_is_frozen(host: Layout, running: int) -> None:
    os.kill(running, signal.SIGSTOP)
    until(lambda: process.letter(running) == "T")
    assert survey.running(host, host.root)["web"].state == "frozen"


def test_unit_that_ended_once_is_left_out(host: Layout) -> None:
    unit_file.ended(host, "web").parent.mkdir(parents=True)
    unit_file.ended(host, "web").write_text("signal killed KILL\n")
    assert survey.running(host, host.root) == {}


def test_unit_of_somebody_else_is_left_out(host: Layout) -> None:
    path = host.root / unit_file.name(host, "web")
    path.write_text(path.read_text().replace(unit_file.HEADER, "# by hand"))
    assert survey.running(host, host.root) == {}


def test_unit_without_a_process_of_its_file_is_left_out(host: Layout, running: int) -> None:
    pid_file = host.root / "100% web.pid"
    for content in ("", "-1", "0", "none", f"{2**22 + 1}"):
        pid_file.write_text(content)
        assert survey.running(host, host.root) == {}, content
    os.kill(running, signal.SIGKILL)
    pid_file.write_text(f"{running}")
    until(lambda: process.letter(running) == "Z")
    assert survey.running(host, host.root) == {}
    pid_file.unlink()
    assert survey.running(host, host.root) == {}


def test_attached_service_is_left_out(host: Layout) -> None:
    service = Service("web", ("/usr/bin/web", "\nPIDFile=/etc/passwd"))
    (host.root / unit_file.name(host, "web")).write_text(unit_file.render(host, service))
    assert survey.running(host, host.root) == {}


@pytest.mark.parametrize("error", [FileNotFoundError(), TimeoutError(), ValueError()])
def test_systemd_that_does_not_answer_tells_of_none(
    host: Layout, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def active(pattern: str) -> list[str]:
        raise error

    monkeypatch.setattr(dbus, "active", active)
    assert survey.running(host, host.root) == {}
