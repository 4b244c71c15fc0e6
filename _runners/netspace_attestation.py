"""
The verifier on the master
==========================

Looks at boot logs, measurement lists and quotes that lie in files: no TPM, no minion and
no service is asked. Each answer has a stable ``code`` (see the page on reason codes), and
the command's exit status is 1 where something is wrong.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import netspace

netspace.refresh(__file__)

from netspace.attestation import ima as lists  # noqa: E402
from netspace.attestation import offline  # noqa: E402
from netspace.attestation import policy as rules  # noqa: E402
from netspace.attestation.refusals import Refused  # noqa: E402
from netspace.errors import NetspaceError  # noqa: E402

__virtualname__ = "netspace_attestation"

MAX_POLICY = 256 * 1024 * 1024


def __virtual__() -> str:
    return __virtualname__


def replay(log: str = "", systemd: str = "", ima: str = "") -> dict[str, Any]:
    """
    Show a boot log's events, and the PCR values per bank that it leads to:
    ``{banks: {sha256: {"0": hex}}, events: [...]}``.

    Each event has ``pcr``, ``type``, ``digests`` and what its data says (``variable``, ``path``,
    ``text``, ...). **Data proves nothing** but where ``matches`` is true: its digest is what was
    measured. With an IMA list the answer has ``ima`` too: ``lines``, ``violations`` and ``edited``.

    A log proves nothing without a quote of the values: see ``verify_quote``.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.replay /sys/kernel/security/tpm0/binary_bios_measurements --out json

    log
        The firmware's log: ``binary_bios_measurements`` of a host.

    systemd
        systemd's log, ``/run/log/systemd/tpm2-measure.log``: what it measured after the firmware.

    ima
        IMA's list, ``binary_runtime_measurements`` or ``ascii_runtime_measurements``.
    """

    def work() -> dict[str, Any]:
        if not (log or systemd or ima):
            raise NetspaceError("name a boot log, systemd's log or an IMA list")
        return offline.replay(_logs(log, systemd, ima))

    return _answer(work)


def verify_quote(
    msg: str,
    sig: str,
    ak: str,
    log: str = "",
    nonce: str = "",
    pcrs: str = "",
    systemd: str = "",
    ima: str = "",
    policy: str = "",
) -> dict[str, Any]:
    """
    Check a quote as ``tpm2_quote`` writes it, and say precisely what is right and what is wrong:
    ``{valid, code, reason, checks, quote}``.

    ``checks`` are in the order in which they were made and end with the first that failed. What
    was not given can't be checked, and is listed as ``unchecked``. That the key belongs to a genuine
    TPM is not checked here: that is what enrolment does.

    CLI Example:

    .. code-block:: bash

        tpm2_quote -c ak.ctx -l sha256:0,1,2,3,4,5,6,7 -q 8a1c0d5f -m q.msg -s q.sig -o q.pcrs
        salt-run netspace_attestation.verify_quote msg=q.msg sig=q.sig ak=ak.pub nonce=8a1c0d5f pcrs=q.pcrs

    msg
        The file of ``tpm2_quote -m``.

    sig
        The file of ``tpm2_quote -s`` (``-f tss``, which is the default).

    ak
        The attestation key: TPM2B_PUBLIC or TPMT_PUBLIC (``tpm2_createak -u`` with ``-f tss``), PEM
        or DER. Of the latter two it can't be told whether the key is restricted.

    log
        The firmware's log: ``binary_bios_measurements``.

    nonce
        The qualifying data, in hex. **Without it an old quote passes.**

    pcrs
        The PCR values: ``tpm2_quote -o``, the text of ``tpm2_pcrread``, or JSON as ``replay`` shows it.
        With them a difference can be told PCR by PCR.

    systemd
        systemd's log, ``/run/log/systemd/tpm2-measure.log``.

    ima
        IMA's list, binary or ASCII. It may be ahead of the quote.

    policy
        A file (YAML or JSON) with what the boot must be, and what may have run after it: see the page
        on policies. It needs ``pcrs`` and ``log``.
    """

    def work() -> dict[str, Any]:
        report = offline.verify_quote(
            _read(msg, 64 * 1024),
            _read(sig, 64 * 1024),
            _read(ak, 64 * 1024),
            nonce=_nonce(nonce),
            pcrs=_read(pcrs, 64 * 1024) if pcrs else b"",
            logs=_logs(log, systemd, ima),
            policy=_policy(policy) if policy else None,
        )
        found = report.result()
        return found if found["valid"] else {**found, "retcode": 1}

    return _answer(work)


def _answer(work: Any) -> dict[str, Any]:
    """A runner that raises shows a traceback: return the refusal instead, with Salt's key for the exit status."""
    try:
        found: dict[str, Any] = work()
    except Refused as err:
        return {"valid": False, "code": err.code, "reason": err.args[0], "retcode": 1}
    except (NetspaceError, OSError) as err:
        return {"valid": False, "code": "input", "reason": str(err), "retcode": 1}
    return found


def _logs(log: str, systemd: str, ima: str) -> offline.Logs:
    return offline.Logs(
        _read(log, lists.MAX_LIST) if log else b"",
        _read(systemd, lists.MAX_LIST) if systemd else b"",
        _read(ima, lists.MAX_LIST) if ima else b"",
    )


def _read(path: str, limit: int) -> bytes:
    """Read a file to its end (those in securityfs claim to be empty), or a byte more than its parser takes."""
    with Path(path).open("rb") as stream:
        raw = stream.read(limit + 1)
    if not raw:
        raise NetspaceError(f"{path} is empty")
    return raw


def _policy(path: str) -> Any:
    from salt.utils.yaml import YAMLError, safe_load

    raw = _read(path, MAX_POLICY)
    if len(raw) > MAX_POLICY:
        raise NetspaceError(f"{path}: more than {MAX_POLICY} bytes")
    try:
        # YAML is read slowly, and long lists of files come as JSON.
        data = json.loads(raw) if raw.lstrip()[:1] == b"{" else safe_load(raw)
    except (ValueError, RecursionError, YAMLError) as err:
        raise NetspaceError(f"{path}: {err}") from err
    return rules.parse(data)


def _nonce(text: Any) -> bytes | None:
    """The nonce as bytes. Salt's command line makes a number of digits: those lose their zeros, so they are refused."""
    if text == "" or text is None:
        return None
    if not isinstance(text, str):
        raise NetspaceError(f"nonce: {text!r:.40} was read as a number; quote it twice: nonce='\"00...\"'")
    try:
        return bytes.fromhex(text.removeprefix("0x"))
    except ValueError as err:
        raise NetspaceError(f"nonce: {text!r:.40}: not hex") from err
