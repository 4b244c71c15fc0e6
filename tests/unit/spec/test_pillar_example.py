"""``pillar.example`` contains every key of a declaration, and netspace accepts it."""

from __future__ import annotations

import copy
import pkgutil
import typing
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
# Keys that stand in another form of what they belong to, or that only one of two forms may have.
ELSEWHERE = {
    types.LocalBroker: {"listen"},  # a broker that others reach takes no passwords
    types.Secret: {"sealed", "unread"},  # the master fills these in
    types.Tenant: {"include"},  # only a command on the host reads the files
    types.FormerEnds: {"from"},  # as its other key, for a sender on another host
    types.Runtimes: {"settings"},  # each runtime's stand under its name
}


@pytest.fixture(scope="module")
def section() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())["netspace"]
    return found


def parts(kind: Any) -> list[type[msgspec.Struct]]:
    """Return the structs that a type of a declaration is or contains."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [kind]
    return [found for one in typing.get_args(kind) for found in parts(one)]


def inner(kind: type[msgspec.Struct]) -> Iterator[tuple[str, list[type[msgspec.Struct]]]]:
    """Yield each key of a struct, and the structs that its value may be."""
    for field in msgspec.structs.fields(kind):
        own = kinds.specs() if kind is types.Environment and field.name == "interface" else parts(field.type)
        yield field.encode_name, list(own)


def reached(kind: type[msgspec.Struct], found: list[type[msgspec.Struct]]) -> list[type[msgspec.Struct]]:
    """Return every struct that a declaration may hold."""
    if kind not in found:
        found.append(kind)
        for _, below in inner(kind):
            for one in below:
                reached(one, found)
    return found


def used(kind: type[msgspec.Struct], data: Any, found: dict[type[msgspec.Struct], set[str]]) -> None:
    """Record the keys of *data*, by their structs; *kind* is the type of *data*."""
    found.setdefault(kind, set()).update(data)
    named = {field.encode_name for field in msgspec.structs.fields(kind) if typing.get_origin(field.type) is dict}
    for key, below in inner(kind):
        value = data.get(key)
        if not below or value is None:
            continue
        tagged = [one for one in below if one.__struct_config__.tag]
        several = value if isinstance(value, list) else list(value.values()) if key in named else [value]
        for one in several:
            if isinstance(one, str):  # a short form
                continue
            which = next((two for two in tagged if two.__struct_config__.tag == one["kind"]), below[0])
            used(which, one, found)


def names(kind: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(kind)}


def test_pillar_example_is_accepted(section: dict[str, Any]) -> None:
    declared = parse.declaration(section)
    assert len(declared.environments) > 10 and len(declared.links) == 4 + 2 * 3 + 1 + 1, (
        "four, three of each child, a delegated one, and a tenant's"
    )


@pytest.mark.parametrize("part", reached(types.Declaration, []), ids=lambda part: part.__name__)
def test_pillar_example_has_every_key(section: dict[str, Any], part: type[msgspec.Struct]) -> None:
    found: dict[type[msgspec.Struct], set[str]] = {}
    used(types.Declaration, section, found)
    if part is types.ClusterBroker:
        found[part] = set(cluster())
    if issubclass(part, types.Interface):
        # What kinds have in common is shown once.
        common = names(part) - set(part.__annotations__)
        found[part] |= common & set().union(*(found[kind] for kind in kinds.specs()))
    assert names(part) - ELSEWHERE.get(part, set()) - found.get(part, set()) == set()


def test_a_key_that_is_missing_is_noticed(section: dict[str, Any]) -> None:
    found: dict[type[msgspec.Struct], set[str]] = {}
    without = copy.deepcopy(section)
    for environment in without["environments"].values():
        environment.pop("attestation", None)  # which the host and a link have too
        environment.get("interface", {}).pop("mtu", None)
    used(types.Declaration, without, found)
    assert names(types.Environment) - found[types.Environment] == {"attestation"}
    assert "mtu" not in found[next(spec for spec in kinds.specs() if spec.__struct_config__.tag == "veth")]


def test_pillar_example_has_settings_of_runtimes(section: dict[str, Any]) -> None:
    known = {one.name for one in pkgutil.iter_modules(runtimes.__path__)}
    shown = set(section["runtimes"]) - {"default", "kernels"}
    assert {"crun", "runsc", "qemu"} <= shown <= known


def cluster() -> dict[str, Any]:
    """Return the broker in the comment at the end of the file."""
    text = EXAMPLE.read_text().split("#  broker:\n")[1]
    found: dict[str, Any] = yaml.safe_load("\n".join(line.removeprefix("#") for line in text.splitlines()))
    return found


def test_pillar_example_of_a_cluster_is_accepted() -> None:
    parse.declaration({"broker": cluster()})
