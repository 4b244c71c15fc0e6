"""Reasons for refusing evidence: one exception and one stable reason code per cause.

Codes are part of the interface (logs, results, documentation), so they are never renamed or reused.
"""

from __future__ import annotations

from typing import ClassVar

from netspace.errors import NetspaceError

# Commands that delete the record of a host's TPM: on its master, or on the host itself.
_FORGET = (
    "forget the old TPM or key: netspace_attestation.release, enroll and attest on the master; "
    "'salt-call netspace_attestation.forget' where the host judges itself. Else find out who answered"
)


class Refused(NetspaceError):
    """Error: evidence is refused. ``code`` names the cause; the message describes the finding."""

    code: ClassVar[str] = "refused"
    remedy: ClassVar[str] = "find out who made this evidence, and from which data"

    def __str__(self) -> str:
        return f"{super().__str__()} [{self.code}]"


class Malformed(Refused):
    """Data without the expected structure: too short, too long, or with values out of bounds."""

    code = "malformed"


class WrongMagic(Refused):
    """An attestation structure without TPM_GENERATED_VALUE, so no TPM made it."""

    code = "magic"


class WrongType(Refused):
    """An attestation structure that a TPM signed, but that is not a quote."""

    code = "type"


class WrongScheme(Refused):
    """A signature with a weak scheme or hash, or with another scheme than the one to which the key is restricted."""

    code = "scheme"


class WrongSignature(Refused):
    """A signature that the attestation key did not make over these bytes."""

    code = "signature"


class WrongQualifyingData(Refused):
    """A quote for another nonce, session, host or verifier: a replay or a relay."""

    code = "qualifying-data"


class WrongSelection(Refused):
    """A quote of other PCRs, or of another bank, than the verifier asked for."""

    code = "pcr-selection"


class WrongDigest(Refused):
    """PCR values that do not match the quote's digest."""

    code = "pcr-digest"


class ClockRolledBack(Refused):
    """A TPM whose counters are lower than before: another TPM, or one that was restored or cleared."""

    code = "clock"
    remedy = f"if the TPM was cleared on purpose, {_FORGET}"


class ResetWithinBoot(Refused):
    """A TPM that was reset while its host kept running, so that its PCRs no longer describe this boot."""

    code = "tpm-reset"
    remedy = (
        "restart the host; if the TPM is reset again, look for a device on the TPM's bus, or for firmware "
        "that resets it"
    )


class WrongAttestationKey(Refused):
    """An attestation key that can sign data from outside the TPM, or that can leave its TPM."""

    code = "ak-attributes"


class UnknownAttestationKey(Refused):
    """Evidence signed by a key other than the one that is bound to this TPM."""

    code = "ak-unknown"
    remedy = f"if the TPM was replaced or the host installed anew, {_FORGET}"


class WrongHierarchy(Refused):
    """A quote by a key that is not a primary key of the TPM's endorsement hierarchy."""

    code = "ak-hierarchy"
    remedy = "install the same netspace on master and minion; else find out what made this key"


class WrongEndorsementKey(Refused):
    """A key with the wrong attributes, type or size for an endorsement key."""

    code = "ek-attributes"


class WrongEndorsementCertificate(Refused):
    """An endorsement certificate for another key than the TPM's endorsement key."""

    code = "ek-certificate"


class RevokedEndorsementCertificate(Refused):
    """An endorsement certificate that its maker revoked, or whose path has a certificate that its maker revoked."""

    code = "ek-revoked"
    remedy = (
        "ask the TPM's maker why; a TPM with a known flaw needs new firmware and a new certificate, or a replacement"
    )


class EndorsementKeyChanged(Refused):
    """A TPM other than the one that was pinned for this host."""

    code = "ek-changed"
    remedy = f"if the TPM was replaced on purpose, {_FORGET}"


class WrongActivation(Refused):
    """An answer to a credential that doesn't prove that attestation key and endorsement key are in one TPM."""

    code = "activation"


class ChallengeExpired(Refused):
    """An answer to a challenge that arrived too late, or a second time."""

    code = "challenge-expired"


class LogMalformed(Malformed):
    """A boot log, or systemd's measurement log, that can't be parsed to its end."""

    code = "log-malformed"
    remedy = "find out what wrote the log, and boot again"


class LogMismatch(Refused):
    """A boot log that does not lead to the quoted PCR values."""

    code = "log-mismatch"
    remedy = "find out what was measured without being logged, and boot again"


class ListMalformed(Malformed):
    """A measurement list (IMA) that can't be parsed to its end."""

    code = "ima-malformed"
    remedy = "find out what wrote the list, and boot again"


