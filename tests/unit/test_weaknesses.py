"""Weaknesses of a host: each row of the check, computed from files with the values that a kernel can have."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netspace.environment.container import oci_config, seccomp, seccomp_arguments
from netspace.host import weaknesses
from netspace.host.weaknesses import devices, numbers, readings, sockets, users
from netspace.host.weaknesses.row import Row

PAGE = Path(__file__).parents[2] / "docs" / "isolation.md"
CPU = "sys/devices/system/cpu"
LSM, LOCKDOWN, KSM = "sys/kernel/security/lsm", "sys/kernel/security/lockdown", "sys/kernel/mm/ksm/run"
APPARMOR, PARSER = "sys/module/apparmor/parameters/enabled", "usr/sbin/apparmor_parser"
MODE = "sys/module/apparmor/parameters/mode"
FAILED = {"run/netspace/apparmor-problem": "no", "sys/kernel/security/apparmor/profiles": ""}
CGROUP2 = "sys/fs/cgroup/cgroup.controllers"

IOMMU, GROUP, USB = "sys/class/iommu/dmar0", "sys/kernel/iommu_groups/0", "sys/bus/usb/devices"
CPUINFO, PHYSICAL, VIRTUAL = "proc/cpuinfo", "flags : fpu sse", "flags : fpu hypervisor"

# A host in which nothing is to be mended.
GOOD = {
    **{readings.path(one.name)[1:]: str(one.advised) for one in numbers.NUMBERS},
    **{readings.path(one.name)[1:]: " ".join([str(one.least)] * one.of) for one in sockets.POOLS},
    "proc/sys/kernel/core_pattern": "core",
    "proc/sys/net/core/bpf_jit_enable": "1",
    "proc/sys/net/core/bpf_jit_harden": "2",
    "proc/sys/kernel/unprivileged_userns_clone": "0",
    "proc/sys/user/max_user_namespaces": "96365",
    LSM: "lockdown,capability,landlock,yama,apparmor",
    APPARMOR: "Y",
    MODE: "enforce",
    PARSER: "",
    LOCKDOWN: "none [integrity] confidentiality",
    KSM: "0",
    CGROUP2: "cpuset cpu io memory hugetlb pids",
    f"{CPU}/smt/active": "0",
    IOMMU: "",
    GROUP: "",
    "dev/null": "",
    f"{USB}/usb1/authorized_default": "0",
    f"{USB}/usb2/authorized_default": "2",
    f"{CPU}/vulnerabilities/meltdown": "Mitigation: PTI",
    f"{CPU}/vulnerabilities/mds": "Not affected",
}


def host(root: Path, files: dict[str, str | bytes]) -> dict[str, Row]:
    """Return the rows of a host that has these files, by name."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else f"{content}\n".encode())
        path.chmod(0o755)
    found = weaknesses.look(root)
    assert len({row.name for row in found}) == len(found)
    return {row.name: row for row in found}


def test_nothing_is_to_be_mended_on_a_good_host(tmp_path):
    found = host(tmp_path, GOOD)
    assert {name: row for name, row in found.items() if row.outcome != "good"} == {}
    assert {row.remedy for row in found.values()} == {""}
    assert weaknesses.count(list(found.values())) == {"good": len(found), "weak": 0, "unknown": 0}


def test_nothing_is_good_where_nothing_can_be_read(tmp_path):
    found = host(tmp_path, {})
    assert {row.outcome for row in found.values()} == {"unknown"}
    assert all(row.remedy for row in found.values())
    assert found["kernel.core_pattern"].found == "can't be read: No such file or directory"
    assert "cpu weaknesses" in found


@pytest.mark.parametrize("told", [{}, {f"{CPU}/vulnerabilities/mds": ""}])
def test_threads_are_good_only_where_the_processor_tells_of_weaknesses(tmp_path, told):
    assert host(tmp_path, {f"{CPU}/smt/active": "1", **told})["cpu threads"].outcome == "unknown"


def test_what_matters_for_environments_comes_first(tmp_path):
    matters = [row.matters for row in host(tmp_path, GOOD).values()]
    assert matters == sorted(matters, key=["environments", "local users", "host"].index)


