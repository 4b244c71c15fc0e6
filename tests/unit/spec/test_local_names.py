"""Names of peers: for a sender's program, each name means one environment."""

from __future__ import annotations

from typing import Any

import pytest

from netspace.errors import SpecError
from netspace.link import record
from netspace.spec import hosts, parse
from netspace.spec.types import Link, LocalBroker

ENVIRONMENT = {"image": "tar:/srv/x.tar", "command": ["/bin/x"]}


def problems(*links: dict[str, Any]) -> list[str]:
    section = {"environments": dict.fromkeys(("web", "orders", "audit", "till"), ENVIRONMENT), "links": list(links)}
    try:
        parse.declaration(section)
    except SpecError as err:
        return [str(problem) for problem in err.problems]
    return []


def to(target: str, name: str | None = None, sender: str = "web") -> dict[str, Any]:
    return {"from": sender, "to": target, **({} if name is None else {"as": name})}


def test_a_local_name_is_recorded_and_shown() -> None:
    link = parse.link(to("orders@h2", "orders"))
    shown = record.plain(link)
    assert shown == {"from": "web", "to": "orders@h2", "as": "orders", "pattern": "send"}
    assert parse.convert(shown, Link, "link") == link
    assert link.name == "web.orders@h2"


@pytest.mark.parametrize("name", ["", "Orders", "orders@h2", "orders/x", "-x", "x" * 49])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match=r"netspace:links:0:as: .* can't be a local name: use"):
        parse.link(to("orders", name), "netspace:links:0")


def test_a_key_that_is_nearly_right_is_told() -> None:
    with pytest.raises(SpecError, match="link:ass: unknown; did you mean as"):
        parse.link({**to("orders"), "ass": "x"})


@pytest.mark.parametrize(
    "links",
    [
        [to("orders", "shop")],
        [to("orders", "orders"), to("audit", "log")],
        [to("orders", "shop"), to("audit", "shop", sender="till")],  # each sender has names of its own
        [to("orders", "till")],  # with which it is not linked
        [to("orders", "shop"), to("web", sender="orders")],
        [to("orders", "web")],
    ],
)
def test_names_that_mean_one_environment_are_accepted(links: list[dict[str, Any]]) -> None:
    assert problems(*links) == []


@pytest.mark.parametrize(
    ("links", "problem"),
    [
        (
            [to("orders", "shop"), to("audit", "shop")],
            "netspace:links:1:as: web already uses shop for orders; remove that link, or choose another name",
        ),
        (
            [to("orders", "audit"), to("audit")],
            "netspace:links:0:as: web has a link with another environment named audit; choose another name",
        ),
        (
            [to("web", sender="audit"), to("orders", "audit")],  # it receives by that name
            "netspace:links:1:as: web has a link with another environment named audit; choose another name",
        ),
    ],
)
def test_a_name_that_means_two_is_refused_with_its_path(links: list[dict[str, Any]], problem: str) -> None:
    assert problems(*links) == [problem]


def test_what_another_host_s_environment_calls_its_peer_is_nothing_of_this_host() -> None:
    links = [Link(source="web@h1", target="orders@h2", local="orders")]
    assert hosts.local(links, LocalBroker(host="h1")) == (Link(source="web", target="orders@h2", local="orders"),)
    assert hosts.local(links, LocalBroker(host="h2")) == (Link(source="web@h1", target="orders"),)