class ListMismatch(Refused):
    """A measurement list that does not lead to the quoted value of PCR 10."""

    code = "ima-mismatch"
    remedy = "find out what was measured without being listed, and boot again"


class OtherBoot(Refused):
    """A quote of PCR 10 from another boot than the quote of the other PCRs."""

    code = "ima-boot"


class Limited(Refused):
    """Genuine evidence that does not reach a higher level. ``remedy`` says how to reach the higher level."""

    code = "limited"


class NoChain(Limited):
    """An endorsement certificate that does not chain to a trusted maker's root."""

    code = "ek-untrusted"
    remedy = (
        "put the certificate of the TPM's maker into the folder of roots (attestation:roots; a master's is "
        "netspace.attestation:roots in its configuration), and enrol the host again"
    )


class NoPolicy(Limited):
    """A host for which there are neither references nor a boot policy."""

    code = "policy-none"
    remedy = "let the master learn a good boot (learn), or record its values in attestation:references"


class NoBootLog(Limited):
    """Evidence without a boot log, which the references or the policy need."""

    code = "log-none"
    remedy = "boot by UEFI, with a TPM that the firmware supports"


class UnknownValue(Limited):
    """A PCR whose value is not among the references."""

    code = "pcr-value"
    remedy = "if the change was intended, add the value to the references"


class Uncovered(Limited):
    """A quoted PCR that no rule of the policy judges, or a rule that rests on an unjudged or unquoted PCR."""

    code = "policy-uncovered"
    remedy = "add a rule, a value, or (where no rule rests on it) the PCR's number to 'unchecked'; or quote the PCR"


class SecureBootOff(Limited):
    """A boot with Secure Boot off, in setup, audit or debug mode, or without proof that Secure Boot is on."""

    code = "secure-boot"
    remedy = "enrol keys and turn Secure Boot on in the firmware"


class NetworkBoot(Limited):
    """A firmware with a boot entry that leads to a network, or one that does not measure its boot order."""

    code = "tcb-network-boot"
    remedy = (
        "remove the entry (efibootmgr -b NUMBER -B) and switch network boot off in the firmware, and boot again; "
        "firmware that does not measure its boot order into PCR 1 can't satisfy this term"
    )


class UnknownPlatform(Limited):
    """A measurement in PCR 1 that is neither a boot entry that leads to a local disk nor listed by the policy."""

    code = "tcb-platform"
    remedy = (
        "if firmware, settings or hardware were changed on purpose, add the digest to the policy's tcb:platform "
        "(netspace_attestation.learn does it)"
    )


class OldFirmware(Limited):
    """A firmware of a version that the policy does not list, or that measures no version."""

    code = "tcb-firmware"
    remedy = "update the firmware, or add its version to the policy's tcb:firmware"


class DmaUnprotected(Limited):
    """A firmware that reports that its protection against DMA is off."""

    code = "tcb-dma"
    remedy = "switch the protection against DMA (IOMMU, VT-d, AMD-Vi) on in the firmware, and boot again"


class ToldOnly(Limited):
    """A term of the policy that only the host's own claim supports, and no measurement."""

    code = "tcb-told"
    remedy = (
        "remove the term from the policy's section tcb, and watch its value by netspace_attestation.tcb. Only lockdown "
        "and usb can be proved: at L5, by a policy with kernels and command_lines, each a whole line with the setting"
    )


class OldRevocations(Limited):
    """A firmware whose list of revoked programs (dbx) lacks entries that the policy demands."""

    code = "dbx-old"
    remedy = "update dbx (fwupdmgr update)"


class UnknownSigner(Limited):
    """A booted program whose trust rests on a certificate that the policy does not list."""

    code = "boot-signer"
    remedy = (
        "find out who signed the booted program; if the program is intended, add the signer's certificate to 'signers'"
    )


class ShimInsecure(Limited):
    """A shim that is set not to verify the programs that it starts, or to ignore the firmware's keys.

    The settings are the variables MokSBState and MokDBState.
    """

    code = "shim-insecure"
    remedy = "turn shim's validation on again: mokutil --enable-validation, and confirm it at the console"


class OldShimLevel(Limited):
    """A shim whose SBAT level accepts boot programs that the policy refuses, or that records no SBAT level."""

    code = "sbat-old"
    remedy = "update shim, and the level that it applies: mokutil --set-sbat-policy latest"


class UnknownApplication(Limited):
    """A UEFI program that the policy does not list, or does not allow after the previous program.

    Also a boot without any program.
    """

    code = "boot-application"
    remedy = "if the boot loader or kernel was updated, add its Authenticode digest to 'applications' and 'started_by'"


