"""Type errors in a declaration, as texts for its author: the path, the error, and the correction. Pure.

msgspec reports only the first error of a value, with the terms of its own library.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin

import msgspec

from netspace.errors import Problem
from netspace.spec import extensions
from netspace.spec.types import Environment

_AT = re.compile(r"(?s)(.*?)(?: - at `(?:key in )?(\$[^`]*)`)?")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_EXPECTED = re.compile(r"Expected `(.*)`, got `(.*)`", re.DOTALL)
_KINDS = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "null": "nothing",
    "object": "a mapping",
    "str": "a text",
}
_WORDS = re.compile(r"[A-Za-z0-9_./=+ -]{1,80}")  # words that YAML reads as texts in a list, too
_BAD_TAG = re.compile(r"Invalid (?:enum )?value '(.*)'", re.DOTALL)


def problem(err: msgspec.ValidationError, data: Any, of: Any, path: str) -> tuple[Problem, list[str]]:
    """Return the problem, and the keys that lead from *data* to it.

    :param of: the type that *data* should have.
    """
    match = _AT.fullmatch(str(err))
    assert match is not None
    text, at = match[1], match[2] or "$"
    of = _chosen(of, data)
    steps = re.findall(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]", at)
    keys = [name or index for name, index in steps]
    where = ":".join([path, *(key for key in keys if key != "...")])
    unknown = _UNKNOWN.fullmatch(text)
    if unknown:
        known = _inside(of, keys, unknown[1]) or suggest(unknown[1], _fields_at(of, data, keys))
        return Problem(f"{where}:{unknown[1]}", "unknown" + known), [*keys, unknown[1]]
    bad = _BAD_TAG.fullmatch(text)
    if bad:
        choices = _tags_at(of, keys) or _choices_at(of, data, keys)
        listed = f"; choose from {', '.join(choices)}" if choices else ""
        return Problem(where, f"{bad[1]!r} is not accepted here{listed}"), keys
    expected = _EXPECTED.fullmatch(text)
    if expected:
        wanted, got = (" or ".join(_KINDS.get(one, one) for one in some.split(" | ")) for some in expected.groups())
        return Problem(where, f"expected {wanted}, got {got}{_as_list(wanted, data, keys)}"), keys
    return Problem(where, text[:1].lower() + text[1:].replace("`", "'")), keys


def _as_list(wanted: str, data: Any, keys: list[str]) -> str:
    """Return the remedy for a text that should be a list of words."""
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    if not isinstance(data, str) or not wanted.startswith("a list") or not data.strip() or not _WORDS.fullmatch(data):
        return ""
    return f"; write [{', '.join(data.split())}]"


def _inside(of: Any, keys: list[str], name: str) -> str:
    """Return the remedy for a key that belongs one level deeper (``publish``, in ``interface``), or nothing."""
    for parent in _walk(of, keys):
        if _is_struct(parent):
            for field in msgspec.structs.fields(parent):
                kinds = extensions.interface_kinds() if parent is Environment and field.name == "interface" else None
                if name in _fields_at(kinds or parent, None, [] if kinds else [field.encode_name]):
                    return f"; it is a key of {field.encode_name}: write {field.encode_name}: {{{name}: ...}}"
    return ""


def suggest(name: str, names: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known here: {', '.join(sorted(names))}" if names else ""


def members(of: Any) -> list[Any]:
    if get_origin(of) in (Union, types.UnionType):
        return [member for arg in get_args(of) for member in members(arg)]
    return [of]


def _chosen(of: Any, data: Any) -> Any:
    """Return the member of a union of kinds that *data* names by its tag; *of* itself if there is none.

    Suggestions then come from this kind only.
    """
    for one in members(of):
        tag = one.__struct_config__.tag_field if _is_struct(one) else None
        if tag and isinstance(data, Mapping) and data.get(tag) == one.__struct_config__.tag:
            return one
    return of


def _is_struct(of: Any) -> bool:
    return isinstance(of, type) and issubclass(of, msgspec.Struct)


def _walk(of: Any, keys: list[str]) -> list[Any]:
    """Return the types that are possible at a place in a value of the type *of*.

    :param keys: the keys and indexes that lead to the place.
    """
    current = members(of)
    for key in keys:
        below: list[Any] = []
        for one in current:
            if _is_struct(one):
                hints = typing.get_type_hints(one)
                below += [
                    member
                    for field in msgspec.structs.fields(one)
                    if field.encode_name == key
                    for member in members(hints[field.name])
                ]
            elif get_origin(one) in (tuple, list, dict):
                below += [member for arg in get_args(one) if arg is not ... for member in members(arg)]
        current = below
    return current


def _fields_at(of: Any, data: Any, keys: list[str]) -> list[str]:
    names: list[str] = []
    for one in _walk(of, keys):
        if _is_struct(one):
            tag = one.__struct_config__.tag_field
            names += [field.encode_name for field in msgspec.structs.fields(one)] + ([tag] if tag else [])
    return sorted(set(names))


def _tags_at(of: Any, keys: list[str]) -> list[str]:
    """Return the possible tags (``kind``) of a union of structs at a place; empty if the place isn't for a tag.

    :param of: the type of the whole value.
    :param keys: the keys and indexes that lead to the place.
    """
    if not keys:
        return []
    parents = [one for one in _walk(of, keys[:-1]) if _is_struct(one)]
    return sorted(str(p.__struct_config__.tag) for p in parents if p.__struct_config__.tag_field == keys[-1])


def _choices_at(of: Any, data: Any, keys: list[str]) -> list[str]:
    return sorted(str(value) for one in _walk(of, keys) if get_origin(one) is typing.Literal for value in get_args(one))


def without(data: Any, keys: list[str]) -> Any:
    """Return a copy of *data* without the key of a mapping to which *keys* lead; None if they lead elsewhere.

    msgspec stops at the first problem. To find the next one, the caller checks the value again without the key that has
    the problem. An element of a list can't be left out, because the numbers of later elements would change.
    """
    if not keys or not isinstance(data, Mapping) or keys[0] not in data:
        return None
    if len(keys) == 1:
        return {key: value for key, value in data.items() if key != keys[0]}
    inner = without(data[keys[0]], keys[1:])
    return None if inner is None else {**data, keys[0]: inner}
