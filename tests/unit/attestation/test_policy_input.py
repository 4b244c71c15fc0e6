"""Any input is either accepted as a policy, or refused with an error that names the place.

``NETSPACE_POLICIES`` is the number of policies that are tried; 100,000 take about ten minutes.
"""

from __future__ import annotations

import datetime
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from netspace.attestation.policy import policy
from netspace.attestation.policy.policy import PolicyError

TRIED = int(os.environ.get("NETSPACE_POLICIES", "1500"))
DIGEST = "ab" * 32
ENDLESS: dict[str, Any] = {}
ENDLESS["boot"] = ENDLESS
DEEP: Any = []
for _ in range(5000):
    DEEP = [DEEP]
# What can't be shown stands here by name.
UNSHOWN = {"a huge number": 10**5000, "what contains itself": ENDLESS, "a deep list": DEEP}
SCALARS = st.sampled_from(
    [
        *(None, True, 0, -1, 1, 7, 24, 2**31, 1.5, float("nan"), float("inf"), "", "7", "*", "\ud800", DIGEST, b"x"),
        *(datetime.date(2026, 1, 1), datetime.datetime(1, 1, 1), "sha256:" + DIGEST, "sha1:" + "ab" * 20, "refuse"),
        *("0001-01-01T00:00+23:59", "9999-12-31T23:59-23:59", *UNSHOWN),
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
    ]
)
KEYS = st.sampled_from(
    [
        *("version", "boot", "ima", "until", "pcrs", "files", "kernels", "unchecked", "0", "/bin/x", "2030-01-01"),
        *(0, 1.5, None, True, (1, 2), "\ud800", "x" * 5000, "a huge number"),
    ]
)
ANY = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3) | st.tuples(inner),
    max_leaves=6,
)


def real(data: Any) -> Any:
    """Put an object that can't be printed in the place of each placeholder in a generated policy."""
    if isinstance(data, dict):
        return {real(key) if key == "a huge number" else key: real(value) for key, value in data.items()}
    if isinstance(data, list):
        return [real(one) for one in data]
    return UNSHOWN.get(data, data) if isinstance(data, str) else data


def section(*keys: str) -> st.SearchStrategy[Any]:
    """Return random rules, each of them valid or not."""
    right = {
        "secure_boot": True,
        "command_lines": ["ro *"],
        "pcrs": {0: [DIGEST]},
        "unchecked": [1],
        "files": [DIGEST],
        "violations": "ignore",
        "kexec": "allow",
        "exclude": ["/var/*"],
        "entries": [DIGEST],
        "keys": [],
    }
    return ANY | st.fixed_dictionaries({}, optional={key: st.just(right.get(key, [DIGEST])) | ANY for key in keys})


BOOT = section(*(key for key in policy.Boot.__dataclass_fields__ if key != "tcb"))
TERMS = {
    "network_boot": "never",
    "dma_protection": True,
    "iommu": "on",
    "bmc": "absent",
    "firmware": ["1.0"],
    "microcode": ">=0xf0",
    "platform": [DIGEST],
}
TCB = ANY | st.fixed_dictionaries({}, optional={key: st.just(right) | ANY for key, right in TERMS.items()})
IMA = section("files", "keys", "exclude", "entries", "violations", "kexec")
UNTIL = ANY | st.dictionaries(
    st.sampled_from(["2030-01-01", "0001-01-01T00:00+23:59", "soon", datetime.date(2030, 1, 1)]) | KEYS,
    ANY | st.fixed_dictionaries({}, optional={"boot": BOOT, "ima": IMA}),
    max_size=2,
)
POLICIES = ANY | st.fixed_dictionaries(
    {"version": st.just(1) | ANY}, optional={"boot": BOOT, "ima": IMA, "tcb": TCB, "until": UNTIL}
)


@settings(max_examples=TRIED, deadline=None, suppress_health_check=list(HealthCheck))
@given(POLICIES, st.sampled_from([None, 0.0, 1e12]))
@example({"version": 1, "boot": 1.5, "until": {"2030-01-01": {"boot": {"signers": [DIGEST]}}}}, None)
@example({"version": 1, "boot": {"pcrs": {}}, "until": {"2030-01-01": {"boot": {"pcrs": 5}}}}, None)
@example({"version": "a huge number"}, None)
@example({"version": 1, "boot": {"a huge number": []}}, None)
@example({"version": 1, "boot": "what contains itself"}, None)
@example({"version": 1, "boot": {}, "until": {"2030-01-01": {"boot": {"signers": "what contains itself"}}}}, None)
@example({"version": 1, "boot": {"signers": ["a deep list"]}}, None)
@example({"version": 1, "boot": {}, "tcb": {"firmware": ["\ud800"]}}, None)
@example({"version": 1, "boot": {}, "tcb": {"a huge number": True}}, None)
@example({"version": 1, "boot": {}, "tcb": "what contains itself"}, None)
def test_anything_is_a_policy_or_an_error(data: Any, now: float | None) -> None:
    try:
        found = policy.parse(real(data), now)
    except PolicyError as err:
        assert str(err).startswith("policy")
    else:
        assert len(found.fingerprint) == 64


@pytest.mark.parametrize("boot", [1.5, None, "kernels", ["kernels"]])
def test_rules_that_are_none_are_found_before_what_ends(boot: Any) -> None:
    with pytest.raises(PolicyError, match="policy:boot: expected a mapping"):
        policy.parse({"version": 1, "boot": boot, "until": {"2030-01-01": {"boot": {"kernels": [DIGEST]}}}})


def test_a_certificate_of_an_unknown_version_is_an_error() -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    day = datetime.datetime(2026, 1, 1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 5, day, day)
    made = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    assert made.count(b"\xa0\x03\x02\x01\x02") == 1
    import base64

    fourth = base64.encodebytes(made.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x03")).decode()
    pem = f"-----BEGIN CERTIFICATE-----\n{fourth}-----END CERTIFICATE-----\n"
    with pytest.raises(PolicyError, match="policy:ima:keys: not a certificate"):
        policy.parse({"version": 1, "ima": {"keys": [pem]}})
