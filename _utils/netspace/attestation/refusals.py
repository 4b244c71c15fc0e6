"""Reasons for which evidence is refused: one exception and one stable reason code per cause.

Codes are part of the interface (logs, results, documentation): they are never
renamed or used for something else. This file decides nothing.
"""

from __future__ import annotations

from typing import ClassVar

from netspace.errors import NetspaceError

# What is remembered of a host, and where: its master's books, or its own.
_FORGET = (
    "have the old one forgotten: netspace_attestation.release, enroll and attest on its master; "
    "'salt-call netspace_attestation.forget' where the host judges itself. Else find out who answered"
)


class Refused(NetspaceError):
    """Evidence that was refused; ``code`` says why, the message says what was found."""

    code: ClassVar[str] = "refused"
    remedy: ClassVar[str] = "find out who made this evidence, and of what"

    def __str__(self) -> str:
        return f"{super().__str__()} [{self.code}]"


class Malformed(Refused):
    """Bytes that are not the structure they claim to be: too short, too long, out of bounds."""

    code = "malformed"


class WrongMagic(Refused):
    """An attestation structure that no TPM made (TPM_GENERATED_VALUE is absent)."""

    code = "magic"


class WrongType(Refused):
    """A TPM's signed statement, but not a quote."""

    code = "type"


class WrongScheme(Refused):
    """A signature by another scheme or hash than the key is restricted to, or by a weak one."""

    code = "scheme"


class WrongSignature(Refused):
    """A signature that the attestation key did not make over these bytes."""

    code = "signature"


class WrongQualifyingData(Refused):
    """Signed for another nonce, session, host or verifier: a replay or a relay."""

    code = "qualifying-data"


class WrongSelection(Refused):
    """A quote of other PCRs, or of another bank, than was asked."""

    code = "pcr-selection"


class WrongDigest(Refused):
    """PCR values that are not those that were quoted."""

    code = "pcr-digest"


class ClockRolledBack(Refused):
    """The TPM's counters are behind what they were: another TPM, a restored one, or a cleared one."""

    code = "clock"
    remedy = f"if the TPM was cleared on purpose, {_FORGET}"


class ResetWithinBoot(Refused):
    """A TPM that was reset while its host went on: its PCRs no longer describe this boot."""

    code = "tpm-reset"
    remedy = "restart the host; if it comes again, look for a device on the TPM's bus, or for firmware that resets it"


class WrongAttestationKey(Refused):
    """An attestation key that could sign what no TPM said, or that could leave its TPM."""

    code = "ak-attributes"


class UnknownAttestationKey(Refused):
    """Evidence by another key than the one bound to this TPM."""

    code = "ak-unknown"
    remedy = f"if the TPM was replaced or the host installed anew, {_FORGET}"


class WrongHierarchy(Refused):
    """A quote by a key of another hierarchy than the TPM's endorsement hierarchy, or by a child of another key."""

    code = "ak-hierarchy"
    remedy = "give master and minion the same netspace; else find out what made this key"


class WrongEndorsementKey(Refused):
    """An endorsement key that is not one: wrong attributes, type or size."""

    code = "ek-attributes"


class WrongEndorsementCertificate(Refused):
    """An endorsement certificate for another key than the TPM's endorsement key."""

    code = "ek-certificate"


class RevokedEndorsementCertificate(Refused):
    """An endorsement certificate, or one on its path, that its maker revoked."""

    code = "ek-revoked"
    remedy = "ask the TPM's maker why; a TPM with a known flaw needs new firmware and a new certificate, or replacing"


class EndorsementKeyChanged(Refused):
    """Another TPM than the one that was pinned for this host."""

    code = "ek-changed"
    remedy = f"if the TPM was replaced on purpose, {_FORGET}"


class WrongActivation(Refused):
    """The attestation key is not proved to live in the TPM of this endorsement key."""

    code = "activation"


class ChallengeExpired(Refused):
    """An answer that came too late, or a second time."""

    code = "challenge-expired"


class LogMalformed(Malformed):
    """A boot log, or systemd's, that can't be read to its end."""

    code = "log-malformed"
    remedy = "find out what wrote the log, and boot again"