@pytest.mark.parametrize("number", numbers.NUMBERS, ids=lambda number: number.name)
def test_a_number_is_good_within_its_range(tmp_path, number):
    file = readings.path(number.name)[1:]
    assert number.least <= number.advised and (number.most is None or number.advised <= number.most)

    def outcome(value: int | str) -> str:
        return host(tmp_path, {file: str(value)})[number.name].outcome

    assert outcome(number.least) == "good"
    assert outcome(number.least - 1) == "weak"
    assert outcome(number.advised) == "good"
    assert outcome(number.least + 100_000) == ("good" if number.most is None else "weak")
    assert outcome("") == outcome("1 1") == outcome("yes") == outcome("9" * 5000) == "unknown"
    row = host(tmp_path, {file: str(number.least - 1)})[number.name]
    assert f"`sysctl -w {number.name}={number.advised}`" in row.remedy


@pytest.mark.parametrize(
    ("name", "value", "outcome", "remedy"),
    [
        ("udp_mem", "65536\t87381\t131072", "good", ""),
        ("udp_mem", "21504\t28672\t70000", "weak", "sysctl -w net.ipv4.udp_mem='65536 65536 70000'`"),
        ("udp_mem", "65536", "unknown", "Only the host's own network namespace"),
        ("tcp_mem", "9000\t65536\t131072", "good", ""),
        ("tcp_mem", "65536\t65535\t131072", "weak", "sysctl -w net.ipv4.tcp_mem='65536 65536 131072'`"),
        ("tcp_mem", "1 2 3 4", "unknown", "/proc/sys/net/ipv4/tcp_mem"),
        ("tcp_max_orphans", "37449", "good", ""),
        ("tcp_max_orphans", "4096", "weak", "sysctl -w net.ipv4.tcp_max_orphans='37449'`"),
        ("tcp_max_orphans", "-1", "unknown", "/proc/sys/net/ipv4/tcp_max_orphans"),
        ("tcp_max_orphans", None, "unknown", "/proc/sys/net/ipv4/tcp_max_orphans"),
    ],
)
def test_pool_of_all_sockets_is_as_large_as_an_environment(tmp_path, name, value, outcome, remedy):
    files = {} if value is None else {f"proc/sys/net/ipv4/{name}": value}
    row = host(tmp_path, files)[f"net.ipv4.{name}"]
    assert row.outcome == outcome
    assert remedy in row.remedy and bool(remedy) == bool(row.remedy)
    assert value is None or row.found == value.replace("\t", " ")


@pytest.mark.parametrize(
    ("pattern", "outcome"),
    [
        ("core", "good"),
        ("/var/crash/core.%p", "good"),
        ("|/usr/lib/systemd/systemd-coredump %P %u", "weak"),
        ("@/run/coredump.socket", "weak"),
        ("@@/run/coredump.socket", "weak"),
    ],
)
def test_who_reads_what_crashes(tmp_path, pattern, outcome):
    row = host(tmp_path, {"proc/sys/kernel/core_pattern": pattern})["kernel.core_pattern"]
    assert (row.outcome, row.found) == (outcome, pattern)


def test_a_row_s_value_commands_no_terminal(tmp_path):
    row = host(tmp_path, {"proc/sys/kernel/core_pattern": b"core\x1b[2J\xff\n" + b"x" * 9000})["kernel.core_pattern"]
    assert row.found.startswith("core\\x1b[2J\ufffd\\nxxx")
    assert len(row.found) == 200


@pytest.mark.parametrize(
    ("files", "outcome", "found"),
    [
        ({APPARMOR: "Y", MODE: "enforce", PARSER: ""}, "good", "on, with "),
        ({APPARMOR: "Y", MODE: "kill", PARSER: ""}, "good", "on, with "),
        ({APPARMOR: "Y", MODE: "complain", PARSER: ""}, "weak", "on, with "),
        ({APPARMOR: "Y", PARSER: ""}, "weak", "on, with "),
        ({APPARMOR: "Y", MODE: "enforce"}, "weak", "on, without apparmor_parser"),
        ({APPARMOR: "Y", MODE: "enforce", PARSER: "", **FAILED}, "weak", "on, with "),
        ({APPARMOR: "N", PARSER: ""}, "weak", "off"),
        ({LSM: "capability,yama", PARSER: ""}, "weak", "not in this kernel: capability,yama"),
        ({LSM: "capability,apparmor", PARSER: ""}, "unknown", "can't be read"),
        ({PARSER: ""}, "unknown", "can't be read"),
    ],
)
def test_apparmor_confines_environments_or_the_row_tells(tmp_path, files, outcome, found):
    row = host(tmp_path, files)["AppArmor profile"]
    assert row.outcome == outcome
    assert row.found.startswith(found)