class UnknownFile(Limited):
    """A loaded file whose digest the policy does not list, or a boot that loaded none of the policy's kernels."""

    code = "boot-file"
    remedy = "if kernel, initrd or configuration were updated, add their digests to the policy"


class UnknownCommandLine(Limited):
    """A kernel's command line that matches no pattern of the policy, or that no PCR proves."""

    code = "command-line"
    remedy = "boot with an allowed command line, and quote the PCR that it is measured into (8, 9 or 12)"


class UnexpectedEvent(Limited):
    """An event that does not belong in its PCR, or whose data does not match its digest."""

    code = "boot-event"
    remedy = "find out which program measured it; firmware with other measurements needs plain values for this PCR"


class NoImaPolicy(Limited):
    """A good boot of a host whose policy has no rules for the programs that run after the boot."""

    code = "ima-policy-none"
    remedy = "add a section 'ima' to the policy, with the files that may run"


class ImaUnfounded(Limited):
    """A policy whose rules for the boot don't prove which kernel wrote the IMA list, or what this kernel measures."""

    code = "ima-unfounded"
    remedy = "let the policy judge programs, loaded files and the command line, and quote PCRs 0 to 9, 11 and 12"


class NoList(Limited):
    """Evidence without the measurement list and its quote of PCR 10, although the policy has rules for IMA."""

    code = "ima-none"
    remedy = "boot with ima_policy=tcb, so that the host can send the list"


class ListGap(Limited):
    """A part of a measurement list that doesn't begin right after the last line that the verifier judged."""

    code = "ima-gap"
    remedy = "ask for the list from line 0: the host was restarted, or the policy changed"


class WrongAggregate(Limited):
    """A measurement list whose first line (boot_aggregate) is not the digest of this boot's PCR values."""

    code = "ima-aggregate"
    remedy = "use a kernel with a built-in TPM driver, so that IMA finds the TPM when it starts"


class UnprovedAggregate(Limited):
    """A measurement list whose first line can't be compared with the quoted PCRs."""

    code = "ima-unproved"
    remedy = (
        "quote PCRs 0 to 9 (the group's pcrs), and boot Linux 5.8 or later, with a SHA-256 bank and ima_hash=sha256"
    )


class NothingMeasured(Limited):
    """A measurement list that is empty or lacks process 1: the kernel does not measure programs."""

    code = "ima-unmeasured"
    remedy = "boot with ima_policy=tcb, and demand that in the policy's command_lines"


class UnknownFileRun(Limited):
    """A file that was run or read, and that the IMA policy does not allow."""

    code = "ima-file"
    remedy = "remove the file and restart, or allow it in the policy"


class Violation(Limited):
    """A file that was written while it was measured, so that its content is unknown."""

    code = "ima-violation"
    remedy = "restart; if this host's files are written while they are read, set 'violations: ignore'"


class StartedByKexec(Limited):
    """A kernel that kexec started after the boot; nothing proves its command line."""

    code = "ima-kexec"
    remedy = "restart by the firmware; if kexec is meant to be used, set 'kexec: allow' in the policy's section ima"


class WrongAttestationCertificate(Refused):
    """A certificate that the Privacy CA did not issue for this attestation key, or for this use."""

    code = "ak-certificate"
    remedy = "enrol the host again"


class ExpiredAttestationCertificate(Refused):
    """A certificate of an attestation key, or of its CA, that has expired or is not yet valid."""

    code = "ak-certificate-expired"
    remedy = "renew the host's certificate; check the clocks"


class RevokedAttestationCertificate(Refused):
    """An attestation key's certificate that was revoked, or a revocation list that is missing or too old."""

    code = "ak-certificate-revoked"
    remedy = (
        "if the revocation list is too old, make a new one; else find out why the certificate was revoked, "
        "and enrol the host again"
    )


class SharedEndorsementKey(Refused):
    """A TPM that is already bound to another minion."""

    code = "ek-shared"
    remedy = "find out which of the two hosts has the TPM; if it moved on purpose, release it first"


class SharedAttestationKey(Refused):
    """An attestation key that belongs to another minion, or for which this minion already has a certificate."""

    code = "ak-shared"
    remedy = "install the same netspace on master and minion; else find out which hosts share a TPM"


class UnlistedEndorsementKey(Refused):
    """A TPM that the operator's inventory does not list for this minion."""

    code = "ek-inventory"
    remedy = (
        "find out where this TPM is; only if it is this minion's, add its key (ek) to the file that the master's "
        "netspace.attestation:inventory names"
    )