class LogMismatch(Refused):
    """A boot log that does not lead to the quoted PCR values."""

    code = "log-mismatch"
    remedy = "find out what was measured without being logged, and boot again"


class ListMalformed(Malformed):
    """A measurement list (IMA) that can't be read to its end."""

    code = "ima-malformed"
    remedy = "find out what wrote the list, and boot again"


class ListMismatch(Refused):
    """A measurement list that does not lead to the quoted value of PCR 10."""

    code = "ima-mismatch"
    remedy = "find out what was measured without being listed, and boot again"


class OtherBoot(Refused):
    """A quote of PCR 10 from another boot of the TPM than the quote that it came with."""

    code = "ima-boot"


class Limited(Refused):
    """Genuine evidence that is worth less than it could be: the level ends here.

    ``remedy`` says what would raise it.
    """

    code = "limited"


class NoChain(Limited):
    """The TPM's endorsement certificate does not chain to a maker that is trusted."""

    code = "ek-untrusted"
    remedy = (
        "put the TPM's maker's certificate into the folder of roots (attestation:roots; a master's is "
        "netspace.attestation:roots in its configuration), and enrol the host again"
    )


class NoPolicy(Limited):
    """Neither references nor a boot policy say what a good boot is."""

    code = "policy-none"
    remedy = "let the master learn a good boot (learn), or record its values in attestation:references"


class NoBootLog(Limited):
    """References or a policy, but no boot log to hold against them."""

    code = "log-none"
    remedy = "boot by UEFI with a TPM that the firmware knows"


class UnknownValue(Limited):
    """A PCR whose value is not among the references."""

    code = "pcr-value"
    remedy = "if the change was intended, add the value to the references"


class Uncovered(Limited):
    """A quoted PCR that no rule of the policy judges, or a rule that rests on an unjudged or unquoted PCR."""

    code = "policy-uncovered"
    remedy = "add a rule, a value, or (where no rule rests on it) the PCR's number to 'unchecked'; or quote the PCR"


class SecureBootOff(Limited):
    """Secure Boot was off, in setup or debug mode, or is not proved to have been on."""

    code = "secure-boot"
    remedy = "enrol keys and turn Secure Boot on in the firmware"


class OldRevocations(Limited):
    """The firmware's list of revoked programs (dbx) lacks some that the policy asks for."""

    code = "dbx-old"
    remedy = "update dbx (fwupdmgr update)"


class UnknownSigner(Limited):
    """A program of the boot was trusted for another signer than the policy's."""

    code = "boot-signer"
    remedy = "find out who signed what was booted; if that is intended, add its certificate to 'signers'"


class ShimInsecure(Limited):
    """A shim that was set not to verify what it starts (MokSBState), or not to use the firmware's keys (MokDBState)."""

    code = "shim-insecure"
    remedy = "turn shim's validation on again: mokutil --enable-validation, and confirm it at the console"


class OldShimLevel(Limited):
    """A shim that accepts generations of boot programs that the policy refuses (SBAT), or records none."""

    code = "sbat-old"
    remedy = "update shim, and the level that it applies: mokutil --set-sbat-policy latest"


class UnknownApplication(Limited):
    """A UEFI program that is not in the policy, or was started by a wrong one; or a boot without a program."""

    code = "boot-application"
    remedy = "if the boot loader or kernel was updated, add its Authenticode digest to 'applications' and 'started_by'"


class UnknownFile(Limited):
    """The boot loader or the kernel loaded something whose digest is not in the policy, or no kernel of it."""

    code = "boot-file"
    remedy = "if kernel, initrd or configuration were updated, add their digests to the policy"


class UnknownCommandLine(Limited):
    """The kernel's command line matches no pattern of the policy, or is not proved."""

    code = "command-line"
    remedy = "boot with an allowed command line, and quote the PCR that it is measured into (8, 9 or 12)"


class UnexpectedEvent(Limited):
    """An event that has no place in its PCR, or whose data is not what was measured."""

    code = "boot-event"
    remedy = "find out what measured it; firmware that measures otherwise needs plain values for this PCR"


