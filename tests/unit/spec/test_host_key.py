"""``host``: the requests that an environment may make to its host, the reserved name, and the resulting links."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as given_
from hypothesis import strategies as st

from netspace import files
from netspace.environment import record
from netspace.environment.images import Image
from netspace.environment.images.sources import Defaults
from netspace.environment.record import Record
from netspace.errors import SpecError
from netspace.layout import Layout
from netspace.plugin import arguments
from netspace.spec import parse, peer, values
from netspace.spec.types import Environment, Link

WEB = {"image": "tar:/srv/x.tar", "command": ["/bin/x"]}


def problems(environments: dict[str, Any], *links: dict[str, Any], **more: Any) -> list[str]:
    try:
        parse.declaration({"environments": environments, "links": list(links), **more})
    except SpecError as err:
        return [str(problem) for problem in err.problems]
    return []


@pytest.mark.parametrize(
    ("verbs", "problem"),
    [
        (["whoami"], ""),
        ([], ""),
        (
            ["whoamy"],
            "netspace:environments:web:host:0: 'whoamy' is not a request that the host answers; did you mean",
        ),
        (
            ["reboot"],
            "netspace:environments:web:host:0: 'reboot' is not a request that the host answers; choose from",
        ),
        (["whoami", "whoami"], "netspace:environments:web:host:1: whoami is listed twice; leave one out"),
        ("whoami", "netspace:environments:web:host: expected"),
        (["__init__"], "netspace:environments:web:host:0: '__init__' is not a request"),
    ],
)
def test_verbs_are_checked_with_their_path(verbs: object, problem: str) -> None:
    found = problems({"web": {**WEB, "host": verbs}})
    assert found == [] if not problem else found[0].startswith(problem), found


def test_environment_named_host_is_refused_alone_and_in_a_whole() -> None:
    (whole,) = problems({"host": WEB})
    assert whole == f"netspace:environments:host: {peer.RESERVED}"
    for one in (arguments.one_environment, arguments.one_interface):
        with pytest.raises(SpecError, match="reserved for the host itself"):
            one("host", {} if one is arguments.one_interface else WEB, {})


def test_environment_alone_can_not_ask_through_a_shared_broker() -> None:
    broker = {"kind": "cluster", "url": "amqps://b:5671", "management": "https://b:15671", "credentials": "/c.json"}
    pillar = {"netspace": {"broker": broker}}
    assert arguments.one_environment("web", WEB, pillar).environments["web"].host == ()
    with pytest.raises(SpecError, match=r"^web:host: needs netspace's own broker"):
        arguments.one_environment("web", {**WEB, "host": ["whoami"]}, pillar)


def test_record_of_an_environment_named_host_stays_readable(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    image = Image("0" * 64, "x", Defaults())
    record.write(layout, "host", Record(Environment(image="tar:/srv/x.tar"), "running", 1879048192, image, "", "1"))
    assert list(record.read(layout)) == ["host"]


@pytest.mark.parametrize("ends", [("web", "host"), ("host", "web"), ("web", "host@h2")])
def test_link_that_names_the_host_is_refused(ends: tuple[str, str]) -> None:
    given = {"from": ends[0], "to": ends[1]}
    found = problems({"web": WEB}, given)
    assert any("host is the host itself" in problem for problem in found), found
    with pytest.raises(SpecError, match="host is the host itself"):
        arguments.one_link("x", given, {})


def test_rights_imply_links_with_queues_of_their_own() -> None:
    declared = parse.declaration({"environments": {"web": {**WEB, "host": ["whoami"]}, "till": WEB}})
    (link,) = peer.with_links(declared).links
    assert (link.name, link.pattern, link.durable, link.length) == ("web.host", "request", False, peer.LENGTH)
    assert peer.is_link(link)
    assert not peer.is_link(Link(source="web", target="host", pattern="request", durable=False))
    assert declared.links == (), "nothing that a fleet or an assertion looks at"


def test_local_name_that_is_the_hosts_is_refused() -> None:
    asks = {"web": {**WEB, "host": ["whoami"]}, "till": WEB}
    link = {"from": "web", "to": "till", "as": "host"}
    assert any("another environment named host" in problem for problem in problems(asks, link))
    assert problems({"web": WEB, "till": WEB}, link) == []


def test_broker_that_hosts_share_has_no_host_peer() -> None:
    broker = {"kind": "cluster", "url": "amqps://b:5671", "management": "https://b:15671", "credentials": "/c.json"}
    found = problems({"web": {**WEB, "host": ["whoami"]}}, broker=broker)
    assert any(one.startswith("netspace:environments:web:host: needs netspace's own broker") for one in found), found


@pytest.mark.parametrize(
    ("given", "where", "text"),
    [
        ({"a": None}, "values:a", "is nothing; give a text"),
        ({"a": {"b": [1, float("inf")]}}, "values:a:b:1", "inf is not a number in JSON"),
        ({"a": 2**53}, "values:a", "is beyond 9007199254740991"),
        ({"a": "x\0"}, "values:a", "has a NUL character"),
        ({"a": "\ud800"}, "values:a", "invalid Unicode"),
        ({"A": 1}, "values:A", "can't be a value's name"),
        ({"a": {"b c": 1}}, "values:a:b c", "can't be a value's name"),
        ({"a": {1: 1}}, "values:a:1", "can't be a value's name"),
        ({"a": [[[[[[1]]]]]]}, "values:a:0:0:0:0:0", "more than 6 lists and mappings"),
        ({"a": "x" * 40000}, "values", "bytes as JSON; at most 32768 are accepted"),
        ({"a": b"x"}, "values:a", "is bytes; give a text"),
        ([1], "values", "expected"),
    ],
)
def test_values_are_checked_with_their_path(given: object, where: str, text: str) -> None:
    found = problems({"web": {**WEB, "values": given}})
    assert len(found) == 1 and found[0].startswith(f"netspace:environments:web:{where}: ") and text in found[0], found


_VALUE = st.recursive(
    st.booleans()
    | st.integers(-values.WHOLE, values.WHOLE)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.from_regex(values.NAME.pattern, fullmatch=True), inner, max_size=3)
    ),
    max_leaves=8,
)


@given_(st.dictionaries(st.from_regex(values.NAME.pattern, fullmatch=True), _VALUE, max_size=4))
def test_permitted_values_arrive_as_they_are(given: dict[str, Any]) -> None:
    if list(values.problems(given)):
        return  # too deep
    spec = parse.environment("web", {**WEB, "values": given})
    again = parse.environment("web", parse.encode(spec))
    assert again == spec and json.loads(files.encode({"values": spec.values})) == {"values": given}


@pytest.mark.parametrize(
    ("offers", "problem"),
    [
        (["shop", "shop-2"], ""),
        (["Shop"], "offers:0: 'Shop' can't be a service's name"),
        (["shop", "shop"], "offers:1: shop is listed twice; leave one out"),
        ([f"s{number}" for number in range(33)], "offers: 33 services; at most 32 are accepted"),
    ],
)
def test_offers_are_checked_with_their_path(offers: list[str], problem: str) -> None:
    found = problems({"web": {**WEB, "offers": offers}})
    assert found == [] if not problem else found[0].startswith(f"netspace:environments:web:{problem}"), found


def test_rights_change_without_a_restart() -> None:
    def fingerprint(**keys: Any) -> str:
        return record.fingerprint(Environment(image="tar:/srv/x.tar", **keys), None, record.USUAL)

    assert (
        fingerprint()
        == fingerprint(host=("whoami",))
        == fingerprint(values={"a": 1})
        == fingerprint(offers=("x",))
        != fingerprint(user=7)
    )
