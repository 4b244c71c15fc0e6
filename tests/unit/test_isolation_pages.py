"""The pages on isolation name a test for each claim (``test_named_tests.py`` checks that the tests exist)."""

from __future__ import annotations

import re
from pathlib import Path

from netspace.environment.audit import probe
from netspace.environment.container import oci_config, seccomp

CHECKOUT = Path(__file__).parents[2]
PAGES = CHECKOUT / "docs"
NAMED = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def named():
    return sorted(set(NAMED.findall((PAGES / "isolation.md").read_text())))


def test_the_page_names_tests():
    assert len(named()) > 15


def test_each_row_of_a_claim_names_one():
    tables = (PAGES / "isolation.md").read_text().split("\n## ")
    for title in ("What it has", "Against the checklist"):
        (table,) = (part for part in tables if part.startswith(title))
        rows = [line for line in table.splitlines() if line.startswith("|")][2:]
        assert rows
        assert [row for row in rows if not NAMED.search(row)] == []


def test_each_finding_from_outside_is_told_with_its_test():
    page = (PAGES / "what-to-audit.md").read_text()
    (part,) = (part for part in page.split("\n## ") if part.startswith("What people from outside found"))
    told: dict[int, str] = {}
    for line in part.splitlines():
        if line.startswith("|") and re.match(r"[\d, ]+$", line.split("|")[1]):
            told.update(dict.fromkeys(map(int, line.split("|")[1].split(",")), line))
    assert list(told) == list(range(1, 31))
    without = [
        row for row in told.values() if not NAMED.search(row) and not row.endswith(("the same |", "channels.py` |"))
    ]
    assert without == []


def test_the_page_counts_the_attempts():
    assert f"{len(probe.ATTEMPTS)} ways to try" in (PAGES / "isolation.md").read_text()
    assert len(probe.GROUPS) == 11


def test_what_standard_adds_is_told():
    page = (PAGES / "isolation.md").read_text()
    for call in ("io_submit", "mbind", "memfd_secret", "remap_file_pages"):
        assert call in page
        assert any(call in family.calls.split() for family in seccomp.STANDARD.values())


def test_the_page_s_facts_are_not_masked():
    for fact in ("cpuinfo", "meminfo", "stat", "loadavg", "uptime", "version", "devices", "filesystems", "misc"):
        assert f"/proc/{fact}" not in oci_config._MASKED


def lines(*folders):
    return sum(len(path.read_text().splitlines()) for folder in folders for path in folder.rglob("*.py"))


def test_sizes_of_the_trusted_computing_base_are_about_right():
    page = (PAGES / "trusted-computing-base.md").read_text()
    library = CHECKOUT / "_utils" / "netspace"
    top = sum(len(path.read_text().splitlines()) for path in library.glob("*.py"))
    sizes = {
        "netspace: environments": lines(library / "environment"),
        "netspace: interfaces": lines(library / "interface"),
        "netspace: links": lines(library / "link"),
        "netspace: attestation": lines(library / "attestation", library / "ledger"),
        "netspace: declaration, plan, host": top + lines(library / "spec", library / "host", library / "plugin"),
        r"netspace: \[fleet\]": lines(library / "fleet"),
        "supervision: our daemon": lines(library / "supervision"),
        "netspace: health": lines(library / "environment" / "health"),
    }
    for part, size in sizes.items():
        told = re.search(rf"\| {part}.*?([\d,]+) lines", page)
        assert told, part
        # Rounded, and not to be changed with every commit; but no part may double unseen.
        assert 0.5 < size / int(told[1].replace(",", "")) < 2, (part, size, told[1])
