"""An editor with a YAML language server marks the same mistakes in a declaration that ``netspace.check`` reports.

These tests run on request, since they need a program from npm: ``sudo scripts/provision --callers`` installs it.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import yaml_server
from support.yaml_server import Editor

from netspace.errors import Problem, SpecError
from netspace.spec import parse

ROOT = Path(__file__).parents[3]
SCHEMA = ROOT / "docs/declaration.schema.json"
WEB: dict[str, Any] = {"image": "tar:/srv/web.tar"}

pytestmark = pytest.mark.skipif(
    not yaml_server.program(), reason="yaml-language-server isn't installed: sudo scripts/provision --callers"
)


@pytest.fixture(scope="module")
def editor() -> Iterator[Editor]:
    with yaml_server.editing(SCHEMA) as running:
        yield running


def pillar(declaration: Any) -> str:
    return yaml.safe_dump({"netspace": declaration}, sort_keys=False)


def example() -> dict[str, Any]:
    text = jinja2.Template((ROOT / "pillar.example").read_text()).render(opts={})
    found: dict[str, Any] = yaml.safe_load(text)["netspace"]
    return found


def checked(declaration: Any) -> list[Problem]:
    """Return the problems that ``netspace.check`` finds without a host."""
    try:
        parse.declaration(declaration)
    except SpecError as err:
        return list(err.problems)
    return []


def test_example_of_all_keys_has_no_mistake(editor: Editor) -> None:
    assert editor.mistakes((ROOT / "pillar.example").read_text()) == []


@pytest.mark.parametrize(
    ("declaration", "marked", "path"),
    [
        ({"environmnets": {}}, "environmnets", "environmnets"),
        ({"environments": {"web": {**WEB, "limits": {"memroy": "1M"}}}}, "memroy", "environments:web:limits:memroy"),
        ({"environments": {"web": {**WEB, "limits": {"memory": "12X"}}}}, "12X", "environments:web:limits:memory"),
        ({"environments": {"web": {**WEB, "command": "/bin/sh"}}}, "/bin/sh", "environments:web:command"),
        ({"environments": {"web": {**WEB, "user": True}}}, "true", "environments:web:user"),
        ({"environments": {"web": {**WEB, "interface": {"kind": "vteh"}}}}, "vteh", "environments:web:interface"),
        ({"links": [{"from": "web", "to": "orders", "priority": 1}]}, "priority", "links:0:priority"),
    ],
)
def test_mistake_is_marked_where_check_finds_it(editor: Editor, declaration: Any, marked: str, path: str) -> None:
    found = editor.mistakes(pillar(declaration))
    assert marked in [one.marked for one in found], found
    assert any(one.path.startswith(f"netspace:{path}") for one in checked(declaration)), checked(declaration)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value within a declaration."""
    for key, one in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(one, (*path, key))


PLACES = list(places(example())) if (ROOT / "pillar.example").exists() else []
WRONG = st.sampled_from([True, -7, 1.5, "no such thing", [], {}, [["a"]], {"unknown": 1}])
KNOWN_BY_CHECK_ALONE = {
    "a number that is too small or too large": (
        r"is out of|: expected \S+ to \S+ (messages|seconds)|is not a PCR|give at least"
    ),
    "a text of the right kind that makes no sense": (
        r"expected (ADDRESS|an? |sha256|the )|can't |is not a thumbprint|is nothing that the host can be asked for"
    ),
    "a reference to another part of the declaration": (
        r"there is no |is not in broker:hosts|has no (mailbox|effect|link to|delegate)|may delegate|is beyond"
    ),
    "an empty list or mapping, where something is needed": r"missing; give|give either",
    "what is another tenant's, or more than a tenant's quota": r"\btenants?\b|have names in common",
}
"""Reasons, with words of the messages, for which ``netspace.check`` refuses something that an editor doesn't mark."""


@st.composite
def mistaken(draw: st.DrawFn) -> dict[str, Any]:
    """Return the example of all keys with one mistake: a value of another kind, or a misspelt key."""
    declaration = copy.deepcopy(example())
    *inside, key = draw(st.sampled_from(PLACES))
    part = declaration
    for step in inside:
        part = part[step]
    if isinstance(part, dict) and draw(st.booleans()):
        part[f"{key}x"] = part.pop(key)
    else:
        part[key] = draw(WRONG)
    return declaration


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mistaken())
def test_editor_marks_what_check_refuses_or_has_a_reason(editor: Editor, declaration: dict[str, Any]) -> None:
    found, refused = editor.mistakes(pillar(declaration)), checked(declaration)
    assert not found or refused, (found, json.dumps(declaration))
    for problem in () if found else refused:
        reasons = [why for why, words in KNOWN_BY_CHECK_ALONE.items() if re.search(words, problem.message)]
        assert reasons, problem


def test_page_tells_what_an_editor_does_not_know() -> None:
    page = (ROOT / "docs/declaration.md").read_text()
    assert [reason for reason in KNOWN_BY_CHECK_ALONE if reason not in " ".join(page.split())] == []
