"""The choice of an endorsement key: a key with a certificate first, and only keys that the TPM can make."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from netspace.attestation.tpm import device as tpm


class TssError(Exception):
    pass


class FakeDevice(tpm.Device):
    def __init__(self, certified: set[str], makes: set[str]) -> None:
        super().__init__(SimpleNamespace(TSS2_Exception=TssError), None)
        self.certified, self.makes = certified, makes

    def _template(self, name):
        if name in self.certified:
            return b"certificate", name
        return (None, name) if name in ("EK-ECC256", "EK-RSA2048") else (None, None)

    def _endorsement(self, name, template, certificate):
        if name not in self.makes:
            raise TssError(name)
        return tpm.Endorsement(name, b"", certificate)


@pytest.mark.parametrize(
    ("certified", "makes", "chosen"),
    [
        (set(), {"EK-ECC256", "EK-RSA2048"}, "EK-ECC256"),
        (set(), {"EK-RSA2048"}, "EK-RSA2048"),
        ({"EK-RSA2048"}, {"EK-ECC256", "EK-RSA2048"}, "EK-RSA2048"),
        ({"EK-HIGH-ECC384"}, {"EK-ECC256", "EK-HIGH-ECC384"}, "EK-HIGH-ECC384"),
    ],
)
def test_choice(certified: set[str], makes: set[str], chosen: str) -> None:
    assert FakeDevice(certified, makes).endorsement().template == chosen


def test_a_known_one_is_not_replaced_by_another() -> None:
    device = FakeDevice({"EK-RSA2048"}, {"EK-ECC256", "EK-RSA2048"})
    assert device.endorsement("EK-ECC256").template == "EK-ECC256"
    with pytest.raises(tpm.DeviceError):
        device.endorsement("EK-HIGH-ECC256")


def test_none_that_the_tpm_can_make() -> None:
    with pytest.raises(TssError, match="EK-RSA2048"):
        FakeDevice(set(), set()).endorsement()
