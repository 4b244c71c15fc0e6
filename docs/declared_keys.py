"""The keys of a declared thing for the page of the declaration: their types in words, and their defaults as in YAML.

Sphinx would show them as the signature of a Python class, with sizes in bytes.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from netspace.spec.types import Cidr, Prefixed, Rate, Size

_WORDS: Mapping[Any, str] = {
    str: "text", int: "whole number", float: "number", bool: "true or false", Any: "any value",
    Size: "size", Rate: "rate", Prefixed: "address with prefix length", Cidr: "network",
}  # fmt: skip


def signature(app: Any, what: str, name: str, obj: object, *_: object) -> tuple[str, str] | None:
    """Return no signature for a declared thing; None for anything else, which keeps its own."""
    return ("", "") if _declared(what, obj) else None


def docstring(app: Any, what: str, name: str, obj: Any, options: object, lines: list[str]) -> None:
    """Give each key in the lines of a docstring its type and its default. Keys without words follow at the end."""
    if not _declared(what, obj):
        return
    for field in msgspec.structs.fields(obj):
        at = next((at for at, line in enumerate(lines) if line.startswith(f":param {field.encode_name}:")), None)
        if at is None:
            if not (about := _inherited(obj, field.encode_name) or _about(field.type)):
                continue  # no key of its own, as its thing's docstring tells
            while lines and not lines[-1]:
                lines.pop()
            lines.append(f":param {field.encode_name}: {about}")
            at = len(lines) - 1
        end = at + 1
        while end < len(lines) and lines[end].startswith(" "):
            end += 1
        lines[end - 1] += f" {_default(field)}"
        if field.type is not Any:
            lines.insert(end, f":type {field.encode_name}: {_type(field.type)}")
    lines.append("")


def _declared(what: str, obj: object) -> bool:
    return what == "class" and isinstance(obj, type) and issubclass(obj, msgspec.Struct)


def _inherited(obj: type, key: str) -> str:
    """Return what the docstrings of base classes say about a key."""
    for base in obj.__mro__[1:]:
        found = re.search(rf"^:param {key}: (.*(?:\n +.*)*)", inspect.getdoc(base) or "", re.MULTILINE)
        if found:
            return " ".join(found[1].split())
    return ""


def _about(found: Any) -> str:
    """Return the first line about a type that is declared itself; empty for any other."""
    declared = isinstance(found, type) and issubclass(found, msgspec.Struct)
    return (inspect.getdoc(found) or "").partition("\n")[0] if declared else ""


def _type(found: Any) -> str:
    """Return a type in words."""
    arguments = get_args(found)
    origin = get_origin(found)
    if origin is Literal:
        return " | ".join(f"``{one}``" for one in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(_type(one) for one in arguments if one is not type(None))
    if origin in (tuple, list):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"mapping of {_type(arguments[0])} to {_type(arguments[1])}"
    if origin is not None and hasattr(found, "__metadata__"):  # Annotated
        return _type(arguments[0])
    if isinstance(found, type) and issubclass(found, msgspec.Struct):
        return f":class:`~{found.__module__}.{found.__name__}`"
    return _WORDS.get(found) or getattr(found, "__name__", str(found)).lower()


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT:
        return "**Required.**"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if value is None or isinstance(value, msgspec.Struct) or value in ((), {}, ""):
        return ""  # absent, or the defaults of its own keys
    return f"Default: ``{_yaml(value)}``."


def _yaml(value: Any) -> str:
    """Return a value as it may stand in YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Size) and value and value % 1024**2 == 0:
        return f"{value // 1024**2}M"
    if isinstance(value, Rate) and value and value % 10**6 == 0:
        return f"{value // 10**6}M"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_yaml, value))}]"
    return str(value)
