"""TPM device: endorsement key, attestation key, credential, PCRs, quote.

The module imports tpm2-pytss only when a TPM is used. Rules:

- The configuration names the TPM. libtss2 must never search for a TPM, because it would connect to any program that
  listens on TCP port 2321.
- Nothing stays in the TPM: all keys are primary keys, which are derived again for each use, and every handle is
  flushed. What a killed process left is flushed by the next use.
- Each period has a different attestation key. The keys themselves don't show that they are in the same TPM.
- By a lock, only one process at a time uses the TPM. Each use has a time limit.

This module makes no trust decision; the verifier checks the module's output.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from netspace import files
from netspace.attestation.endorsement import der
from netspace.attestation.tpm.tcti import device_path
from netspace.errors import MissingError, NetspaceError

T = TypeVar("T")

TIMEOUT = 30.0
_ATTEMPTS = 5
_PCR_CHANGED = 0x128
_MANAGED = "tpmrm"  # the kernel flushes what a process left that used such a device
_LEFTOVERS = (0x80000000, 0x02000000)  # first handles of loaded keys, and of loaded sessions (Part 2, 7.4)
_FLUSH = bytes.fromhex("80010000000e00000165")  # TPM2_FlushContext (Part 3, 28.4), but its handle
# Templates of endorsement keys, in order of preference; keys with a certificate in NV come first. ECC is faster.
TEMPLATES = ("EK-ECC256", "EK-RSA2048", "EK-HIGH-ECC256", "EK-HIGH-RSA2048", "EK-HIGH-ECC384")
# Input for deriving attestation keys: it makes them differ from other primaries of the same template. The period's
# bytes follow this input: they make the keys of two periods differ.
_AK_LABEL = b"netspace-attest/1 attestation key"
_ANCHOR_LABEL = b"netspace-secret/1 anchor"
MAX_NV = 8192
# NV indices of the maker's certificates: DER, one after another (TCG EK Credential Profile 2.5, 2.2.1.5.2).
_CHAIN = range(0x01C00100, 0x01C00200)
MAX_CHAIN_BYTES = 64 * 1024


class DeviceError(NetspaceError):
    """Error: the TPM can't be reached, or a command fails."""


def check_tcti(tcti: str) -> None:
    """Check that *tcti* names exactly one TPM.

    :raises DeviceError: when *tcti* is neither ``device:<path>`` nor ``swtpm:path=<path>``.
    """
    if device_path(tcti) is None:
        raise DeviceError(
            f"tpm {tcti!r}: write device:/dev/tpmrm0, or swtpm:path=/run/x.sock for a software TPM "
            "on a socket that only root can reach"
        )


@dataclass(frozen=True)
class Endorsement:
    """An endorsement key.

    :param template: name of its template.
    :param public: TPMT_PUBLIC.
    :param certificate: content of the NV index with the key's certificate; None if the TPM has no certificate.
    """

    template: str
    public: bytes
    certificate: bytes | None


def run(tcti: str, work: Callable[[Device], T], *, lock: Path, timeout: float = TIMEOUT) -> T:
    """Call *work* with the open TPM, and return its result.

    :param tcti: names the TPM; see :func:`check_tcti`.
    :param lock: file that is locked during the call.
    :param timeout: seconds for the whole call, including the wait for the lock.
    :raises DeviceError: when the TPM does not exist, fails, or takes too long.
    :raises MissingError: when tpm2-pytss is not installed.
    """
    check_tcti(tcti)
    path = device_path(tcti)
    assert path is not None
    if not path.exists():
        raise DeviceError(f"tpm {tcti}: {path} does not exist")
    _library()
    deadline = time.monotonic() + timeout

    def busy() -> DeviceError | None:
        late = time.monotonic() >= deadline
        return DeviceError(f"the TPM is in use by another process (it holds {lock})") if late else None

    held = files.held(lock, busy)
    done: list[T] = []
    failed: list[BaseException] = []

    def job() -> None:
        # A command can't be interrupted. So a thread that hangs keeps the lock, and the caller gets an error.
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


def _library() -> Any:
    """Import tpm2_pytss with libtss2's log turned off.

    :raises MissingError: when tpm2_pytss is not installed.
    """
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
            if not (device_path(tcti) or Path()).name.startswith(_MANAGED):
                _flush_leftovers(tss, loaded, esapi)
            yield Device(tss, esapi)
    except tss.TSS2_Exception as err:
        raise DeviceError(f"tpm {tcti}: {err}{_hint(tcti)}") from err


