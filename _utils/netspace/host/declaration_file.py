"""A declaration in a file, for callers other than Salt: YAML or JSON, with the declaration under ``netspace``.

A pillar file without Jinja has this form. JSON needs no further library; YAML needs PyYAML.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from netspace import files, strict_json
from netspace.errors import MissingError, Problem, SpecError
from netspace.spec import parse
from netspace.spec.types import Declaration

MOST = 4 * 1024**2
STDIN = "-"


def read(path: str) -> Declaration:
    """Return the declaration in the file at *path*, or in standard input (``-``).

    :raises SpecError: the declaration can't be read, or is invalid.
    """
    name = "standard input" if path == STDIN else path
    try:
        content = sys.stdin.buffer.read(MOST + 1) if path == STDIN else files.read(path, MOST + 1)
    except OSError as err:
        raise SpecError([Problem(name, f"{err.strerror}; name a file with a declaration")]) from err
    if len(content) > MOST:
        raise SpecError([Problem(name, f"larger than {MOST // 1024**2} MiB; name a file with a declaration")])
    try:
        text = content.decode()
        form = "JSON" if text.lstrip()[:1] == "{" else "YAML"
        document = strict_json.loads(text) if form == "JSON" else _yaml(text)
    except UnicodeDecodeError as err:
        raise SpecError([Problem(name, "not encoded in UTF-8; save it in this encoding")]) from err
    except ValueError as err:
        raise SpecError([Problem(name, f"no {form}: {' '.join(str(err).split())}; correct it there")]) from err
    section = document.get("netspace") if isinstance(document, Mapping) else None
    if section is None:
        raise SpecError([Problem("netspace", f"missing in {name}; put the declaration under this key")])
    return parse.declaration(section)


def _yaml(text: str) -> object:
    """Return the value that the YAML *text* encodes. A repeated key is an error, as in JSON.

    :raises ValueError: *text* is not YAML, or repeats a key.
    """
    try:
        import yaml
    except ImportError as err:
        remedy = "install it for this Python (apt-get install python3-yaml), or write the declaration as JSON"
        raise MissingError("PyYAML, which reads YAML,", remedy) from err

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
            seen = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if (key.tag, key.value) in seen:
                    raise ValueError(f"line {key.start_mark.line + 1}: {key.value} is given twice")
                seen.add((key.tag, key.value))
            return super().construct_mapping(node, deep)

    try:
        document: object = yaml.load(text, Loader)  # noqa: S506 (it is a safe one)
    except yaml.YAMLError as err:
        raise ValueError(str(err)) from err
    except RecursionError as err:
        raise ValueError("nested too deep") from err
    return document