class NoImaPolicy(Limited):
    """The boot is good, and nothing says which programs may run after it."""

    code = "ima-policy-none"
    remedy = "add a section 'ima' to the policy: what may run"


class ImaUnfounded(Limited):
    """An IMA policy whose boot rules leave open which kernel wrote the list, or what that kernel measures."""

    code = "ima-unfounded"
    remedy = "let the policy judge programs, what they load and the command line, and quote PCRs 0 to 9, 11 and 12"


class NoList(Limited):
    """An IMA policy, but no quote of PCR 10 with the list."""

    code = "ima-none"
    remedy = "boot with ima_policy=tcb, and let the evidence bring the list"


class ListGap(Limited):
    """Lines of a measurement list that do not continue where the verifier stopped."""

    code = "ima-gap"
    remedy = "ask for the list from line 0: the host was restarted, or the policy changed"


class WrongAggregate(Limited):
    """A measurement list that begins with another boot's PCR values."""

    code = "ima-aggregate"
    remedy = "the kernel's TPM driver must be there before IMA starts: build it in"


class UnprovedAggregate(Limited):
    """A measurement list whose first line can't be compared with the quoted PCRs."""

    code = "ima-unproved"
    remedy = (
        "quote PCRs 0 to 9 (the group's pcrs), and boot Linux 5.8 or later, with a SHA-256 bank and ima_hash=sha256"
    )


class NothingMeasured(Limited):
    """A measurement list without process 1: the kernel does not measure which programs run."""

    code = "ima-unmeasured"
    remedy = "boot with ima_policy=tcb, and let the policy's command_lines ask for it"


class UnknownFileRun(Limited):
    """A file was run or read that the IMA policy does not allow."""

    code = "ima-file"
    remedy = "remove the file and restart, or allow it in the policy"


class Violation(Limited):
    """A file changed while it was measured, so that nobody knows what was run."""

    code = "ima-violation"
    remedy = "restart; if this host's files are written while they are read, set 'violations: ignore'"


class StartedByKexec(Limited):
    """A kernel that kexec started since the boot; nothing proves its command line."""

    code = "ima-kexec"
    remedy = "restart by the firmware; if kexec is meant to be used, set 'kexec: allow' in the policy's section ima"


class WrongAttestationCertificate(Refused):
    """A certificate that the Privacy CA did not issue for this attestation key, or that is another kind of one."""

    code = "ak-certificate"
    remedy = "enrol the host again"


class ExpiredAttestationCertificate(Refused):
    """An attestation key's certificate outside of its time, or a CA's."""

    code = "ak-certificate-expired"
    remedy = "let the host have a new certificate; check the clocks"


class RevokedAttestationCertificate(Refused):
    """An attestation key's certificate that was revoked, or a revocation list that is missing or too old to tell."""

    code = "ak-certificate-revoked"
    remedy = "if the list is too old: make a new one; else find out why it was revoked, and enrol the host again"


class SharedEndorsementKey(Refused):
    """A TPM that is bound to another minion already."""

    code = "ek-shared"
    remedy = "find out which of the two hosts has the TPM; if it moved on purpose, release it first"


class SharedAttestationKey(Refused):
    """An attestation key that another minion has, or that this one's last certificate is for."""

    code = "ak-shared"
    remedy = "give master and minion the same netspace; else find out which hosts share a TPM"


class UnlistedEndorsementKey(Refused):
    """A TPM that the operator's inventory does not list for this minion."""

    code = "ek-inventory"
    remedy = (
        "find out where this TPM is; only if it is this minion's, add its key (ek) to the file that the master's "
        "netspace.attestation:inventory names"
    )


class WrongSaltKey(Refused):
    """Something that is said in a minion's name without the signature of its Salt key."""

    code = "salt-key"
    remedy = "give master and minion the same netspace; else find out which minion answers in this one's name"


class ResultForged(Refused):
    """A result that none of the verifier's keys signed, or by another algorithm than ES256 (``none``)."""

    code = "result-signature"
    remedy = "compare attestation:verifier_keys with the master's 'netspace_attestation.jwks'"


