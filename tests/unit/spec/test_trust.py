"""Trust levels and requirements: which environments and links may run."""

from __future__ import annotations

import pytest

from netspace.errors import SpecError
from netspace.spec import parse, trust
from netspace.spec.trust import Trust
from netspace.spec.types import Requirement


@pytest.mark.parametrize(
    ("policy", "minimum", "level", "allowed", "comment"),
    [
        ("require", "L3", 3, True, ""),
        ("require", "L3", 5, True, ""),
        ("require", "L3", 2, False, "withheld"),
        ("prefer", "L3", 2, True, "only a warning"),
        ("off", "L5", 0, True, ""),
        ("require", "L0", 0, True, ""),
    ],
)
def test_a_requirement_is_met_or_not(policy, minimum, level, allowed, comment):
    verdict = trust.judge(Requirement(policy=policy, minimum=minimum), Trust(level, "self", "why"))
    assert verdict.allowed is allowed
    assert comment in verdict.comment
    assert bool(verdict.comment) is bool(comment)


def test_only_what_demands_more_is_withheld_and_its_links_with_it():
    declared = parse.declaration(
        {
            "attestation": {"policy": "prefer", "minimum": "L1"},
            "environments": {
                "plain": {"image": "tar:/x"},
                "other": {"image": "tar:/x"},
                "vault": {"image": "tar:/x", "attestation": {"policy": "require", "minimum": "L3"}},
            },
            "links": [
                {"from": "plain", "to": "vault"},
                {"from": "plain", "to": "other"},
                {"from": "other", "to": "plain", "attestation": {"policy": "require", "minimum": "L2"}},
            ],
        }
    )
    here = Trust(1, "self", "no TPM")
    assert {name: verdict.allowed for name, verdict in trust.environments(declared, here).items()} == {
        "plain": True,
        "other": True,
        "vault": False,
    }
    assert {name: verdict.allowed for name, verdict in trust.links(declared, here, 0).items()} == {
        "plain.vault": False,
        "plain.other": True,
        "other.plain": False,
    }
    assert "vault" in trust.links(declared, here, 0)["plain.vault"].comment


def test_what_is_declared_to_be_stopped_is_refused_nothing_and_the_trust_it_lacks_is_still_told():
    vault = {"image": "tar:/x", "attestation": {"policy": "require", "minimum": "L3"}}
    declared = parse.declaration({"environments": {"vault": vault, "kept": {**vault, "state": "stopped"}}})
    verdicts = trust.environments(declared, Trust(1, "self", "no TPM"))
    told = trust.told(declared, verdicts)
    assert {name: verdict.allowed for name, verdict in told.items()} == {"vault": False, "kept": True}
    assert told["kept"].comment == verdicts["kept"].comment != ""


@pytest.mark.parametrize("on_loss", ["stop", "revoke-links", "report"])
def test_what_is_lost_says_what_becomes_of_it(on_loss):
    required = Requirement(policy="require", minimum="L3", on_loss=on_loss)
    lost = trust.judge(required, Trust(2, "self", "why"))
    assert (lost.allowed, lost.on_loss, lost.runs_on) == (False, on_loss, on_loss != "stop")
    assert on_loss == "stop" or f"(on_loss: {on_loss})" in lost.comment
    assert not trust.judge(required, Trust(3, "self", "")).runs_on
    assert trust.judge(Requirement(minimum="L3", on_loss=on_loss), Trust(2, "self", "why")).allowed


@pytest.mark.parametrize(
    ("own", "source", "target", "expected"),
    [
        ("report", "report", "report", "report"),
        ("report", "report", "stop", "stop"),
        ("report", "revoke-links", "report", "revoke-links"),
        ("stop", "report", "report", "stop"),
        (None, "report", "report", "report"),
        (None, "report", None, "report"),
    ],
)
def test_a_link_stays_only_where_all_that_lost_trust_merely_report(own, source, target, expected):
    def required(on_loss):
        return {} if on_loss is None else {"attestation": {"policy": "require", "minimum": "L3", "on_loss": on_loss}}

    declared = parse.declaration(
        {
            "environments": {
                "a": {"image": "tar:/x", **required(source)},
                "b": {"image": "tar:/x", **required(target)},
            },
            "links": [{"from": "a", "to": "b", **required(own)}],
        }
    )
    verdict = trust.links(declared, Trust(1, "self", "why"), 0)["a.b"]
    assert (verdict.allowed, verdict.on_loss) == (False, expected)


