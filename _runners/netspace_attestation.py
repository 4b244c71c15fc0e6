"""
The verifier on the master
==========================

``replay`` and ``verify_quote`` look at logs and quotes that lie in files: no TPM, no minion and no
service is asked. The others are the registrar and its Privacy CA: which TPM is which minion's, and
attestation certificates under pseudonyms. Each refusal has a stable ``code`` (see the page on
reason codes), and the command's exit status is 1 where something is wrong.

The master's configuration may have (these are the defaults)::

    netspace.attestation:
      folder: /var/lib/netspace-master   # the registrar's, 0700
      roots: null                        # a folder with PEM certificates of makers of TPMs
      timeout: 60                        # seconds that a minion may take
"""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from netspace.attestation import appraisal, audit_log, offline, privacy_ca  # noqa: E402
from netspace.attestation import ima as lists  # noqa: E402
from netspace.attestation import policy as rules  # noqa: E402
from netspace.attestation.evidence import key_fingerprint  # noqa: E402
from netspace.attestation.refusals import Refused  # noqa: E402
from netspace.attestation.registrar import Registrar  # noqa: E402
from netspace.errors import NetspaceError  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]

__virtualname__ = "netspace_attestation"

INSTANCE = "netspace"
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


def enroll(minion: str) -> dict[str, Any]:
    """
    Bind a minion to its TPM, and have its attestation key certified by the Privacy CA for a day.

    The master makes a credential that only this TPM can open, for this attestation key alone; its
    answer proves that both are in one TPM. A minion keeps the TPM that it had at first, and a TPM
    serves one minion, until ``release``. ``level`` is L3 where the TPM's endorsement certificate chains to
    a certificate in the folder that the master's ``netspace.attestation:roots`` names, else L2.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.enroll web1

    minion
        Its id; no pattern.
    """

    def work() -> dict[str, Any]:
        registrar, settings = _registrar()
        record = registrar.enroll(
            str(minion),
            _Bus(str(minion), settings["timeout"]),
            _master(),
            appraisal.read_roots(settings["roots"]),
            time.time(),
        )
        return _shown(record)

    return _answer(work)


def hosts() -> dict[str, Any]:
    """
    Show every enrolled minion: TPM (SHA-256 of its endorsement key), level and why it is not higher,
    pseudonym, and until when its certificate is good.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.hosts
    """
    return _answer(lambda: {record["minion"]: _shown(record) for record in _registrar()[0].hosts()})


def revoke(minion: str, why: str = "") -> dict[str, Any]:
    """
    Revoke a minion's attestation certificate. The minion stays bound to its TPM; ``enroll`` gives it another.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.revoke web1 why="stolen"

    minion
        Its id.

    why
        For the log.
    """
    return _answer(lambda: _shown(_registrar()[0].revoke(str(minion), str(why), time.time())))


def release(minion: str) -> dict[str, Any]:
    """
    Forget which TPM a minion has, and revoke its certificate: **the next one that it shows is accepted**.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.release web1

    minion
        Its id.
    """
    return _answer(lambda: _shown(_registrar()[0].release(str(minion), time.time())))


def ca_init(name: str = "netspace Privacy CA", root_elsewhere: bool = False) -> dict[str, Any]:
    """
    Make the Privacy CA: a root, and the intermediate that signs.

    With ``root_elsewhere`` the answer has ``request``, to be signed by a root that never was on this
    machine, and ``ca_import`` brings the certificate.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.ca_init

    name
        The intermediate's name.

    root_elsewhere
        Make no root here. Defaults to False.
    """
    return _answer(lambda: _registrar()[0].init(time.time(), name=str(name), here=not root_elsewhere))


def ca_renew(name: str = "netspace Privacy CA") -> dict[str, Any]:
    """
    Make the next intermediate. What the last one signed stays good until it runs out.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.ca_renew

    name
        Its name.
    """
    return _answer(lambda: _registrar()[0].renew(time.time(), name=str(name)))


def ca_sign(request: str, root: str) -> dict[str, Any]:
    """
    Sign an intermediate's request with a root, where the root is. Returns ``certificate`` (PEM).

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.ca_sign request=ca.csr root=/media/usb/root

    request
        A file with what ``ca_init root_elsewhere=True`` returned as ``request``.

    root
        The root's folder. One is made where there is none.
    """

    def work() -> dict[str, Any]:
        now = time.time()
        folder = Path(root)
        asked = _read(request, 64 * 1024)
        if not folder.exists():
            privacy_ca.save(privacy_ca.root("netspace Privacy CA root", now), folder)
        authority = privacy_ca.load(folder)
        return {
            "certificate": privacy_ca.sign_request(authority, asked, now).decode(),
            "root": str(folder / "chain.pem"),
        }

    return _answer(work)


