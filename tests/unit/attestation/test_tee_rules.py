"""The policy's section for confidential guests is parsed strictly, and can't be so wide that it accepts any guest."""

from __future__ import annotations

from typing import Any

import pytest

from netspace.attestation.policy import policy
from netspace.attestation.policy.policy import PolicyError
from netspace.attestation.tee import rules

ONE, OTHER = "01" * 48, "02" * 48

SNP = {
    "measurements": [ONE],
    "id_keys": [OTHER],
    "author_keys": [OTHER],
    "tcb": {"bootloader": 3, "tee": 0, "snp": 8, "microcode": 115, "fmc": 1},
    "smt": False,
    "migration": True,
    "single_socket": True,
    "alias_check": True,
    "vmpls": [0, 2],
    "host_data": ["03" * 32],
    "chips": ["04" * 64],
    "keys": ["vcek"],
    "providers": ["CN=cloud"],
}
TDX = {
    "measurements": [ONE],
    "statuses": ["UpToDate", "Unknown"],
    "rtmrs": {0: [ONE], "1": [OTHER]},
    "log": True,
    "config_ids": [ONE],
    "owners": [ONE],
    "owner_configs": [ONE],
    "modules": [ONE],
    "services": [ONE],
    "attributes": ["00" * 8],
    "xfams": ["01" * 8],
    "migration": True,
}


def test_a_whole_section_is_read() -> None:
    found = rules.parse({"rooted_key": True, "snp": SNP, "tdx": TDX})
    assert found.rooted_key and set(found.kinds) == {"snp", "tdx"}
    snp, tdx = found.kinds["snp"], found.kinds["tdx"]
    assert snp.measurements == {bytes.fromhex(ONE)} and snp.tcb == SNP["tcb"]
    assert snp.settings == {
        "id_key": {bytes.fromhex(OTHER)},
        "author_key": {bytes.fromhex(OTHER)},
        "host_data": {b"\3" * 32},
        "chip": {b"\4" * 64},
        "smt": {False},
        "single_socket": {True},
        "alias_check": {True},
        "vmpl": {0, 2},
        "key": {"vcek"},
        "provider": {"CN=cloud"},
    }
    assert tdx.statuses == {"UpToDate", "Unknown"} and tdx.log
    assert tdx.registers == {0: {bytes.fromhex(ONE)}, 1: {bytes.fromhex(OTHER)}}
    assert set(tdx.settings) == {"config_id", "owner", "owner_config", "module", "services", "attributes", "xfam"}


def test_what_is_not_said_is_denied() -> None:
    found = rules.parse({"snp": {"measurements": [ONE]}, "tdx": {"measurements": [ONE]}})
    assert not found.rooted_key
    assert found.kinds["snp"].settings == {"migration": {False}, "vmpl": {0}}
    assert found.kinds["tdx"].statuses == {"UpToDate"} and not found.kinds["tdx"].log
    assert found.kinds["tdx"].settings == {"migration": {False}, "services": {bytes(48)}}


def test_the_signer_of_an_id_block_may_stand_for_measurements() -> None:
    assert rules.parse({"snp": {"id_keys": [ONE]}}).kinds["snp"].measurements is None
    assert rules.parse({"snp": {"author_keys": [ONE]}}).kinds["snp"].measurements is None
    # A guest that was started without an ID block has zeros there: anybody's.
    with pytest.raises(PolicyError, match="every guest would pass"):
        rules.parse({"snp": {"id_keys": [ONE, "00" * 48]}})


WRONG: dict[str, tuple[Any, str]] = {
    "no mapping": ([], "policy:tee: expected a mapping"),
    "nothing": ({}, "names no kind"),
    "another kind": ({"cca": {}}, "policy:tee:cca: unknown"),
    "no measurement": ({"snp": {}}, "policy:tee:snp:measurements"),
    "no measurement of a TD": ({"tdx": {"measurements": []}}, "policy:tee:tdx:measurements"),
    "a short measurement": ({"snp": {"measurements": ["00" * 32]}}, "48 bytes"),
    "a measurement that is none": ({"snp": {"measurements": [7]}}, "48 bytes"),
    "which measurement": ({"snp": {"measurements": [ONE, "zz"]}}, "policy:tee:snp:measurements: 'zz'"),
    "no list": ({"snp": {"measurements": ONE}}, "expected a list"),
    "a long list": ({"snp": {"measurements": [ONE] * 5000}}, "at most"),
    "a flag that is none": ({"rooted_key": 1, "snp": SNP}, "rooted_key"),
    "SMT that is no flag": ({"snp": {**SNP, "smt": "no"}}, "smt"),
    "a part that is none": ({"snp": {**SNP, "tcb": {"bios": 1}}}, "tcb:bios"),
    "a version that is none": ({"snp": {**SNP, "tcb": {"snp": True}}}, "tcb:snp"),
    "a version out of bounds": ({"snp": {**SNP, "tcb": {"snp": 256}}}, "tcb:snp"),
    "a level that is none": ({"snp": {**SNP, "vmpls": [4]}}, "vmpls"),
    "a key of another kind": ({"snp": {**SNP, "keys": ["vcek", "psp"]}}, "keys"),
    "a provider that is no text": ({"snp": {**SNP, "providers": [1]}}, "providers"),
    "debugging": ({"snp": {**SNP, "debug": True}}, "debug: unknown"),
    "a status that is none": ({"tdx": {**TDX, "statuses": ["Fine"]}}, "statuses"),
    "no status": ({"tdx": {**TDX, "statuses": []}}, "statuses"),
    "a revoked one": ({"tdx": {**TDX, "statuses": ["Revoked"]}}, "statuses"),
    "a register that is none": ({"tdx": {**TDX, "rtmrs": {4: [ONE]}}}, "rtmrs:4"),
    "a register twice": ({"tdx": {**TDX, "rtmrs": {0: [ONE], "0": [ONE]}}}, "twice"),
    "a register by a flag": ({"tdx": {**TDX, "rtmrs": {True: [ONE]}}}, "rtmrs:True"),
    "a register by a fraction": ({"tdx": {**TDX, "rtmrs": {1.0: [ONE]}}}, "rtmrs:1.0"),
}


@pytest.mark.parametrize(("data", "message"), WRONG.values(), ids=WRONG)
def test_a_section_that_is_wrong_is_refused(data: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        rules.parse(data)


def test_the_section_is_part_of_a_policy_and_its_fingerprint() -> None:
    section = {"snp": {"measurements": [ONE]}}
    found = policy.parse({"version": 1, "tee": section})
    assert found.tee == rules.parse(section) and found.boot is None
    assert found.fingerprint != policy.parse({"version": 1}).fingerprint
    other = policy.parse({"version": 1, "tee": {"snp": {"measurements": [OTHER]}}})
    assert other.fingerprint != found.fingerprint
    numbers = policy.parse({"version": 1, "tee": {"tdx": {**TDX, "rtmrs": {0: [ONE]}}}})
    texts = policy.parse({"version": 1, "tee": {"tdx": {**TDX, "rtmrs": {"0": [ONE]}}}})
    assert numbers.fingerprint == texts.fingerprint
    with pytest.raises(PolicyError, match="policy:tee"):
        policy.parse({"version": 1, "tee": {}})
    with pytest.raises(PolicyError, match="until"):
        policy.parse({"version": 1, "tee": section, "until": {"2030-01-01": {"tee": section}}})
