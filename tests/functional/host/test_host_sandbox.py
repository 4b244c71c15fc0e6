"""The sandbox of tests and benchmarks: other users can't affect it, and programs inside end with its shell."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.waiting import until

SANDBOX = Path(__file__).parents[3] / "scripts/sandbox"
OWN = Path("/run/netspace-sandbox")


@pytest.fixture
def own() -> Iterator[Path]:
    """The sandbox's own folder in /run. A test may damage it, because only this test's host uses it."""
    aside = OWN.with_name("aside")
    if OWN.exists():
        OWN.rename(aside)
    yield OWN
    if OWN.is_symlink():
        OWN.unlink()
    elif OWN.exists():
        shutil.rmtree(OWN)
    if aside.exists():
        aside.rename(OWN)


def running(mark: str) -> bool:
    """Return whether a process has *mark* among its arguments."""
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and mark in (process / "cmdline").read_text().split("\0"):
                return True
        except OSError:
            continue
    return False


def sleepers() -> list[Path]:
    """Return the folders in /proc of the processes ``sleep 600``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cmdline").read_bytes() == b"sleep\x00600\x00":
                found.append(process)
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_sandbox_whose_shell_is_ended_takes_others_along(number: signal.Signals, tmp_path: Path) -> None:
    ready, mark = tmp_path / "ready", f"within-{number.name}"
    program = 'touch /var/lib/netspace/kept "$1"; exec sleep 600'
    other = subprocess.Popen([SANDBOX, "sh", "-c", program, "sh", tmp_path / "other", "other"])
    shell = subprocess.Popen([SANDBOX, "sh", "-c", 'touch "$1"; while :; do sleep 0.1; done', "sh", ready, mark])
    try:
        until(lambda: ready.exists() and (tmp_path / "other").exists())
        shell.send_signal(number)
        shell.wait(60)
        until(lambda: not running(mark))
        until(sleepers, "the other sandbox's program sleeps")
        (sleeper,) = sleepers()
        assert (sleeper / "root/var/lib/netspace/kept").exists()
    finally:
        for one in (shell, other):
            one.terminate()
            one.wait(60)


@pytest.mark.parametrize("spoiled", ["writable", "another's", "link"])
def test_sandbox_whose_folder_is_not_root_s_alone_refuses(spoiled: str, own: Path, tmp_path: Path) -> None:
    if spoiled == "link":
        tmp_path.chmod(0o700)
        own.symlink_to(tmp_path)
    else:
        own.mkdir(mode=0o700)
        os.chown(own, 65534 if spoiled == "another's" else 0, 0)
        own.chmod(0o777 if spoiled == "writable" else 0o700)
    done = subprocess.run([SANDBOX, "true"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "sandbox: /run/netspace-sandbox is not a folder that only root can enter; remove it\n",
    )


def test_sandbox_removes_no_folder_but_its_own(own: Path, tmp_path: Path) -> None:
    another = tmp_path / "another"
    another.mkdir()
    own.mkdir(mode=0o700)
    (own / "made").write_text(f"{another}\n/var/lib/netspace\n")
    subprocess.run([SANDBOX, "true"], check=True)
    assert another.exists()
    assert not (own / "made").exists(), "nobody else's list was read"


def test_no_other_user_reaches_the_sandbox_s_lock(own: Path) -> None:
    subprocess.run([SANDBOX, "true"], check=True)
    assert (own / "lock").exists()
    taken = subprocess.run(["flock", "--shared", own / "lock", "true"], user=65534, group=65534, check=False)
    assert taken.returncode != 0
    assert not list(Path("/run/lock").glob("netspace-sandbox*")), "nothing lies where all may write"


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_device_given_away_in_a_sandbox_stays_the_machine_s(stream: int) -> None:
    """The sandbox's /dev/null gets another owner, as by a runtime (fchown); the machine's own one stays root's."""
    program = f"import os; os.fchown({stream}, 7, 7); os._exit(os.stat('/dev/null').st_uid)"
    null = subprocess.DEVNULL
    done = subprocess.run([SANDBOX, sys.executable, "-c", program], stdin=null, stdout=null, stderr=null, check=False)
    assert (done.returncode, os.stat("/dev/null").st_uid) == (7, 0)


def test_cgroup_of_killed_sandbox_with_taken_number_is_removed() -> None:
    listed = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    folder = Path(next(one[1] for one in listed if one[2] in ("cgroup", "cgroup2")))
    sleeper = subprocess.Popen(["sleep", "600"])
    left = folder / f"netspace-sandbox-{sleeper.pid}"
    try:
        (left / "below").mkdir(parents=True)
        subprocess.run([SANDBOX, "true"], check=True)
        assert not left.exists()
    finally:
        sleeper.kill()
        sleeper.wait(60)