class ResultElsewhere(Refused):
    """A result for another host."""

    code = "result-host"
    remedy = "find out who sent it"


class ResultReplayed(Refused):
    """A result of another challenge than the one that this host answered last."""

    code = "result-nonce"
    remedy = "let the master ask again: netspace_attestation.attest"


class ResultOtherBoot(Refused):
    """A result of another boot of this host."""

    code = "result-boot"
    remedy = "let the master ask again: netspace_attestation.attest"


class ResultExpired(Refused):
    """A result after its time, or before it."""

    code = "result-expired"
    remedy = "compare the clocks of host and master, and let the master ask again"


class PolicyDowngraded(Refused):
    """A policy, or a result by one, of a lower version than was in force before."""

    code = "policy-downgrade"
    remedy = "give the policy a higher version; if nobody meant to change it, find out who put an old one back"


class PolicyForged(Refused):
    """A policy in the master's folder that its verifier did not sign."""

    code = "policy-signature"
    remedy = "put a policy in force again: netspace_attestation.policy_set"


class TeeMalformed(Malformed):
    """A TEE's report, its certificates or its attachments that can't be read to the end."""

    code = "tee-malformed"
    remedy = "find out what wrote the report; a newer firmware may need a newer netspace"


class TeeSignature(Refused):
    """A TEE report that the processor's key did not sign."""

    code = "tee-signature"


class TeeBinding(Refused):
    """A genuine TEE report for another nonce, host, verifier or key: a replay or a relay."""

    code = "tee-binding"


class TeeCertificate(Refused):
    """A TEE report with the certificate of another processor, firmware version (TCB) or kind of key."""

    code = "tee-certificate"
    remedy = (
        "let the host's certificate table be written anew: its firmware was updated, or the table is another host's"
    )


class TeeRevoked(Refused):
    """A TEE whose certificate, or an issuer's, was revoked, or whose TCB its maker calls revoked."""

    code = "tee-revoked"
    remedy = "ask the processor's maker why; move the guest to another machine"


class TeeUntrusted(Limited):
    """A TEE whose certificate is missing, or does not chain to a trusted root."""

    code = "tee-untrusted"
    remedy = (
        "put the maker's root, and the processor's certificate where the guest has none, into the folder that the "
        "master's netspace.attestation:tee_roots names"
    )


class NoTee(Limited):
    """Evidence without a TEE report, where the policy demands a TEE."""

    code = "tee-none"
    remedy = "run the host as a confidential guest with Linux 6.7 or later, and mount configfs"


class UnknownTee(Limited):
    """A TEE report of a kind that the policy has no rules for, or that can't be verified here."""

    code = "tee-kind"
    remedy = "add rules for this kind of TEE to the policy's section 'tee'"


class TeeDebug(Limited):
    """A TEE whose memory its host can read: a debug guest, or a debug module."""

    code = "tee-debug"
    remedy = "start the guest without debugging"


class TeeMeasurement(Limited):
    """A guest whose launch measurement the policy does not allow."""

    code = "tee-measurement"
    remedy = "if the guest's firmware or kernel was updated, add its measurement to the policy"


class TeeOldTcb(Limited):
    """A TEE whose firmware or microcode is older than the policy demands, or has an unknown TCB status."""

    code = "tee-tcb"
    remedy = "have the host's firmware updated; put the maker's current TCB information into the folder of roots"


class TeeRules(Limited):
    """A guest whose launch settings the policy does not allow."""

    code = "tee-policy"
    remedy = "start the guest as the policy's section 'tee' says, or change that"


class TeeLog(Limited):
    """A guest's log (CCEL) that is missing, malformed or does not lead to its registers (RTMR)."""

    code = "tee-log"
    remedy = "find out what was measured without being logged, and boot again"


class TeeBoot(Limited):
    """A host without a TPM whose key a TEE vouches for: its boot is not judged beyond the TEE's measurement."""

    code = "tee-boot"
    remedy = "a TPM's quote and boot log would prove the boot"