@pytest.mark.parametrize(
    ("hardened", "enabled", "outcome"),
    [
        ("0", "1", "weak"),
        ("1", "1", "good"),
        ("2", "1", "good"),
        ("3", "1", "weak"),
        ("0", "0", "good"),
        (None, "1", "unknown"),
        (None, "0", "good"),
        ("0", None, "weak"),
    ],
)
def test_filters_are_compiled_with_or_without_a_program_s_constants(tmp_path, hardened, enabled, outcome):
    files = {"proc/sys/net/core/bpf_jit_harden": hardened, "proc/sys/net/core/bpf_jit_enable": enabled}
    found = host(tmp_path, {name: value for name, value in files.items() if value is not None})
    assert found["net.core.bpf_jit_harden"].outcome == outcome


@pytest.mark.parametrize(
    ("clone", "apparmor", "most", "outcome", "remedy"),
    [
        ("0", None, "9", "good", ""),
        (None, "1", "9", "good", ""),
        ("1", "1", "9", "good", ""),
        (None, None, "0", "good", ""),
        ("1", None, "9", "weak", "sysctl -w kernel.unprivileged_userns_clone=0"),
        (None, "0", "9", "weak", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=1"),
        ("1", None, None, "weak", "sysctl -w kernel.unprivileged_userns_clone=0"),
        (None, None, "9", "weak", "let only users log in"),
        (None, None, "many", "unknown", "/proc/sys/user/max_user_namespaces"),
    ],
)
def test_who_can_make_user_namespaces(tmp_path, clone, apparmor, most, outcome, remedy):
    files = {
        "proc/sys/kernel/unprivileged_userns_clone": clone,
        "proc/sys/kernel/apparmor_restrict_unprivileged_userns": apparmor,
        "proc/sys/user/max_user_namespaces": most,
    }
    row = host(tmp_path, {name: value for name, value in files.items() if value is not None})["user namespaces"]
    assert row.outcome == outcome
    assert remedy in row.remedy


@pytest.mark.parametrize(
    ("files", "version", "controllers", "found"),
    [
        ({CGROUP2: "cpu io memory pids"}, "good", "good", "cpu, io, memory, pids"),
        ({CGROUP2: "cpu memory"}, "good", "weak", "cpu, memory"),
        ({CGROUP2: ""}, "good", "weak", "none"),
        (
            {f"sys/fs/cgroup/{name}/cgroup.procs": "" for name in ("cpu,cpuacct", "blkio", "memory", "pids")},
            "weak", "good", "cpu, io, memory, pids",
        ),
        ({f"sys/fs/cgroup/{name}/tasks": "" for name in ("cpu", "unified")}, "weak", "weak", "cpu"),
    ],
)  # fmt: skip
def test_cgroups_keep_limits(tmp_path, files, version, controllers, found):
    rows = host(tmp_path, files)
    assert rows["cgroup version"].outcome == version
    assert rows["cgroup controllers"].outcome == controllers
    assert rows["cgroup controllers"].found == found


def test_what_a_missing_controller_needs_is_named(tmp_path):
    row = host(tmp_path, {CGROUP2: "cpu memory"})["cgroup controllers"]
    assert "boot a kernel that has io, pids," in row.remedy


def test_a_hybrid_of_cgroups_is_told(tmp_path):
    rows = host(tmp_path, {f"sys/fs/cgroup/{name}/tasks": "" for name in ("cpu", "unified")})
    assert rows["cgroup version"].found == "version 1, hybrid"


def test_cgroups_of_version_2_that_can_t_be_read_are_no_hierarchies(tmp_path):
    (tmp_path / CGROUP2).mkdir(parents=True)  # a folder can't be read by root either
    rows = host(tmp_path, {"sys/fs/cgroup/memory/cgroup.procs": ""})
    assert {rows[name].outcome for name in ("cgroup version", "cgroup controllers")} == {"unknown"}
    assert rows["cgroup version"].found == "can't be read: Is a directory"


# As arch/x86/kernel/cpu/bugs.c and arch/arm64/kernel/proton-pack.c write them.
@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("Not affected", "good"),
        ("Mitigation: Enhanced IBRS; IBPB: conditional; PBRSB-eIBRS: SW sequence; BHI: BHI_DIS_S", "good"),
        ("Mitigation: Clear CPU buffers; SMT vulnerable", "good"),
        ("Mitigation: PTE Inversion; VMX: conditional cache flushes, SMT vulnerable", "good"),
        ("KVM: Mitigation: VMX disabled", "good"),
        ("Mitigation: CSV2, BHB", "good"),
        ("Vulnerable", "weak"),
        ("Vulnerable: Clear CPU buffers attempted, no microcode; SMT Host state unknown", "weak"),
        ("Vulnerable, IBPB: disabled, STIBP: disabled, PBRSB-eIBRS: Vulnerable", "weak"),
        ("Mitigation: Retpolines; STIBP: disabled; RSB filling; BHI: Vulnerable", "weak"),
        ("Mitigation: PTE Inversion; VMX: vulnerable", "weak"),
        ("KVM: Vulnerable", "weak"),
        ("Processor vulnerable", "weak"),
        ("Unknown: Dependent on hypervisor status", "unknown"),
        ("", "unknown"),
        ("something new", "unknown"),
    ],
)
def test_what_the_kernel_says_of_a_weakness(tmp_path, text, outcome):
    assert host(tmp_path, {f"{CPU}/vulnerabilities/mds": text})["cpu mds"].outcome == outcome


