"""TPMs of the lab's hosts: software TPMs (swtpm), with certificates from the lab's own TPM maker.

Each TPM is made once, and keeps its state as a host keeps its disk. The master trusts the maker, and the master's
inventory names the TPM of each host that has one. So the TPM alone suffices to accept the key of the host's minion.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from processes import Failed, run

PROGRAMS = ("swtpm", "swtpm_setup", "swtpm_localca", "certtool")
SOCKET = "/run/tpm.sock"
"""Socket of a host's TPM, the same path on each host, because each host has a ``/run`` of its own."""
MAKERS = ("issuercert.pem", "swtpm-localca-rootca-cert.pem")
"""The maker's certificates, in the maker's folder."""
TCTI = f"swtpm:path={SOCKET}"
ROOTS = "/etc/tpm-roots"
"""Folder on a host with the certificates of the TPMs' maker."""


def missing() -> str:
    """Return the reason why no TPM can be made here; empty if it can."""
    found = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"{', '.join(found)} missing; apt-get install swtpm swtpm-tools gnutls-bin" if found else ""


def folder(home: Path) -> Path:
    """Return the folder of a host's TPM. The folder exists only if the host has a TPM."""
    return home / "tpm"


def make(home: Path, maker: Path) -> None:
    """Make the TPM of a host, if it has none. After a kill the next call starts from the beginning.

    :param maker: the maker's folder, beside the hosts' folders.
    :raises Failed: the TPM can't be made.
    """
    if folder(home).exists():
        return
    aside, certificates = home / "tpm.new", home / "tpm.new/certificates"
    shutil.rmtree(aside, ignore_errors=True)
    certificates.mkdir(parents=True, mode=0o700)
    (aside / "state").mkdir(mode=0o700)
    maker.mkdir(mode=0o700, exist_ok=True)
    (aside / "localca.conf").write_text(
        f"statedir = {maker}\nsigningkey = {maker}/signkey.pem\n"
        f"issuercert = {maker}/issuercert.pem\ncertserial = {maker}/certserial\n"
    )
    (aside / "localca.options").write_text("--platform-manufacturer Lab\n--platform-version 1\n--platform-model Lab\n")
    (aside / "setup.conf").write_text(
        f"create_certs_tool = {shutil.which('swtpm_localca')}\ncreate_certs_tool_config = {aside}/localca.conf\n"
        f"create_certs_tool_options = {aside}/localca.options\nactive_pcr_banks = sha256\n"
    )
    run(
        *("swtpm_setup", "--tpm2", "--create-ek-cert", "--tpm-state", str(aside / "state")),
        *("--config", str(aside / "setup.conf"), "--write-ek-cert-files", str(certificates)),
    )
    if not any(certificates.iterdir()):
        raise Failed(f"{home.name}: swtpm_setup wrote no certificate of its TPM; see swtpm_setup(8)")
    aside.rename(folder(home))


def start(home: Path) -> None:
    """Start a host's TPM, on that host, if it has one; and have the host know its maker."""
    if folder(home).exists():
        Path(ROOTS).mkdir(exist_ok=True)
        for name in MAKERS:
            shutil.copyfile(home.parent / "maker" / name, Path(ROOTS) / name)
        command = ["swtpm", "socket", "--tpm2", "--daemon", "--flags", "not-need-init,startup-clear"]
        command += ["--server", f"type=unixio,path={SOCKET}", "--ctrl", f"type=unixio,path={SOCKET}.ctrl"]
        subprocess.run([*command, "--tpmstate", f"dir={folder(home) / 'state'}"], stdin=subprocess.DEVNULL, check=True)


def refused(name: str, told: str) -> str:
    """Return why the master will never accept a host's key; empty if the master may still accept it.

    :param told: the output of the host's request.
    """
    if "[ek-changed]" not in told:
        return ""
    return f"another machine had this name; release its TPM: lab salt-run netspace_attestation.release {name}"


def write_inventory(master: Path, homes: list[Path], maker: Path) -> None:
    """Write the master's inventory and the maker's certificates, from the hosts' TPMs."""
    roots = master / "tpm-roots"
    roots.mkdir(exist_ok=True)
    for name in MAKERS:
        shutil.copyfile(maker / name, roots / name)
    lines = [f"{home.name} {' '.join(_fingerprints(home))}\n" for home in homes if folder(home).exists()]
    aside = master / "tpms.new"
    aside.write_text("".join(lines))
    aside.rename(master / "tpms")


def _fingerprints(home: Path) -> list[str]:
    """Return the fingerprint of each endorsement key of a host's TPM: SHA-256 of its SubjectPublicKeyInfo."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    found = []
    for path in sorted((folder(home) / "certificates").iterdir()):
        key = x509.load_der_x509_certificate(path.read_bytes()).public_key()
        found.append(hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest())
    return found
