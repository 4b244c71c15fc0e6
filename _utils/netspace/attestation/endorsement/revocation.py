"""Check of one certificate against its issuer's revocation lists (RFC 5280, 5 and 6.3). Pure.

The caller selects the issuer's lists and raises errors. This module raises no error.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.x509 import CertificateRevocationList

# Time by which the maker's clock may be ahead of this host's.
SKEW = datetime.timedelta(minutes=5)


@dataclass(frozen=True)
class Verdict:
    """Result of a check against revocation lists.

    :param revoked: time at which the issuer revoked the certificate; None if the issuer did not revoke it.
    :param out_of_force: the list's period of validity as text, if the list is not valid now; else empty.
    """

    revoked: datetime.datetime | None
    out_of_force: str


def by_newest(lists: Sequence[CertificateRevocationList], number: int, when: datetime.datetime) -> Verdict:
    """Check a certificate against the newest of its issuer's *lists* (at least one).

    An entry counts even if the list has expired or is not valid yet.

    :param number: the certificate's serial number.
    """
    newest = max(lists, key=lambda one: one.last_update_utc)
    entry = newest.get_revoked_certificate_by_serial_number(number)
    begins, ends = newest.last_update_utc, newest.next_update_utc
    good = ends is not None and begins <= when + SKEW and when <= ends
    return Verdict(
        None if entry is None else entry.revocation_date_utc, "" if good else f"is valid only from {begins} to {ends}"
    )
