"""A unikernel as the process of an environment: the tests' own under qemu, and Solo5's if a tender is installed."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.environments import tiny_kernel
from support.environments.environment_host import CLONE_NEWNET, Host
from support.waiting import until

from netspace.environment import runtimes
from netspace.environment.container import seccomp
from netspace.errors import NetspaceError

PATIENCE = 120.0
LIMITS = {"memory": "128M", "pids": 32, "cpus": 0.3}  # it never sleeps
SOLO5 = os.environ.get("NETSPACE_SOLO5", "")  # a folder with solo5-spt and Solo5's own test kernels


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if error := runtimes.look("qemu", {}).error:
        pytest.skip(f"qemu: {error}")
    return tiny_kernel.build(tmp_path_factory.mktemp("kernel") / "tiny")


@pytest.fixture
def kernel(built: Path, tmp_path: Path) -> str:
    return str(shutil.copy(built, tmp_path / "tiny"))


def lines(host: Host, name: str = "tiny") -> list[str]:
    found: list[str] = host.operations.logs(name)["lines"]
    return found


def written(host: Host, text: str, times: int = 1, name: str = "tiny") -> None:
    until(lambda: lines(host, name).count(text) >= times, f"not written: {text}", patience=PATIENCE, pause=0.05)


def test_it_boots_in_the_same_jail_and_has_its_arguments_and_its_credentials(host: Host, kernel: str) -> None:
    keys: dict[str, Any] = {"kernel": kernel, "args": ["one", "two"], "limits": LIMITS, "stop_timeout": 30}
    handed = {"environment.json": b'{"name": "tiny"}\n', "password": b"secret"}
    desired = host.run("tiny", files=handed, **keys)
    written(host, "kernel: ready")
    assert "kernel: started: /kernel one two" in lines(host)
    assert 'disk: environment.json {"name": "tiny"}' in lines(host)
    assert "disk: can't be written" in lines(host)
    assert host.plan({"tiny": desired}).steps == []

    told = host.operations.inspect("tiny")
    assert (told["runtime"], told["files"]) == ("qemu", ["handout.tar"])
    pid = host.pid("tiny")
    status = Path(f"/proc/{pid}/status").read_text()
    assert re.search(rf"^Uid:\s*{told['user']['host']}\b", status, re.MULTILINE)
    assert set(re.findall(r"Cap\w+:\s*(\w+)", status)) == {"0" * 16}
    assert re.search(r"^NoNewPrivs:\s*1$", status, re.MULTILINE) and re.search(r"^Seccomp:\s*2$", status, re.MULTILINE)
    assert b"secret" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    config = json.loads((host.layout.bundle("tiny") / "config.json").read_bytes())
    assert config["linux"]["seccomp"] == seccomp.tender()
    assert config["root"]["readonly"]
    if "memory" in host.kind.making.controllers:
        assert 0 < told["usage"]["memory"] <= 128 * 1024**2
        assert host.kind.observe().environments["tiny"].differing == ()

    # Its root holds the tender and the kernel, by names of ours.
    root = Path(f"/proc/{pid}/root")
    assert sorted(os.listdir(root / "tender")) == ["lib", "qemu-system-x86_64", "share"]
    assert set(os.listdir(root)) == {"kernel", "tender", "proc", "dev", "tmp", "run"}
    assert (root / "kernel").read_bytes() == Path(kernel).read_bytes()

    with pytest.raises(NetspaceError, match="tiny is a unikernel"):
        host.operations.exec("tiny", ["/bin/sh"])
    assert host.operations.stop(["tiny"]) == {"tiny": ""}
    assert host.kind.list()["tiny"]["exit"] == "exit 0"
    until(lambda: host.traces()["processes"] == [], patience=PATIENCE)


def test_what_it_is_handed_or_is_itself_is_changed_by_a_restart(host: Host, kernel: str) -> None:
    keys: dict[str, Any] = {"kernel": kernel, "limits": LIMITS}
    host.run("tiny", files={"a": b"first"}, **keys)
    written(host, "disk: a first")
    later = host.desired("tiny", files={"a": b"second"}, **keys)
    (step,) = host.plan({"tiny": later}).steps
    assert (step.action, list(step.changes)) == ("restart", ["files:handout.tar"])
    assert step.reason == "a kernel reads its files only when it starts"
    assert host.apply({"tiny": later})["tiny"].error == ""
    written(host, "disk: a second")

    before = host.kind.list()["tiny"]["digest"]
    with open(kernel, "ab") as stream:
        stream.write(bytes(16))
    (step,) = host.plan({"tiny": later}).steps
    assert (step.action, list(step.changes)) == ("restart", ["image"])
    assert host.apply({"tiny": later})["tiny"].error == ""
    written(host, "disk: a second", times=2)
    assert host.kind.list()["tiny"]["digest"] != before

    hashed = host.desired("tiny", files={"a": b"second"}, source_hash="sha256:" + 64 * "0", **keys)
    (refusal,) = host.plan({"tiny": hashed}).refusals
    assert "source_hash says" in refusal.message


def test_how_it_ends_is_told(host: Host, kernel: str) -> None:
    keys: dict[str, Any] = {"kernel": kernel, "limits": LIMITS, "restart": "never"}
    host.apply({"tiny": host.desired("tiny", args=["exit=0"], **keys)})
    until(lambda: host.kind.list()["tiny"]["state"] == "stopped", patience=PATIENCE)
    assert host.kind.list()["tiny"]["exit"] == "exit 0"
    host.apply({"bad": host.desired("bad", args=["exit=3"], **keys)})
    until(lambda: host.kind.list()["bad"]["state"] == "failed", patience=PATIENCE)
    assert host.kind.list()["bad"]["exit"] == "exit 7"


@pytest.mark.parametrize("machine", ["pc", "microvm"])
def test_a_kernel_may_boot_by_pvh(host: Host, built: Path, tmp_path: Path, machine: str) -> None:
    host.settings["qemu"] = {"machine": machine}
    kernel = str(tiny_kernel.build(tmp_path / "pvh", "-DPVH"))
    host.apply({"tiny": host.desired("tiny", kernel=kernel, args=["exit=0"], limits=LIMITS, restart="never")})
    until(lambda: host.kind.list()["tiny"]["state"] == "stopped", patience=PATIENCE)
    assert "kernel: started: exit=0" in lines(host)
    assert host.kind.list()["tiny"]["exit"] == "exit 0"


def test_without_an_interface_its_mailbox_is_all_that_it_reaches(host: Host, kernel: str) -> None:
    ends = threading.Event()
    answered = []

    def serve() -> None:
        """Answer at the environment's own loopback, in place of the forwarder."""
        assert (
            ctypes.CDLL(None, use_errno=True).setns(os.open(host.layout.netns("tiny"), os.O_RDONLY), CLONE_NEWNET) == 0
        )
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as broker:
            broker.bind(("127.0.0.1", 5672))
            broker.settimeout(0.2)
            while not ends.is_set():
                try:
                    text, asker = broker.recvfrom(100)
                except TimeoutError:
                    continue
                answered.append(text)
                broker.sendto(b"welcome", asker)

    host.namespace("tiny")
    server = threading.Thread(target=serve)
    _lo_up(host)
    server.start()
    try:
        host.run("tiny", kernel=kernel, args=["ask=5672"], limits=LIMITS)
        written(host, "answer: welcome")
        assert set(answered) == {b"hello"}
    finally:
        ends.set()
        server.join()


