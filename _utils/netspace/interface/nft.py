"""Putting our nftables table into the kernel, and telling whether it is still as we put it.

One ``nft`` process a transaction. (libnftables by ctypes saved 4 to 9 of 24 to 30 ms with 500
chains, and would bring a parser that may abort into the minion.) Whether anybody changed
anything is asked of the kernel by one netlink message, its ruleset's generation; only
when that differs is our table listed and compared. Never touches another table.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess

from netspace.errors import MissingError, NetspaceError

_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PATIENCE = 120  # seconds
# What packets have put into a set, not we.
_COUNTED = re.compile(r"(flags dynamic\n)\s*elements = \{[^}]*\}\n")
_ELEMENTS = re.compile(r"elements = \{([^}]*)\}")


def _run(arguments: list[str], text: str = "") -> tuple[int, str, str]:
    """Run nft with *text* on its input; return its code, output and errors."""
    program = shutil.which("nft", path=_SEARCH)
    if program is None:
        raise MissingError(
            "the program nft (packet filter of a declared interface)",
            "install it (apt-get install nftables), or declare interfaces of kind none only",
        )
    # nft writes word by word: into a file in memory that takes less time than into a pipe.
    with os.fdopen(os.memfd_create("nft"), "w+b") as output:
        try:
            ended = subprocess.run(
                [program, *arguments],
                input=text.encode(),
                stdout=output,
                stderr=subprocess.PIPE,
                timeout=_PATIENCE,
                env={"LC_ALL": "C"},
            )
        except subprocess.TimeoutExpired as err:
            raise NetspaceError(f"nft did not end within {_PATIENCE} s and was killed; apply again") from err
        output.seek(0)
        return ended.returncode, output.read().decode(), ended.stderr.decode(errors="replace")


def load(text: str) -> None:
    """Apply *text* as one transaction: all of it, or nothing.

    :raises MissingError: without nft, or where the kernel has no nftables.
    :raises NetspaceError: with nft's own words.
    """
    code, _, errors = _run(["-f", "-"], text)
    if code == 0:
        return
    said = next((line for line in errors.splitlines() if "Error" in line), errors.strip())
    if "Operation not supported" in errors or "Protocol not supported" in errors:
        raise MissingError(
            f"nftables in the kernel ({said})",
            "use a kernel with CONFIG_NF_TABLES_INET, NFT_CT, NFT_CONNLIMIT, NFT_MASQ, NF_CONNTRACK and "
            "NF_CONNTRACK_TIMEOUT, or declare kind none only",
        )
    raise NetspaceError(f"nft refused the packet filter: {said}")


def listed(table: str) -> str | None:
    """A digest of what the kernel holds as our table; None where there is none."""
    code, listing, _ = _run(["--stateless", "list", "table", "inet", table])
    return digest(listing) if code == 0 else None


def digest(listing: str) -> str:
    """The digest of ``nft --stateless list table`` output, whatever order the kernel's hashes give elements.

    What packets count in sets of theirs (``flags dynamic``) is left out.
    """

    def ordered(match: re.Match[str]) -> str:
        return ",".join(sorted(" ".join(element.split()) for element in match[1].split(",")))

    return hashlib.sha256(_ELEMENTS.sub(ordered, _COUNTED.sub(r"\1", listing)).encode()).hexdigest()
