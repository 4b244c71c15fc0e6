"""Former names of environments: only a free name of the same party, once, and the same at all links."""

from __future__ import annotations

from typing import Any

import pytest

from netspace.errors import SpecError
from netspace.spec import parse

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