class WrongSaltKey(Refused):
    """A message in a minion's name without a signature by its Salt key."""

    code = "salt-key"
    remedy = "install the same netspace on master and minion; else find out which minion answers in this one's name"


class ResultForged(Refused):
    """A result that none of the verifier's keys signed, or whose algorithm is not ES256 (such as ``none``)."""

    code = "result-signature"
    remedy = "compare attestation:verifier_keys with the master's 'netspace_attestation.jwks'"


class ResultElsewhere(Refused):
    """A result for another host."""

    code = "result-host"
    remedy = "find out who sent the result"


class ResultReplayed(Refused):
    """A result for another challenge than the one that this host answered last."""

    code = "result-nonce"
    remedy = "let the master ask again: netspace_attestation.attest"


class ResultOtherBoot(Refused):
    """A result for another boot of this host."""

    code = "result-boot"
    remedy = "let the master ask again: netspace_attestation.attest"


class ResultExpired(Refused):
    """A result that is expired or not yet valid."""

    code = "result-expired"
    remedy = "compare the clocks of host and master, and let the master ask again"


class HostKeyExpired(Refused):
    """An environment's token with a host's statement about the token's key that isn't valid now.

    The statement has expired, isn't valid yet, or is valid for too long.
    """

    code = "host-key-expired"
    remedy = "compare the clocks, and ask the environment again"


class TokenForged(Refused):
    """An environment's token that the key in the host's statement did not sign, or whose algorithm is not ES256."""

    code = "token-signature"
    remedy = "find out who made this token"


class TokenElsewhere(Refused):
    """An environment's token whose host or boot differs from the host or boot in the statement about its key."""

    code = "token-host"
    remedy = "find out who put this token together with that key"


class TokenReplayed(Refused):
    """An environment's token with another nonce than the asker's: a replay."""

    code = "token-nonce"
    remedy = "ask with a new nonce, and take no answer twice"


class TokenExpired(Refused):
    """A token of an environment that is expired or not yet valid."""

    code = "token-expired"
    remedy = "compare the clocks, and ask the environment again"


class TokenOther(Refused):
    """A genuine token of an environment whose name, host, image, configuration, key or PCR is not as expected."""

    code = "token-subject"
    remedy = "compare what is expected with what the host runs: its declaration, image and PCRs"


class AppraisalMissing(Refused):
    """A token without a verifier's statement on the host (host appraisal), although the asker demands one."""

    code = "appraisal-none"
    remedy = (
        "allow an environment of the host to ask for proofs, attest the host on the master, and ask the environment "
        "again; a host that judges itself has no such statement"
    )


class AppraisalForged(Refused):
    """A host appraisal that no trusted verifier signed, or whose algorithm is not ES256."""

    code = "appraisal-signature"
    remedy = "find out who made it; if the master's verifier has a new key, trust that one (netspace_attestation.jwks)"


class AppraisalExpired(Refused):
    """A host appraisal that has expired or is not valid yet."""

    code = "appraisal-expired"
    remedy = "let the master attest the host again, compare the clocks, and ask the environment again"


class AppraisalLow(Refused):
    """A host appraisal with a lower level than the asker demands."""

    code = "appraisal-level"
    remedy = "netspace_attestation.explain on the master says why the host has no higher level"


class AppraisalElsewhere(Refused):
    """A host appraisal of another host than the asker expects."""

    code = "appraisal-host"
    remedy = "find out who sent the evidence of another host"


class AppraisalOutdated(Refused):
    """A host appraisal that the verifier itself has replaced or withdrawn since."""

    code = "appraisal-outdated"
    remedy = "ask the environment again; if the host was restarted since, the proof is from before the restart"


class TokenKeyOther(Refused):
    """A token signed by another key than the one that the host appraisal names."""

    code = "token-key"
    remedy = "find out who made this token; no appraised host vouches for its key"


class TokenKeyUnproved(Refused):
    """A token key that a host showed to its verifier without a valid proof, for this challenge, that it has the key."""

    code = "token-key-proof"
    remedy = "find out whose key the host showed as its own"


class TokenKeyOld(Refused):
    """A token key that the host had already in an earlier boot. A genuine host makes a new key in each boot."""

    code = "token-key-boot"
    remedy = "restart the host; if it happens again, find out what kept the key over a restart"


class TokenOtherBoot(Refused):
    """A token from another boot of the host than the boot that the verifier judged."""

    code = "token-boot"
    remedy = "ask the environment again; if it happens again, find out who put token and appraisal together"


