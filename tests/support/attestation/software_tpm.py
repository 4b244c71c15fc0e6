"""Software TPMs, each with a certificate by the test's own CA, as from a TPM maker."""

from __future__ import annotations

import datetime
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes


@dataclass
class Factory:
    """A maker of TPMs; its files are in *folder*."""

    folder: Path

    @property
    def state(self) -> Path:
        """The state of a TPM as it leaves the factory."""
        return self.folder / "state"

    @property
    def roots(self) -> Path:
        """The maker's certificates."""
        return self.folder / "roots"

    def certify(self, key: CertificatePublicKeyTypes) -> x509.Certificate:
        """Issue a certificate for an endorsement key that swtpm's own tool does not certify."""
        issuer = x509.load_pem_x509_certificate((self.folder / "ca/issuercert.pem").read_bytes())
        signer = serialization.load_pem_private_key((self.folder / "ca/signkey.pem").read_bytes(), None)
        now = datetime.datetime.now(datetime.timezone.utc)
        names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_cert_sign")
        usage = dict.fromkeys((*names, "crl_sign", "encipher_only", "decipher_only"), False)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(issuer.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.KeyUsage(**usage, key_agreement=True), True)
            .add_extension(x509.ExtendedKeyUsage([x509.ObjectIdentifier("2.23.133.8.1")]), False)
            .sign(signer, hashes.SHA256())
        )


def missing() -> str:
    """Return the reason why no TPM can be made here; empty if a TPM can be made."""
    found = [name for name in ("swtpm", "swtpm_setup", "swtpm_localca", "certtool") if shutil.which(name) is None]
    return f"{', '.join(found)} missing: apt-get install swtpm swtpm-tools gnutls-bin" if found else ""


def manufacture(folder: Path) -> Factory:
    """Make a TPM as a maker does: endorsement keys, and their certificates by the maker's own CA."""
    for name in ("ca", "state", "roots"):
        (folder / name).mkdir()
    (folder / "localca.conf").write_text(
        f"statedir = {folder}/ca\nsigningkey = {folder}/ca/signkey.pem\n"
        f"issuercert = {folder}/ca/issuercert.pem\ncertserial = {folder}/ca/certserial\n"
    )
    (folder / "localca.options").write_text(
        "--platform-manufacturer Test\n--platform-version 1\n--platform-model Test\n"
    )
    (folder / "setup.conf").write_text(
        f"create_certs_tool = {shutil.which('swtpm_localca')}\ncreate_certs_tool_config = {folder}/localca.conf\n"
        f"create_certs_tool_options = {folder}/localca.options\nactive_pcr_banks = sha256\n"
    )
    subprocess.run(
        [
            *("swtpm_setup", "--tpm2", "--create-ek-cert", "--tpm-state", folder / "state"),
            *("--config", folder / "setup.conf", "--logfile", folder / "log"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    shutil.copy(folder / "ca/issuercert.pem", folder / "roots/issuer.pem")
    shutil.copy(folder / "ca/swtpm-localca-rootca-cert.pem", folder / "roots/root.pem")
    return Factory(folder)


def listening(path: Path) -> bool:
    """Return whether a program accepts connections at a socket.

    The socket's file alone isn't enough, since bind(2) makes it before listen(2).
    """
    accepts = "00010000"  # SO_ACCEPTCON, of the column Flags
    lines = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    return any(one[3] == accepts and one[-1] == str(path) for one in lines)
