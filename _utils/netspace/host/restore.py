"""Restoration of all volatile state after a reboot, before netspace's services start.

This module works from the records on disk, in one process, without Salt, a master or the declaration. It calls each
kind's ``restore`` in order. If one kind fails, the others are still restored. An environment with a damaged record is
skipped. The host is appraised first: an environment for which the host lacks trust in this boot stays down until an
apply finds enough trust.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from netspace import files
from netspace.layout import Layout
from netspace.supervision import select


def run(layout: Layout) -> int:
    """Restore interfaces, environments and links; then start the services.

    :return: an exit code: 1 if anything failed. The errors are on stderr.
    """
    supervisor = select(layout)

    def attestation() -> Mapping[str, str]:
        from netspace.attestation.reconciler import Attestations

        return {str(outcome.step): outcome.error for outcome in Attestations(layout).restore() if outcome.error}

    def interfaces() -> Mapping[str, str]:
        from netspace.interface.reconciler import Interfaces

        result = Interfaces(layout).restore()
        refused = {f"interface {refusal.name}": refusal.message for refusal in result.plan.refusals}
        return refused | {str(failure.step): failure.error for failure in result.failures}

    def identities() -> Mapping[str, str]:
        from netspace.environment.reconciler import Environments
        from netspace.link.reconciler import Links

        known = Links(layout, supervisor)
        known.renew()
        # Certificates and endorsements may have expired while the host was off. After an endorsement, give environments
        # their present files.
        return Environments(layout, supervisor).hand_out(known.handed()) if known.endorse() else {}

    def secrets() -> Mapping[str, str]:
        from netspace.host import secrets as hidden

        if not hidden.recorded(layout):
            return {}
        from netspace.attestation import result

        return hidden.revise(layout, result.trust(layout))

    def environments() -> Mapping[str, str]:
        from netspace.attestation import result
        from netspace.environment.reconciler import Environments
        from netspace.host import child_records, trials
        from netspace.spec import trust

        kind = Environments(layout, supervisor)
        # A child ends with its parent, and so with the host. The keeper of children frees its place later.
        ended = kind.withhold(child_records.places(layout))
        known, damaged = kind.readable()
        # After a failed appraisal, the result of an earlier boot doesn't count.
        withheld = trust.withheld({name: record.spec for name, record in known.items()}, result.trust(layout))
        # kind.sweep() removes the second instance that an unfinished update left.
        stay = {name for name in withheld if known[name].state == known[name].spec.state == "stopped"}
        told = {name: why for name, why in withheld.items() if name not in stay}
        # An interrupted audit's environments do their worst. The next apply removes them.
        tried = {name for names in trials.noted(layout).values() for name in names if name in known}
        withheld = {**withheld, **dict.fromkeys(tried, "an interrupted audit left it")}
        return {**damaged, **ended, **told, **kind.sweep(), **kind.withhold(withheld), **kind.restore(without=withheld)}

    def refusals() -> Mapping[str, str]:
        from netspace.environment.reconciler import Environments
        from netspace.host import recorded_calls

        if why := recorded_calls.restore(Environments(layout, supervisor)):
            # Environments work without that, so it is no failure.
            sys.stderr.write(f"netspace restore: refused system calls and files aren't recorded: {why}\n")
        return {}

    def links() -> Mapping[str, str]:
        from netspace.link.reconciler import Links

        return Links(layout, supervisor).restore()

    def peer() -> Mapping[str, str]:
        from netspace.link import record
        from netspace.spec.peer import is_link

        if any(map(is_link, record.read(layout).links.values())):
            from netspace.host.peer import publish
            from netspace.link.reconciler import Links

            publish.publish(layout, Links(layout, supervisor))
        return {}

    def services() -> Mapping[str, str]:
        supervisor.resume()
        return {}

    steps: tuple[tuple[str, Callable[[], Mapping[str, str]]], ...] = (
        ("attestation", attestation),
        ("interfaces", interfaces),
        ("identities", identities),
        ("secrets", secrets),
        ("environments", environments),
        ("refusals", refusals),
        ("links", links),
        ("peer", peer),
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