def _lo_up(host: Host) -> None:
    import subprocess

    subprocess.run(["ip", "-n", host.layout.netns("tiny").name, "link", "set", "lo", "up"], check=True)


def test_a_tender_that_is_missing_is_refused_in_the_plan(host: Host, kernel: str) -> None:
    plan = host.plan({"tiny": host.desired("tiny", kernel=kernel, runtime="solo5", limits=LIMITS)})
    assert plan.steps == []
    (refusal,) = plan.refusals
    assert refusal.message == (
        "netspace:environments:tiny:runtime: solo5 can't be used here: the program solo5-spt is missing on this host; "
        "say where it is: netspace:runtimes:solo5:program"
    )


# -- solo5-spt, which no distribution has --------------------------------------------------


@pytest.fixture
def solo5(host: Host) -> Iterator[Path]:
    if not SOLO5:
        pytest.skip(
            "NETSPACE_SOLO5 names no folder with solo5-spt and test_hello.spt, test_blk.spt, test_exception.spt"
        )
    host.settings["solo5"] = {"program": f"{SOLO5}/solo5-spt"}
    yield Path(SOLO5)


def test_a_solo5_kernel_runs_without_kvm(host: Host, solo5: Path) -> None:
    keys: dict[str, Any] = {"runtime": "solo5", "limits": {"memory": "64M"}, "restart": "never"}
    files = {"password": b"secret"}
    host.apply(
        {"hello": host.desired("hello", kernel=f"{solo5}/test_hello.spt", args=["Hello_Solo5"], files=files, **keys)}
    )
    until(lambda: host.kind.list()["hello"]["state"] == "stopped", patience=PATIENCE)
    assert any("SUCCESS" in line for line in lines(host, "hello")), lines(host, "hello")
    host.apply({"disk": host.desired("disk", kernel=f"{solo5}/test_blk.spt", files=files, **keys)})
    until(lambda: host.kind.list()["disk"]["state"] == "stopped", patience=PATIENCE)
    assert any("SUCCESS" in line for line in lines(host, "disk")), lines(host, "disk")
    # It tried to write all of its disk: that was a copy of its own.
    assert host.kind.observe().environments["disk"].files is not None
