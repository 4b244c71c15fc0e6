"""``netspace.check_host`` by Salt's command line, on this host's own kernel."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from support.hosts.snapshot import rested, settled
from support.hosts.whole_host import Salt

from netspace.host import weaknesses

pytestmark = pytest.mark.root


def test_rows_are_what_the_kernel_s_files_hold(salt: Salt) -> None:
    salt.run("test.ping")  # the first call starts the server of calls, a process more
    before = rested()
    done = salt.run("netspace.check_host")
    found = salt("netspace.check_host", check=False)
    assert settled(before) == before
    rows = {row["name"]: row for row in found}
    weak = [name for name, row in rows.items() if row["outcome"] == "weak"]
    assert (done.returncode == 0) is (weak == []), weak
    for name in (
        "kernel.core_pattern",
        "kernel.randomize_va_space",
        "fs.protected_symlinks",
        "kernel.yama.ptrace_scope",
    ):
        try:
            held = (Path("/proc/sys") / name.replace(".", "/")).read_text().strip()
        except FileNotFoundError:
            held = f"can't be read: {os.strerror(errno.ENOENT)}"
            assert rows[name]["outcome"] == "unknown"
        assert rows[name]["found"] == held
    cpu = Path("/sys/devices/system/cpu/vulnerabilities")
    assert {name for name in rows if name.startswith("cpu ")} == {
        "cpu threads",
        *(f"cpu {path.name}" for path in cpu.iterdir()),
    }
    for path in cpu.iterdir():
        said = path.read_text().strip()
        row = rows[f"cpu {path.name}"]
        assert row["found"] == said
        if said.startswith(("Vulnerable", "Not affected")):
            assert row["outcome"] == ("weak" if said.startswith("Vulnerable") else "good")
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    assert rows["cgroup version"]["outcome"] == ("good" if unified else "weak")


def test_a_summary_has_what_is_not_good(salt: Salt) -> None:
    rows = [row._asdict() for row in weaknesses.look()]
    summary = salt("netspace.check_host", "summary=True", check=False)
    assert summary["rows"] == [row for row in rows if row["outcome"] != "good"]
    assert {key: summary[key] for key in ("good", "weak", "unknown")} == {
        outcome: len([row for row in rows if row["outcome"] == outcome]) for outcome in ("good", "weak", "unknown")
    }
    assert summary["comment"].startswith(f"{summary['good']} good, ")


def test_no_right_is_needed() -> None:
    """The checks give the user nobody the same result as root."""
    end, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            os.write(told, json.dumps([row._asdict() for row in weaknesses.look()]).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(told)
    with os.fdopen(end, "rb") as stream:
        found = json.load(stream)
    assert os.waitpid(child, 0)[1] == 0
    assert found == [row._asdict() for row in weaknesses.look()]
