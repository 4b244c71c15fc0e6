"""``pillar.example`` holds every key of a declaration, and netspace accepts it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from netspace.environment import runtimes
from netspace.interface import kinds
from netspace.spec import parse, types

EXAMPLE = Path(__file__).parents[3] / "pillar.example"
PARTS = (
    *(types.Attestation, types.LocalBroker, types.RemoteHost, types.Network, types.Environment, types.Limits, types.Io),
    *(types.Volume, types.Allow, types.Way, types.Health, types.Update, types.Requirement, types.Link),
)
# Keys that stand in another form of what they belong to.
ELSEWHERE = {"LocalBroker": {"listen"}, "Runtimes": {"settings"}}


@pytest.fixture(scope="module")
def section() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())["netspace"]
    return found


def keys(data: Any) -> Iterator[str]:
    """Every key of *data* and below it."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield str(key)
            yield from keys(value)
    elif isinstance(data, list):
        for one in data:
            yield from keys(one)


def test_pillar_example_is_accepted(section: dict[str, Any]) -> None:
    declared = parse.declaration(section)
    assert len(declared.environments) > 10 and len(declared.links) == 3


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_pillar_example_has_every_key(section: dict[str, Any], part: type[msgspec.Struct]) -> None:
    wanted = {field.encode_name for field in msgspec.structs.fields(part)} - ELSEWHERE.get(part.__name__, set())
    assert wanted <= set(keys(section))


def test_pillar_example_has_every_kind_and_runtime(section: dict[str, Any]) -> None:
    interfaces = [one["interface"] for one in section["environments"].values() if "interface" in one]
    shown = {one["kind"]: set() for one in interfaces}
    for one in interfaces:
        shown[one["kind"]] |= set(one)
    names = {one.name for one in pkgutil.iter_modules(kinds.__path__)}
    assert set(shown) == names
    for name in ("vxlan", "wireguard", "vlan", "ipvlan", "bridge", "veth"):
        module = importlib.import_module(f"{kinds.__name__}.{name}")
        spec = next(
            one for one in vars(module).values()
            if isinstance(one, type) and issubclass(one, types.Interface) and one.__struct_config__.tag == name
        )  # fmt: skip
        own = {field.encode_name for field in msgspec.structs.fields(spec)} - {
            *("allow", "rate", "connections", "mtu", "routes", "ipv6", "gateway4", "gateway6"),
            *(("group",) if name == "vxlan" else ()),
        }
        assert own <= shown[name], name
    assert {"crun", "runsc", "qemu"} <= set(section["runtimes"]) <= {
        "default", "kernels", *(one.name for one in pkgutil.iter_modules(runtimes.__path__)),
    }  # fmt: skip


def test_pillar_example_of_a_cluster_is_accepted() -> None:
    text = EXAMPLE.read_text().split("#  broker:\n")[1]
    cluster = yaml.safe_load("\n".join(line.removeprefix("#") for line in text.splitlines()))
    assert set(cluster) == {field.encode_name for field in msgspec.structs.fields(types.ClusterBroker)} | {"kind"}
    parse.declaration({"broker": cluster})
