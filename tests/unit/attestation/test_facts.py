"""Grains from recorded file trees of hosts, with and without each feature."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from netspace.attestation import kernel_files
from netspace.attestation.minion import host_facts

SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


def tree(root: Path, files: dict[str, bytes | str], links: dict[str, str] | None = None) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for name, target in (links or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)
    return root


def test_nothing_at_all(tmp_path: Path) -> None:
    found = host_facts.facts(tmp_path)
    assert found.keys() == {"tpm", "secure_boot", "measured_boot", "ima", "tee", "netspace"}
    assert found["tpm"] == {"present": False, "reason": "the kernel has no TPM driver (/sys/class/tpm is absent)"}
    assert found["secure_boot"]["enabled"] is None
    assert found["tee"] == {"optee": False, "trustzone": False, "sev": [], "tdx": [], "reports": False}
    assert found["netspace"]["cgroup"] == 0 and found["netspace"]["user_namespaces"] is False


def test_a_laptop_with_a_firmware_tpm_and_secure_boot(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "sys/class/tpm/tpm0/tpm_version_major": "2\n",
            "sys/class/tpm/tpm0/pcr-sha256/0": "00",
            "sys/class/tpm/tpm0/pcr-sha1/0": "00",
            SECURE_BOOT: b"\6\0\0\0\1",
            "sys/kernel/security/tpm0/binary_bios_measurements": "",
            "sys/kernel/security/ima/runtime_measurements_count": "1234\n",
            "proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu vme\n",
        },
        {"sys/class/tpm/tpm0/device/driver": "../../bus/acpi/drivers/tpm_crb"},
    )
    found = host_facts.facts(root)
    assert found["tpm"] == {
        "present": True,
        "version": "2.0",
        "manufacturer": None,
        "firmware": None,
        "class": None,
        "driver": "tpm_crb",
        "pcr_banks": ["sha1", "sha256"],
    }
    assert found["secure_boot"] == {"enabled": True}
    assert found["measured_boot"] == {"log": True}
    assert found["ima"] == {"active": True, "measurements": 1234}


def test_a_vm_with_a_virtual_tpm(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {"sys/class/tpm/tpm0/tpm_version_major": "2", "proc/cpuinfo": "flags : fpu hypervisor\n"},
        {"sys/class/tpm/tpm0/device/driver": "../tpm_tis"},
    )
    assert host_facts.facts(root)["tpm"]["class"] == "virtual"


@pytest.mark.parametrize(
    ("driver", "kind"), [("tpm_tis_spi", "discrete"), ("ftpm-tee", "firmware"), ("tpm_vtpm_proxy", "virtual")]
)
def test_drivers_that_tell_the_class(tmp_path: Path, driver: str, kind: str) -> None:
    root = tree(tmp_path, {"sys/class/tpm/tpm0/tpm_version_major": "2"}, {"sys/class/tpm/tpm0/device/driver": driver})
    assert host_facts.facts(root)["tpm"]["class"] == kind


def test_an_old_tpm(tmp_path: Path) -> None:
    caps = "Manufacturer: 0x49465800\nTCG version: 1.2\nFirmware version: 3.17\n"
    found = host_facts.facts(tree(tmp_path, {"sys/class/tpm/tpm0/caps": caps}))["tpm"]
    assert (found["version"], found["manufacturer"], found["firmware"]) == ("1.2", "IFX", "3.17")
    assert found["pcr_banks"] == ["sha1"]


def test_a_driver_without_a_tpm(tmp_path: Path) -> None:
    (tmp_path / "sys/class/tpm").mkdir(parents=True)
    assert host_facts.facts(tmp_path)["tpm"] == {"present": False, "reason": "the kernel found no TPM"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\6\0\0\0\0", {"enabled": False}),
        (b"\6\0\0\0\2", {"enabled": None, "reason": "the firmware's variable SecureBoot is neither 0 nor 1"}),
        (b"", {"enabled": None, "reason": "the firmware's variable SecureBoot is neither 0 nor 1"}),
    ],
)
def test_secure_boot(tmp_path: Path, content: bytes, expected: dict) -> None:
    assert host_facts.facts(tree(tmp_path, {SECURE_BOOT: content}))["secure_boot"] == expected


def test_uefi_without_secure_boot_or_without_variables(tmp_path: Path) -> None:
    (tmp_path / "sys/firmware/efi").mkdir(parents=True)
    assert host_facts.facts(tmp_path)["secure_boot"]["enabled"] is None
    tree(tmp_path, {"sys/firmware/efi/efivars/BootOrder-x": b"x"})
    assert host_facts.facts(tmp_path)["secure_boot"]["enabled"] is False


def test_securityfs_without_a_log_and_without_ima(tmp_path: Path) -> None:
    found = host_facts.facts(tree(tmp_path, {"sys/kernel/security/lsm": "lockdown,capability,landlock,yama"}))
    assert found["measured_boot"]["log"] is False and found["ima"]["active"] is False
    assert found["netspace"]["landlock"] is True


def test_ima_without_a_policy(tmp_path: Path) -> None:
    root = tree(tmp_path, {"sys/kernel/security/ima/runtime_measurements_count": "1\n"})
    assert host_facts.facts(root)["ima"] == {"active": False, "measurements": 1}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"dev/tee0": "", "dev/teepriv0": ""}, {"optee": True, "trustzone": True}),
        ({"sys/firmware/devicetree/base/firmware/optee/compatible": b"linaro,optee-tz\0"}, {"optee": True}),
        ({"sys/firmware/devicetree/base/psci/method": b"smc\0"}, {"optee": False, "trustzone": True}),
        ({"sys/firmware/devicetree/base/psci/method": b"hvc\0"}, {"trustzone": False}),
        ({"dev/sev-guest": ""}, {"sev": ["snp-guest"], "reports": False}),
        ({"sys/kernel/config/tsm/report/x": ""}, {"reports": True}),
        (
            {f"sys/module/kvm_amd/parameters/{name}": value for name, value in (("sev", "Y"), ("sev_snp", "N"))},
            {"sev": ["sev-host"]},
        ),
        ({"proc/cpuinfo": "flags : fpu tdx_guest hypervisor\n"}, {"tdx": ["guest"]}),
        ({"sys/module/kvm_intel/parameters/tdx": "Y\n"}, {"tdx": ["host"]}),
    ],
)
def test_trusted_execution(tmp_path: Path, files: dict, expected: dict) -> None:
    found = host_facts.facts(tree(tmp_path, files))["tee"]
    assert {key: found[key] for key in expected} == expected


def test_isolation(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/filesystems": "nodev\tsysfs\nnodev\toverlay\n\terofs\n",
            "proc/sys/kernel/osrelease": "6.12.43+deb13-amd64\n",
            "proc/sys/user/max_user_namespaces": "63488\n",
            "proc/self/ns/user": "",
            "proc/sys/kernel/seccomp/actions_avail": "kill_process kill_thread trap errno user_notif trace log allow",
            "sys/fs/cgroup/cgroup.controllers": "cpu memory pids",
            "sys/module/nf_tables/refcnt": "1",
        },
    )
    assert host_facts.facts(root)["netspace"] == {
        "kernel": "6.12.43+deb13-amd64",
        "hypervisor": "",
        "erofs": True,
        "overlay": True,
        "user_namespaces": True,
        "seccomp": True,
        "landlock": None,
        "cgroup": 2,
        "idmapped_mounts": True,
        "veth": None,
        "nftables": True,
    }


@pytest.mark.parametrize(
    ("files", "role"),
    [
        ({}, ""),
        ({"sys/hypervisor/type": "xen\n"}, "xen guest"),
        ({"sys/hypervisor/type": "xen\n", "proc/xen/capabilities": ""}, "xen guest"),
        ({"sys/hypervisor/type": "xen\n", "sys/hypervisor/start_flags/initdomain": "0\n"}, "xen guest"),
        ({"sys/hypervisor/type": "xen\n", "sys/hypervisor/start_flags/initdomain": "1\n"}, "xen dom0"),
        ({"sys/hypervisor/type": "xen\n", "proc/xen/capabilities": "control_d\n"}, "xen dom0"),
        ({"proc/xen/capabilities": "control_d\n"}, ""),
        ({"sys/hypervisor/type": "z/VM Hypervisor\n"}, ""),
    ],
)
def test_a_role_under_xen_is_shown(tmp_path: Path, files: dict, role: str) -> None:
    assert host_facts.facts(tree(tmp_path, files))["netspace"]["hypervisor"] == role


def test_files_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    """Each file is replaced by a directory, binary noise or a dangling link: no grain raises an exception."""
    for name in (SECURE_BOOT, "proc/cpuinfo", "proc/filesystems", "sys/class/tpm/tpm0/tpm_version_major"):
        (tmp_path / name).mkdir(parents=True)
    root = tree(
        tmp_path,
        {
            "proc/sys/kernel/osrelease": b"\xff\xfe\0",
            "proc/sys/user/max_user_namespaces": b"-1\xb2",
            "sys/class/tpm/tpm0/caps": b"Manufacturer: 0xzz\n",
            "sys/kernel/security/ima/runtime_measurements_count": "\u00b2",
            "sys/fs/cgroup": b"",
        },
        {"sys/kernel/security/lsm": "nowhere"},
    )
    host_facts.facts(root)


def test_no_heavy_import() -> None:
    imported = {
        alias.name.split(".")[0]
        for module in (host_facts, kernel_files)
        for node in ast.walk(ast.parse(Path(module.__file__).read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")])
    }
    assert imported <= {"__future__", "os", "re", "pathlib", "typing", "netspace"}