@pytest.mark.parametrize(
    ("active", "text", "outcome", "found"),
    [
        ("0", "Mitigation: Clear CPU buffers; SMT disabled", "good", "off"),
        ("1", "Mitigation: Clear CPU buffers; SMT mitigated", "good", "on"),
        ("1", "Mitigation: Clear CPU buffers; SMT vulnerable", "weak", "on; weaknesses because of threads: mds"),
        ("0", "Mitigation: Clear CPU buffers; SMT Host state unknown", "unknown", "off; nothing is known of"),
        ("yes", "Mitigation: Clear CPU buffers; SMT vulnerable", "unknown", "yes; weaknesses because of threads: mds"),
        (None, "Not affected", "unknown", "can't be read: No such file"),
    ],
)
def test_threads_of_one_core(tmp_path, active, text, outcome, found):
    files = {f"{CPU}/vulnerabilities/mds": text, **({} if active is None else {f"{CPU}/smt/active": active})}
    row = host(tmp_path, files)["cpu threads"]
    assert row.outcome == outcome
    assert row.found.startswith(found)


@pytest.mark.parametrize(("run", "outcome"), [("0", "good"), ("1", "weak"), ("2", "good"), ("3", "unknown")])
def test_pages_are_merged(tmp_path, run, outcome):
    assert host(tmp_path, {KSM: run})["ksm"].outcome == outcome


@pytest.mark.parametrize(
    ("modules", "outcome"),
    [
        ("capability,landlock,yama", "weak"),
        ("capability,apparmor", "good"),
        ("selinux", "good"),
        ("noselinux", "weak"),
        ("", "unknown"),
    ],
)
def test_a_module_confines_services(tmp_path, modules, outcome):
    assert host(tmp_path, {LSM: modules})["security modules"].outcome == outcome


@pytest.mark.parametrize(
    ("modes", "outcome", "found"),
    [
        ("[none] integrity confidentiality", "weak", "none"),
        ("none [integrity] confidentiality", "good", "integrity"),
        ("none integrity [confidentiality]", "good", "confidentiality"),
        ("none [new] integrity", "unknown", "new"),
        ("none", "unknown", "none"),
    ],
)
def test_root_can_change_the_kernel(tmp_path, modes, outcome, found):
    row = host(tmp_path, {LOCKDOWN: modes})["lockdown"]
    assert (row.outcome, row.found) == (outcome, found)


@pytest.mark.parametrize(
    ("files", "outcome"),
    [
        ({IOMMU: "", GROUP: "", CPUINFO: PHYSICAL}, "good"),
        ({IOMMU: "", GROUP: "", CPUINFO: VIRTUAL}, "good"),
        ({IOMMU: "", CPUINFO: PHYSICAL}, "weak"),
        ({"sys/class/iommu": None, CPUINFO: PHYSICAL}, "weak"),
        ({"sys/class/iommu": None, CPUINFO: VIRTUAL}, "unknown"),
        ({"sys/class/iommu": None}, "unknown"),
        ({CPUINFO: PHYSICAL}, "unknown"),
    ],
)
def test_a_device_reaches_all_memory_without_an_iommu(tmp_path, files, outcome):
    for name in [name for name, content in files.items() if content is None]:
        (tmp_path / name).mkdir(parents=True)
    assert host(tmp_path, {name: one for name, one in files.items() if one is not None})["iommu"].outcome == outcome


