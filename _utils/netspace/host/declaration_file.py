"""A declaration in a file, for callers other than Salt: YAML or JSON, with the declaration under ``netspace``.

A pillar file without Jinja has this form. JSON needs no further library; YAML needs PyYAML.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from netspace import files, strict_json, strict_yaml
from netspace.errors import Problem, SpecError
from netspace.plugin import tenant_files
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
        document = strict_json.loads(text) if form == "JSON" else strict_yaml.loads(text)
    except UnicodeDecodeError as err:
        raise SpecError([Problem(name, "not encoded in UTF-8; save it in this encoding")]) from err
    except ValueError as err:
        raise SpecError([Problem(name, f"not valid {form}: {' '.join(str(err).split())}; correct it there")]) from err
    section = document.get("netspace") if isinstance(document, Mapping) else None
    if section is None:
        raise SpecError([Problem("netspace", f"missing in {name}; put the declaration under this key")])
    return tenant_files.declaration(section)
