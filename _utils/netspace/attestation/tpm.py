"""The TPM as a device: endorsement key, attestation key, credential, PCRs, quote.

Through tpm2-pytss, imported only when a TPM is used. Rules:

- The TPM is the one that the configuration names, never one that libtss2 finds: without
  a name it would take whoever listens on TCP port 2321.
- Nothing stays in the TPM: keys are primaries, derived again each time; every handle is flushed.
- An attestation key is derived for a period: the keys of two periods do not show that one TPM has both.
- One process at a time (a lock), and never for longer than a time limit.

Judges nothing: the other side verifies what it returns.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from netspace.attestation import der, terms
from netspace.errors import MissingError, NetspaceError

T = TypeVar("T")

TIMEOUT = 30.0
_ATTEMPTS = 5
_PCR_CHANGED = 0x128
# Those with a certificate in NV are preferred, in this order; ECC is the faster.
TEMPLATES = ("EK-ECC256", "EK-RSA2048", "EK-HIGH-ECC256", "EK-HIGH-RSA2048", "EK-HIGH-ECC384")
# Diversifies attestation keys from other primaries of the same template, and with a period's bytes from each other.
_AK_LABEL = b"netspace-attest/1 attestation key"
MAX_NV = 8192
# TCG EK Credential Profile 2.5, 2.2.1.5.2: certificates in DER, one after the other, over as many indices as it takes.
_CHAIN = range(0x01C00100, 0x01C00200)
MAX_CHAIN_BYTES = 64 * 1024


class DeviceError(NetspaceError):
    """The TPM can't be reached, or fails at a command."""


def check_tcti(tcti: str) -> None:
    """Refuse a TCTI that does not name one TPM for certain.

    :raises DeviceError: unless it is ``device:<path>`` or ``swtpm:path=<path>``.
    """
    if terms.device_path(tcti) is None:
        raise DeviceError(
            f"tpm {tcti!r}: write device:/dev/tpmrm0, or swtpm:path=/run/x.sock for a software TPM "
            "on a socket that only root can reach"
        )


@dataclass(frozen=True)
class Endorsement:
    """An endorsement key: its template's name, TPMT_PUBLIC, and the content of its certificate's index."""

    template: str
    public: bytes
    certificate: bytes | None


def run(tcti: str, work: Callable[[Device], T], *, lock: Path, timeout: float = TIMEOUT) -> T:
    """Call *work* with the TPM; return what it returns.

    :param tcti: which TPM; see :func:`check_tcti`.
    :param lock: file that is locked meanwhile.
    :param timeout: seconds for all of it, waiting for the lock included.
    :raises DeviceError: when the TPM is not there, fails, or takes too long.
    :raises MissingError: when tpm2-pytss is.
    """
    check_tcti(tcti)
    path = terms.device_path(tcti)
    assert path is not None
    if not path.exists():
        raise DeviceError(f"tpm {tcti}: {path} does not exist")
    _library()
    deadline = time.monotonic() + timeout
    held = _hold(lock, deadline)
    done: list[T] = []
    failed: list[BaseException] = []

    def job() -> None:
        # A command can't be interrupted: a thread that hangs keeps the lock, and its caller goes on.
        try:
            with _open(tcti) as device:
                done.append(work(device))
        except BaseException as err:
            failed.append(err)
        finally:
            os.close(held)

    thread = threading.Thread(target=job, name="netspace-tpm", daemon=True)
    try:
        thread.start()
    except BaseException:
        os.close(held)
        raise
    thread.join(max(0.0, deadline - time.monotonic()))
    if failed:
        raise failed[0]
    if not done:
        raise DeviceError(f"tpm {tcti}: no answer within {timeout:g} s")
    return done[0]


def _hold(lock: Path, deadline: float) -> int:
    lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(fd)
                raise DeviceError(f"the TPM is in use by another process (it holds {lock})") from None
            time.sleep(0.02)


def _library() -> Any:
    """Return tpm2_pytss, silenced."""
    os.environ.setdefault("TSS2_LOG", "all+NONE")
    try:
        import tpm2_pytss
    except (ImportError, RuntimeError, NotImplementedError) as err:
        raise MissingError(
            f"the Python library tpm2-pytss ({err})",
            "apt-get install python3-tpm2-pytss, or pip install 'netspace[tpm]' (needs gcc and libtss2-dev)",
        ) from err
    return tpm2_pytss


@contextlib.contextmanager
def _open(tcti: str) -> Iterator[Device]:
    tss = _library()
    try:
        with tss.TCTILdr(*tcti.split(":", 1)) as loaded, tss.ESAPI(loaded) as esapi:
            yield Device(tss, esapi)
    except tss.TSS2_Exception as err:
        raise DeviceError(f"tpm {tcti}: {err}{_hint(tcti)}") from err


