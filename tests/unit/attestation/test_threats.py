"""The list of threats that the verifier must withstand: each has a test of the same name."""

from __future__ import annotations

import ast

import pytest
from support import checkout

HERE = checkout.ROOT / "tests"
FORGERIES = "unit/attestation/test_forgeries.py"
EAR, FLEET, CHAINS = (f"unit/attestation/test_{name}.py" for name in ("ear", "fleet", "certificates"))
RESULTS, POLICIES = "unit/attestation/test_results.py", "unit/attestation/test_policies.py"
IMA = "unit/attestation/test_ima_rules.py"
JUDGE, LISTS = "unit/attestation/test_judge.py", "unit/attestation/test_judge_lists.py"
ENROLMENT, MAKERS = "functional/attestation/test_enrolment_swtpm.py", "unit/attestation/test_makers.py"
ADVERSARY = "unit/attestation/test_enrolment_adversary.py"
BOOT, L5 = "unit/attestation/test_boot_threats.py", "unit/attestation/test_l5_threats.py"
ROUNDS, ANSWERS, PARTS = (f"unit/attestation/test_{name}.py" for name in ("rounds", "own_answers", "transfer"))
REGISTRAR, CA = "unit/attestation/test_registrar.py", "unit/attestation/test_privacy_ca.py"

