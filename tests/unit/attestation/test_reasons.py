"""Reason codes are an interface: each is unique and documented, and a test triggers each refusal."""

from __future__ import annotations

import re
from pathlib import Path

from support import checkout

from netspace.attestation import refusals

PAGE = checkout.ROOT / "docs/attestation-reasons.md"
RUNNER = checkout.ROOT / "_runners/netspace_attestation.py"
TESTS = [path for path in (checkout.ROOT / "tests").glob("**/attestation/test_*.py") if path != Path(__file__)]
TESTS += [checkout.ROOT / "tests/integration/test_registrar_fleet.py"]
TESTS += [checkout.ROOT / "tests/support/attestation/appraised_forge.py"]

BASES = (refusals.Refused, refusals.Limited)


def classes() -> list[type[refusals.Refused]]:
    return [
        value
        for value in vars(refusals).values()
        if isinstance(value, type) and issubclass(value, refusals.Refused) and value not in BASES
    ]


def test_codes_are_unique_and_say_what_they_are() -> None:
    codes = [one.code for one in classes()]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code) for code in codes)
    assert all(one.__doc__ for one in classes())
    assert str(refusals.WrongMagic("what was found")) == "what was found [magic]"


def test_every_code_has_a_row_in_the_documentation_and_no_row_is_of_another() -> None:
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert len(set(rows)) == len(rows)
    assert set(rows) == {one.code for one in classes()} | {"ok", "software-key"} | of_commands()


def of_commands() -> set[str]:
    """Return the reason codes that only commands report: in runners' answers and in trials of a policy."""
    sources = [*(checkout.ROOT / "_utils/netspace/attestation").rglob("*.py"), RUNNER]
    text = "\n".join(path.read_text() for path in sources)
    return set(re.findall(r'"code": "([a-z-]+)"', text)) | set(re.findall(r'_trial\([^"]*"([a-z]+-[a-z-]+)"', text))


def test_every_code_of_a_command_is_tried_by_a_test() -> None:
    text = "\n".join(path.read_text() for path in TESTS)
    assert of_commands() >= {"input", "audit-log", "evidence-none"}
    assert [code for code in of_commands() if f'"{code}"' not in text] == []


def test_every_refusal_is_tried_by_a_test() -> None:
    text = "\n".join(path.read_text() for path in TESTS)
    untried = [one.code for one in classes() if f"refusals.{one.__name__}" not in text and f'"{one.code}"' not in text]
    assert untried == []


def test_the_library_raises_nothing_but_codes_of_the_list() -> None:
    """Only the module with the list of refusals defines refusals, because the list would miss any other."""
    for path in (checkout.ROOT / "_utils/netspace/attestation").rglob("*.py"):
        if path.name != "refusals.py":
            assert not re.search(
                r"^class \w+\((Refused|Limited|Malformed|refusals\.\w+)\)", path.read_text(), re.MULTILINE
            ), path
