"""Detection of connections that contradict a publication. Pure."""

from __future__ import annotations

import pytest

from netspace.interface.conntrack import answered_at_one, goes_right
from netspace.spec.publish import Publication

HOST, OTHER, CLIENT = (bytes([198, 51, 100, last]) for last in (1, 2, 9))
INSIDE = bytes([10, 203, 1, 1])
LED = [
    (Publication("443:8443"), {"ipv4": "10.203.1.1"}),
    (Publication("198.51.100.1:53:5353/udp"), {"ipv4": "10.203.1.1"}),
    (Publication("[2001:db8::1]:80:80"), {"ipv4": "10.203.1.1", "ipv6": "fd00::1"}),
]


@pytest.mark.parametrize(
    ("protocol", "sent_to", "answered_by", "right"),
    [
        (6, (HOST, 443), (INSIDE, 8443), True),
        (6, (HOST, 443), (HOST, 443), False),
        (6, (OTHER, 443), (OTHER, 443), False),
        (6, (HOST, 443), (INSIDE, 8444), False),
        (6, (HOST, 443), (bytes([10, 203, 1, 2]), 8443), False),
        (17, (HOST, 443), (HOST, 443), True),
        (17, (HOST, 53), (HOST, 53), False),
        (17, (HOST, 53), (INSIDE, 5353), True),
        (17, (OTHER, 53), (OTHER, 53), True),
        (6, (HOST, 80), (HOST, 80), True),
        (6, (HOST, 22), (HOST, 22), True),
    ],
)
def test_a_connection_is_stale_where_its_port_leads_elsewhere(
    protocol: int, sent_to: tuple[bytes, int], answered_by: tuple[bytes, int], *, right: bool
) -> None:
    client = (CLIENT, 40000)
    assert goes_right("ipv4", (protocol, client, sent_to), (protocol, answered_by, client), LED) == right


@pytest.mark.parametrize(
    ("protocol", "sent_from", "stale"),
    [
        (6, (HOST, 443), True),
        (6, (OTHER, 443), True),
        (17, (HOST, 53), True),
        (17, (OTHER, 53), False),
        (17, (HOST, 443), False),
        (6, (HOST, 40000), False),
    ],
)
def test_a_connection_is_stale_where_a_published_port_is_its_source(
    protocol: int, sent_from: tuple[bytes, int], *, stale: bool
) -> None:
    assert answered_at_one("ipv4", (protocol, (CLIENT, 40000), sent_from), LED) == stale
