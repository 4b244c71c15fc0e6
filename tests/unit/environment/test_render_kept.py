"""The content of ``config.json`` is rendered once for equal arguments, and anew for any that differs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from netspace.environment import builder
from netspace.environment.builder import Builder
from netspace.environment.container import oci_config
from netspace.environment.images import Image, Store
from netspace.environment.images.sources import Defaults
from netspace.environment.runtimes import Runtime
from netspace.layout import Layout
from netspace.spec import parse

SPEC = parse.environment("web", {"image": "tar:/x.tar", "command": ["/x"]})
IMAGE = Image("d" * 64, "i", Defaults())


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Builder, list[str]]:
    """A builder, and the names of the environments whose configuration it computes from now on."""
    layout = Layout(root=tmp_path)
    computed: list[str] = []
    real = oci_config.config
    monkeypatch.setattr(
        builder.oci_config, "config", lambda name, *rest, **more: computed.append(name) or real(name, *rest, **more)
    )
    return Builder(layout, Store(layout)), computed


def test_equal_arguments_are_rendered_once(made: tuple[Builder, list[str]]) -> None:
    making, computed = made
    first = making.render("web", SPEC, 1_000_000, IMAGE, Runtime("crun"))
    assert making.render("web", SPEC, 1_000_000, IMAGE, Runtime("crun")) == first
    assert computed == ["web"]


@pytest.mark.parametrize("key", ["spec", "base", "image", "confined", "name"])
def test_other_arguments_are_rendered_anew(made: tuple[Builder, list[str]], key: str) -> None:
    making, computed = made
    usual = {"name": "web", "spec": SPEC, "base": 1_000_000, "image": IMAGE, "confined": ""}
    other = {
        "name": "shop",
        "spec": msgspec.structs.replace(SPEC, env={"A": "B"}),
        "base": 2_000_000,
        "image": msgspec.structs.replace(IMAGE, defaults=Defaults(env=(("A", "B"),))),
        "confined": "a profile",
    }
    first = making.render(**usual, runtime=Runtime("crun"))
    second = making.render(**{**usual, key: other[key]}, runtime=Runtime("crun"))
    assert first != second and len(computed) == 2
    fresh = Builder(making.layout, making.store).render(**{**usual, key: other[key]}, runtime=Runtime("crun"))
    assert second == fresh


def test_limits_of_disks_are_rendered_each_time(made: tuple[Builder, list[str]]) -> None:
    making, computed = made
    limits = {"limits": {"io": {"read_ops": 100}}}
    spec = parse.environment("web", {"image": "tar:/x.tar", "command": ["/x"], **limits})
    for _ in range(2):
        making.render("web", spec, 1_000_000, IMAGE, Runtime("crun"))
    assert computed == ["web", "web"]


def test_contents_of_a_large_batch_are_not_kept(made: tuple[Builder, list[str]]) -> None:
    making, _ = made
    for number in range(builder._KEPT + 5):
        making.render(f"e{number}", SPEC, 1_000_000, IMAGE, Runtime("crun"))
    assert len(making._contents) == builder._KEPT
