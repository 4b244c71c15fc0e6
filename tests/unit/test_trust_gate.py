"""Decision of a host which of its declared links it makes, by its own result and by the levels of other hosts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from netspace.attestation import result
from netspace.attestation.result import Result
from netspace.host.host import Host
from netspace.layout import Layout
from netspace.spec import parse

HOSTS = {name: {"trust_domain": f"{name}.example.org"} for name in ("h1", "h3")}
BROKER = {
    "kind": "local",
    "host": "h2",
    "trust_domain": "h2.example.org",
    "authority": "/etc/a",
    "listen": "198.51.100.2:5671",
    "names_key": "/etc/n",
    "hosts": HOSTS,
}
LINKS = [
    {"from": "web@h1", "to": "db", "attested": "L3"},
    {"from": "log", "to": "db", "attested": "L2"},
    {"from": "log", "to": "web@h1", "attested": "L2"},
    {"from": "db", "to": "log"},
]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    boot = tmp_path / "proc/sys/kernel/random/boot_id"
    boot.parent.mkdir(parents=True)
    boot.write_text("boot-1")
    return Layout(root=tmp_path)


def kept(layout: Layout, appraised: dict[str, Any]) -> tuple[set[str], str]:
    """Return the links that the host would have, and why it refuses the others."""
    hosts = {**BROKER, "hosts": {**HOSTS, "h1": {**HOSTS["h1"], "address": "198.51.100.1:5671"}}}
    environments = {name: {"image": "tar:/x"} for name in ("db", "log")}
    declared = parse.declaration(
        {"attestation": {"appraised": appraised}, "broker": hosts, "environments": environments, "links": LINKS}
    )
    host = Host(layout)
    verdicts = host._link_verdicts(declared, False)
    found = {link.name for link in host._permitted(declared, verdicts)}
    assert found == {name for name, one in verdicts.items() if one.allowed}
    return found, "; ".join(one.comment for one in verdicts.values())


def judged(layout: Layout, level: int, **changed: Any) -> None:
    now = time.time()
    given = {"boot": "boot-1", "expires": now + 3600, **changed}
    result.save(layout, Result(level, "master", "why", "", issued=now, settings={}, sources="", tpm={}, **given))


def test_level_of_a_senders_host_decides_on_its_links(layout: Layout) -> None:
    now = time.time()
    for level, until, why in (
        ("L3", now + 60, ""),
        ("L2", now + 60, "h1 has L2"),
        ("L5", now - 60, "has expired"),
        ("L4", now + 60, ""),
    ):
        found, told = kept(layout, {"h1": {"level": level, "until": until}})
        assert ("web@h1.db" in found) is not bool(why) and why in told
    found, told = kept(layout, {"h3": {"level": "L5", "until": now + 60}})
    assert found == {"db.log"} and "reported no level of h1" in told, "this host itself was never appraised"


def test_own_level_decides_on_attested_links_from_here(layout: Layout) -> None:
    own = {"log.db", "log.web@h1"}
    judged(layout, 2)
    assert kept(layout, {})[0] == {*own, "db.log"}
    for level, changed in ((1, {}), (5, {"boot": "boot-0"}), (5, {"expires": time.time() - 1})):
        judged(layout, level, **changed)
        found, told = kept(layout, {})
        assert found == {"db.log"} and "this host has L" in told
    judged(layout, 3)
    assert kept(layout, {})[0] == {*own, "db.log"}
