"""The shell that watches a domain, with stand-ins for Xen's programs: when they are called, and how the shell ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.waiting import until

from netspace.environment import starting
from netspace.environment.runtimes import xen
from netspace.supervision.service import Status

# A toolstack without a hypervisor: a domain is the file ``domain`` with its state, and ends as ``end`` says.
XL = r"""
echo "xl $*" >>"$HERE/calls"
case $1 in
  create)
    [ ! -e "$HERE/refuses" ] || { echo 'Parsing config from x'; echo 'xc: error: no loader found'; exit 3; }
    [ ! -e "$HERE/hangs" ] || exec sleep 60
    echo paused >"$HERE/domain"
    echo "Waiting for domain netspace-web (domid 7) to die [pid $$]" >&2
    echo $$ >"$HERE/xl-pid"
    while [ -e "$HERE/domain" ] && [ ! -e "$HERE/end" ]; do sleep 0.02; done
    if [ -e "$HERE/end" ]; then
      echo "Domain 7 has shut down, reason code $(cat "$HERE/end") 0x0" >&2
    else
      echo 'Domain 7 has been destroyed.' >&2
    fi
    rm -f "$HERE/domain" ;;
  domid) [ -e "$HERE/domain" ] && echo 7 ;;
  unpause) echo running >"$HERE/domain" ;;
  shutdown) echo 0 >"$HERE/end" ;;
  destroy) [ -e "$HERE/domain" ] && rm "$HERE/domain" ;;
esac
"""
STORE = r"""
echo "xenstore-read $*" >>"$HERE/calls"
case $1 in
  */console/tty) cat "$HERE/console" ;;
  */feature-poweroff) cat "$HERE/polite" ;;