class PolicyDowngraded(Refused):
    """A policy whose version is lower than one that was in force before, or a result by such a policy."""

    code = "policy-downgrade"
    remedy = (
        "give the policy a higher version; if nobody changed the policy on purpose, find out who restored an "
        "old version"
    )


class PolicyForged(Refused):
    """A policy in the master's folder without a signature by the master's verifier."""

    code = "policy-signature"
    remedy = "put a policy in force again: netspace_attestation.policy_set"


class TeeMalformed(Malformed):
    """A TEE's report, certificates or attachments that can't be parsed to the end."""

    code = "tee-malformed"
    remedy = "find out what wrote the report; a newer firmware may need a newer netspace"


class TeeSignature(Refused):
    """A TEE report that the processor's key did not sign."""

    code = "tee-signature"


class TeeBinding(Refused):
    """A genuine TEE report for another nonce, host, verifier or key: a replay or a relay."""

    code = "tee-binding"


class TeeCertificate(Refused):
    """A TEE report whose certificate is for another processor, firmware version (TCB) or kind of key."""

    code = "tee-certificate"
    remedy = "renew the host's certificate table: the host's firmware was updated, or the table belongs to another host"


class TeeRevoked(Refused):
    """A TEE whose maker revoked its TCB, its certificate or an issuer's certificate."""

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
    """Evidence without a TEE report, although the policy demands a TEE."""

    code = "tee-none"
    remedy = "run the host as a confidential guest with Linux 6.7 or later, and mount configfs"


class UnknownTee(Limited):
    """A kind of TEE for which the policy has no rules or netspace has no verifier."""

    code = "tee-kind"
    remedy = "add rules for this kind of TEE to the policy's section 'tee'"


class TeeDebug(Limited):
    """A TEE whose memory its host can read: the guest or the TEE's module is in debug mode."""

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
    remedy = "start the guest with settings that the policy's section 'tee' allows, or change the policy"


class TeeLog(Limited):
    """A guest's log (CCEL) that is missing, malformed, or does not lead to the guest's registers (RTMR)."""

    code = "tee-log"
    remedy = "find out what was measured without being logged, and boot again"


class TeeBoot(Limited):
    """A host without a TPM, for which only a TEE vouches: only the TEE's measurements of its boot are judged."""

    code = "tee-boot"
    remedy = "a TPM's quote and boot log would prove the boot"


class LedgerMalformed(Malformed):
    """A ledger of runs that can't be read to its end, or that doesn't continue where the verifier stopped."""

    code = "ledger-malformed"
    remedy = "restart the host to begin a new ledger; if it happens again, find out who wrote these lines"


class LedgerIndex(Refused):
    """A TPM's certificate of another NV index than the ledger's, or of an index with other properties."""

    code = "ledger-index"
    remedy = "find out who defined the host's NV index; to define it again, remove the ledger from the host and apply"


class LedgerBoot(Refused):
    """A ledger of another boot than the evidence."""

    code = "ledger-boot"
    remedy = "ask the host again; if it happens again, find out who sent the ledger of an earlier boot"


class LedgerMismatch(Refused):
    """A ledger whose lines don't lead to the certified value of the NV index."""

    code = "ledger-mismatch"
    remedy = "find out who changed the ledger, or extended the NV index without it; restart the host to begin a new one"


class LedgerRolledBack(Refused):
    """A ledger that lacks lines which the verifier has judged in the same boot."""

    code = "ledger-rolled-back"
    remedy = "find out who defined the NV index again, and what has run since; restart the host to begin a new ledger"


class NoLedger(Limited):
    """Evidence without a ledger of runs, although the policy demands one."""

    code = "ledger-none"
    remedy = "declare attestation:ledger on the host, and apply"


class LedgerFull(Limited):
    """A ledger that is full, so that later runs are not recorded."""

    code = "ledger-full"
    remedy = "restart the host to begin a new ledger"


class LedgerImage(Limited):
    """An environment that runs an image which the policy does not allow."""

    code = "ledger-image"
    remedy = "if the environment was updated, add its image's digest to the policy; else find out who declared it"


class LedgerConfiguration(Limited):
    """An environment that runs with a configuration which the policy does not allow."""

    code = "ledger-configuration"
    remedy = "if its declaration was changed, add the configuration's digest to the policy; else find out who did"


class LedgerDeclaration(Limited):
    """A host whose declaration the policy does not allow, or that recorded none."""

    code = "ledger-declaration"
    remedy = "if the declaration was changed, add its digest to the policy; else find out who changed it"
