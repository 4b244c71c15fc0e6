"""The authorities of the Privacy CA in the registrar's folder: root, current intermediate, and earlier intermediates.

``netspace.attestation.registrar.registrar`` lists the files. The log records each change before the files are written.
This module has nothing to do with minions or their attestation keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from netspace import files
from netspace.attestation import hsm, signing_keys
from netspace.attestation.registrar import audit_log, privacy_ca
from netspace.attestation.registrar.privacy_ca import Authority
from netspace.errors import NetspaceError, unreadable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate

NAME = "netspace Privacy CA"


class Authorities:
    """Authorities whose files are in *folder*. Methods take the time as an argument.

    :param module: hardware security module that makes and holds new keys; None: new keys are in files.
    """

    def __init__(self, folder: Path, module: hsm.Module | None = None) -> None:
        self._folder = folder
        self._module = module
        self._seen: tuple[object, list[Certificate]] = (None, [])

    def init(self, now: float, *, name: str = NAME, here: bool = True) -> dict[str, Any]:
        """Make the CA, and return its status.

        :param here: True: make the root and the intermediate here; False: make only a certificate request for a root on
            another machine.
        :raises NetspaceError: when the folder already has a CA.
        """
        with files.locked(self._folder / "lock"):
            if (self._folder / "ca").exists() or (self._folder / "root").exists():
                raise NetspaceError(f"{self._folder} has a CA; 'ca_renew' makes its next intermediate")
            if here:
                self._log("ca-root", now, {"name": f"{name} root"})
                made = privacy_ca.root(f"{name} root", now, key=self._new("root"))
                privacy_ca.save(made, self._folder / "root")
            return self._intermediate(name, now)

    def renew(self, now: float, *, name: str = NAME) -> dict[str, Any]:
        """Make the next intermediate. Certificates of the previous intermediate stay valid until they expire."""
        with files.locked(self._folder / "lock"):
            return self._intermediate(name, now)

    def adopt(self, certificate: bytes, root: bytes, now: float) -> dict[str, Any]:
        """Install the certificate (PEM) that a root on another machine made for the last request.

        :raises NetspaceError: when there is no request, or the certificate is for another request or by another root
            than *root*.
        """
        with files.locked(self._folder / "lock"):
            path = self._folder / "requested.pem"
            try:
                raw = path.read_bytes()
            except OSError as err:
                raise NetspaceError(f"{path}: no request is waiting for a certificate: {type(err).__name__}") from err
            key = signing_keys.private_key(raw, self._module, path)
            self._install(privacy_ca.adopt(key, certificate, root, now), now)
            files.remove(path)
            return self.status(now)

    def status(self, now: float) -> dict[str, Any]:
        """Return the state of the CA: its name, the place of its key, and its time of expiry."""
        authority = self.current() if (self._folder / "ca").exists() else None
        return {
            "ca": None if authority is None else authority.certificate.subject.rfc4514_string(),
            "key": None if authority is None else (hsm.reference(authority.key) or b"a file").decode().strip(),
            "until": None if authority is None else authority.certificate.not_valid_after_utc.timestamp(),
            "root_here": (self._folder / "root").exists(),
            "requested": (self._folder / "requested.pem").exists(),
            "retired": len(self._retired(now)),
        }

    def trusted(self, now: float) -> list[Certificate]:
        """Return the trusted intermediates: the current one, and earlier ones until they expire."""
        paths = self._folder / "ca/authority.pem", self._folder / "retired.pem"
        stamps = tuple(_stamp(path) for path in paths)
        if stamps != self._seen[0]:
            # The certificates are needed for each host, so the files are read again only after a change. The keys are
            # not needed here, so load_certificate() is used.
            self._seen = stamps, [privacy_ca.load_certificate(self.place()), *self._retired(0)]
        return [one for one in self._seen[1] if one.not_valid_after_utc.timestamp() > now or one is self._seen[1][0]]

    def place(self) -> Path:
        """Return the folder of the current intermediate.

        :raises NetspaceError: when there is no CA.
        """
        folder = self._folder / "ca"
        if not folder.exists():
            raise NetspaceError("there is no Privacy CA; make it by netspace_attestation.ca_init")
        return folder

    def current(self) -> Authority:
        """Return the current intermediate with its key.

        If a hardware security module has the key, this may be slow or fail.
        """
        return privacy_ca.load(self.place(), self._module)

    def _new(self, use: str) -> EllipticCurvePrivateKey | None:
        """Make a key in the hardware security module. Return None without a module; then the caller makes the key."""
        return None if self._module is None else self._module.create(use)

    def _log(self, event: str, now: float, data: dict[str, Any]) -> None:
        audit_log.append(self._folder / "audit.log", event, data, when=now)

    def _intermediate(self, name: str, now: float) -> dict[str, Any]:
        from cryptography.hazmat.primitives import serialization

        key, asked = privacy_ca.request(name, self._new("ca"))
        if (self._folder / "root").exists():
            root = privacy_ca.load(self._folder / "root", self._module)
            pem = root.certificate.public_bytes(serialization.Encoding.PEM)
            self._install(privacy_ca.adopt(key, privacy_ca.sign_request(root, asked, now), pem, now), now)
            return self.status(now)
        self._log("ca-requested", now, {"name": name})
        files.write(self._folder / "requested.pem", signing_keys.private_bytes(key), mode=0o600)
        return {**self.status(now), "request": asked.decode()}

    def _install(self, authority: Authority, now: float) -> None:
        from cryptography.hazmat.primitives import serialization

        self._log("ca-intermediate", now, {"serial": str(authority.certificate.serial_number)})
        if (self._folder / "ca").exists():
            before = [self.current().certificate, *self._retired(now)]
            pem = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in before)
            files.write(self._folder / "retired.pem", pem, mode=0o644)
        privacy_ca.save(authority, self._folder / "ca")

    def _retired(self, now: float) -> list[Certificate]:
        from cryptography import x509

        try:
            found = x509.load_pem_x509_certificates((self._folder / "retired.pem").read_bytes())
        except FileNotFoundError:
            return []
        except unreadable() as err:
            raise NetspaceError(f"{self._folder / 'retired.pem'}: {err}") from err
        return [one for one in found if one.not_valid_after_utc.timestamp() > now]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        return files.stamp(path)
    except OSError:
        return None
