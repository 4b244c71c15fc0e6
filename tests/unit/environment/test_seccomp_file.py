"""An operator's own system call profile is either understood completely or refused."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.environment.container import seccomp, seccomp_file
from netspace.environment.container.seccomp_file import Profile
from netspace.environment.desired import DesiredEnvironment
from netspace.environment.images import Image
from netspace.environment.images.sources import Defaults
from netspace.environment.observe import Observed, ObservedEnvironment
from netspace.environment.plan import plan
from netspace.environment.record import Record
from netspace.errors import NetspaceError, SpecError
from netspace.spec import parse
from netspace.supervision.service import Status

ALLOW = {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"}


def read(machine="x86_64", kernel="6.1.0", **keys):
    content = json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [ALLOW], **keys}).encode()
    return seccomp_file.parse(content, "/p.json", machine, kernel)


def test_an_oci_profile_is_taken_as_it_is():
    condition = {"index": 0, "value": 1, "valueTwo": 0, "op": "SCMP_CMP_EQ"}
    rules = [ALLOW, {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97, "args": [condition]}]
    profile = read(
        architectures=["SCMP_ARCH_X86_64"], flags=["SECCOMP_FILTER_FLAG_LOG"], defaultErrnoRet=38, syscalls=rules
    )
    assert profile.rules == {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": rules,
    }
    assert profile.dangers == ()
    assert len(profile.digest) == 64


@pytest.mark.parametrize("name", seccomp.PROFILES)
def test_our_own_profiles_are_understood_and_harmless(name):
    rules = seccomp.profile(name, "x86_64")
    read_back = seccomp_file.parse(json.dumps(rules).encode(), "/p.json", "x86_64", "6.1")
    assert read_back.dangers == ()
    for call in ("clone", "socket", "keyctl", "read", "clone3"):
        for arguments in ((), (2, 1, 6), (0x10000000,)):
            assert seccomp.answer(read_back.rules, call, arguments) == seccomp.answer(rules, call, arguments)


def test_docker_s_conditions_are_resolved_for_this_machine_and_no_capability():
    def names(machine, kernel="6.1.0"):
        conditions = [
            ("capable", {"includes": {"caps": ["CAP_SYS_ADMIN"]}}),
            ("incapable", {"excludes": {"caps": ["CAP_SYS_ADMIN"]}}),
            ("intel", {"includes": {"arches": ["amd64", "x32"]}}),
            ("not_intel", {"excludes": {"arches": ["amd64"]}}),
            ("new", {"includes": {"minKernel": "5.10"}}),
        ]
        rules = [{"names": [n], "action": "SCMP_ACT_ALLOW", "comment": "", **keys} for n, keys in conditions]
        found = read(machine, kernel, syscalls=rules, archMap=ARCHITECTURES)
        return {name for rule in found.rules["syscalls"] for name in rule["names"]}, found.rules["architectures"]

    intel = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert names("x86_64") == ({"incapable", "intel", "new"}, intel)
    assert names("aarch64", "5.9-x") == ({"incapable", "not_intel"}, ["SCMP_ARCH_AARCH64"])


ARCHITECTURES = [
    {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
    {"architecture": "SCMP_ARCH_AARCH64"},
]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"listenerPath": "/run/x"}, "unknown field `listenerPath`"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "SCMP_ACT_NOTIFY"),
        ({"defaultAction": "SCMP_ACT_TRACE"}, "SCMP_ACT_TRACE"),
        ({"syscalls": [{**ALLOW, "extra": 1}]}, "extra"),
        ({"syscalls": [{**ALLOW, "names": ["a b"]}]}, "names"),
        ({"syscalls": [{"names": [], "action": "SCMP_ACT_ALLOW"}]}, "names 0 calls"),
        ({"syscalls": [{**ALLOW, "errnoRet": 4096}]}, "4095"),
        ({"syscalls": [{**ALLOW, "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}, "index"),
        ({"syscalls": [{**ALLOW, "args": [{"index": 0, "value": -1, "op": "SCMP_CMP_EQ"}]}]}, "64 bits"),
        ({"syscalls": [{**ALLOW, "args": [{"index": 0, "value": 2**64, "op": "SCMP_CMP_EQ"}]}]}, "value"),
        ({"syscalls": [{**ALLOW, "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_IS"}]}]}, "SCMP_CMP_IS"),
        ({"syscalls": [{**ALLOW, "includes": {"minKernel": "new"}}]}, "isn't a kernel version"),
        ({"syscalls": [{**ALLOW, "excludes": {"minKernel": "5.1"}}]}, "excludes:minKernel"),
        ({"syscalls": [ALLOW] * (seccomp_file.MAX_RULES + 1)}, "more than 2000 rules"),
        ({"architectures": ["SCMP_ARCH_AARCH64"]}, "not for this machine"),
        ({"architectures": ["SCMP_ARCH_X86_64"], "archMap": ARCHITECTURES}, "both"),
        ({"architectures": ["SCMP_ARCH_X86_64", "x"]}, "not an architecture"),
        ({"flags": ["SECCOMP_FILTER_FLAG_NEW_LISTENER"]}, "NEW_LISTENER"),
    ],
)
def test_what_is_not_understood_is_refused(keys, message):
    with pytest.raises(NetspaceError, match=message):
        read(**keys)


@given(st.binary(max_size=200) | st.recursive(st.none() | st.text(), st.lists).map(lambda v: json.dumps(v).encode()))
def test_whatever_a_file_holds_is_an_error_or_a_profile(content):
    with pytest.raises(NetspaceError, match=r"^seccomp profile /p.json: "):
        seccomp_file.parse(content, "/p.json")


def test_dangers_are_named():
    assert read(syscalls=[{"names": ["keyctl", "mount", "read"], "action": "SCMP_ACT_LOG"}]).dangers == (
        "keyctl",
        "mount",
    )
    everything = read(defaultAction="SCMP_ACT_ALLOW", syscalls=[{"names": ["bpf"], "action": "SCMP_ACT_ERRNO"}])
    assert "bpf" not in everything.dangers
    assert {"ptrace", "unshare", "clone with a new namespace", "clone3"} <= set(everything.dangers)
    assert {"syncfs", "fcntl with F_SETLEASE", "mmap with MAP_HUGETLB"} <= set(everything.dangers)
    # The kernel reads half of the argument that this compares: with a bit of the other half a lease passes.
    unequal = [{"index": 1, "value": 1024, "op": "SCMP_CMP_NE"}]
    half = read(syscalls=[{"names": ["fcntl"], "action": "SCMP_ACT_ALLOW", "args": unequal}])
    assert "fcntl with F_SETLEASE" in half.dangers
    wide = read(architectures=["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"])
    assert wide.dangers == ("the calls of SCMP_ARCH_X86",)
    assert "clone with a new namespace" in read(syscalls=[{"names": ["clone"], "action": "SCMP_ACT_ALLOW"}]).dangers


def test_only_a_plain_file_that_nobody_else_can_change_is_read(tmp_path):
    path = tmp_path / "p.json"
    name = f"file:{path}"
    assert "No such file" in seccomp_file.look(name).error
    path.write_text('{"defaultAction": "SCMP_ACT_ERRNO"}')
    path.chmod(0o644)
    assert seccomp_file.look(name).error == ""
    path.chmod(0o664)
    assert "chmod go-w" in seccomp_file.look(name).error
    path.chmod(0o600)
    path.write_text(" " * (seccomp_file.MAX_BYTES + 1))
    assert "larger than 256 KiB" in seccomp_file.look(name).error
    path.unlink()
    os.mkfifo(path)
    assert "no regular file" in seccomp_file.look(name).error
    assert seccomp_file.look("strict") is None


@pytest.mark.parametrize("name", ["file:", "file:p.json", "file:/a/../b", "loose", "xfile:/a", "file:/a\0"])
def test_a_name_that_names_nothing_is_refused(name):
    with pytest.raises(SpecError, match="is not a profile"):
        parse.declaration({"environments": {"web": {"image": "tar:/x", "seccomp": name}}})


def test_a_changed_file_restarts_and_says_why_a_broken_one_changes_nothing():
    spec = parse.environment("web", {"image": "tar:/x", "seccomp": "file:/p.json"})
    image = Image("d" * 64, "i", Defaults())
    record = Record(spec, "running", 1 << 30, image, "c", "r", {}, Profile("old", {}))
    seen = ObservedEnvironment(record, Status("running", 7), True, {})

    def steps(profile):
        return plan({"web": DesiredEnvironment(spec, profile=profile)}, Observed({"web": seen}, {}, "r"))

    assert not steps(Profile("old", {"x": 1})).steps
    changed = steps(Profile("new", {}, ("bpf", "mount")))
    (step,) = changed.steps
    assert (step.action, dict(step.changes)) == (
        "restart",
        {"seccomp": {"old": "sha256:old", "new": "sha256:new, as file:/p.json has now"}},
    )
    assert changed.notes == ["environment web: file:/p.json allows what no profile of netspace allows: bpf, mount"]
    broken = steps(Profile(error="seccomp profile /p.json: gone"))
    assert not broken.steps
    assert [refusal.message for refusal in broken.refusals] == ["seccomp profile /p.json: gone"]
