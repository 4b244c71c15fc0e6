"""Fleets for tests and benchmarks: declarations, the facts that their hosts published, and strategies for both."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from netspace.fleet.declaration import FleetDeclaration, Sources
from netspace.fleet.types import Published

ISSUED = "-----BEGIN CERTIFICATE-----\n"


def published(hosts: Iterable[str], domain: str = "netspace.internal", **more: Any) -> dict[str, Published]:
    """Return the facts that joined hosts have published, by minion."""
    return {
        host: Published(minion=host, trust_domain=f"{host}.{domain}", chain=ISSUED, public_key=public_key(host), **more)
        for host in hosts
    }


def public_key(host: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(host.encode()).digest()).decode().rstrip("=")


def written(folder: Path, nodegroups: Mapping[str, object] | None = None) -> FleetDeclaration:
    """Return the declaration in ``fleet.yaml`` in *folder* and its included files, rendered as plain YAML."""
    sources = Sources(lambda name: None, lambda path: yaml.safe_load(Path(path).read_text()))
    return FleetDeclaration(str(folder / "fleet.yaml"), folder / "kept", sources, nodegroups or {})


@st.composite
def fleets(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a fleet. Names have equal lengths, and each value contains a mark of its owner for searches."""
    hosts = [f"host{number:02}" for number in range(draw(st.integers(1, 5)))]
    names = [f"env{number:02}" for number in range(draw(st.integers(0, 7)))]
    some = st.lists(st.sampled_from(hosts), min_size=1, max_size=3, unique=True)
    environments = {
        name: {
            "on": draw(st.one_of(st.sampled_from(hosts), st.just("host*"), some)),
            "replicas": draw(st.sampled_from((1, "all"))),
            "image": f"tar:/srv/image-{name}.tar",
            "env": {"SECRET": f"secret-{name}"},
        }
        for name in names
    }
    pairs = [(one, other) for one in names for other in names if one != other]
    chosen = draw(st.lists(st.sampled_from(pairs), max_size=10, unique=True)) if pairs else []
    links = [
        {"from": one, "to": other, "reach": draw(st.sampled_from(("one", "each"))), "content_type": f"x/{one}-{other}"}
        for one, other in chosen
    ]
    return {
        "hosts": {
            host: {"address": f"198.51.100.{number + 1}", "labels": {"rack": f"rack-{host}"}}
            for number, host in enumerate(hosts)
        },
        "environments": environments,
        "links": links,
    }
