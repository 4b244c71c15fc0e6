"""Application of a minion whose key is pending
============================================

A minion asks the master to accept its pending Salt key, and proves its identity by its host's TPM: see the page on
accepting keys.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from salt.exceptions import CommandExecutionError  # noqa: E402

from netspace.attestation.fleet import admission, admission_http  # noqa: E402
from netspace.attestation.minion import settings  # noqa: E402
from netspace.attestation.minion.applicant import MAX_CALLS, Applicant  # noqa: E402
from netspace.errors import NetspaceError  # noqa: E402
from netspace.plugin import arguments, refusal, salt_keys  # noqa: E402
from netspace.spec import parse  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]

__virtualname__ = "netspace_admission"
__func_alias__ = {"apply_": "apply"}

PAUSE = 5.0
"""Seconds between two attempts while the master has no time."""


def __virtual__() -> str:
    return __virtualname__


def apply_(url: str, tpm: str = "device:/dev/tpmrm0", patience: int = 120) -> dict[str, Any]:
    """Ask the master to accept this minion's pending key; return ``{accepted:
    true, level}``.

    The host's TPM proves to the master that it is the TPM in the
    inventory for this minion, that it vouches for this minion's Salt
    key, and that the host's boot is good. Start the minion first, so
    that its key is pending.

    CLI Example:

    .. code-block:: bash

        salt-call --local netspace_admission.apply \\
            http://198.51.100.254:4507

    url
        The URL of the master's admission service (the engine
        ``netspace_admission``).

    tpm
        The TPM, as in ``pillar:netspace:attestation:tpm``. A minion
        without an accepted key has no pillar.

    patience
        Seconds for which the function tries again if the master is
        busy.
    """
    until = time.monotonic() + patience
    while True:
        try:
            return _applied(url, tpm)
        except admission.NotNow as err:
            if time.monotonic() > until:
                raise CommandExecutionError(refusal.told(__opts__, err)) from err
            time.sleep(PAUSE)
        except (NetspaceError, OSError) as err:
            raise CommandExecutionError(refusal.told(__opts__, err)) from err


def _applied(url: str, tpm: str) -> dict[str, Any]:
    declared = parse.declaration({"attestation": {"tpm": tpm}}).attestation
    key = Path(__opts__["pki_dir"]) / "minion.pub"
    try:
        public = key.read_bytes()
    except FileNotFoundError:
        raise NetspaceError(f"{key}: this minion has no key yet; start salt-minion once, which makes it") from None
    minion = str(__opts__["id"])
    applicant = Applicant(
        arguments.layout(__opts__),
        settings.of(declared),
        minion,
        lambda master: admission.name(master, public),
        salt_keys.own(__opts__),
    )
    reply = admission_http.post(url, admission_http.OPEN, {"minion": minion, "key": public.decode()})
    session, master = str(reply.get("session", "")), str(reply.get("master", ""))
    if session and (Path(__opts__["pki_dir"]) / "minion_master.pub").exists():
        known = salt_keys.minions_master(__opts__)
        if known != master:
            raise NetspaceError(f"{url} belongs to another master ({master:.16}...); name the master of this minion")
    for _ in range(MAX_CALLS):
        call = admission.replied(reply)
        if call is None:
            break
        reply = admission_http.post(url, f"{admission_http.STEP}{session}", applicant.do(master, *call))
    if reply.get("accepted") is not True:
        raise NetspaceError(f"the master refuses this minion's key: {reply.get('refused', 'no verdict')}")
    return {"accepted": True, "level": reply.get("level")}