def ca_import(certificate: str, root: str) -> dict[str, Any]:
    """
    Take the intermediate's certificate into use that a root elsewhere made of the last request.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.ca_import certificate=ca.pem root=root.pem

    certificate
        A file with the certificate (PEM).

    root
        A file with the root's certificate (PEM).
    """
    return _answer(lambda: _registrar()[0].adopt(_read(certificate, 64 * 1024), _read(root, 64 * 1024), time.time()))


def ca_status() -> dict[str, Any]:
    """
    Show the Privacy CA: its name, until when it may sign, whether its root is here, and how many hosts it knows.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.ca_status
    """
    return _answer(lambda: _registrar()[0].status(time.time()))


def ca_crl() -> dict[str, Any]:
    """
    Return the revocation list (``crl``, PEM), fresh for a day, for others that check certificates of the CA.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.ca_crl
    """
    return _answer(lambda: {"crl": _registrar()[0].revocations(time.time()).decode()})


def verify_log(records: int = 0, hash: str = "") -> dict[str, Any]:
    """
    Check the registrar's log from its beginning: each record is chained to the one before, so what was
    changed, removed or added is found. Returns ``{records, hash}``, the log's head.

    **Records that are cut off its end are found only by a head that was noted elsewhere**: give it.

    CLI Example:

    .. code-block:: bash

        salt-run netspace_attestation.verify_log records=812 hash=5f2c...

    records
        How many records there were.

    hash
        The last one's hash then.
    """

    def work() -> dict[str, Any]:
        noted = audit_log.Head(int(records), str(hash)) if records or hash else None
        try:
            head = _registrar()[0].verify_log(noted)
        except audit_log.LogBroken as err:
            return {"valid": False, "code": "audit-log", "reason": str(err), "retcode": 1}
        return {"valid": True, "records": head.records, "hash": head.hash}

    return _answer(work)


def _registrar() -> tuple[Registrar, dict[str, Any]]:
    """The books, and what the master's configuration says under ``netspace.attestation``."""
    settings = {"folder": f"/var/lib/{INSTANCE}-master", "roots": None, "timeout": 60}
    given = __opts__.get("netspace.attestation") or {}
    unknown = sorted(set(given) - set(settings)) if isinstance(given, dict) else [repr(given)]
    if unknown:
        raise NetspaceError(
            f"master configuration: netspace.attestation: {unknown[0]:.40}: unknown; there are {', '.join(settings)}"
        )
    settings.update(given)
    return Registrar(Path(str(settings["folder"]))), settings


def _master() -> str:
    """Fingerprint of this master's key, as minions know it."""
    path = Path(__opts__["pki_dir"]) / "master.pub"
    try:
        return key_fingerprint(path.read_bytes())
    except OSError as err:
        raise NetspaceError(f"{path}: {err.strerror}: minions know this master by it; start the master once") from err


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "minion": record["minion"],
        "level": f"L{record['level']}",
        "reason": record["reason"],
        "ek": record["ek"],
        "template": record["template"],
        "tpm": record["tpm"],
        "pseudonym": record["pseudonym"],
        "serial": record["serial"],
        "enrolled": record["enrolled"],
        "expires": record["expires"],
    }


class _Bus:
    """Asks one minion over Salt's own bus."""

    def __init__(self, minion: str, timeout: int) -> None:
        self._minion = minion
        self._timeout = timeout

    def enroll(self, template: str | None) -> Any:
        return self._call("enroll", template=template or "")

    def activate(self, template: str, blob: bytes, encrypted: bytes, session: str, nonce: bytes) -> Any:
        coded = {"blob": base64.b64encode(blob).decode(), "encrypted": base64.b64encode(encrypted).decode()}
        return self._call("activate", template=template, session=session, nonce=nonce.hex(), **coded)

    def _call(self, function: str, **arguments: str) -> Any:
        import salt.client
        from salt.exceptions import SaltException

        try:
            with salt.client.get_local_client(mopts=__opts__) as client:
                # A list, not a pattern: nobody else may be asked.
                answers = client.cmd(
                    [self._minion],
                    f"netspace_attestation.{function}",
                    kwarg=arguments,
                    tgt_type="list",
                    timeout=self._timeout,
                    full_return=True,
                )
        except SaltException as err:
            raise NetspaceError(f"the master can't be reached: {err}") from err
        answer = answers.get(self._minion)
        if not isinstance(answer, dict) or "ret" not in answer:
            raise NetspaceError(f"{self._minion} did not answer within {self._timeout} s")
        if answer.get("retcode"):
            raise NetspaceError(f"{self._minion}: {str(answer['ret'])[:1000]}")
        return answer["ret"]


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
