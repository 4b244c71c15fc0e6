"""The fields of a host's result record: conversions between record fields and the verifier's values.

A record is a plain mapping. The verifier signs and keeps it (:mod:`netspace.attestation.fleet.results`).

Pure: no file, no clock, no signature. Nothing here decides on a level.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from netspace.attestation.logs import ima
from netspace.attestation.registrar.host_record import bound_key
from netspace.attestation.tpm.structures import Clock
from netspace.attestation.verifier.boot_rules import GoodBoot
from netspace.attestation.verifier.verifier import Verified

# Seconds after which an unchanged boot is judged again: a newer netspace may have other rules.
JUDGE_AGAIN = 24 * 3600.0


def same_tpm(record: Mapping[str, Any], host: Mapping[str, Any]) -> bool:
    """Return whether a result is of the TPM with which the host is enrolled.

    Results of earlier versions (before attestation keys had periods) name only the attestation key.
    """
    if "ek" in record:
        return bool(record["ek"] == host["ek"])
    return record["key"] in (None, bound_key(host).fingerprint, host.get("former"))


def of_refused(before: Mapping[str, Any] | None, host: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the fields of a result whose evidence is refused.

    Values of the TPM, such as its clock, are taken from the last record.

    :param before: the last record.
    :param host: the registrar's record.
    """
    found: dict[str, Any] = {
        "clock": None,
        "ima": None,
        "key": None,
        "pcrs": {},
        "base": 0,
        "log": None,
        "systemd": None,
        "tee": {},
        "ek": None if host is None else host["ek"],
        "seen": "",
        "firmware": None,
        "good": None,
        # An attacker may send evidence that is refused. The verifier must keep the token key nevertheless.
        "token_key": None if before is None else before.get("token_key"),
        "ledger": before.get("ledger")
        if before is not None and host is None and before["kind"] == "software"
        else None,
    }
    if before is not None and host is not None and same_tpm(before, host):
        # Refused evidence must not erase the TPM's last clock.
        found.update({name: before.get(name, found[name]) for name in ("clock", "key", "seen", "firmware", "ledger")})
    return found


def of_verified(
    found: Verified, boot: str, base: int, tee: Mapping[str, Any], before: Mapping[str, Any] | None, now: float
) -> dict[str, Any]:
    """Return the fields of a result whose evidence is genuine, without the fields of the logs.

    :param boot: id of the host's boot.
    :param base: level of the attestation key.
    :param tee: fields on the host's TEE.
    :param before: the last record.
    """
    return {
        "tee": tee,
        "clock": None if found.clock is None else list(found.clock),
        "ima": None if found.ima is None else _ima(found.ima),
        "key": found.key,
        "seen": boot,
        "firmware": None if found.firmware is None else f"{found.firmware:016x}",
        "pcrs": {str(pcr): value.hex() for pcr, value in sorted(found.pcrs.items())},
        "base": base,
        "good": _good(found.boot, before, now),
    }


def clock(record: Mapping[str, Any] | None, host: Mapping[str, Any]) -> Clock | None:
    """Return the last clock of the host's TPM; None if it is unknown, or if the result is of another TPM."""
    if record is None or record["clock"] is None or not same_tpm(record, host):
        return None
    return Clock(*record["clock"])


def ima_state(record: Mapping[str, Any] | None) -> ima.State | None:
    """Return the position up to which the host's measurement list was judged; None if the list was not judged."""
    kept = None if record is None else record["ima"]
    if kept is None:
        return None
    refused = None if kept["refused"] is None else (kept["refused"][0], kept["refused"][1])
    first, second = kept["boot"]
    return ima.State(kept["lines"], bytes.fromhex(kept["value"]), (first, second), kept["policy"], refused)


def _ima(found: ima.State) -> dict[str, Any]:
    return {**dataclasses.asdict(found), "value": found.value.hex()}


def good_boot(record: Mapping[str, Any] | None, now: float) -> GoodBoot | None:
    """Return the boot that a result recorded as good; None if it has none or is older than a day.

    After a day the boot is judged again, because a newer version of netspace may have other rules.
    """
    kept = None if record is None else record.get("good")
    if not kept or not 0 <= now - kept["since"] < JUDGE_AGAIN:
        return None
    return GoodBoot(kept["identity"], frozenset(kept["proved"]))


def _good(good: GoodBoot | None, before: Mapping[str, Any] | None, now: float) -> dict[str, Any] | None:
    if good is None:
        return None
    since = before["good"]["since"] if before is not None and good == good_boot(before, now) else now
    return {"identity": good.identity, "proved": sorted(good.proved), "since": since}
