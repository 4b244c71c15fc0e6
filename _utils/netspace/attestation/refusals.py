"""Why evidence is refused: one exception and one stable reason code per cause.

Codes are part of the interface (logs, results, documentation): they are never
renamed or used for something else. This file decides nothing.
"""

from __future__ import annotations

from typing import ClassVar

from netspace.errors import NetspaceError


class Refused(NetspaceError):
    """Evidence that was refused; ``code`` says why, the message says what was found."""

    code: ClassVar[str] = "refused"

    def __str__(self) -> str:
        return f"{super().__str__()} [{self.code}]"


class Malformed(Refused):
    """Bytes that are not the structure they claim to be: too short, too long, out of bounds."""

    code = "malformed"


class WrongMagic(Refused):
    """An attestation structure that no TPM made (TPM_GENERATED_VALUE is absent)."""

    code = "magic"


class WrongType(Refused):
    """A TPM's signed statement, but not a quote."""

    code = "type"


class WrongScheme(Refused):
    """A signature by another scheme or hash than the key is restricted to, or by a weak one."""

    code = "scheme"


class WrongSignature(Refused):
    """A signature that the attestation key did not make over these bytes."""

    code = "signature"


class WrongQualifyingData(Refused):
    """Signed for another nonce, session, host or verifier: a replay or a relay."""

    code = "qualifying-data"


class WrongSelection(Refused):
    """A quote of other PCRs, or of another bank, than was asked."""

    code = "pcr-selection"


class WrongDigest(Refused):
    """PCR values that are not those that were quoted."""

    code = "pcr-digest"


class ClockRolledBack(Refused):
    """The TPM's counters are behind what they were: another TPM, a restored one, or a cleared one."""

    code = "clock"


class WrongAttestationKey(Refused):
    """An attestation key that could sign what no TPM said, or that could leave its TPM."""

    code = "ak-attributes"


class UnknownAttestationKey(Refused):
    """Evidence by another key than the one bound to this TPM."""

    code = "ak-unknown"


class WrongEndorsementKey(Refused):
    """An endorsement key that is not one: wrong attributes, type or size."""

    code = "ek-attributes"


class WrongEndorsementCertificate(Refused):
    """An endorsement certificate for another key than the TPM's endorsement key."""

    code = "ek-certificate"


class EndorsementKeyChanged(Refused):
    """Another TPM than the one that was pinned for this host."""

    code = "ek-changed"


class WrongActivation(Refused):
    """The attestation key is not proved to live in the TPM of this endorsement key."""

    code = "activation"


class ChallengeExpired(Refused):
    """An answer that came too late, or a second time."""

    code = "challenge-expired"


class LogMalformed(Malformed):
    """A boot log, or systemd's, that can't be read to its end."""

    code = "log-malformed"


class LogMismatch(Refused):
    """A boot log that does not lead to the quoted PCR values."""

    code = "log-mismatch"


class ListMalformed(Malformed):
    """A measurement list (IMA) that can't be read to its end."""

    code = "ima-malformed"


class ListMismatch(Refused):
    """A measurement list that does not lead to the quoted value of PCR 10."""

    code = "ima-mismatch"
