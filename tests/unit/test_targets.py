"""Environments as Salt's targets, without a running environment."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.errors import NetspaceError
from netspace.host import salt_targets
from netspace.host.salt_targets import Targets
from netspace.layout import Layout
from netspace.plugin import arguments
from netspace.spec.types import Declaration, Environment

PLAIN = set(string.ascii_letters + string.digits + " ._+()~/-")
RELEASE = b"""\
PRETTY_NAME="Debian GNU/Linux 13 (trixie)"
NAME='Debian GNU/Linux'
VERSION_ID="13"
VERSION_CODENAME=trixie
ID=debian
HOME_URL="https://www.debian.org/"
"""


def test_an_os_release_becomes_grains() -> None:
    assert salt_targets.os_grains(RELEASE) == {
        "os": "Debian GNU/Linux",
        "os_id": "debian",
        "osrelease": "13",
        "oscodename": "trixie",
        "osfullname": "Debian GNU/Linux 13 (trixie)",
    }


@pytest.mark.parametrize(
    "line",
    [
        b"ID=a: {b: c}",
        b"ID=\"a'",
        b'ID="a" b',
        b"ID={{ salt }}",
        b"ID=" + b"x" * 65,
        b"ID=\xff",
        b"ID=a\x1b[31m",
        b"ID=",
        b"ID='  '",
        b"id=a",
        b" ID=a",
        b"ID=$(id)",
    ],
)
def test_what_is_no_plain_word_is_no_grain(line: bytes) -> None:
    assert salt_targets.os_grains(line + b"\n") == {}


@given(st.binary(max_size=400) | st.text(max_size=100).map(lambda text: f'NAME="{text}"\nID={text}\n'.encode()))
def test_grains_are_plain_words_whatever_an_image_says(content: bytes) -> None:
    for value in salt_targets.os_grains(content).values():
        assert 0 < len(value) <= 64 and set(value) <= PLAIN


@given(st.text(max_size=60))
def test_no_id_names_anything_that_is_not_there(name: str) -> None:
    nobody = Targets(Layout(root=Path("/nonexistent")), "shop")
    for target in (name, f"shop-{name}", f"other-{name}"):
        with pytest.raises(NetspaceError):
            nobody.environment(target)
        assert nobody.ping(target) is False


def test_who_offers_targets() -> None:
    wanted = {"resources": {"netspace": {}}}
    assert arguments.targets_wanted({}, wanted)
    assert arguments.targets_wanted({"resource_pillar_key": "mine"}, {"mine": {"netspace": None}})
    for opts, pillar in (({}, {}), ({}, {"resources": None}), ({}, {"resources": {"ssh": {}}})):
        assert not arguments.targets_wanted(opts, pillar)
    assert not arguments.targets_wanted({"__cli": "salt-call"}, wanted)
    assert arguments.minion({"id": "a"}) == "a"
    assert arguments.minion({"id": "a-web", "netspace.minion": "a"}) == "a"
    listed = Declaration(environments={"web": Environment(image="", target=True), "orders": Environment(image="")})
    assert arguments.unaddressable(listed, {}, {}) == ["web"]
    assert arguments.unaddressable(listed, {"__cli": "salt-call"}, wanted) == []
    assert "add 'mine: {netspace: {}}'" in arguments.addressable({"resource_pillar_key": "mine"})
