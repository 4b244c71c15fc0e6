"""Putting our nftables table into the kernel, and telling whether it is still as we put it.

One ``nft`` process a transaction. (libnftables by ctypes would save 3 of 25 ms for 500
interfaces, and bring a parser that may abort into the minion.) Whether anybody changed
anything is asked of the kernel by one netlink message, its ruleset's generation; only
when that differs is our table listed and compared. Never touches another table.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from typing import Any

from netspace.errors import MissingError, NetspaceError

_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_VOLATILE = ("handle", "packets", "bytes")


def _run(arguments: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    program = shutil.which("nft", path=_SEARCH)
    if program is None:
        raise MissingError(
            "the program nft (packet filter of a declared interface)",
            "install it (apt-get install nftables), or declare interfaces of kind none only",
        )
    try:
        return subprocess.run(
            [program, *arguments], input=text, capture_output=True, text=True, timeout=120, env={"LC_ALL": "C"}
        )
    except subprocess.TimeoutExpired as err:
        raise NetspaceError(f"nft did not end within {err.timeout} s; nothing was changed") from err


def load(text: str) -> None:
    """Apply *text* as one transaction: all of it, or nothing.

    :raises MissingError: without nft, or where the kernel has no nftables.
    :raises NetspaceError: with nft's own words.
    """
    ended = _run(["-f", "-"], text)
    if ended.returncode == 0:
        return
    said = next((line for line in ended.stderr.splitlines() if "Error" in line), ended.stderr.strip())
    if "Operation not supported" in ended.stderr or "Protocol not supported" in ended.stderr:
        raise MissingError(
            f"nftables in the kernel ({said})",
            "use a kernel with CONFIG_NF_TABLES_INET, NFT_CT, NFT_MASQ and NF_CONNTRACK, or declare kind none only",
        )
    raise NetspaceError(f"nft refused the packet filter: {said}")


def listed(table: str) -> str | None:
    """A digest of what the kernel holds as our table; None where there is none."""
    ended = _run(["-j", "list", "table", "inet", table])
    if ended.returncode != 0:
        return None
    return digest(ended.stdout)


def digest(listing: str) -> str:
    """The digest of ``nft -j list table`` output, without what changes by itself (handles, counters, version)."""
    content = [_lasting(one) for one in json.loads(listing)["nftables"] if "metainfo" not in one]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: sorted((_lasting(one) for one in below), key=lambda one: json.dumps(one, sort_keys=True))
            if key == "elem" and isinstance(below, list)
            else _lasting(below)
            for key, below in value.items()
            if key not in _VOLATILE
        }
    if isinstance(value, list):
        return [_lasting(one) for one in value]
    return value