THREATS = {
    "a forger who knows all that an attacker knows": (
        "unit/attestation/test_adversary.py",
        "test_no_forgery_of_a_bad_boot_reaches_l4",
    ),
    "replay": (FORGERIES, "replay_of_old_evidence"),
    "relay from another minion": (FORGERIES, "evidence_relayed_from_another_minion"),
    "relay by another verifier": (FORGERIES, "evidence_relayed_by_another_verifier"),
    "AK substitution": (FORGERIES, "attestation_key_substituted"),
    "PCR relabelling": (FORGERIES, "pcrs_relabelled"),
    "SHA-1 downgrade of the bank": (FORGERIES, "bank_downgraded_to_sha1"),
    "SHA-1 downgrade of the signature": (FORGERIES, "signature_hash_downgraded_to_sha1"),
    "truncated log": (FORGERIES, "truncated_log"),
    "reordered log": (FORGERIES, "reordered_log"),
    "log with an unmeasured event": (FORGERIES, "log_with_an_event_that_was_not_measured"),
    "log of another boot claimed by its digest": (RESULTS, "test_the_digest_of_a_log_proves_nothing_by_itself"),
    "clock rollback": (FORGERIES, "clock_rolled_back"),
    "quote from another boot": (FORGERIES, "quote_from_an_earlier_boot"),
    "signature scheme swap": (FORGERIES, "signature_scheme_swapped"),
    "oversized fields": (FORGERIES, "fields_larger_than_can_be"),
    "duplicate PCRs": (FORGERIES, "duplicate_pcr_selections"),
    "a statement that no TPM made": (FORGERIES, "a_statement_that_no_tpm_made"),
    "software key in the place of a TPM": (FORGERIES, "a_software_key_in_the_place_of_a_tpm"),
    "wrong AK attributes": ("unit/attestation/test_verifier.py", "test_attestation_key_attributes"),
    "missing EK certificate": (FORGERIES, "missing_endorsement_certificate"),
    "EK certificate of another key": (CHAINS, "test_the_verifier_wants_the_certificate_of_this_key"),
    "EK certificate that its maker revoked": (CHAINS, "test_a_maker_who_revoked_an_endorsement_certificate"),
    "certificate chain loops": (CHAINS, "test_loops_and_long_chains_end"),
    "expired AK certificate": (FLEET, "test_an_expired_certificate_is_due_and_refused"),
    "AK certificate of another key": (CA, "test_certificate_of_another_key"),
    "one TPM serving two minions": (REGISTRAR, "test_one_tpm_serving_two_minions"),
    "one TPM in disguise": (REGISTRAR, "test_one_tpm_in_disguise_is_still_one"),
    "one TPM serving two by two keys": (ENROLMENT, "test_one_tpm_is_one_minions_by_whichever_of_its_keys"),
    "a TPM relayed from another machine": (ENROLMENT, "test_a_relayed_tpm_is_not_in_the_inventory"),
    "pseudonyms linked by key or time": (
        ENROLMENT,
        "test_two_certificates_of_one_host_share_no_more_than_those_of_two",
    ),
    "an attestation key shown again": (REGISTRAR, "test_each_certificate_is_for_a_new_key"),
    "a TPM reset within a boot": (FLEET, "test_a_tpm_that_is_reset_within_a_boot_is_refused"),
    "certificates in the wrong order": (MAKERS, "test_the_signature_is_over_what_its_maker_wrote"),
    "any change to enrolment messages": (ADVERSARY, "test_a_forger_of_enrolments_gets_nothing"),
    "two TPMs racing for a minion": (REGISTRAR, "test_of_two_tpms_that_race_to_be_a_minions_first_one_wins"),
    "revocation undone by a renewal": (REGISTRAR, "test_a_renewal_undoes_nothing_that_was_decided_while_it_waited"),
    "credential answered too late": (REGISTRAR, "test_a_credential_is_answered_within_60_s_however_long_the_bus_waits"),
    "a minion that holds up the fleet": (ANSWERS, "test_a_minion_that_is_always_at_work_holds_up_nobody"),
    "minions that are away or drip": (ROUNDS, "test_500_away_and_20_that_drip_delay_no_good_host"),
    "a minion that drips its answer": (PARTS, "test_a_drip_is_given_up_early"),
    "a minion that keeps large answers waiting": (ROUNDS, "test_slow_parts_give_their_room_to_those_who_wait"),
    "a minion that answers for another": (ROUNDS, "test_an_answer_for_who_was_not_asked_is_nobodys"),
    "a minion that answers twice": (ROUNDS, "test_a_second_answer_is_not_taken"),
    "a minion that answers late": (ROUNDS, "test_an_answer_after_its_deadline_is_not_taken"),
    "parts in another order": (ROUNDS, "test_parts_in_another_order_are_no_answer"),
    "a flood of events": (ROUNDS, "test_a_flood_of_events_does_not_keep_deadlines_open"),
    "an answer that is a bomb": (PARTS, "test_a_bomb_in_parts_costs_no_more_than_its_text"),
    "the master's clock set back": (FLEET, "test_a_result_from_the_future_is_stale"),
    "escape sequences in a log": (FLEET, "test_what_a_host_measured_moves_no_cursor"),
    "a kernel that measures no programs": (LISTS, "test_a_list_of_a_kernel_that_measures_no_programs"),
    "a file called boot_aggregate": (IMA, "test_a_file_called_boot_aggregate_is_refused"),
    "a list typed by hand": (IMA, "test_a_first_line_that_quoted_pcrs_do_not_prove"),
    "a PCR extended after the start": (IMA, "test_a_pcr_that_was_extended_after_the_start_is_noticed"),
    "another kernel by kexec": (IMA, "test_a_kernel_started_by_kexec_is_refused_unless_allowed"),
    "a line measured into another PCR": (IMA, "test_lines_into_another_pcr_lower_and_never_raise"),
    "a master in between": (REGISTRAR, "test_a_master_in_between"),
    "a minion that lies in its grains": (FLEET, "test_a_minion_that_lies_in_its_grains"),
    "a store that others write": (RESULTS, "test_what_others_write_into_the_store_counts_as_nothing"),
    "EAR replayed on another minion": (EAR, "test_a_result_that_is_replayed_on_another_minion"),
    "EAR replayed later": (EAR, "test_a_result_of_another_challenge"),
    "EAR with alg none": (EAR, "test_alg_none_and_other_headers"),
    "downgraded policy version": (EAR, "test_a_result_by_a_lower_version_of_the_policy"),
    "downgraded policy in force": (POLICIES, "test_a_policys_version_never_falls"),
    "policy by somebody else": (POLICIES, "test_a_policy_that_the_verifier_did_not_sign"),
    "a program moved into systemd's log": (BOOT, "test_a1_the_whole_tail_of_a_pcr_moved_into_systemds_log"),
    "a program under the name of an action": (BOOT, "test_a2_a_program_under_another_type_with_its_preimage"),
    "a file that is text": (BOOT, "test_a3_text_that_was_loaded_is_no_word_of_systemds"),
    "a command line relabelled": (BOOT, "test_a4_a_bad_command_line_relabelled_and_a_good_one_added"),
    "a command line that hides its rest": (BOOT, "test_a4_what_a_star_stands_for_hides_nothing_from_the_kernel"),
    "shim that verifies nothing": (BOOT, "test_a6_shim_that_verifies_nothing"),
    "SBAT set back": (BOOT, "test_a6_revocations_set_back_and_better_ones_added_later"),
    "a rule that rests on nothing": (BOOT, "test_a7_a_rule_that_rests_on_what_is_not_judged_is_refused"),
    "an authority as a setting": (BOOT, "test_a8_an_authority_before_the_separator_is_no_setting"),
    "a kernel that no boot loader started": (BOOT, "test_f1_a_kernel_that_no_boot_loader_started"),
    "a list by hand where nothing is measured": (L5, "test_l5_is_not_given_where_the_boot_is_left_unchecked"),
    "malformed logs, thousands": ("unit/attestation/test_fuzz.py", "test_mutated_inputs_are_read_or_refused"),
}


@pytest.mark.parametrize("threat", THREATS)
def test_a_threat_has_the_test_that_is_named_after_it(threat: str) -> None:
    file, name = THREATS[threat]
    tree = ast.parse((HERE / file).read_text())
    found = [one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name == name]
    assert found, f"{file} has no {name}"
    if not name.startswith("test_"):
        assert any("forgery" in ast.unparse(one) for one in found[0].decorator_list), f"{name} is not run"


def test_there_are_at_least_25_kinds() -> None:
    assert len(THREATS) >= 25 and len(set(THREATS.values())) == len(THREATS)