@pytest.mark.parametrize(
    ("mode", "owner", "outcome"), [(0o600, 0, "good"), (0o660, 0, "weak"), (0o604, 0, "weak"), (0o600, 7, "weak")]
)
def test_an_open_device_of_xen_is_weak(tmp_path, mode, owner, outcome):
    assert devices.xen({"evtchn": (0o600, 0), "privcmd": (mode, owner)}).outcome == outcome
    device = tmp_path / "dev/xen/privcmd"
    device.parent.mkdir(parents=True)
    device.touch()
    device.chmod(mode)
    assert readings.read((), tmp_path).xen == {"privcmd": (mode, os.getuid())}


@pytest.mark.parametrize(
    ("defaults", "cpuinfo", "outcome"),
    [
        (["0", "2"], PHYSICAL, "good"),
        (["0", "1"], PHYSICAL, "weak"),
        (["1"], VIRTUAL, "unknown"),
        (["0"], VIRTUAL, "good"),
        (["yes"], PHYSICAL, "unknown"),
        ([], PHYSICAL, "unknown"),
        (["1"], "Features : fp asimd", "unknown"),
    ],
)
def test_a_new_usb_device_is_used_at_once(tmp_path, defaults, cpuinfo, outcome):
    files = {f"{USB}/usb{at}/authorized_default": one for at, one in enumerate(defaults)}
    row = host(tmp_path, {**files, f"{USB}/1-1/authorized_default": "1", CPUINFO: cpuinfo})["usb"]
    assert row.outcome == outcome


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=60) | st.sampled_from([b"1", b"[", b"SMT ", b"-"]), min_size=1, max_size=30))
def test_no_content_of_a_file_is_an_error(contents):
    with tempfile.TemporaryDirectory() as folder:
        files = {name: contents[index % len(contents)] for index, name in enumerate(GOOD)}
        for row in host(Path(folder), files).values():
            assert row.outcome in ("good", "weak", "unknown")
            assert "".join(row).isprintable()
            assert bool(row.remedy) == (row.outcome != "good")


@given(st.binary(max_size=40).filter(lambda name: not {0, ord("/")} & set(name) and name not in (b"", b".", b"..")))
def test_no_name_of_a_weakness_is_an_error(name):
    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder) / CPU / "vulnerabilities"
        known.mkdir(parents=True)
        (known / os.fsdecode(name)).write_text("Vulnerable")
        (row,) = (row for row in weaknesses.look(Path(folder)) if row.outcome == "weak")
        assert row.name.startswith("cpu ") and row.name.isprintable()


# -- rows say of netspace itself what its tables say -------------------------------


def allowed(profile: str) -> set[str]:
    return {call for rule in seccomp.profile(profile, "x86_64")["syscalls"] for call in rule["names"]
            if rule["action"] == "SCMP_ACT_ALLOW"}  # fmt: skip


@pytest.mark.parametrize("profile", seccomp.PROFILES)
def test_no_profile_lets_through_what_a_row_says_is_refused(profile):
    calls = {call for number in numbers.NUMBERS for call in number.calls} | set(users.CALLS)
    assert calls and not calls & allowed(profile)
    assert all(number.matters == "local users" for number in numbers.NUMBERS if number.calls)


@pytest.mark.parametrize("profile", seccomp.PROFILES)
def test_each_profile_lets_through_what_a_row_says_is_open(profile):
    """Each profile permits the calls that a row calls open: lower limits on core files, filters, and page 0."""
    assert {"setrlimit", "prlimit64", "seccomp", "mmap"} <= allowed(profile)
    assert oci_config._NO_CORE == 1


def test_no_profile_lets_pages_be_merged():
    assert "MADV_MERGEABLE" in seccomp_arguments.NARROWED["madvise"].refused
    assert "PR_SET_MEMORY_MERGE" in seccomp_arguments.NARROWED["prctl"].refused


def test_an_environment_s_kallsyms_is_masked():
    assert "/proc/kallsyms" in oci_config._MASKED


def test_the_page_has_a_row_for_each(tmp_path):
    """Each weakness has a row on the page, whose last column equals the library's ``matters``."""
    section = PAGE.read_text().split("## The host beneath\n")[1].split("\n## ")[0]
    told = dict(re.findall(r"^\| `([^`]+)`(?: [^|]*)?\|[^|]*\| ([a-z ]+) \|$", section, re.MULTILINE))
    found = {re.sub("^cpu (?!threads).*", "cpu NAME", row.name): row.matters for row in host(tmp_path, GOOD).values()}
    assert told == found
