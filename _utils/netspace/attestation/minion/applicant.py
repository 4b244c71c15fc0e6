"""Host's side of ``fleet.admission``: a minion that asks the master to accept its pending Salt key.

The minion doesn't trust the master's service. The service may give any master's fingerprint, and ask anything. The
TPM's statements always name this minion's own Salt key, so they are useless for anybody who has another key.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from netspace.attestation import identity
from netspace.attestation.evidence import Context
from netspace.attestation.evidence import period as read_period
from netspace.attestation.minion import attester, master_result, self_appraisal
from netspace.errors import NetspaceError
from netspace.layout import Layout

MAX_CALLS = 8
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


class Applicant(NamedTuple):
    """A minion that asks for admission.

    :param chosen: settings of ``minion.settings.of``; they name the TPM.
    :param verifier: returns, for the fingerprint of a master's key, the name of the verifier in the TPM's statements.
    :param key: the private Salt key (PEM).
    """

    layout: Layout
    chosen: Mapping[str, Any]
    minion: str
    verifier: Callable[[str], str]
    key: bytes

    def do(self, master: str, function: str, value: Any) -> dict[str, Any]:
        """Execute a call of the master's service, and return the answer.

        :raises NetspaceError: when the call is not part of an admission, or the TPM can't be used.
        """
        if not _FINGERPRINT.fullmatch(master):
            raise NetspaceError(f"{master!r:.80} isn't the fingerprint of a master's key")
        if not isinstance(value, dict):
            raise NetspaceError(f"{function!r:.40}: expected a mapping")
        name = self.verifier(master)
        if function == "enroll":
            return self._signed(name, identity.ENROLMENT, self._shown(value), {})
        if function == "activate":
            return self._activated(name, value)
        if function == "answer":
            return self._answered(name, value)
        raise NetspaceError(f"{function!r:.40} isn't a call of an admission")

    def _shown(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        template, period = str(asked.get("template") or "") or None, read_period(asked.get("period"))
        others = asked.get("others") is True
        return self_appraisal.enroll(self.layout, self.chosen, template, period, others=others).wire()

    def _activated(self, name: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        others = asked.get("others")
        try:
            made = [_credential(one) for one in (asked, *(others if isinstance(others, list) else ()))]
            context = Context(name, self.minion, str(asked["session"]), bytes.fromhex(asked["nonce"]))
        except (KeyError, TypeError, ValueError, binascii.Error) as err:
            raise NetspaceError(f"credential: not base64, or not hex: {err}") from err
        opened = self_appraisal.activate(self.layout, self.chosen, made, context, read_period(asked.get("period")))
        exchange = identity.exchange(context.session, context.nonce)
        return self._signed(name, identity.ACTIVATION, {"answer": opened.hex()}, exchange)

    def _answered(self, name: str, challenge: Mapping[str, Any]) -> dict[str, Any]:
        found = master_result.answer(self.layout, self.chosen, self.minion, name, challenge, lambda: self.key)
        if "parts" not in found:
            return found
        texts = [master_result.part(self.layout, number)["text"] for number in range(found["parts"])]
        whole: dict[str, Any] = json.loads("".join(texts))
        return whole

    def _signed(self, name: str, kind: str, data: dict[str, Any], more: Mapping[str, str]) -> dict[str, Any]:
        message = identity.statement(kind, name, self.minion, {**data, **more})
        return {**data, identity.FIELD: identity.sign(self.key, message)}


def _credential(given: Mapping[str, Any]) -> attester.Credential:
    blob, encrypted = (base64.b64decode(given[name], validate=True) for name in ("blob", "encrypted"))
    return attester.Credential(str(given["template"]), blob, encrypted)
