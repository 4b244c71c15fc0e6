"""``docs/host-peer.schema.json`` describes exactly the requests and answers of the host's peer."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from netspace.host.peer import process, requests, schema
from netspace.host.peer.asker import Asker
from netspace.host.peer.told import Known, Told, Trust

PUBLISHED = Path(__file__).parents[2] / "docs/host-peer.schema.json"
Validator = jsonschema.Draft202012Validator


def part(name: str) -> jsonschema.protocols.Validator:
    whole = json.loads(PUBLISHED.read_text())
    return Validator({**whole, "$ref": f"#/$defs/{name}"})


def test_published_schema_of_the_peer_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    schema.main()
    text = "Write it anew: PYTHONPATH=_utils python -m netspace.host.peer.schema > docs/host-peer.schema.json"
    assert PUBLISHED.read_text() == capsys.readouterr().out, text
    Validator.check_schema(json.loads(PUBLISHED.read_text()))


def test_answers_are_valid_by_the_schema() -> None:
    own = Known(("whoami",), "sha256:0", "sha256:1", "/nowhere")
    asker = Asker("web", own, Told(1, None, Trust(), {"web": own}), 1.0)
    body = b'{"v": 1, "verb": "whoami"}'
    answer = json.loads(requests.answer(asker, requests.parse(body, len(body)), process.verbs()))
    part("answer").validate(answer)
    part("answer").validate(json.loads(requests.refusal("verb-unknown", "x")))
    for wrong in ({**answer, "v": 2}, {**answer, "answer": {}}, {"v": 1, "error": {"code": "x", "text": ""}}):
        assert not part("answer").is_valid(wrong), wrong


@pytest.mark.parametrize(
    ("request_", "valid"),
    [
        ({"v": 1, "verb": "whoami"}, True),
        ({"v": 1, "verb": "whoami", "arguments": {}}, True),
        ({"v": 1, "verb": "whoami", "arguments": {"name": "x"}}, False),
        ({"v": 1, "verb": "reboot"}, False),
        ({"v": 2, "verb": "whoami"}, False),
        ({"v": 1, "verb": "whoami", "from": "x"}, False),
    ],
)
def test_requests_are_valid_as_the_peer_parses_them(request_: dict, valid: bool) -> None:
    assert part("request").is_valid(request_) is valid
    body = json.dumps(request_).encode()
    own = Known(("whoami",), "", "", "")
    asker = Asker("web", own, Told(1, None, Trust(), {"web": own}), 1.0)
    try:
        requests.answer(asker, requests.parse(body, len(body)), process.verbs())
        accepted = True
    except requests.Refused:
        accepted = False
    assert accepted is valid
