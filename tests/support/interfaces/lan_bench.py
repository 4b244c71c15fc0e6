"""A bridge of the host, a machine on it, and interfaces that are ports of the bridge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LAN = Path("/run/netns/test-lan")
FAR = {"ipv4": "198.18.6.2", "ipv6": "fd00:198:6::2"}
NETWORK = {"ipv4": "198.18.6.0/24", "ipv6": "fd00:198:6::/64"}
BITS = {"ipv4": "24", "ipv6": "64"}


def bridged(number: int, *allow: dict[str, Any], **more: Any) -> dict[str, Any]:
    own = {"ipv4": f"198.18.6.{number}/24", "ipv6": f"fd00:198:6::{number:x}/64"}
    return {"kind": "bridge", "bridge": "test-br", **own, "allow": list(allow), **more}


def address(number: int, family: str) -> str:
    return {"ipv4": f"198.18.6.{number}", "ipv6": f"fd00:198:6::{number:x}"}[family]
