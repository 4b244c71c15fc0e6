"""Section ``environments`` of a policy: what hosts may run, by their ledgers of runs. Pure.

With the section, a host has to keep a ledger (``attestation:ledger``), even if the section is empty::

    environments:
      images: [<sha256>, ...]           # images that may run now
      configurations: [<sha256>, ...]   # configurations with which they may run now
      declarations: [<sha256>, ...]     # declarations that may be the last one applied

A list that is missing allows anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from netspace.attestation.policy_reading import digests, mapping
from netspace.attestation.refusals import LedgerConfiguration, LedgerDeclaration, LedgerFull, LedgerImage, Limited
from netspace.ledger.entries import Run, State


@dataclass(frozen=True)
class Environments:
    """Digests that are allowed; None: any."""

    images: frozenset[bytes] | None = None
    configurations: frozenset[bytes] | None = None
    declarations: frozenset[bytes] | None = None

    def refusal(self, name: str, run: Run) -> Limited | None:
        """Return why an environment may not run; None if it may."""
        if self.images is not None and bytes.fromhex(run.image) not in self.images:
            return LedgerImage(f"environment {name} runs the image {run.image}, which is not in the policy")
        if self.configurations is not None and bytes.fromhex(run.configuration) not in self.configurations:
            return LedgerConfiguration(
                f"environment {name} runs with the configuration {run.configuration}, which is not in the policy"
            )
        return None

    def check(self, state: State) -> None:
        """Check what a host runs.

        :raises Limited: for the first rule that is not met.
        """
        if state.full:
            raise LedgerFull("the host's ledger of runs is full")
        if self.declarations is not None and bytes.fromhex(state.declared) not in self.declarations:
            told = state.declared or "none that was recorded"
            raise LedgerDeclaration(f"the host's declaration is {told}, which is not in the policy")
        for name in sorted(state.running):
            refusal = self.refusal(name, state.running[name])
            if refusal is not None:
                raise refusal


def read(data: Any) -> Environments:
    """Parse the section.

    :raises PolicyError: for unknown keys, and for anything but digests.
    """
    at = "policy:environments"
    names = ("images", "configurations", "declarations")
    found = mapping(data, at, names)
    return Environments(*(digests(found[name], f"{at}:{name}") if name in found else None for name in names))
