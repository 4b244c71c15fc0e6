"""Acceptance of minions' keys by attestation
==========================================

A minion whose Salt key is pending calls ``netspace_admission.apply``. The engine accepts the key if the TPM of the
minion's host is in the inventory, vouches for the key, and proves a good boot. See the page on accepting keys.

.. code-block:: yaml

    # master configuration
    engines:
      - netspace_admission:
          address: 198.51.100.254
          port: 4507
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __runners__: dict[str, Any]

log = logging.getLogger(__name__)

__virtualname__ = "netspace_admission"


def __virtual__() -> str:
    return __virtualname__


def start(address: str = "127.0.0.1", port: int = 4507) -> None:
    """Serve minions whose keys are pending, until the master ends.

    address
        The address to listen on. Defaults to loopback.

    port
        The TCP port.
    """
    found = __runners__["netspace_attestation.admissions"](address=address, port=port)
    log.error("netspace: keys aren't accepted by attestation: %s", found.get("reason", found))
