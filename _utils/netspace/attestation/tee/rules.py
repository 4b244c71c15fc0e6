"""Rules for confidential guests: strict parser of the policy's section ``tee``.

::

    tee:
      rooted_key: false            # true: a host without a TPM has L3 if a good TEE vouches for the host's key
      snp:
        measurements: [<hex>, ...] # launch digests, 48 bytes
        id_keys: [<hex>, ...]      # digests of keys that sign ID blocks; author_keys: of keys that sign these keys
        tcb: {bootloader: 3, tee: 0, snp: 8, microcode: 115, fmc: 1}    # minimum versions
        smt: true                  # false: SMT must be off
        migration: false           # true: the guest may have a migration agent
        single_socket: false       # true: the guest must run on one socket only
        alias_check: false         # true: the firmware must have found no aliases in memory
        vmpls: [0]
        host_data: [<hex>, ...]    # 32 bytes
        chips: [<hex>, ...]        # 64 bytes
        keys: [vcek, vlek]
        providers: ["CN=..."]      # cloud providers whose VLEK may sign the report
      tdx:
        measurements: [<hex>, ...] # MRTD, 48 bytes
        statuses: [UpToDate]       # Intel's status of the TCB
        rtmrs: {0: [<hex>, ...]}   # values of registers
        log: false                 # true: the guest must send its log, and this must lead to the registers
        migration: false           # true: a migration TD may move the guest
        services: [<hex>, ...]     # MRSERVICETD; default: zeros, which mean that no service TD is bound to the guest
        config_ids: [<hex>, ...]   # MRCONFIGID; also owners (MROWNER), owner_configs, modules (MRSEAM)
        attributes: [<hex>, ...]   # attributes of the TD: 8 bytes, in the order of a quote; xfams: the same

The verifier refuses a kind of TEE that the section does not name, and every guest that allows debugging.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from netspace.attestation.policy_reading import PolicyError, digests, flag, items, mapping
from netspace.attestation.tee.report import REVOKED, STATUSES

MAX_ITEMS = 4096
Value = bytes | int | bool | str
_PARTS = ("bootloader", "tee", "snp", "microcode", "fmc")
# Rules that list allowed values of a setting, with the setting and its size in bytes.
_SNP_LISTS = {
    "host_data": ("host_data", 32),
    "chips": ("chip", 64),
    "id_keys": ("id_key", 48),
    "author_keys": ("author_key", 48),
}
_TDX_LISTS = {
    "config_ids": ("config_id", 48),
    "owners": ("owner", 48),
    "owner_configs": ("owner_config", 48),
    "modules": ("module", 48),
    "services": ("services", 48),
    "attributes": ("attributes", 8),
    "xfams": ("xfam", 8),
}


@dataclass(frozen=True)
class Rules:
    """Rules for one kind of TEE.

    :param measurements: allowed launch measurements; None: any measurement, if there is a rule for the guest's signer.
    :param tcb: minimum security versions.
    :param statuses: allowed statuses of the TCB; None: any.
    :param registers: allowed values of registers.
    :param settings: allowed values of settings, by the names of ``report.Genuine``.
    :param log: whether the guest must send its log.
    """

    measurements: frozenset[bytes] | None
    tcb: Mapping[str, int] = field(default_factory=dict)
    statuses: frozenset[str] | None = None
    registers: Mapping[int, frozenset[bytes]] = field(default_factory=dict)
    settings: Mapping[str, frozenset[Value]] = field(default_factory=dict)
    log: bool = False


@dataclass(frozen=True)
class Tee:
    """The whole section ``tee``.

    :param kinds: rules by kind.
    :param rooted_key: whether a software key for which a good TEE vouches counts as rooted in hardware.
    """

    kinds: Mapping[str, Rules]
    rooted_key: bool = False


def parse(data: Any, at: str = "policy:tee") -> Tee:
    """Parse the policy's section ``tee``.

    :param at: the section's path, for messages.
    :raises PolicyError: for unknown keys, wrong types, sizes out of bounds, or rules that any guest would meet.
    """
    found = mapping(data, at, ("rooted_key", "snp", "tdx"))
    kinds = {}
    if "snp" in found:
        kinds["snp"] = _snp(found["snp"], f"{at}:snp")
    if "tdx" in found:
        kinds["tdx"] = _tdx(found["tdx"], f"{at}:tdx")
    if not kinds:
        raise PolicyError(f"{at}: names no kind of TEE: expected snp or tdx")
    return Tee(kinds, flag(found, "rooted_key", at, False))


def _snp(data: Any, at: str) -> Rules:
    known = (
        "measurements",
        "tcb",
        "smt",
        "migration",
        "single_socket",
        "alias_check",
        "vmpls",
        "keys",
        "providers",
        *_SNP_LISTS,
    )
    found = mapping(data, at, known)
    settings: dict[str, frozenset[Value]] = _listed(found, _SNP_LISTS, at)
    if not flag(found, "smt", at, True):
        settings["smt"] = frozenset((False,))
    if not flag(found, "migration", at, False):
        settings["migration"] = frozenset((False,))
    for name in ("single_socket", "alias_check"):
        if flag(found, name, at, False):
            settings[name] = frozenset((True,))
    vmpls = items(found.get("vmpls", [0]), f"{at}:vmpls", MAX_ITEMS)
    if any(type(one) is not int or not 0 <= one <= 3 for one in vmpls):
        raise PolicyError(f"{at}:vmpls: expected numbers from 0 to 3")
    settings["vmpl"] = frozenset(vmpls)
    for rule, setting in (("keys", "key"), ("providers", "provider")):
        if rule in found:
            settings[setting] = frozenset(_texts(found[rule], f"{at}:{rule}"))
    if not settings.get("key", frozenset()) <= {"vcek", "vlek"}:
        raise PolicyError(f"{at}:keys: expected vcek, vlek or both")
    tcb = mapping(found.get("tcb", {}), f"{at}:tcb", _PARTS)
    for part, version in tcb.items():
        if type(version) is not int or not 0 <= version <= 255:
            raise PolicyError(f"{at}:tcb:{part}: {version!r:.40}: expected a number from 0 to 255")
    signed = any(settings.get(name) and not settings[name] & {bytes(48)} for name in ("id_key", "author_key"))
    return Rules(_measurements(found, at, signed), dict(tcb), settings=settings)


def _tdx(data: Any, at: str) -> Rules:
    found = mapping(data, at, ("measurements", "statuses", "rtmrs", "log", "migration", *_TDX_LISTS))
    settings = _listed(found, _TDX_LISTS, at)
    if not flag(found, "migration", at, False):
        settings["migration"] = frozenset((False,))
    settings.setdefault("services", frozenset((bytes(48),)))
    statuses = frozenset(_texts(found.get("statuses", ["UpToDate"]), f"{at}:statuses"))
    if not statuses or not statuses <= set(STATUSES) - {REVOKED}:
        raise PolicyError(f"{at}:statuses: expected some of {', '.join(one for one in STATUSES if one != REVOKED)}")
    return Rules(
        _measurements(found, at, False),
        statuses=statuses,
        registers=_registers(found.get("rtmrs", {}), f"{at}:rtmrs"),
        settings=settings,
        log=flag(found, "log", at, False),
    )


def _measurements(found: Mapping[Any, Any], at: str, signed: bool) -> frozenset[bytes] | None:
    """Return the allowed measurements; None if there is only a rule for the guest's signer (*signed*).

    :raises PolicyError: when the policy has neither measurements nor a rule for the guest's signer, because every guest
        would pass.
    """
    if "measurements" not in found and signed:
        return None
    given = _digests(found.get("measurements", []), f"{at}:measurements")
    if not given:
        raise PolicyError(f"{at}:measurements: expected at least one; without any, every guest would pass")
    return given


def _listed(found: Mapping[Any, Any], rules: Mapping[str, tuple[str, int]], at: str) -> dict[str, frozenset[Value]]:
    return {
        setting: frozenset(_digests(found[rule], f"{at}:{rule}", size))
        for rule, (setting, size) in rules.items()
        if rule in found
    }


def _registers(data: Any, at: str) -> dict[int, frozenset[bytes]]:
    """Parse the allowed values of registers. The keys are numbers in YAML, and texts in JSON."""
    named = data
    if isinstance(data, Mapping):
        named = {str(key) if type(key) is int else key: one for key, one in data.items()}
        if len(named) != len(data):
            raise PolicyError(f"{at}: a register is given twice")
    values = mapping(named, at, ("0", "1", "2", "3"))
    return {int(number): _digests(one, f"{at}:{number}") for number, one in values.items()}


def _digests(data: Any, at: str, size: int = 48) -> frozenset[bytes]:
    return digests(data, at, size, MAX_ITEMS)


def _texts(data: Any, at: str) -> list[str]:
    texts = items(data, at, MAX_ITEMS)
    if any(not isinstance(one, str) or not 0 < len(one) <= 256 for one in texts):
        raise PolicyError(f"{at}: expected a list of texts of at most 256 characters")
    return texts
