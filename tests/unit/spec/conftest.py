"""Check that every declaration that the parser accepts in these tests is valid by the JSON Schema, too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from netspace.spec import parse, schema
from netspace.spec.types import Declaration


@pytest.fixture(scope="session")
def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema.schema())


@pytest.fixture(scope="module", autouse=True)
def accepted_is_valid(validator: jsonschema.Draft202012Validator) -> Iterator[None]:
    parser = parse.declaration

    def declaration(data: Any, path: str = "netspace") -> Declaration:
        parsed = parser(data, path)
        document = json.loads(json.dumps({"netspace": data}))  # which has no tuples
        wrong = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
        assert not wrong, wrong
        return parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parse, "declaration", declaration)
        yield
