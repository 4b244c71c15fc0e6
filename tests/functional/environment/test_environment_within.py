"""Access from the host to files inside an environment, with the rights of the environment's user, despite traps."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.environments.environment_host import Host

from netspace.environment.storage import guest_files
from netspace.errors import NetspaceError
from netspace.host.salt_targets import Targets

pytestmark = pytest.mark.root

MINION = "shop.example"
CARD = {"environment.json": b"{}\n"}


@pytest.fixture
def targets(host: Host, writable: str) -> Targets:
    """The targets of a minion: the environment ``web`` is a target, ``shy`` is not."""
    host.run("web", image=writable, target=True)
    host.run("shy")
    return Targets(host.layout, MINION)


@pytest.fixture
def inside(targets: Targets) -> Iterator[Any]:
    with targets.files(f"{MINION}-web") as found:
        yield found


def refused(act: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(NetspaceError) as caught:
        act(*arguments)
    return str(caught.value)


def test_only_what_is_declared_a_target_is_one(host: Host, targets: Targets) -> None:
    assert targets.list() == {f"{MINION}-web": "web"}
    assert targets.environment(f"{MINION}-web") == "web"
    for other, why in (
        (f"{MINION}-shy", "is not declared with 'target: true'"),
        (f"{MINION}-none", "there is no environment none"),
        ("other.example-web", "is not an environment of this host"),
        ("web", "is not an environment of this host"),
        (f"{MINION}-../web", "is not an environment of this host"),
    ):
        for act in (targets.environment, targets.grains, lambda target: targets.run(target, ["/bin/true"])):
            assert why in refused(act, other)
        assert targets.ping(other) is False


def test_a_target_comes_and_goes_without_a_restart(host: Host, targets: Targets, writable: str) -> None:
    pid = host.pid("web")
    wanted = {"web": host.desired("web", image=writable, target=False)}
    (step,) = host.plan(wanted).steps
    assert (step.action, step.changes) == ("update", {"target": {"old": True, "new": False}})
    assert host.apply(wanted)["web"].error == ""
    assert (host.pid("web"), host.plan(wanted).steps) == (pid, [])
    assert targets.list() == {}
    assert targets.ping(f"{MINION}-web") is False
    host.operations.stop(["shy"])
    host.run("web", image=writable, target=True)
    host.operations.stop(["web"])
    assert targets.list() == {}
    assert "does not run" in refused(targets.run, f"{MINION}-web", ["/bin/true"])


def test_ping_and_commands_are_answered_from_inside(host: Host, targets: Targets) -> None:
    target = f"{MINION}-web"
    assert targets.ping(target) is True
    answer = targets.run(target, "id -u; echo $A; pwd; cat; exit 3", stdin="in", folder="/tmp", variables={"A": "b"})
    assert (answer.retcode, answer.stdout.split()) == (3, ["1000", "b", "/tmp", "in"])
    assert targets.run(target, ["busybox", "printf", "\\033]0;x\\007ok\\n"]).stdout == "\ufffd]0;x\ufffdok\n"
    long = targets.run(target, "head -c 400000 /dev/zero | busybox tr '\\0' x")
    assert (len(long.stdout), long.truncated) == (256 * 1024, True)
    assert targets.run(target, "sleep 100", timeout=0.5).timed_out
    for bad in ({"timeout": 0}, {"timeout": "x"}, {"folder": "tmp"}, {"variables": {"A=B": ""}}, {"folder": "/\0"}):
        assert refused(lambda options=bad: targets.run(target, ["/bin/true"], **options))


def test_files_are_made_changed_and_removed_as_its_user(host: Host, inside: Any) -> None:
    inside.make_folder("/var/a", 0o750)
    inside.write("/var/a/b", b"one", 0o640)
    assert (inside.read("/var/a/b"), inside.look("/var/a/b")) == (b"one", guest_files.Entry("file", 0o640))
    inside.make_link("/var/a/l", "b")
    inside.write("/var/a/l", b"two", None)
    assert (inside.read("/var/a/b"), inside.look("/var/a/l").target) == (b"two", "b")
    inside.chmod("/var/a/b", 0o600)
    found = host.sh("web", "cat /var/a/b; echo; busybox stat -c '%u %a' /var/a/b /var/a; ls -A /var/a")
    assert found.split() == ["two", "1000", "600", "1000", "750", "b", "l"]
    assert inside.look("/var/none") is None and inside.read("/var/none") is None
    inside.write("/tmp/in-memory", b"x", None)
    assert host.sh("web", "cat /tmp/in-memory") == "x"
    inside.remove("/var/a")
    assert inside.look("/var/a") is None
    assert os.getuid() == 0 and os.geteuid() == 0


def test_what_its_user_may_not_do_is_refused(inside: Any) -> None:
    for act in (
        lambda: inside.write("/etc/motd", b"x", None),
        lambda: inside.write("/new", b"x", None),
        lambda: inside.make_folder("/bin/x", 0o755),
        lambda: inside.remove("/bin/busybox"),
        lambda: inside.chmod("/etc/motd", 0o666),
        lambda: inside.write("/run/netspace/environment.json", b"x", None),
        lambda: inside.write("/proc/self/comm", b"x", None),
        lambda: inside.read("/proc/1/status"),
        lambda: inside.read("/proc/1/root/etc/passwd"),
        lambda: inside.write("/dev/null", b"x", None),
        lambda: inside.read("relative"),
        lambda: inside.read("/var/\0"),
        lambda: inside.write("/var/..", b"x", None),
        lambda: inside.read("/dev/zero"),
    ):
        assert refused(act)


def test_no_link_leads_out_and_nothing_there_blocks(host: Host, inside: Any) -> None:
    secret = host.layout.run / "secret"
    secret.write_text("the host's")
    secret.chmod(0o666)
    links = {"up": "../../../../../../../../../.." + str(secret), "whole": str(secret), "folder": "/../../.."}
    for name, target in links.items():
        host.sh("web", f"cd /var && busybox ln -s {target} {name}")
    host.sh("web", "cd /var && busybox ln -s round round; busybox mkfifo pipe; busybox ln -s pipe piped")
    for name in ("up", "whole", f"folder{secret}"):
        assert inside.read(f"/var/{name}") is None
        assert refused(inside.write, f"/var/{name}", b"x", None)
    for name in ("round", "pipe", "piped"):
        assert refused(inside.read, f"/var/{name}")
        assert refused(inside.write, f"/var/{name}", b"x", None)
    assert secret.read_text() == "the host's"


def test_what_is_too_much_is_refused(host: Host, inside: Any) -> None:
    host.sh("web", "cd /var; busybox dd if=/dev/zero of=big bs=1024 count=2")
    assert "larger than 1024 bytes" in refused(inside.read, "/var/big", 1024)
    host.sh("web", "cd /var; for i in $(busybox seq 80); do busybox mkdir d && cd d; done")
    assert "deep in one another" in refused(inside.remove, "/var/d")
    host.sh("web", "busybox rm -r /var/d; cd /var; busybox mkdir m; for i in $(busybox seq 1500); do echo >m/$i; done")
    inside.remove("/var/m")
    assert inside.look("/var/m") is None


def test_grains_tell_what_is_known_and_what_the_image_claims(host: Host, targets: Targets) -> None:
    grains = targets.grains(f"{MINION}-web")
    record = host.kind.recorded()["web"]
    assert grains["id"] == f"{MINION}-web" and grains["minion"] == MINION and grains["environment"] == "web"
    assert grains["image_digest"] == f"sha256:{record.image.digest}"
    assert grains["trust"]["level"] == "L0"
    assert "os" not in grains
    root = host.layout.bundle("web") / "rootfs"
    assert guest_files.beginning(str(root), "/etc/motd", 4) == (root / "etc/motd").read_bytes()[:4]
    host.sh("web", "busybox mkfifo /var/pipe; busybox ln -s /proc/1/environ /var/env")
    for path in ("/none", "/var/pipe", "/var/env", "/bin", "/../../../../etc/hostname"):
        assert guest_files.beginning(str(root), path, 100) == b""
    assert guest_files.beginning("/none", "/etc/motd", 100) == b""


def test_a_file_with_a_lease_on_it_is_given_up_soon(host: Host, inside: Any) -> None:
    """Reading a file on which its owner holds a lease fails within seconds, and succeeds once the lease is released.

    netspace's filters refuse leases inside an environment, but a filter of another runtime may permit them.
    """
    inside.write("/tmp/leased", b"x", None)
    with open(f"/proc/{host.pid('web')}/root/tmp/leased", "rb+") as file:
        before = signal.signal(signal.SIGIO, signal.SIG_IGN)
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            began, used = time.monotonic(), time.process_time()
            assert "temporarily unavailable" in refused(inside.read, "/tmp/leased")
            assert time.monotonic() - began < 20  # the kernel would wait for 45
            assert time.process_time() - used < 0.7  # and nothing spins
        finally:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            signal.signal(signal.SIGIO, before)
    assert inside.read("/tmp/leased") == b"x"
