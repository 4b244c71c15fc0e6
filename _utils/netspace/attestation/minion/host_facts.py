"""Facts about this host, read from the kernel's files: TPM, boot, TEE, isolation.

The facts become Salt's grains. Reading them is cheap (a few dozen small files under ``/sys``, ``/proc`` and ``/dev``,
no heavy import) and never raises. The facts are the host's claims about itself. They serve only for display and
targeting, and never raise a trust level.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from netspace.attestation.kernel_files import link as _link
from netspace.attestation.kernel_files import names as _names
from netspace.attestation.kernel_files import number as _number
from netspace.attestation.kernel_files import read as _read
from netspace.attestation.kernel_files import text as _text
from netspace.attestation.kernel_files import there as _there

_EFI_GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
# The class of TPM for each kernel driver. The drivers tpm_tis and tpm_crb serve every class, so they are missing here.
_CLASSES = {
    "tpm_ftpm_tee": "firmware",
    "ftpm-tee": "firmware",
    "optee-ftpm": "firmware",
    "tpm_tis_spi": "discrete",
    "tpm_tis_i2c": "discrete",
    "tpm_tis_i2c_cr50": "discrete",
    "tpm_i2c_infineon": "discrete",
    "tpm_i2c_atmel": "discrete",
    "tpm_i2c_nuvoton": "discrete",
    "st33zp24-i2c": "discrete",
    "st33zp24-spi": "discrete",
    "tpm_vtpm_proxy": "virtual",
    "tpm-vtpm": "virtual",
    "tpm_ibmvtpm": "virtual",
    "vtpm": "virtual",
    "tpm-svsm": "virtual",
}


def facts(root: Path = Path("/")) -> dict[str, Any]:
    """Return the grains ``tpm``, ``secure_boot``, ``measured_boot``, ``ima``, ``tee`` and ``netspace``.

    Example::

        {"tpm": {"present": True, "version": "2.0", "manufacturer": None, "firmware": None, "class": "virtual",
                 "driver": "tpm_crb", "pcr_banks": ["sha256"]},
         "secure_boot": {"enabled": True},
         "measured_boot": {"log": True},
         "ima": {"active": True},
         "tee": {"optee": False, "trustzone": False, "sev": [], "tdx": [], "reports": False},
         "netspace": {"kernel": "6.12.0", "erofs": True, "overlay": True, ...}}

    A value is None if the files don't show it. ``reason`` says why a feature is absent.

    :param root: the host's root folder, ``/``; another folder in tests.
    """
    flags = _cpu_flags(root)
    return {
        "tpm": _tpm(root, flags),
        "secure_boot": _secure_boot(root),
        "measured_boot": _measured_boot(root),
        "ima": _ima(root),
        "tee": _tee(root, flags),
        "netspace": _isolation(root),
    }


def _cpu_flags(root: Path) -> frozenset[str]:
    """Return the flags of the first processor (x86: ``flags``, arm64: ``Features``)."""
    text = _text(root / "proc/cpuinfo") or ""
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(match[1].split()) if match else frozenset()


def _tpm(root: Path, flags: frozenset[str]) -> dict[str, Any]:
    folder = root / "sys/class/tpm"
    chips = [name for name in _names(folder) if re.fullmatch(r"tpm\d+", name)]
    if not chips:
        known = _there(folder)
        reason = "the kernel found no TPM" if known else "the kernel has no TPM driver (/sys/class/tpm is absent)"
        return {"present": False, "reason": reason}
    chip = folder / chips[0]
    major = _text(chip / "tpm_version_major")
    caps = _text(chip / "caps") or _text(chip / "device/caps")  # only TPM 1.2 has it
    version = {"1": "1.2", "2": "2.0"}.get(major or "", "1.2" if caps else None)
    driver = _link(chip / "device/driver")
    kind = _CLASSES.get(driver or "")
    if kind is None and "hypervisor" in flags:
        kind = "virtual"
    banks = [name[len("pcr-") :] for name in _names(chip) if name.startswith("pcr-")]
    if not banks and version == "1.2":
        banks = ["sha1"]
    return {
        "present": True,
        "version": version,
        "manufacturer": _manufacturer(caps),
        "firmware": _field(caps, "Firmware version"),
        "class": kind,
        "driver": driver,
        "pcr_banks": banks,
    }


def _field(caps: str | None, name: str) -> str | None:
    match = re.search(rf"^{re.escape(name)}:\s*(\S+)", caps or "", re.MULTILINE)
    return match[1] if match else None


def _manufacturer(caps: str | None) -> str | None:
    raw = _field(caps, "Manufacturer")
    try:
        return bytes.fromhex(raw.removeprefix("0x")).decode("ascii").strip("\0 ") if raw else None
    except ValueError:
        return None


def _secure_boot(root: Path) -> dict[str, Any]:
    """Return whether Secure Boot is on. The variable is one byte after four bytes of attributes (UEFI 2.10, 3.3)."""
    if not _there(root / "sys/firmware/efi"):
        return {"enabled": None, "reason": "the host was not booted by UEFI"}
    raw = _read(root / f"sys/firmware/efi/efivars/SecureBoot-{_EFI_GLOBAL}")
    if raw is None:
        if not _names(root / "sys/firmware/efi/efivars"):
            return {"enabled": None, "reason": "the firmware's variables can't be read (efivarfs is not mounted)"}
        return {"enabled": False, "reason": "the firmware has no Secure Boot"}
    if len(raw) != 5 or raw[4] > 1:
        return {"enabled": None, "reason": "the firmware's variable SecureBoot is neither 0 nor 1"}
    return {"enabled": raw[4] == 1}


def _measured_boot(root: Path) -> dict[str, Any]:
    security = root / "sys/kernel/security"
    if _there(security / "tpm0/binary_bios_measurements"):
        return {"log": True}
    if not _names(security):
        return {"log": None, "reason": "securityfs is not mounted"}
    return {"log": False, "reason": "the firmware left no log of its measurements"}


def _ima(root: Path) -> dict[str, Any]:
    """Return whether IMA is ``active``, and the number of its ``measurements``; None if that number can't be read."""
    security = root / "sys/kernel/security"
    if not _there(security / "ima"):
        known = bool(_names(security))
        return {"active": False if known else None, "reason": "the kernel has no IMA, or securityfs is not mounted"}
    measured = _number(security / "ima/runtime_measurements_count")
    # The boot aggregate alone means that there is no policy.
    return {"active": None if measured is None else measured > 1, "measurements": measured}


