"""JSON Schema (draft 2020-12) of requests to the host and of its answers, made from their types. Pure.

``docs/host-peer.schema.json`` is this text: ``python -m netspace.host.peer.schema`` prints it.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import msgspec

from netspace.host.peer import process, requests

REF = "#/$defs/{name}"


def schema(verbs: dict[str, ModuleType]) -> dict[str, Any]:
    """Return the schema, with the definitions ``request`` and ``answer``.

    :param verbs: the modules of the kinds of requests, by name.
    """
    definitions: dict[str, Any] = {"error": _own(requests.Error, "error", {})}
    asked, answered = [], []
    for name, module in sorted(verbs.items()):
        for kind in ("Arguments", "Answer"):
            definitions[f"{name}.{kind.lower()}"] = _own(getattr(module, kind), f"{name}.{kind.lower()}", definitions)
        asked.append(_body(name, {"arguments": {"$ref": REF.format(name=f"{name}.arguments")}}, []))
        answered.append(_body(name, {"answer": {"$ref": REF.format(name=f"{name}.answer")}}, ["answer"]))
    refused = {
        "type": "object",
        "required": ["v", "error"],
        "properties": {"v": {"const": requests.VERSION}, "error": {"$ref": REF.format(name="error")}},
    }
    definitions["request"] = {"oneOf": asked}
    definitions["answer"] = {"oneOf": [*answered, refused]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://netspace.invalid/host-peer.schema.json",
        "title": "Requests to the peer host, version 1, and its answers",
        "$ref": REF.format(name="request"),
        "$defs": dict(sorted(definitions.items())),
    }


def _body(verb: str, more: dict[str, Any], needed: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["v", "verb", *needed],
        "properties": {"v": {"const": requests.VERSION}, "verb": {"const": verb}, **more},
        "additionalProperties": False,
    }


def _own(of: type[msgspec.Struct], name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a type. The schemas of types within it are added to *definitions*, as ``<name>.<type>``."""
    (own,), inner = msgspec.json.schema_components([of], ref_template=f"#/$defs/{name}.{{name}}")
    for key, value in inner.items():
        definitions[f"{name}.{key}"] = value
    return dict(inner.get(own["$ref"].rpartition(".")[2], own)) if "$ref" in own else dict(own)


def main() -> None:
    """Print the schema."""
    print(msgspec.json.format(msgspec.json.encode(schema(process.verbs())), indent=1).decode())


if __name__ == "__main__":
    main()