esac
"""
TOLD = 'echo "${0##*/} $*" >>"$HERE/calls"'
ENTER = TOLD + '\n[ ! -e "$HERE/unplugged" ] || { echo "no such device" >&2; exit 1; }'


CONSOLE: list[int] = []  # the end of the domain's console that the host holds


class Watch:
    """A running watch, and what it did."""

    def __init__(self, folder: Path, *, peer: str = "xen1") -> None:
        self.folder = folder
        script = (xen._WATCH, str(folder / "xl"), "netspace-web", str(folder / "domain.cfg"))
        rest = (str(folder / "runtime.log"), str(folder / "pid"), peer, "1400")
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", *script, *rest],
            env={"PATH": f"{folder}:{os.defpath}", "HERE": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=(folder / "out").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def text(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    def runs(self) -> None:
        until(lambda: self.text("domain") == "running\n", "no domain")

    def end(self) -> int:
        until(lambda: not self.text("domain"), "the domain stays")
        os.close(CONSOLE.pop())  # as xenconsoled does
        return self.process.wait(20)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    programs = {"xl": XL, "xenstore-read": STORE, "xenstore-write": TOLD, "ip": TOLD, "tc": TOLD, "nsenter": ENTER}
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    host, guest = os.openpty()
    tty.setraw(guest)
    os.write(host, b"kernel: ready\n")
    (tmp_path / "console").write_text(os.ttyname(guest))
    CONSOLE.append(host)
    yield tmp_path
    os.close(guest)
    assert CONSOLE == []
    shutil.rmtree(tmp_path)


def test_a_device_is_joined_before_the_kernel_runs(folder: Path) -> None:
    watch = Watch(folder)
    watch.runs()
    until(lambda: watch.text("pid") == f"{watch.process.pid}\n", "it hasn't begun")
    redirect = "ingress protocol all prio 1 handle 1 bpf bytecode 1,6 0 0 4294967295 action mirred egress redirect dev"
    assert watch.text("calls").splitlines() == [
        "xl destroy netspace-web",
        f"xl create -F -p {folder}/domain.cfg",
        "xl domid netspace-web",
        f"nsenter --net=/proc/self/fd/3 -- ip link set dev vif7.0 netns {watch.process.pid}",
        "tc qdisc replace dev vif7.0 clsact",
        f"tc filter replace dev vif7.0 {redirect} xen1",
        "tc qdisc replace dev xen1 clsact",
        f"tc filter replace dev xen1 {redirect} vif7.0",
        "ip link set dev vif7.0 arp off mtu 1400 up",
        "xenstore-write /local/domain/0/backend/vif/7/0/hotplug-status connected",
        "xenstore-read /local/domain/7/console/tty",
        "xl unpause netspace-web",
    ]
    watch.process.send_signal(signal.SIGTERM)
    assert watch.end() == 0
    assert watch.text("out") == "kernel: ready\n"
    assert watch.text("domain") == "" and watch.text("runtime.log") == ""


@pytest.mark.parametrize(("reason", "status"), [(0, 0), (1, 0), (2, 2), (3, 3), (4, 4), (77, 125)])
def test_the_status_tells_how_a_domain_ended(folder: Path, reason: int, status: int) -> None:
    watch = Watch(folder, peer="")
    watch.runs()
    assert "ip link" not in watch.text("calls")
    (folder / "end").write_text(f"{reason}\n")
    assert watch.end() == status
    assert watch.text("calls").splitlines()[-1] == "xl destroy netspace-web"


def test_a_kernel_that_obeys_is_asked_and_another_is_ended(folder: Path) -> None:
    (folder / "polite").write_text("1\n")
    watch = Watch(folder, peer="")
    watch.runs()
    watch.process.send_signal(signal.SIGTERM)
    assert watch.end() == 0
    assert watch.text("calls").splitlines().count("xl shutdown netspace-web") == 1


def test_a_domain_that_another_ended_is_a_failure(folder: Path) -> None:
    watch = Watch(folder, peer="")
    watch.runs()
    (folder / "domain").unlink()
    assert watch.end() == 125
    assert watch.text("out").endswith("Domain 7 has been destroyed.\n")


def test_a_killed_toolstack_ends_the_domain(folder: Path) -> None:
    watch = Watch(folder, peer="")
    watch.runs()
    os.kill(int(watch.text("xl-pid")), signal.SIGKILL)
    assert watch.end() == 125
    assert watch.text("domain") == ""


def test_a_refusal_has_the_toolstacks_first_error(folder: Path) -> None:
    (folder / "refuses").touch()
    watch = Watch(folder)
    assert watch.end() == 125
    assert watch.text("runtime.log") == "xc: error: no loader found\n"
    assert not (folder / "pid").exists()


def test_a_device_that_cannot_be_joined_ends_the_domain(folder: Path) -> None:
    (folder / "unplugged").touch()
    watch = Watch(folder)
    assert watch.end() == 125
    assert watch.text("runtime.log") == "its interface can't be joined with the domain: no such device\n"
    assert "unpause" not in watch.text("calls") and watch.text("domain") == ""


@pytest.mark.parametrize("path", ["/dev/pts/", "/dev/pts/../mem", "/etc/shadow", "7", "/dev/pts/7 x"])
def test_a_console_that_is_no_terminal_is_not_read(folder: Path, path: str) -> None:
    (folder / "console").write_text(path)
    watch = Watch(folder, peer="")
    assert watch.end() == 125
    assert watch.text("runtime.log") == f"its console is no terminal: {path}\n"
    assert watch.text("out") == "" and watch.text("domain") == ""


def test_a_stop_during_the_start_ends_the_domain(folder: Path) -> None:
    (folder / "hangs").touch()
    watch = Watch(folder)
    until(lambda: "xl create" in watch.text("calls"), "not begun")
    watch.process.send_signal(signal.SIGTERM)
    assert watch.end() == 0
    assert watch.text("runtime.log") == ""
    with pytest.raises(ProcessLookupError):  # nothing of it is left
        os.killpg(watch.process.pid, 0)


def test_a_start_is_watched_until_the_domain_is_made(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    mark.write_text("6\n")  # of another run
    one = starting._Started(Status("running", 7), 60.0, 0.0, "/x", False, mark)
    assert not one.stays(1.0)
    mark.write_text("7\n")
    assert not one.stays(2.0)
    assert not one.stays(2.0 + starting.PATIENCE / 2)
    assert one.stays(2.0 + starting.PATIENCE)
    never = starting._Started(Status("running", 7), 60.0, 0.0, "/x", False, tmp_path / "none")
    assert not never.stays(59.0) and never.stays(60.0)