def _tee(root: Path, flags: frozenset[str]) -> dict[str, Any]:
    devices = _names(root / "dev")
    compatible = _read(root / "sys/firmware/devicetree/base/firmware/optee/compatible") or b""
    optee = any(re.fullmatch(r"tee\d+|teepriv\d+", name) for name in devices) or b"optee" in compatible
    amd = root / "sys/module/kvm_amd/parameters"
    intel = root / "sys/module/kvm_intel/parameters"
    sev = []
    if "sev-guest" in devices or "sev_guest" in flags:
        sev.append("snp-guest")
    sev += [f"{name}-host" for name in ("sev", "sev_es", "sev_snp") if _text(amd / name) in ("Y", "1")]
    tdx = []
    if "tdx_guest" in flags or "tdx_guest" in devices or "tdx-guest" in devices:
        tdx.append("guest")
    if _text(intel / "tdx") in ("Y", "1"):
        tdx.append("host")
    return {
        "optee": optee,
        # Secure firmware that answers SMC calls lives in TrustZone's secure world.
        "trustzone": optee or _text(root / "sys/firmware/devicetree/base/psci/method") in ("smc", "smc\0"),
        "sev": sev,
        "tdx": tdx,
        # True in a confidential guest whose kernel can report on the guest (configfs-tsm).
        "reports": _there(root / "sys/kernel/config/tsm/report"),
    }


def _hypervisor(root: Path) -> str:
    """Return the host's role under Xen (``xen dom0`` or ``xen guest``), or the name of another hypervisor.

    Sources: Documentation/ABI/stable/sysfs-hypervisor-xen, and xenfs, which is mounted on ``/proc/xen``.
    """
    kind = _text(root / "sys/hypervisor/type") or ""
    if kind != "xen":
        # Empty: the kernel names no hypervisor. There may be one nevertheless.
        return kind if re.fullmatch(r"[a-z0-9_-]{1,20}", kind) else ""
    first = _text(root / "sys/hypervisor/start_flags/initdomain") == "1"
    return "xen dom0" if first or "control_d" in (_text(root / "proc/xen/capabilities") or "").split() else "xen guest"


def _isolation(root: Path) -> dict[str, Any]:
    """Return the kernel's version, and for each feature that isolates environments whether the kernel has it.

    A value is None if the feature is not loaded, but a kernel module may provide it.
    """
    filesystems = {line.split()[-1] for line in (_text(root / "proc/filesystems") or "").splitlines() if line.split()}
    modules = root / "sys/module"
    release = _text(root / "proc/sys/kernel/osrelease") or ""
    match = re.match(r"(\d+)\.(\d+)", release)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    spaces = _number(root / "proc/sys/user/max_user_namespaces") or 0
    lsm = (_text(root / "sys/kernel/security/lsm") or "").split(",")
    cgroup = 1
    if _there(root / "sys/fs/cgroup/cgroup.controllers"):
        cgroup = 2
    elif not _names(root / "sys/fs/cgroup"):
        cgroup = 0

    def module(name: str) -> bool | None:
        return True if _there(modules / name) else None

    return {
        "kernel": release,
        "hypervisor": _hypervisor(root),
        "erofs": True if "erofs" in filesystems else module("erofs"),
        "overlay": True if "overlay" in filesystems else module("overlay"),
        "user_namespaces": _there(root / "proc/self/ns/user") and spaces > 0,
        "seccomp": "errno" in (_text(root / "proc/sys/kernel/seccomp/actions_avail") or "").split(),
        "landlock": "landlock" in lsm if lsm != [""] else None,
        "cgroup": cgroup,
        # Linux 5.12 has idmapped mounts, but overlay over an idmapped lower layer needs 5.19.
        "idmapped_mounts": version >= (5, 19),
        "veth": module("veth"),
        "nftables": module("nf_tables"),
    }
