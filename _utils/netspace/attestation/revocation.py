"""The verdict of a maker's revocation lists on one certificate (RFC 5280, 5 and 6.3). Pure.

The caller has found which lists are the issuer's own, and says what follows: this module raises nothing.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.x509 import CertificateRevocationList

# The maker's clock may be ahead of ours by so much.
SKEW = datetime.timedelta(minutes=5)


@dataclass(frozen=True)
class Verdict:
    """The lists' word on a certificate.

    :param revoked: when its issuer revoked it; None where it did not.
    :param out_of_force: from when to when the list is good, where that is not now; empty where it is in force.
    """

    revoked: datetime.datetime | None
    out_of_force: str


def by_newest(lists: Sequence[CertificateRevocationList], number: int, when: datetime.datetime) -> Verdict:
    """Judge a certificate by the newest of its issuer's *lists*, of which there is at least one.

    A list that is out of force still revokes.

    :param number: the certificate's serial number.
    """
    newest = max(lists, key=lambda one: one.last_update_utc)
    entry = newest.get_revoked_certificate_by_serial_number(number)
    begins, ends = newest.last_update_utc, newest.next_update_utc
    good = ends is not None and begins <= when + SKEW and when <= ends
    return Verdict(
        None if entry is None else entry.revocation_date_utc, "" if good else f"is good from {begins} to {ends}"
    )