def _hint(tcti: str) -> str:
    """Return a hint that libtss2 lacks: a software TPM has two sockets, of which the configuration names one."""
    kind, _, path = tcti.partition(":path=")
    control = Path(f"{path}.ctrl")
    return f"; swtpm needs --ctrl type=unixio,path={control}" if kind == "swtpm" and not control.exists() else ""


class Device:
    """An open TPM; see :func:`run`. Its methods raise what ``run`` turns into DeviceError."""

    def __init__(self, tss: Any, esapi: Any) -> None:
        self._tss = tss
        self._esapi = esapi

    def information(self) -> dict[str, str]:
        """Return ``manufacturer``, ``firmware``, ``vendor`` and ``version`` as the TPM gives them."""
        constants = self._tss.constants
        _, capability = self._esapi.get_capability(constants.TPM2_CAP.TPM_PROPERTIES, constants.TPM2_PT.FIXED, 64)
        listed = capability.data.tpmProperties  # on a temporary, this would be freed memory
        values = {int(listed[index].property): int(listed[index].value) for index in range(len(listed))}

        def text(*offsets: int) -> str:
            raw = b"".join(values.get(0x100 + offset, 0).to_bytes(4, "big") for offset in offsets)
            return "".join(chr(byte) for byte in raw if 0x20 <= byte < 0x7F).strip()

        # TPM_PT of Part 2, 6.13: PT_FIXED + n
        high, low = values.get(0x10B, 0), values.get(0x10C, 0)
        firmware = f"{high >> 16}.{high & 0xFFFF}.{low >> 16}.{low & 0xFFFF}"
        return {"version": text(0), "manufacturer": text(5), "vendor": text(6, 7, 8, 9), "firmware": firmware}

    def endorsement(self, template: str | None = None) -> Endorsement:
        """Return the endorsement key of *template*; by default the first that has a certificate."""
        names = (template,) if template else TEMPLATES
        bare: list[tuple[str, Any]] = []
        for name in names:
            certificate, public = self._template(name)
            if certificate is not None:
                return self._endorsement(name, public, certificate)
            if public is not None:
                bare.append((name, public))
        for name, public in bare:
            # A TPM need not know every algorithm; the last one's error is the one to see.
            with contextlib.suppress(*([self._tss.TSS2_Exception] if name != bare[-1][0] else [])):
                return self._endorsement(name, public, None)
        raise DeviceError(f"the TPM has no endorsement key of {', '.join(names)}")

    def others(self, template: str) -> list[Endorsement]:
        """Return this TPM's other endorsement keys, by the known templates, so that one TPM can't pass for two."""
        found: list[Endorsement] = []
        for name in TEMPLATES:
            # A TPM need not know every algorithm, nor let everybody read an index.
            with contextlib.suppress(self._tss.TSS2_Exception):
                certificate, public = (None, None) if name == template else self._template(name)
                if public is not None:
                    found.append(self._endorsement(name, public, certificate))
        return found

    def chain(self, most: int) -> tuple[bytes, ...]:
        """Return the certificates of its maker's that the TPM holds (DER), *most* at most.

        None of them proves anything, so unreadable ones count as absent.
        """
        utils = __import__("tpm2_pytss.utils", fromlist=["utils"])
        read = utils.NVReadEK(self._esapi)
        raw = b""
        # No such index, or one that may not be read.
        with contextlib.suppress(utils.NoSuchIndex, self._tss.TSS2_Exception):
            for index in _CHAIN:
                raw += bytes(read(index))
                if len(raw) > MAX_CHAIN_BYTES:
                    return ()
        try:
            return tuple(der.split(raw, most))
        except ValueError:
            return ()

    def _template(self, name: str) -> tuple[bytes | None, Any]:
        """Return (certificate, template); without a template where the TPM has no such key."""
        utils = __import__("tpm2_pytss.utils", fromlist=["utils"])
        if name not in TEMPLATES:
            raise DeviceError(f"unknown template {name!r} of an endorsement key")
        try:
            certificate, public = utils.create_ek_template(name, utils.NVReadEK(self._esapi))
        except ValueError:  # a key of the high range exists only with its certificate
            return None, None
        return (bytes(certificate)[:MAX_NV] if certificate else None), public

    def _endorsement(self, name: str, template: Any, certificate: bytes | None) -> Endorsement:
        with self._primary(template) as (_, public):
            return Endorsement(name, public, certificate)

    @contextlib.contextmanager
    def _primary(self, template: Any) -> Iterator[tuple[Any, bytes]]:
        """Make a primary key of the endorsement hierarchy: (handle, TPMT_PUBLIC), flushed at the end."""
        handle, public, *_ = self._esapi.create_primary(
            self._tss.TPM2B_SENSITIVE_CREATE(), template, primary_handle=self._tss.ESYS_TR.ENDORSEMENT
        )
        try:
            yield handle, bytes(public.publicArea.marshal())
        finally:
            self._esapi.flush_context(handle)

    @contextlib.contextmanager
    def attestation_key(self, period: bytes = b"") -> Iterator[tuple[Any, bytes]]:
        """Load the attestation key of *period*: (handle, TPMT_PUBLIC).

        One period gives the same key until the endorsement seed changes; nothing of the key is stored.

        :param period: random bytes that the registrar chose; empty: the key of a host that judges itself.
        """
        attributes = self._tss.constants.TPMA_OBJECT
        template = self._tss.TPM2B_PUBLIC.parse(
            "ecc256:ecdsa-sha256:null",
            objectAttributes=attributes.FIXEDTPM
            | attributes.FIXEDPARENT
            | attributes.SENSITIVEDATAORIGIN
            | attributes.USERWITHAUTH
            | attributes.RESTRICTED
            | attributes.SIGN_ENCRYPT,
        )
        label = _AK_LABEL + (b"\0" + period if period else b"")
        template.publicArea.unique.ecc.x = hashlib.sha256(label).digest()
        with self._primary(template) as loaded:
            yield loaded

    def activate(self, key: Any, template: str, blob: bytes, encrypted: bytes) -> bytes:
        """Open a credential for an attestation key that is loaded (TPM2_ActivateCredential); return the secret.

        :param key: its handle, of :meth:`attestation_key`.
        :raises DeviceError: (by ``run``) when the credential is not for these two keys.
        """
        tss = self._tss
        _, public = self._template(template)
        if public is None:
            raise DeviceError(f"the TPM has no endorsement key {template} any more")
        with self._primary(public) as (endorsement, _):
            arguments = (key, endorsement, tss.TPM2B_ID_OBJECT(blob), tss.TPM2B_ENCRYPTED_SECRET(encrypted))
            if public.publicArea.objectAttributes & tss.constants.TPMA_OBJECT.USERWITHAUTH:
                return bytes(self._esapi.activate_credential(*arguments))
            # Templates of the low range demand PolicySecret(endorsement hierarchy).
            session = self._esapi.start_auth_session(
                tpm_key=tss.ESYS_TR.NONE,
                bind=tss.ESYS_TR.NONE,
                session_type=tss.constants.TPM2_SE.POLICY,
                symmetric=tss.TPMT_SYM_DEF(algorithm=tss.constants.TPM2_ALG.NULL),
                auth_hash=tss.constants.TPM2_ALG.SHA256,
            )
            try:
                self._esapi.policy_secret(tss.ESYS_TR.ENDORSEMENT, session, b"", b"", b"", 0)
                return bytes(self._esapi.activate_credential(*arguments, session2=session))
            finally:
                self._esapi.flush_context(session)

    def quote(self, key: Any, qualifying: bytes, pcrs: Sequence[int]) -> tuple[bytes, bytes, dict[int, bytes]]:
        """Quote *pcrs* of the SHA-256 bank: (TPMS_ATTEST, TPMT_SIGNATURE, values).

        The values are those that were quoted: where a PCR is extended between, both are taken again.

        :raises DeviceError: when PCRs keep changing, or the TPM has no SHA-256 bank.
        """
        tss = self._tss
        selection = tss.TPML_PCR_SELECTION.parse("sha256:" + ",".join(str(pcr) for pcr in sorted(pcrs)))
        for _ in range(_ATTEMPTS):
            try:
                before = self.read(pcrs)
                attest, signature = self._esapi.quote(
                    key, selection, tss.TPM2B_DATA(qualifying), tss.TPMT_SIG_SCHEME(scheme=tss.constants.TPM2_ALG.NULL)
                )
            except tss.TSS2_Exception as err:
                if err.rc == _PCR_CHANGED:
                    continue
                raise
            raw = bytes(attest)
            digest = hashlib.sha256(b"".join(before[pcr] for pcr in sorted(before))).digest()
            if raw.endswith(digest):
                return raw, bytes(signature.marshal()), before
        raise DeviceError(f"the PCRs {', '.join(map(str, pcrs))} keep changing")

    def read(self, pcrs: Sequence[int]) -> dict[int, bytes]:
        """Return the values of *pcrs*, SHA-256 bank. The TPM gives eight at a time at most."""
        values: dict[int, bytes] = {}
        left = sorted(set(pcrs))
        while left:
            selection = self._tss.TPML_PCR_SELECTION.parse("sha256:" + ",".join(str(pcr) for pcr in left[:8]))
            _, _, digests = self._esapi.pcr_read(selection)
            if len(digests) != len(left[:8]):
                raise DeviceError(f"the TPM has no SHA-256 bank, or not the PCRs {left[:8]}")
            values.update((pcr, bytes(digests[index])) for index, pcr in enumerate(left[:8]))
            left = left[8:]
        return values
