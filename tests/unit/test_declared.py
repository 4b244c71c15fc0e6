"""Declarations from pillar and from state arguments."""

from __future__ import annotations

import pytest

from netspace.errors import NetspaceError, SpecError
from netspace.plugin import arguments
from netspace.spec.types import LocalBroker

PILLAR = {"netspace": {"broker": {"kind": "local", "port": 5999}, "environments": {"old": {"image": "tar:/x"}}}}


def test_state_arguments_are_the_declarations_keys_and_settings_come_from_pillar():
    alone = arguments.one_environment("web", {"image": "tar:/x", "__id__": "web", "aggregate": True}, PILLAR)
    assert list(alone.environments) == ["web"]
    assert alone.broker == LocalBroker(port=5999)


def test_a_link_can_be_named_by_its_ends():
    assert arguments.link("web.orders", {"pattern": "request"}, {}).name == "web.orders"
    assert arguments.link("any text", {"from": "a", "to": "b"}, {}).name == "a.b"
    with pytest.raises(SpecError, match="required field 'from'"):
        arguments.link("any text", {}, {})


def test_two_that_clash_are_refused_together():
    volume = {"image": "tar:/x", "volumes": [{"source": "/srv/data", "target": "/data"}]}
    first = arguments.one_environment("a", volume, {})
    with pytest.raises(SpecError, match="/srv/data already belongs to a"):
        arguments.merged(first, arguments.one_environment("b", volume, {}))


def test_without_pillar_the_operator_is_told_what_to_do():
    with pytest.raises(SpecError, match="in a file that its top"):
        arguments.whole(None, {})


@pytest.mark.parametrize("instance", ["", "Net", "../x", "a" * 17, 7])
def test_an_instance_that_could_be_a_path_is_refused(instance):
    with pytest.raises(NetspaceError, match=r"netspace\.instance"):
        arguments.layout({"netspace.instance": instance})


@pytest.mark.parametrize("section", ["broker", ["broker"], 7])
def test_a_pillar_of_the_wrong_shape_is_refused(section):
    with pytest.raises(SpecError, match="netspace: expected a mapping"):
        arguments.one_environment("web", {"image": "tar:/x"}, {"netspace": section})
