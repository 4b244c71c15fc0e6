"""The rebuilding of all that is volatile, after a reboot and before the host's services start.

From the records on disk, in one process, without Salt, a master or the declaration. It
only puts the kinds' own ``restore`` in order; a kind that fails does not keep the others
from being restored, nor does an environment whose record can't be understood: that one is
not rebuilt. The host is appraised first: an environment for which this boot is not trusted
enough is neither rebuilt nor started, until an apply finds that it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from netspace import files
from netspace.layout import Layout
from netspace.supervision import select


def run(layout: Layout) -> int:
    """Restore interfaces, environments and links; then have the services started.

    :return: an exit code: 1 where anything failed, which is then told on stderr.
    """
    supervisor = select(layout)

    def attestation() -> Mapping[str, str]:
        from netspace.attestation.kind import Attestations

        return {str(outcome.step): outcome.error for outcome in Attestations(layout).restore() if outcome.error}

    def interfaces() -> Mapping[str, str]:
        from netspace.interface.kind import Interfaces

        result = Interfaces(layout).restore()
        refused = {f"interface {refusal.name}": refusal.message for refusal in result.plan.refusals}
        return refused | {str(failure.step): failure.error for failure in result.failures}

    def identities() -> Mapping[str, str]:
        from netspace.environment.kind import Environments
        from netspace.link.kind import Links

        known = Links(layout, supervisor)
        known.renew()
        # A host may have been off for longer than these hold; environments are given what is kept.
        return Environments(layout, supervisor).hand_out(known.handed()) if known.endorse() else {}

    def environments() -> Mapping[str, str]:
        from netspace.attestation import result
        from netspace.environment.kind import Environments
        from netspace.spec import trust

        kind = Environments(layout, supervisor)
        known, damaged = kind.readable()
        # Where the appraisal failed, what an earlier boot was worth counts no longer.
        withheld = trust.withheld({name: record.spec for name, record in known.items()}, result.trust(layout))
        # A second instance that an update left is nothing that should come back.
        stay = {name for name in withheld if known[name].state == known[name].spec.state == "stopped"}
        told = {name: why for name, why in withheld.items() if name not in stay}
        return {**damaged, **told, **kind.sweep(), **kind.withhold(withheld), **kind.restore(without=withheld)}

    def links() -> Mapping[str, str]:
        from netspace.link.kind import Links

        return Links(layout, supervisor).restore()

    def services() -> Mapping[str, str]:
        supervisor.resume()
        return {}

    steps: tuple[tuple[str, Callable[[], Mapping[str, str]]], ...] = (
        ("attestation", attestation),
        ("interfaces", interfaces),
        ("identities", identities),
        ("environments", environments),
        ("links", links),
        ("services", services),
    )
    failed = 0
    with files.locked(layout.lock):
        for what, step in steps:
            try:
                errors = step()
            except Exception as err:
                errors = {type(err).__name__: str(err)}
            for name, error in errors.items():
                failed = 1
                sys.stderr.write(f"netspace restore: {what}: {name}: {error}\n")
    return failed
