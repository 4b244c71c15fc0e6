"""Check of an environment's token by a host appraisal: the fleet's verifier gives the host's level and token key.

The host shows its token key to the verifier, bound to its quote (``token_key``). The verifier signs a statement: which
host has this key in which boot, and the host's level (``host_appraisal``). The host sends this host appraisal with each
token.

:func:`verify` checks, in this order: the form; the host appraisal's signature by a trusted verifier, its form and
validity; level and host; that the host appraisal names the token's key; the token's signature; the token's boot; the
nonce; the token's validity; the asker's expectations. The host's own statement about its key (``host-key``) isn't
needed, so it isn't looked at. This module uses no file, network, clock or TPM.

The level is that of the moment of the appraisal. If the host is restarted or loses its level later, the host appraisal
stays valid until it expires. :func:`check_current` compares it with the verifier's present records, so only the
verifier itself can call this function.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

from netspace import jose
from netspace.attestation import environment_token, host_appraisal
from netspace.attestation.environment_token import Attested, Expected, Level
from netspace.attestation.host_appraisal import Appraised
from netspace.attestation.refusals import (
    AppraisalElsewhere,
    AppraisalLow,
    AppraisalMissing,
    AppraisalOutdated,
    Malformed,
    TokenKeyOther,
    TokenOtherBoot,
)


def verify(
    text: str,
    verifiers: Collection[Mapping[str, str]],
    expected: Expected,
    now: float,
    *,
    minion: str | None,
    minimum: int,
) -> tuple[Attested, Appraised]:
    """Check an environment's token with its host appraisal; return the claims about the environment and the appraisal.

    :param text: token and appraisal as a CMW collection.
    :param verifiers: keys (JWK) of the trusted verifiers: ``salt-run netspace_attestation.jwks`` shows them.
    :param expected: the values that the asker expects. *pcrs* must be None, because the verifier has judged the PCRs.
        *host* is only the host's own claim, so it may be given only together with *minion*.
    :param minion: the host's name at the verifier; None: any host of the fleet is accepted.
    :param minimum: the lowest level, 1 to 5.
    :raises Refused: when a check fails; the error's code names the check.
    :raises ValueError: when *expected* has PCRs, or has *host* without *minion*.
    """
    if expected.pcrs or (expected.host is not None and minion is None):
        raise ValueError(
            "a verifier doesn't vouch for PCRs, so give none; give a host's name in links only with the minion's name"
        )
    token, _, word = environment_token.parts(text)
    if not word:
        raise AppraisalMissing("the evidence has no host appraisal")
    told = host_appraisal.check(word, verifiers, now)
    if told.level < minimum:
        raise AppraisalLow(f"the host has L{told.level}; expected L{minimum} at least")
    if minion is not None and told.minion != minion:
        raise AppraisalElsewhere(f"the appraisal is of {told.minion:.80}; expected {minion}")
    if _signer(token) != jose.thumbprint(told.key):
        raise TokenKeyOther("the token's key is not the key that the host appraisal names")
    claims = environment_token.claims_of(token, told.key)
    if claims["netspace_boot"] != told.boot:
        raise TokenOtherBoot("the token is of another boot than the one that the verifier judged")
    about = environment_token.about(claims)
    level = cast("Level", f"L{told.level}")
    found = Attested(**about, level=level, pcrs={}, minion=told.minion, verifier=told.verifier)
    return environment_token.answered(claims, expected, now, found), told


def check_current(told: Appraised, record: Mapping[str, Any] | None, level: int) -> None:
    """Check that a host appraisal still agrees with the verifier's present records of the host.

    :param record: the verifier's last result of this host.
    :param level: the host's present level at the verifier: 0 if its result has expired, or if it was revoked.
    :raises AppraisalOutdated: when the host was restarted, has another token key, or has a lower level.
    """
    key = None if record is None else record.get("token_key")
    if record is None or not key or key[0] != jose.thumbprint(told.key) or record["boot"] != told.boot:
        raise AppraisalOutdated("since then, the verifier has judged another boot or another token key of this host")
    if level < told.level:
        raise AppraisalOutdated(f"the host has L{level} now, and had L{told.level}")


def _signer(token: str) -> str:
    """Return the thumbprint of the signing key that a token names in its header. The claim is not checked."""
    try:
        return str(jose.unchecked(token)[0].get("kid"))
    except (jose.Unreadable, UnicodeEncodeError) as err:
        raise Malformed(f"token: {err}") from err
