"""Host appraisal: a verifier's signed statement for third parties, with a host's level, boot and token key.

The *token key* is the key with which the host signs its environments' tokens. A host appraisal is not the result that
the host gets for itself (``netspace.attestation.ear``), which answers one challenge and is valid for ten minutes. A
host appraisal is a JWT of another type, signed by the same key, and valid as long as the host's level, but at most a
day. The verifier sends it to the host within the result. The host passes it on with each token.

Only :func:`check` makes an :class:`Appraised`. This module uses no file, network or clock.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from netspace import jose
from netspace.attestation.clocks import SKEW
from netspace.attestation.ear import Signer
from netspace.attestation.refusals import AppraisalExpired, AppraisalForged, Malformed

PROFILE = "tag:netspace.invalid,2026:host-appraisal#1"
TYP = "netspace-host-appraisal+jwt"
LONGEST = 24 * 3600
"""The longest time, in seconds, for which a host appraisal is valid."""
MOST = 4096
_TEXTS = {"sub", "netspace_boot", "netspace_group"}
_NUMBERS = {"iat", "exp", "netspace_level", "netspace_policy_version"}
_SEAL = object()


@dataclass(frozen=True)
class Appraised:
    """Content of a host appraisal with a genuine signature.

    :param minion: the host's name at the verifier.
    :param level: 1 to 5.
    :param boot: id of the boot that was judged.
    :param key: the key of environments' tokens (JWK).
    :param verifier: thumbprint of the verifier's key.
    :param issued: seconds since 1970, as *expires*.
    """

    minion: str
    level: int
    boot: str
    key: Mapping[str, str]
    group: str
    version: int
    verifier: str
    issued: int
    expires: int
    _seal: object = field(repr=False)

    def __post_init__(self) -> None:
        if self._seal is not _SEAL:
            raise TypeError("only check() makes an Appraised")


def make(
    signer: Signer,
    minion: str,
    level: int,
    boot: str,
    key: Mapping[str, str],
    policy: tuple[str, int],
    now: float,
    until: float,
) -> str:
    """Return a signed host appraisal.

    :param key: the key of environments' tokens (JWK), which the host's evidence was bound to.
    :param policy: group and version of the policy by which the host was judged.
    :param until: end of the level's validity, seconds since 1970.
    """
    claims = {
        "eat_profile": PROFILE,
        "sub": minion,
        "iat": int(now),
        "exp": int(min(until, now + LONGEST)),
        "cnf": {"jwk": dict(key)},
        "netspace_level": level,
        "netspace_boot": boot,
        "netspace_group": policy[0],
        "netspace_policy_version": policy[1],
    }
    return signer.sign(TYP, claims)


def check(token: Any, keys: Collection[Mapping[str, str]], now: float) -> Appraised:
    """Check a host appraisal, and return its content.

    :param keys: keys (JWK) of the verifiers that are trusted.
    :raises Malformed: when *token* has another form.
    :raises AppraisalForged: when no trusted verifier signed it.
    :raises AppraisalExpired: when it has expired, or is from the future.
    """
    try:
        told = jose.opened(token, TYP, keys, MOST)
    except jose.Unreadable as err:
        raise Malformed(f"appraisal: {err}") from err
    except jose.Forged as err:
        raise AppraisalForged(f"appraisal: {err}") from err
    if set(told) != {"eat_profile", "cnf", *_TEXTS, *_NUMBERS} or told["eat_profile"] != PROFILE:
        raise Malformed(f"appraisal: its claims are not those of {PROFILE}")
    if any(not isinstance(told[name], str) or len(told[name]) > 255 for name in _TEXTS):
        raise Malformed("appraisal: a claim is not a text of at most 255 characters")
    if any(type(told[name]) is not int for name in _NUMBERS) or not 1 <= told["netspace_level"] <= 5:
        raise Malformed("appraisal: a claim is not a whole number, or the level is not 1 to 5")
    if not 0 < told["exp"] - told["iat"] <= LONGEST:
        raise Malformed(f"appraisal: its end is not after its start, or it is valid for more than {LONGEST} s")
    if not isinstance(told["cnf"], dict) or set(told["cnf"]) != {"jwk"}:
        raise Malformed("appraisal: cnf: expected the token key")
    try:
        key = jose.parse_jwk(told["cnf"]["jwk"])
    except jose.Unreadable as err:
        raise Malformed(f"appraisal: cnf: {err}") from err
    if not told["iat"] - SKEW <= now <= told["exp"]:
        raise AppraisalExpired(f"the appraisal of the host is valid from {told['iat']} to {told['exp']}")
    return Appraised(
        told["sub"],
        told["netspace_level"],
        told["netspace_boot"],
        key,
        told["netspace_group"],
        told["netspace_policy_version"],
        str(jose.unchecked(token)[0]["kid"]),
        told["iat"],
        told["exp"],
        _SEAL,
    )
