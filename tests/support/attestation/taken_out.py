"""Patches that remove a check of the verifier; several tests of adversaries use them."""

from __future__ import annotations

from typing import Any

import pytest

from netspace.attestation.logs import events
from netspace.attestation.verifier import extensions
from netspace.attestation.verifier.extensions import Extension


def commands_unjudged(patch: pytest.MonkeyPatch) -> None:
    """Make the verifier check only those events of PCR 8 that the log calls command lines.

    An earlier version made this mistake.
    """
    whole = extensions.of

    def of(*given: Any) -> dict[int, list[Extension]]:
        found = dict(whole(*given))
        found[8] = [one for one in found.get(8, []) if one.kind is not None and events.is_command_line(one.source)]
        return found

    patch.setattr(extensions, "of", of)
