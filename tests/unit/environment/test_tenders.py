"""Tests of kernels and tenders that start no tender: declarations, command lines, the disk, manifests."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.environments.solo5_kernel import FIRST, elf

from netspace.environment import plan, runtimes, services
from netspace.environment.container import oci_config, seccomp, unikernel
from netspace.environment.desired import DesiredEnvironment
from netspace.environment.images import sources
from netspace.environment.images.sources import Defaults
from netspace.environment.observe import Observed
from netspace.environment.runtimes import Runtime, qemu, solo5
from netspace.errors import NetspaceError, SpecError
from netspace.layout import TAP, Layout
from netspace.spec import parse

KERNEL = {"kernel": "/srv/clock.elf", "limits": {"memory": "128M"}}
START = ("/tender/lib/ld.so", "--library-path", "/tender/lib", "/tender/x")


def problems(**keys: Any) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        parse.declaration({"environments": {"clock": {**KERNEL, **keys}}})
    return {
        problem.path.removeprefix("netspace:environments:clock:"): problem.message for problem in caught.value.problems
    }


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("kernel", "clock.elf", "expected an absolute path"),
        ("image", "tar:/x", "either an image or a kernel"),
        ("command", ["/x"], "a kernel has no command"),
        ("env", {"A": "b"}, "no variables"),
        ("working_dir", "/x", "no folders"),
        ("volumes", [{"target": "/x", "size": "64M"}], "no folders"),
        ("read_only", True, "no root file system"),
        ("target", True, "Salt can't run programs in a kernel"),
        ("seccomp", "standard", "has its own profile"),
        ("limits", {"memory": "128M", "pids": 7}, "the runtime qemu needs a part of it for itself; give at least 8"),
        ("args", ["a", "b c"], "'b c': qemu gives a kernel one line"),
        ("args", ["a", ""], "'': qemu gives a kernel one line"),
        ("args", ["a", "b\u00a0c"], "qemu gives a kernel one line"),
        ("args", ["a", "b\x1bc"], "qemu gives a kernel one line"),
        ("runtime", "crun", "'crun' is not a runtime for kernels; choose from qemu, solo5, xen"),
    ],
)
def test_what_a_kernel_cannot_have_is_an_error_with_its_path(key: str, value: Any, message: str) -> None:
    assert message in problems(**{key: value})[{"limits": "limits:pids", "args": "args:1"}.get(key, key)]


def test_its_interface_is_a_tap_device_and_it_has_memory_beside_its_tender() -> None:
    assert "use tap" in problems(interface={"kind": "veth"})["interface:kind"]
    assert problems(limits={"memory": "96M"}) == {
        "limits:memory": "a kernel under qemu needs at least 104M, of which qemu itself takes 96M"
    }
    assert "no root file system" in problems(limits={"memory": "256M", "disk": "64M"})["limits:disk"]
    small = {"environments": {"clock": {**KERNEL, "limits": {"memory": "32M"}, "runtime": "solo5"}}}
    assert parse.declaration(small).environments["clock"].kernel == "/srv/clock.elf"
    with pytest.raises(SpecError, match="web:image: missing"):
        parse.environment("web", {"command": ["/x"]})


def test_arguments_are_handed_over_as_they_are_or_refused() -> None:
    odd = ["a=b", "b c", "", "d\ne"]
    assert set(problems(args=odd)) == {"args:1", "args:2", "args:3"}
    separate = {"environments": {"clock": {**KERNEL, "args": odd, "runtime": "solo5"}}}
    assert parse.declaration(separate).environments["clock"].args == tuple(odd)
    plain = ["a=b", "c'd", 'e"f', "\\", "\u00fc", ","]
    assert parse.declaration({"environments": {"clock": {**KERNEL, "args": plain}}}).environments["clock"].args


def test_an_image_cannot_be_declared_to_be_a_kernel() -> None:
    with pytest.raises(SpecError, match="write <source>:<location>"):
        parse.environment("web", {"image": "kernel:qemu:/srv/x"})
    assert sources.split("kernel:qemu:/srv/x")[0] is unikernel


def rendered(name: str, settings: dict[str, Any] | None = None, cmd: tuple[str, ...] = (), **keys: Any) -> Any:
    spec = parse.environment("clock", {**KERNEL, "args": ["a", "b"], **keys})
    return unikernel.program(
        Layout(), "clock", spec, Runtime(name, settings or {}), Defaults(entrypoint=START, cmd=cmd)
    )


def test_the_command_line_of_qemu() -> None:
    command = rendered("qemu", interface={"kind": "tap"}).command
    assert command[:4] == START
    text = " ".join(command)
    for part in (
        "-nodefaults -no-user-config -display none -no-reboot",
        "-m 32 ",
        "-accel tcg,",
        f"-netdev tap,id=interface,ifname={TAP},script=no,downscript=no",
        f"-device virtio-net-pci,netdev=interface,mac={Layout().mac('clock')},romfile=",
        "filename=/run/netspace/handout.tar,read-only=on,locking=off",
        "-kernel /kernel -append a b",
    ):
        assert part in text, part
    # Without an interface there is only what leads to the mailbox.
    assert [part for part in rendered("qemu").command if part.startswith(("tap", "user,"))] == [
        "user,id=mailbox,ipv6=off"
    ]
    small = " ".join(rendered("qemu", {"machine": "microvm", "accelerator": "kvm"}).command)
    assert "-machine microvm" in small and "virtio-net-device" in small and "-accel kvm" in small
    assert qemu.devices(qemu.Settings(accelerator="kvm")) == ("/dev/kvm",)
    assert qemu.devices(qemu.Settings()) == ()


def test_the_command_line_of_solo5() -> None:
    found = ("--block:storage=/run/disk/handout.tar", "--net:service=tap0")
    command = rendered("solo5", cmd=found, limits={"memory": "64M"}).command
    assert command == (*START, "--mem=56", *found, "--", "/kernel", "a", "b")
    # Frames with another MAC than the interface's go nowhere, and the tender's own choice is by chance.
    command = rendered("solo5", cmd=found, limits={"memory": "64M"}, interface={"kind": "tap"}).command
    mac = f"--net-mac:service={Layout().mac('clock')}"
    assert command == (*START, "--mem=56", *found, mac, "--", "/kernel", "a", "b")


@pytest.mark.parametrize("name", [name for name in runtimes.running("kernels") if not Runtime(name).outside])
def test_a_tender_is_jailed_like_any_program(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "_program", lambda runtime, name, package, path: f"/usr/bin/{name}")
    tender = rendered(name)
    keys = {"layout": Layout(), "base": 65536, "cgroup": "/x", "machine": "x86_64"}
    config = oci_config.config("clock", tender, rules=seccomp.tender("x86_64"), **keys)
    usual = oci_config.config("clock", parse.environment("clock", {"image": "tar:/x", "command": ["/x"]}), **keys)
    for key in ("capabilities", "noNewPrivileges", "rlimits", "oomScoreAdj"):
        assert config["process"][key] == usual["process"][key], key
    for key in ("namespaces", "uidMappings", "maskedPaths", "readonlyPaths"):
        assert config["linux"][key] == usual["linux"][key], key
    assert config["root"]["readonly"]
    service = services.service(Layout(), "clock", parse.environment("clock", KERNEL), Runtime(name), {}, ())
    assert "/usr/bin/crun" in service.command
    assert (service.stop_timeout < 1) == (name == "solo5")


def test_a_tender_makes_threads_but_no_process_and_is_narrower_than_strict() -> None:
    tender, strict = seccomp.tender("x86_64"), seccomp.profile("strict", "x86_64")
    assert seccomp.dangers(tender) == []
    # Only one that looks for its device may ask which there are.
    looking = seccomp.tender("x86_64", looks=True)
    assert seccomp.dangers(looking) == []
    asking = (16, 3 | 0o2000000, 0)
    assert seccomp.answer(looking, "socket", asking).passes and seccomp.answer(strict, "socket", asking).passes
    assert not seccomp.answer(tender, "socket", asking).passes
    assert [rule for rule in looking["syscalls"] if rule not in tender["syscalls"]] == [looking["syscalls"][-1]]
    thread = 0x003D0F00
    assert seccomp.answer(tender, "clone", (thread,)).passes
    assert not seccomp.answer(tender, "clone", (0x01200011,)).passes
    assert not seccomp.answer(tender, "clone", (thread | 0x20000000,)).passes
    assert seccomp.answer(tender, "socket", (2, 1 | 0o2000000, 0)).passes
    for call in ((1, 1, 0), (16, 3, 0), (10, 1, 0), (2, 3, 1), (17, 3, 0)):
        assert not seccomp.answer(tender, "socket", call).passes, call
    for call in ("fork", "vfork", "mknod", "unlink", "rename", "chmod", "shmget", "listen", "accept4", "ptrace"):
        assert not seccomp.answer(tender, call).passes, call
    for family in seccomp.TENDER.values():
        for call in family.calls.split():
            assert seccomp.answer(strict, call).passes, f"{call} passes a tender's but not strict"


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9._-]{0,20}", fullmatch=True), st.binary(max_size=2000), max_size=5))
def test_the_disk_is_a_plain_archive_of_whole_blocks(files: dict[str, bytes]) -> None:
    disk = unikernel.disk(files)
    assert len(disk) % 512 == 0 and disk
    assert unikernel.disk(dict(reversed(files.items()))) == disk
    with tarfile.open(fileobj=io.BytesIO(disk)) as archive:
        read = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
        assert list(read) == sorted(files)
    assert read == files


def test_other_arguments_are_no_reason_to_build_but_another_tender_is() -> None:
    spec = parse.environment("clock", KERNEL)
    one, other = Runtime("qemu"), Runtime("qemu", {"machine": "microvm"})
    assert unikernel.source(spec, one) == "kernel:qemu:/srv/clock.elf"
    assert unikernel.source(spec, other) == 'kernel:qemu{"machine":"microvm"}:/srv/clock.elf'
    assert DesiredEnvironment(spec, runtime=other).image == unikernel.source(spec, other)
    missing = DesiredEnvironment(spec, runtime=Runtime("solo5", {}, "the program solo5-spt is missing on this host; x"))
    (refusal,) = plan.plan({"clock": missing}, Observed({}, {}, "r")).refusals
    assert refusal.message.startswith(
        "netspace:environments:clock:runtime: solo5 can't be used here: the program solo5"
    )


def test_a_tenders_image_names_what_its_loader_loads(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"k")
    program = str(Path(sys.executable).resolve())
    location = f'solo5{{"program":"{program}"}}:{kernel}'
    try:
        runtime_, path, files, start = unikernel._parts(location)
    except NetspaceError as err:  # an interpreter that others than root may change
        pytest.skip(str(err))
    assert (runtime_.name, path) == ("solo5", str(kernel))
    assert files["/tender/solo5-spt"] == program
    libraries = {inside for inside in files if inside.startswith("/tender/lib/")}
    assert any("libc.so" in inside for inside in libraries)
    assert start[0] in libraries and start[1:3] == ("--library-path", "/tender/lib")
    before = unikernel.fingerprint(location)
    identity = unikernel.identity(location)
    kernel.write_bytes(b"other")
    assert unikernel.fingerprint(location) != before
    assert unikernel.identity(location) != identity
    assert unikernel.identity(location).rpartition(" ")[2] == sources.of_content(kernel)


def test_what_is_no_program_is_no_tender(tmp_path: Path) -> None:
    for content in (b"", b"#!/bin/sh\n", b"\x7fELF\x02\x01" + bytes(20), b"\x7fELF\x02\x01" + b"\xff" * 100):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(NetspaceError, match="can't be a tender"):
            unikernel._interpreter(str(tmp_path / "x"))


# -- Solo5's manifests ------------------------------------------------------------------------


def test_the_devices_of_a_solo5_kernel(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(elf([FIRST, (2, b"service"), (1, b"storage")]))
    assert solo5.reads(str(kernel), "/run/disk/x") == ("--block:storage=/run/disk/x", f"--net:service={TAP}")
    kernel.write_bytes(elf([FIRST]))
    assert solo5.reads(str(kernel), "/d") == ()
    kernel.write_bytes(elf([FIRST, (2, b"a"), (2, b"b")]))
    with pytest.raises(NetspaceError, match="wants a, b: there is only one network device"):
        solo5.reads(str(kernel), "/d")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x7fELF\x02\x01",
        b"#!/bin/sh",
        elf([FIRST])[:130],
        elf([FIRST], version=2),
        elf([FIRST] * 65),
        elf([FIRST], cut=8),
        elf([(2, b"a b")]),
        elf([(1, b"x\xff")]),
        elf([(2, b"a=/etc/shadow")]),
    ],
)
def test_what_is_no_manifest_is_an_error(content: bytes) -> None:
    with pytest.raises(NetspaceError, match=r"x is not a kernel for solo5-spt: "):
        solo5.manifest(content, "x")


@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_bytes_are_a_manifest_or_an_error(noise: bytes, at: int) -> None:
    content = bytearray(elf([FIRST, (2, b"service")]))
    content[at : at + len(noise)] = noise
    try:
        found = solo5.manifest(bytes(content), "x")
    except NetspaceError:
        return
    assert len(found) <= 64
    assert all(name.isalnum() for kind, name in found if kind in (1, 2))
