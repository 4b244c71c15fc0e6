"""Former names of environments: only a free name of the same party, once, and the same at all links."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netspace.errors import SpecError
from netspace.link.topology import renaming
from netspace.spec import delegations, parse

PLAIN = {"image": "tar:/srv/shop.tar"}
BROKER = {
    "kind": "local",
    "host": "h1",
    "trust_domain": "h1.example.org",
    "authority": "/etc/netspace/authority",
    "listen": "198.51.100.1:5671",
    "hosts": {
        "h2": {"trust_domain": "h2.example.org", "address": "198.51.100.2:5671", "public_key": "A" * 43},
    },
}


def declared(environments: dict[str, Any], links: list[dict[str, Any]] | None = None, **more: Any) -> Any:
    made = {name: {**PLAIN, **spec} for name, spec in environments.items()}
    return parse.declaration({"environments": made, "links": links or [], **more})


def refused(*given: Any, **more: Any) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        declared(*given, **more)
    return {one.path: one.message for one in caught.value.problems}


@pytest.mark.parametrize(
    ("environments", "path", "reason"),
    [
        ({"web": {"formerly": "web"}}, "web", "its name now"),
        ({"web": {"formerly": "shop"}, "shop": {}}, "web", "declared, too"),
        ({"web": {"formerly": "www"}, "shop": {"formerly": "www"}}, "shop", "web has this former name, too"),
        ({"web": {"formerly": "shop"}, "shop": {"formerly": "www"}}, "web", "renamed as well"),
        ({"web": {"formerly": "shop"}, "shop": {"formerly": "web"}}, "web", "renamed as well"),
        ({"web": {"formerly": "shop"}, "shop": {"formerly": "web"}}, "shop", "renamed as well"),
        ({"web": {"formerly": "host"}}, "web", "the host itself"),
        ({"web": {"formerly": "www@h2"}}, "web", "can't be an environment's name"),
        ({"web": {"formerly": "../www"}}, "web", "can't be an environment's name"),
    ],
)
def test_a_former_name_that_cannot_be_is_refused(environments: dict[str, Any], path: str, reason: str) -> None:
    assert reason in refused(environments)[f"netspace:environments:{path}:formerly"]


def test_a_former_name_of_a_childs_place_is_refused() -> None:
    spawning = {"host": ["spawn"], "spawns": {"w": {"image": "tar:/srv/w.tar"}}}
    assert (
        "declared, too"
        in refused({"web": spawning, "till": {"formerly": "web-w-1"}})["netspace:environments:till:formerly"]
    )


def test_links_of_a_renamed_environment_have_its_former_name() -> None:
    links = [{"from": "web", "to": "till"}, {"from": "till", "to": "web"}, {"from": "web", "to": "audit@h2"}]
    links[2]["formerly"] = {"to": "log"}  # type: ignore[assignment]
    found = declared({"web": {"formerly": "www"}, "till": {}}, links, broker=BROKER)
    assert [link.former_name for link in found.links] == ["www.till", "till.www", "www.log@h2"]
    assert parse.declaration(parse.encode(found)) == found, "written down and read again, it is the same"


@pytest.mark.parametrize(
    ("links", "path", "reason"),
    [
        ([{"from": "web", "to": "till", "formerly": {"to": "old"}}], "0:formerly:to", "of this host"),
        ([{"from": "web", "to": "a@h2", "formerly": {"to": "b c"}}], "0:formerly:to", "can't be"),
        ([{"from": "web", "to": "a@h2", "formerly": {"to": "b"}}, {"from": "web", "to": "b@h2"}], "0:formerly", "too"),
        (
            [{"from": "web", "to": one, "formerly": {"to": "b"}} for one in ("a@h2", "c@h2")],
            "1:formerly",
            "the same former ends",
        ),
    ],
)
def test_a_former_end_that_cannot_be_is_refused(links: list[dict[str, Any]], path: str, reason: str) -> None:
    assert reason in refused({"web": {}, "till": {}}, links, broker=BROKER)[f"netspace:links:{path}"]


ENDS = st.sampled_from(["web", "till", "orders", "audit"])


@settings(max_examples=40)
@given(
    st.sets(st.tuples(ENDS, ENDS).filter(lambda ends: ends[0] != ends[1])),
    st.sets(ENDS),
    st.sets(ENDS),
    st.booleans(),
    st.booleans(),
)
def test_a_link_from_another_hands_no_mailbox_on(
    ends: set[tuple[str, str]], handed: set[str], delegated: set[str], written: bool, answering: bool
) -> None:
    """A child or delegate with a link that derives from a renamed environment's doesn't get the former mailbox."""
    ends |= {("web", target) for target in (handed | delegated) - {"web"}} | {("web", "till")}
    links: list[dict[str, Any]] = [{"from": source, "to": target} for source, target in sorted(ends)]
    for link in links:
        if written and link["from"] == "web":
            link["formerly"] = {"from": "www"}
    job = {**PLAIN, "links": {one: {} for one in handed - {"web"}}, **({"to_parent": {}} if answering else {})}
    to = {one: {"to": ["till"]} for one in delegated - {"web", "till"} if ("till", one) not in ends}
    web = {"formerly": "www", "host": ["spawn", *(["delegate"] if to else [])], "spawns": {"job": job}}
    found = declared(
        {"web": {**web, **({"delegates": to} if to else {})}, "till": {}, "orders": {}, "audit": {}}, links
    )
    granted = {f"till.{one}": delegations.Granted("web", None, None, delegations.LENGTH) for one in to}
    standing = {link.name: link for link in delegations.standing(found.environments, found.links, granted)}
    assert granted.keys() <= standing.keys()
    for every in ({link.name: link for link in found.links}, standing):
        renamed = renaming.of(every)
        assert renamed.environments == {"www": "web"}
        assert all(("www" in old.split(".")) == ("web" in new.split(".")) for old, new in renamed.links.items())


QUOTA = {"environments": 3, "memory": "1G", "cpus": 3, "pids": 400}
TENANTS = {"acme": {"quota": QUOTA, "images": ["tar:/srv/*"]}, "umbra": {"quota": QUOTA, "images": ["tar:/srv/*"]}}
SMALL = {"tenant": "acme", "read_only": True, "limits": {"memory": "8M", "pids": 4, "cpus": 0.01}}


@pytest.mark.parametrize(
    ("name", "spec", "former"),
    [
        ("acme-a", SMALL, "umbra-a"),  # another tenant's
        ("acme-a", SMALL, "vault"),  # the operator's
        ("web", {}, "umbra-a"),  # not even the operator's environment, which has no tenant
    ],
)
def test_a_former_name_of_another_party_is_refused(name: str, spec: dict[str, Any], former: str) -> None:
    problems = refused({name: {**spec, "formerly": former}}, tenants=TENANTS)
    assert "mail stays within a tenant" in problems[f"netspace:environments:{name}:formerly"]
    declared({name: {**spec, "formerly": "acme-old" if spec else "vault"}}, tenants=TENANTS)
