"""Declarations with parts in tenants' own files (``include``). Reads these files, and changes nothing.

A file is written by a tenant, who may be hostile. So it is bounded, must be a plain file, and its YAML has no aliases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from netspace import files, strict_json, strict_yaml
from netspace.errors import Problem, SpecError
from netspace.spec import parse
from netspace.spec.types import Declaration
from netspace.text import printable

MOST = 256 * 1024
"""The most bytes of a file."""
MOST_VALUES = 10_000
"""The most values of a file: names, texts, numbers, lists and mappings. Each command reads all of them."""
MOST_FILES = 32
"""The most files of a tenant."""
_KEYS = ("environments", "links")


class _Read(NamedTuple):
    """A tenant's section with the content of its files.

    :param places: for each path in the declaration whose value comes from a file, the path in that file.
    """

    section: dict[str, Any]
    places: dict[str, str]
    problems: list[Problem]


def declaration(data: Any, path: str = "netspace") -> Declaration:
    """Parse a whole host's declaration, as :func:`parse.declaration` does, with the files of its tenants.

    :param data: the mapping under ``pillar:netspace``.
    :raises SpecError: with every problem. A problem in a file has the file's name in its path.
    """
    listed = data.get("tenants") if isinstance(data, Mapping) else None
    if not isinstance(listed, Mapping) or not any(_included(section) for section in listed.values()):
        return parse.declaration(data, path)
    read = {name: _read(section, f"{path}:tenants:{name}") for name, section in listed.items()}
    problems = [problem for one in read.values() for problem in one.problems]
    if problems:  # without these files, environments would seem to be gone
        raise SpecError(problems)
    places = {where: place for one in read.values() for where, place in one.places.items()}
    try:
        return parse.declaration({**data, "tenants": {name: one.section for name, one in read.items()}}, path)
    except SpecError as err:
        raise SpecError([_placed(problem, places) for problem in err.problems]) from err


def _included(section: Any) -> list[Any]:
    """Return the files that a tenant's section names; empty if the key is malformed, which the parser reports."""
    found = section.get("include") if isinstance(section, Mapping) else None
    return list(found) if isinstance(found, (list, tuple)) and all(isinstance(one, str) for one in found) else []


def _read(section: Any, where: str) -> _Read:
    """Return a tenant's section with ``include`` replaced by the content of the files.

    :param where: the path of the section.
    """
    included = _included(section)
    if not included:
        return _Read(section, {}, [])
    environments, links = section.get("environments") or {}, section.get("links") or []
    if not isinstance(environments, Mapping) or not isinstance(links, (list, tuple)) or len(included) > MOST_FILES:
        text = f"expected at most {MOST_FILES} files, environments as a mapping of names, and links as a list"
        return _Read(section, {}, [Problem(f"{where}:include", text)])
    environments, links, places, problems = dict(environments), [*links], dict[str, str](), list[Problem]()
    for file in included:
        try:
            part = _part(file)
        except ValueError as err:
            problems.append(Problem(printable(file)[:200], printable(str(err))[:300]))
            continue
        for name, value in part["environments"].items():
            if name in environments:
                problems.append(Problem(f"{file}:environments:{printable(str(name))[:60]}", "is declared twice"))
            environments[name] = value
            places[printable(f"{where}:environments:{name}")] = printable(f"{file}:environments:{name}")
        for index, value in enumerate(part["links"]):
            places[f"{where}:links:{len(links)}"] = f"{file}:links:{index}"
            links.append(value)
    own = {key: value for key, value in section.items() if key != "include"}
    return _Read({**own, "environments": environments, "links": links}, places, problems)


def _part(file: str) -> dict[str, Any]:
    """Return the environments and links of a tenant's file.

    :raises ValueError: the file can't be read, or isn't a part.
    """
    try:
        with files.opened(Path(file)) as stream:
            content = stream.read(MOST + 1)
    except (OSError, ValueError) as err:
        raise ValueError(f"{getattr(err, 'strerror', err)}; expected a plain file, not a link to one") from err
    if len(content) > MOST:
        raise ValueError(f"larger than {MOST // 1024} KiB; split it")
    try:
        text = content.decode()
        form = "JSON" if text.lstrip()[:1] == "{" else "YAML"
        document = strict_json.loads(text) if form == "JSON" else strict_yaml.loads(text, most=MOST_VALUES)
        if _values(document) > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES} values; split the file")
    except UnicodeDecodeError as err:
        raise ValueError("not encoded in UTF-8; save it in this encoding") from err
    except ValueError as err:
        raise ValueError(f"not valid {form}: {' '.join(str(err).split())}; correct it there") from err
    if document is None:
        document = {}
    if not isinstance(document, Mapping):
        raise ValueError("expected a mapping with the keys environments and links")
    for key in document:
        if key not in _KEYS:
            raise ValueError(f"{str(key)[:60]}: unknown; a tenant's part has the keys environments and links")
    environments = {} if document.get("environments") is None else document["environments"]
    links = [] if document.get("links") is None else document["links"]
    if not isinstance(environments, Mapping) or not isinstance(links, list):
        raise ValueError("expected environments: a mapping of names, and links: a list")
    return {"environments": environments, "links": links}


def _values(document: object) -> int:
    """Return how many values a document has. Counting stops once there are more than ``MOST_VALUES``."""
    count, waiting = 0, [document]
    while waiting and count <= MOST_VALUES:
        value = waiting.pop()
        count += 1
        if isinstance(value, Mapping):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set)):
            waiting += value
    return count


def _placed(problem: Problem, places: Mapping[str, str]) -> Problem:
    """Return a problem; if its value comes from a file, with the path in that file."""
    for end in _ends(problem.path):
        if (place := places.get(problem.path[:end])) is not None:
            return Problem(place[:300] + problem.path[end:], problem.message)
    return problem


def _ends(path: str) -> Iterator[int]:
    """Yield the positions at which a path can be cut after a whole key, the last position first."""
    yield len(path)
    for end in range(len(path) - 1, 0, -1):
        if path[end] == ":":
            yield end
