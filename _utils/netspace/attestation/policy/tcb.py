"""The section ``tcb`` of a policy: terms for what lies below the kernel.

These are firmware, processor, management controller and buses. A term is proved by the boot log or by the kernel's
command line, or only the host's own claim supports it (:data:`TOLD`). ``verifier.tcb_rules`` judges the terms. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from netspace.attestation.logs import measured
from netspace.attestation.policy_reading import PolicyError, digests, items, mapping

MAX_VERSIONS = 64
MAX_VERSION = 128
# Terms without a measurement: only the host's own claim says whether they hold.
TOLD = ("microcode", "bmc", "iommu", "thunderbolt")
# Terms that the kernel's command line proves.
SPOKEN = ("lockdown", "usb")
# Terms with one of a few words as value.
WORDS: Mapping[str, tuple[str, ...]] = {
    "network_boot": ("never", "no-entry"),
    "dma_protection": ("on",),
    "lockdown": ("integrity", "confidentiality"),
    "usb": ("closed",),
    "bmc": ("absent",),
    "iommu": ("on",),
    "thunderbolt": ("absent", "authorized"),
}
_KEYS = (*WORDS, "platform", "firmware", "microcode")
_LEAST = re.compile(r">=0x([0-9a-fA-F]{1,16})")


@dataclass(frozen=True)
class Tcb:
    """Terms for what lies below the kernel. A field is None, or empty, if the policy has no such term.

    :param platform: digests that firmware may measure into PCR 1 beside its boot entries.
    :param firmware: versions of the firmware that may run.
    :param microcode: the lowest revision of the processor's microcode.
    """

    network_boot: str | None = None
    dma_protection: str | None = None
    lockdown: str | None = None
    usb: str | None = None
    bmc: str | None = None
    iommu: str | None = None
    thunderbolt: str | None = None
    platform: frozenset[bytes] = frozenset()
    firmware: tuple[str, ...] = ()
    microcode: int | None = None

    def given(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return the terms that the policy has, out of *names*."""
        return tuple(name for name in names if getattr(self, name) is not None)

    def said_by(self, term: str, line: str) -> bool:
        """Return whether the kernel's command line *line* satisfies a term of :data:`SPOKEN`.

        In the name of a parameter, ``-`` and ``_`` are alike (parameq in kernel/params.c). If a line has several values
        for USB, the last one counts; of several values for lockdown, the strictest (lock_kernel_down in
        security/lockdown). If ``lsm=`` doesn't list ``lockdown``, the kernel leaves that module out, and the parameter
        ``lockdown=`` has no effect (security/security.c).
        """
        pairs = [word.strip('"').partition("=") for word in measured.line_words(line)]
        if term == "lockdown":
            good = ("confidentiality",) if self.lockdown == "confidentiality" else WORDS["lockdown"]
            left_out = any(name == "lsm" and "lockdown" not in value.split(",") for name, _, value in pairs)
            return not left_out and any(name == "lockdown" and value in good for name, _, value in pairs)
        values = [value for name, _, value in pairs if name.replace("-", "_") == "usbcore.authorized_default"]
        return bool(values) and values[-1] == "0"


def plain(data: Any) -> Any:
    """Return the section with ``on`` as text: YAML reads the word as true, JSON as text."""
    if not isinstance(data, Mapping):
        return data
    return {key: "on" if value is True and "on" in WORDS.get(key, ()) else value for key, value in data.items()}


def read(data: Any) -> Tcb:
    """Return the terms in the section ``tcb`` of a policy.

    :raises PolicyError: for unknown keys, wrong types and sizes out of bounds.
    """
    at = "policy:tcb"
    found = mapping(plain(data), at, _KEYS)
    chosen: dict[str, str] = {}
    for name, words in WORDS.items():
        if name in found:
            if found[name] not in words:
                raise PolicyError(f"{at}:{name}: {found[name]!r:.40}: expected {' or '.join(words)}")
            chosen[name] = found[name]
    if "platform" in found and "network_boot" not in found:
        raise PolicyError(f"{at}: network_boot is missing; platform is judged only together with it")
    return Tcb(
        **chosen,
        platform=digests(found.get("platform", []), f"{at}:platform"),
        firmware=_versions(found["firmware"], f"{at}:firmware") if "firmware" in found else (),
        microcode=_least(found["microcode"], f"{at}:microcode") if "microcode" in found else None,
    )


def _versions(data: Any, at: str) -> tuple[str, ...]:
    versions = items(data, at, MAX_VERSIONS)
    for one in versions:
        if not isinstance(one, str) or not 0 < len(one) <= MAX_VERSION or not one.isprintable():
            raise PolicyError(f"{at}: {one!r:.40}: expected a version: text of 1 to {MAX_VERSION} characters")
    if not versions:
        raise PolicyError(f"{at}: expected at least one version")
    return tuple(versions)


def _least(data: Any, at: str) -> int:
    found = _LEAST.fullmatch(data) if isinstance(data, str) else None
    if found is None:
        raise PolicyError(f'{at}: {data!r:.40}: expected the lowest revision, such as ">=0xf0"')
    return int(found[1], 16)