def _flush_leftovers(tss: Any, loaded: Any, esapi: Any) -> None:
    """Flush the keys and sessions that killed processes left. A few of them fill a TPM, and nothing else removes them.

    The caller holds the lock, so no other process of netspace has any.

    :param loaded: the connection by which *esapi* reaches the TPM.
    """
    for first in _LEFTOVERS:
        _, capability = esapi.get_capability(tss.constants.TPM2_CAP.HANDLES, first, 64)
        listed = capability.data.handles  # ``capability`` must live as long as this memory
        for handle in [int(listed[index]) for index in range(len(listed))]:
            # As bytes: the library can't name a session that it didn't begin. An error shows at the next command.
            loaded.transmit(_FLUSH + handle.to_bytes(4, "big"))
            loaded.receive()


def _hint(tcti: str) -> str:
    """Return a hint for the error message if swtpm's control socket is missing; otherwise an empty text.

    libtss2 itself does not report the missing socket.
    """
    kind, _, path = tcti.partition(":path=")
    control = Path(f"{path}.ctrl")
    return f"; swtpm needs --ctrl type=unixio,path={control}" if kind == "swtpm" and not control.exists() else ""


class Device:
    """An open TPM. :func:`run` opens it, and converts the errors of libtss2 to DeviceError."""

    def __init__(self, tss: Any, esapi: Any) -> None:
        self._tss = tss
        self._esapi = esapi

    @property
    def tss(self) -> Any:
        """The module tpm2_pytss."""
        return self._tss

    @property
    def esapi(self) -> Any:
        """The connection to the TPM."""
        return self._esapi

    def information(self) -> dict[str, str]:
        """Return the TPM's ``manufacturer``, ``firmware``, ``vendor`` and ``version`` from its properties."""
        constants = self._tss.constants
        _, capability = self._esapi.get_capability(constants.TPM2_CAP.TPM_PROPERTIES, constants.TPM2_PT.FIXED, 64)
        listed = capability.data.tpmProperties  # ``capability`` must live as long as this memory
        values = {int(listed[index].property): int(listed[index].value) for index in range(len(listed))}

        def text(*offsets: int) -> str:
            raw = b"".join(values.get(0x100 + offset, 0).to_bytes(4, "big") for offset in offsets)
            return "".join(chr(byte) for byte in raw if 0x20 <= byte < 0x7F).strip()

        # TPM_PT of Part 2, 6.13: PT_FIXED + n
        high, low = values.get(0x10B, 0), values.get(0x10C, 0)
        firmware = f"{high >> 16}.{high & 0xFFFF}.{low >> 16}.{low & 0xFFFF}"
        return {"version": text(0), "manufacturer": text(5), "vendor": text(6, 7, 8, 9), "firmware": firmware}

    def endorsement(self, template: str | None = None) -> Endorsement:
        """Return the endorsement key of *template*; by default of the first template whose key has a certificate.

        If no key has a certificate, return the first key that the TPM can make.
        """
        names = (template,) if template else TEMPLATES
        bare: list[tuple[str, Any]] = []
        for name in names:
            certificate, public = self._template(name)
            if certificate is not None:
                return self._endorsement(name, public, certificate)
            if public is not None:
                bare.append((name, public))
        for name, public in bare:
            # A TPM may lack some algorithms, so raise only the last template's error.
            with contextlib.suppress(*([self._tss.TSS2_Exception] if name != bare[-1][0] else [])):
                return self._endorsement(name, public, None)
        raise DeviceError(f"the TPM has no endorsement key of {', '.join(names)}")

    def others(self, template: str) -> list[Endorsement]:
        """Return the endorsement keys of the other known templates. Each of them identifies the same TPM."""
        found: list[Endorsement] = []
        for name in TEMPLATES:
            # A TPM may lack some algorithms, and may forbid reading an index.
            with contextlib.suppress(self._tss.TSS2_Exception):
                certificate, public = (None, None) if name == template else self._template(name)
                if public is not None:
                    found.append(self._endorsement(name, public, certificate))
        return found

    def chain(self, most: int) -> tuple[bytes, ...]:
        """Return the maker's intermediate certificates (DER) that the TPM holds, at most *most*.

        Unreadable certificates are left out. This is safe, because a chain to the operator's roots is needed anyway.
        """
        utils = __import__("tpm2_pytss.utils", fromlist=["utils"])
        read = utils.NVReadEK(self._esapi)
        raw = b""
        # Reading ends at the first index that does not exist or may not be read.
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
        """Return the certificate and the template of an endorsement key.

        The template is None if the TPM has no such key.
        """
        utils = __import__("tpm2_pytss.utils", fromlist=["utils"])
        if name not in TEMPLATES:
            raise DeviceError(f"unknown template {name!r} of an endorsement key")
        try:
            certificate, public = utils.create_ek_template(name, utils.NVReadEK(self._esapi))
        except ValueError:  # without a certificate, there is no key of the high range
            return None, None
        return (bytes(certificate)[:MAX_NV] if certificate else None), public

    def _endorsement(self, name: str, template: Any, certificate: bytes | None) -> Endorsement:
        with self.primary(template) as (_, public):
            return Endorsement(name, public, certificate)

    @contextlib.contextmanager
    def primary(self, template: Any) -> Iterator[tuple[Any, bytes]]:
        """Make a primary key of the endorsement hierarchy, yield (handle, TPMT_PUBLIC), and then flush the key."""
        handle, public, *_ = self._esapi.create_primary(
            self._tss.TPM2B_SENSITIVE_CREATE(), template, primary_handle=self._tss.ESYS_TR.ENDORSEMENT
        )
        try:
            yield handle, bytes(public.publicArea.marshal())
        finally:
            self._esapi.flush_context(handle)

    @contextlib.contextmanager
    def attestation_key(self, period: bytes = b"") -> Iterator[tuple[Any, bytes]]:
        """Derive the attestation key of *period*, yield (handle, TPMT_PUBLIC), and then flush the key.

        The same period always gives the same key until the endorsement seed changes. The key is not stored.

        :param period: random bytes that the registrar chose; empty: the key of a host that judges itself.
        """
        with self._signer(_AK_LABEL + (b"\0" + period if period else b"")) as loaded:
            yield loaded

    @contextlib.contextmanager
    def anchor(self) -> Iterator[tuple[Any, bytes]]:
        """Derive the anchor of secrets, yield (handle, TPMT_PUBLIC), and then flush it.

        Secrets are in credentials for the endorsement key and the anchor. The anchor is always the same until the
        endorsement seed changes. It is not stored, and signs nothing.
        """
        with self._signer(_ANCHOR_LABEL) as loaded:
            yield loaded

    @contextlib.contextmanager
    def _signer(self, label: bytes) -> Iterator[tuple[Any, bytes]]:
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
        template.publicArea.unique.ecc.x = hashlib.sha256(label).digest()
        with self.primary(template) as loaded:
            yield loaded

    def activated(self, key: Any, template: str, blob: bytes, encrypted: bytes) -> bytes:
        """Open a credential as :meth:`activate` does. After its error, the caller can still open other credentials.

        :raises DeviceError: when the credential is not for these two keys.
        """
        try:
            return self.activate(key, template, blob, encrypted)
        except self._tss.TSS2_Exception as err:
            raise DeviceError(f"the TPM doesn't open it ({err})") from err

    def activate(self, key: Any, template: str, blob: bytes, encrypted: bytes) -> bytes:
        """Open a credential for a loaded attestation key (TPM2_ActivateCredential), and return the secret.

        :param key: the attestation key's handle from :meth:`attestation_key`.
        :param template: template of the endorsement key for which the credential was made.
        :raises DeviceError: when the credential is not for these two keys. (:func:`run` raises it.)
        """
        tss = self._tss
        _, public = self._template(template)
        if public is None:
            raise DeviceError(f"the TPM has no endorsement key {template} any more")
        with self.primary(public) as (endorsement, _):
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
        """Quote *pcrs* of the SHA-256 bank, and return (TPMS_ATTEST, TPMT_SIGNATURE, values).

        The values always match the quote: if a PCR is extended between reading and quoting, both are repeated.

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

    def certify_index(self, key: Any, index: int, size: int, auth: bytes, qualifying: bytes) -> tuple[bytes, bytes]:
        """Certify the whole value of an NV index; return (TPMS_ATTEST, TPMT_SIGNATURE).

        :param key: the attestation key's handle.
        :param auth: authorization value of the index.
        :raises DeviceError: when there is no such index, or it has no value.
        """
        tss = self._tss
        try:
            handle = self._esapi.tr_from_tpmpublic(index)
            self._esapi.tr_set_auth(handle, auth)
            scheme = tss.TPMT_SIG_SCHEME(scheme=tss.constants.TPM2_ALG.NULL)
            attest, signature = self._esapi.nv_certify(
                key, handle, tss.TPM2B_DATA(qualifying), scheme, size, 0, auth_handle=handle
            )
        except tss.TSS2_Exception as err:
            raise DeviceError(f"NV index {index:08x}: {err}") from err
        return bytes(attest), bytes(signature.marshal())

    def read(self, pcrs: Sequence[int]) -> dict[int, bytes]:
        """Return the values of *pcrs* in the SHA-256 bank, read in groups of at most eight (the TPM's limit)."""
        values: dict[int, bytes] = {}
        left = sorted(set(pcrs))
        while left:
            selection = self._tss.TPML_PCR_SELECTION.parse("sha256:" + ",".join(str(pcr) for pcr in left[:8]))
            _, _, digests = self._esapi.pcr_read(selection)
            if len(digests) != len(left[:8]):
                raise DeviceError(f"the TPM has no SHA-256 bank, or this bank lacks some of the PCRs {left[:8]}")
            values.update((pcr, bytes(digests[index])) for index, pcr in enumerate(left[:8]))
            left = left[8:]
        return values
