"""Section ``environments`` of a policy: images, configurations and declarations that hosts may run. Pure.

The verifier compares the section with the host's ledger of runs. If a policy has this section, even an empty one, each
host must keep a ledger (``attestation:ledger``)::

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
    """The allowed digests of each kind; None: any digest is allowed."""

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
        """Check a host's running environments and its declaration against the rules.

        :raises Limited: for the first rule that is not met.
        """
        if state.full:
            raise LedgerFull("the host's ledger of runs is full")
        if self.declarations is not None and bytes.fromhex(state.declared) not in self.declarations:
            if not state.declared:
                raise LedgerDeclaration("the host's ledger has no declaration; the policy allows only listed ones")
            raise LedgerDeclaration(f"the host's declaration is {state.declared}, which is not in the policy")
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
