"""The decision whether a trust level satisfies a requirement. No other module makes this decision. Pure.

The verifier (``netspace.attestation``) appraises the host and sets the level; the declaration contains the
requirements. An environment without a requirement has the host's default requirement. A link without a requirement is
allowed if both of its ends are allowed.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from netspace.spec.publish import Routed, published
from netspace.spec.types import Appraised, Declaration, Environment, Filtered, Interface, Link, OnLoss, Requirement


class Trust(msgspec.Struct, frozen=True):
    """This host's trust level, and its source.

    :param level: 0 to 5 (L0..L5).
    :param verifier: the name of the verifier that appraised the host; ``self``: this host; ``none``: nobody did.
    :param reason: one sentence that says why the level isn't higher.
    """

    level: int = 0
    verifier: str = "none"
    reason: str = "the host was never appraised"

    @property
    def name(self) -> str:
        return f"L{self.level}"


class TrustVerdict(msgspec.Struct, frozen=True):
    """The decision on one environment or link.

    :param comment: a note for the operator; empty if there is nothing to report.
    :param on_loss: the effect on a running environment or an existing link that isn't allowed (any more).
    """

    allowed: bool
    comment: str = ""
    on_loss: OnLoss = "stop"

    @property
    def runs_on(self) -> bool:
        """True if the environment or link isn't allowed, but an existing one stays as it is."""
        return not self.allowed and self.on_loss != "stop"


_LOST: Mapping[OnLoss, str] = {
    "stop": "withheld, because the policy is require",
    "revoke-links": "withheld; if it runs already, it goes on without its links (on_loss: revoke-links)",
    "report": "withheld; if it exists already, it stays as it is (on_loss: report)",
}


def judge(requirement: Requirement, trust: Trust) -> TrustVerdict:
    """Return the decision whether *trust* satisfies *requirement*."""
    if requirement.policy == "off" or trust.level >= int(requirement.minimum[1:]):
        return TrustVerdict(True)
    has = f"this host has {trust.name} ({trust.reason}; verifier: {trust.verifier})"
    gap = f"needs trust level {requirement.minimum}, {has}"
    if requirement.policy == "prefer":
        return TrustVerdict(True, f"{gap}; this is only a warning, because the policy is prefer")
    return TrustVerdict(False, f"{gap}; {_LOST[requirement.on_loss]}", requirement.on_loss)


def requirement(spec: Environment, default: Requirement) -> Requirement:
    """Return the requirement of an environment: its own, or else *default*, the host's."""
    given = spec.attestation or default
    return Requirement(policy=given.policy, minimum=given.minimum, on_loss=given.on_loss)


def environments(declared: Declaration, trust: Trust) -> dict[str, TrustVerdict]:
    """Return the verdict on each declared environment."""
    return {name: judge(requirement(spec, declared.attestation), trust) for name, spec in declared.environments.items()}


def told(declared: Declaration, verdicts: Mapping[str, TrustVerdict]) -> dict[str, TrustVerdict]:
    """Return the verdicts for a report. Environments that are declared as stopped are allowed at any level."""
    found = dict(verdicts)
    for name, verdict in verdicts.items():
        if declared.environments[name].state == "stopped":
            found[name] = msgspec.structs.replace(verdict, allowed=True)
    return found


def withheld(applied: Mapping[str, Environment], trust: Trust) -> dict[str, str]:
    """Return the reason for each applied environment that must not be started, by its name.

    :param applied: the environments, each with the requirement that was in force when it was applied. A record of an
        earlier release has no requirement, and its environment may be started.
    """
    verdicts = {name: judge(spec.attestation, trust) for name, spec in applied.items() if spec.attestation is not None}
    return {name: verdict.comment for name, verdict in verdicts.items() if not verdict.allowed}


def narrowed(there: Interface, declared: Interface) -> Interface:
    """Return the interface to which an existing interface may change while its environment is withheld.

    Rules and published ports may be removed, but not added.

    :param there: the existing interface.
    :param declared: the interface as declared now.
    """
    if declared.NONE:
        return declared
    if isinstance(there, Filtered) and isinstance(declared, Filtered):
        allow = tuple(rule for rule in there.allow if rule in declared.allow)
        kept: Interface = msgspec.structs.replace(there, allow=allow)
        if isinstance(kept, Routed):
            led = tuple(one for one in kept.publish if one in published(declared))
            kept = msgspec.structs.replace(kept, publish=led)
        return kept
    return there


def attested(link: Link, appraised: Mapping[str, Appraised], trust: Trust, now: float) -> TrustVerdict:
    """Return the decision whether the sender's host has the level that a link demands (``attested``).

    :param appraised: the levels of other hosts, by their names.
    :param trust: this host's trust, which counts for senders on this host.
    :param now: seconds since 1970.
    """
    if link.attested is None:
        return TrustVerdict(True)
    host = link.from_host
    if host is None:
        level, has = trust.level, f"this host has {trust.name} ({trust.reason}; verifier: {trust.verifier})"
    elif host not in appraised:
        level, has = 0, f"this host's master has reported no level of {host}"
    elif not appraised[host].until >= now:
        level, has = 0, f"the result by which {host} had {appraised[host].level} has expired"
    else:
        level, has = int(appraised[host].level[1:]), f"{host} has {appraised[host].level}"
    if level >= int(link.attested[1:]):
        return TrustVerdict(True)
    return TrustVerdict(False, f"the sender's host must have {link.attested} (attested), {has}; the link is withheld")


def links(declared: Declaration, trust: Trust, now: float) -> dict[str, TrustVerdict]:
    """Return the verdict on each declared link, by the link's name.

    :param now: seconds since 1970.
    """
    ends = environments(declared, trust)
    verdicts = {}
    for link in declared.links:
        own = judge(link.attestation, trust) if link.attestation else TrustVerdict(True)
        sender = attested(link, declared.attestation.appraised, trust, now)
        found = [one for one in (own, sender) if not one.allowed]
        for end in (link.source, link.target):
            if end in ends and not ends[end].allowed:
                found.append(TrustVerdict(False, f"its end {end} is withheld: {ends[end].comment}", ends[end].on_loss))
        # One verdict that does not merely report is enough to revoke the link.
        strict = [one for one in found if one.on_loss != "report"]
        verdicts[link.name] = (strict or found or [own])[0]
    return verdicts