def test_environments_take_what_the_host_says_of_a_loss():
    declared = parse.declaration(
        {
            "attestation": {"policy": "require", "minimum": "L2", "on_loss": "report"},
            "environments": {"a": {"image": "tar:/x"}},
        }
    )
    assert trust.requirement(declared.environments["a"], declared.attestation).on_loss == "report"
    assert trust.environments(declared, Trust())["a"].runs_on


def test_the_interface_of_what_is_withheld_only_gets_less():
    def veth(*ports, **keys):
        allow = [{"direction": "out", "cidr": "198.51.100.0/24", "port": port} for port in ports]
        return parse.interface({"kind": "veth", "allow": allow, **keys})

    none, other = (
        parse.interface({"kind": "none"}),
        parse.interface({"kind": "macvlan", "parent": "eth0", "ipv4": "198.51.100.7/24"}),
    )
    assert trust.narrowed(veth(22, 443), veth(53, 443)) == veth(443)
    assert trust.narrowed(veth(22), veth(22, rate="10M")) == veth(22)
    assert trust.narrowed(veth(22), none) == none
    assert trust.narrowed(none, veth(22)) == none
    assert trust.narrowed(veth(22), other) == veth()


TOLD = {"h1": {"level": "L3", "until": 1000.0}, "h3": {"level": "L5", "until": float("nan")}}


@pytest.mark.parametrize(
    ("source", "attested", "level", "now", "why"),
    [
        ("web@h1", "L3", 0, 1000, ""),
        ("web@h1", "L2", 0, 0, ""),
        ("web@h1", "L4", 5, 0, "h1 has L3"),
        ("web@h1", "L1", 5, 1000.5, "the result by which h1 had L3 has expired"),
        ("web@h2", "L1", 5, 0, "this host's master has reported no level of h2"),
        ("web@h3", "L1", 5, 0, "has expired"),
        ("web", "L2", 2, 0, ""),
        ("web", "L3", 2, 0, "this host has L2 (why; verifier: master)"),
        ("web", None, 0, 0, ""),
    ],
)
def test_attested_link_needs_the_level_of_its_senders_host(source, attested, level, now, why):
    hosts = {name: {"trust_domain": f"{name}.example.org"} for name in ("h1", "h2", "h3")}
    declared = parse.declaration(
        {
            "attestation": {"appraised": TOLD},
            "broker": {
                "kind": "local",
                "host": "h9",
                "trust_domain": "h9.example.org",
                "authority": "/etc/a",
                "listen": "198.51.100.9:5671",
                "names_key": "/etc/n",
                "hosts": hosts,
            },
            "environments": {"web": {"image": "tar:/x"}, "db": {"image": "tar:/x"}},
            "links": [{"from": source, "to": "db", **({"attested": attested} if attested else {})}],
        }
    )
    verdict = trust.links(declared, Trust(level, "master", "why"), now)[declared.links[0].name]
    assert verdict.allowed is not bool(why) and verdict.on_loss == "stop"
    assert why in verdict.comment and ("attested" in verdict.comment) is bool(why)


def test_attested_needs_a_broker_of_netspaces_own():
    shared = {"kind": "cluster", "url": "amqps://a.example.org", "management": "https://a.example.org"}
    section = {
        "broker": {**shared, "credentials": "/etc/c"},
        "environments": {"web": {"image": "tar:/x"}, "db": {"image": "tar:/x"}},
        "links": [{"from": "web", "to": "db", "attested": "L3"}],
    }
    with pytest.raises(SpecError, match="links:0:attested: needs netspace's own broker"):
        parse.declaration(section)
    with pytest.raises(SpecError, match="attested"):
        parse.declaration(
            {**section, "broker": {"kind": "local"}, "links": [{"from": "web", "to": "db", "attested": "L0"}]}
        )
