"""JSON Schema (draft 2020-12) of a declaration, made from its types, for editors. Pure.

The schema describes the form of a declaration: keys, types, choices, and the syntax of sizes and names. It accepts
everything that the parser accepts. It doesn't contain the bounds, references and conflicts that
``netspace.spec.checks`` checks.

No alternative is an ``anyOf`` of objects, because a validator could report only the path of the object, not of the
wrong key in it. A kind is selected by ``if`` and ``then``; ``type`` is a list if several types are possible.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping, Sequence
from typing import Union

import msgspec
from msgspec import inspect

from netspace.spec import checks, extensions, parse, types
from netspace.spec.publish import Publication

Json = Union[None, bool, int, float, str, "list[Json]", "dict[str, Json]"]
Schema = dict[str, Json]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PARAM = re.compile(r"^:param (\w+):\s*", re.MULTILINE)
_ADDRESS = "[0-9a-fA-F:.]+"  # its characters alone
_MOST = 10**15 - 1  # a size or rate has 15 digits at most
_NUMBERS: dict[type[inspect.Type], str] = {
    inspect.StrType: "string",
    inspect.IntType: "integer",
    inspect.FloatType: "number",
    inspect.BoolType: "boolean",
    inspect.NoneType: "null",
}


def _whole(pattern: str) -> str:
    """Return *pattern* with anchors. Without them, JSON Schema accepts a text that only contains a match."""
    return f"^(?:{pattern})$"


def _amount(suffix: str) -> Schema:
    pattern = _whole(rf"\s*\d{{1,15}}\s*[KMGTkmgt]?{suffix}\s*")
    return {"type": ["integer", "string"], "minimum": 0, "maximum": _MOST, "pattern": pattern}


def _text(pattern: str) -> Schema:
    return {"type": "string", "pattern": _whole(pattern)}


_CUSTOM: dict[type, Schema] = {
    types.Size: _amount("(?:[iI]?[bB])?"),
    types.Rate: _amount("(?:[bB][iI][tT])?(?:/[sS])?"),
    types.Cidr: _text(f"{_ADDRESS}(?:/[0-9.]+)?"),
    types.HostName: _text(r"[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+"),
    types.Address: _text(_ADDRESS),
    types.Prefixed: _text(f"{_ADDRESS}/[0-9.]+"),
    Publication: _text(r"(?:(?:\[[0-9a-fA-F:.]+\]|[0-9.]+):)?[0-9]{1,5}:[0-9]{1,5}(?:/(?:tcp|udp))?"),
}


def schema() -> Schema:
    """Return the schema of a file that has the declaration under its key ``netspace``, such as a pillar file."""
    writer = _Writer()
    declaration = writer.place(inspect.type_info(types.Declaration))
    return {
        "$schema": DIALECT,
        "$id": "https://netspace.invalid/declaration.schema.json",
        "title": "Declaration of netspace",
        "description": "A pillar file with the section netspace. Its other keys are not netspace's.",
        "type": "object",
        "required": ["netspace"],
        "properties": {"netspace": declaration},
        "$defs": dict(sorted(writer.definitions.items())),
    }


class _Writer:
    """Writer of a schema. It collects the definition of each struct, by the struct's name."""

    def __init__(self) -> None:
        self.definitions: Schema = {}

    def place(self, of: inspect.Type) -> Schema:
        """Return the schema of a value of the type *of*."""
        if isinstance(of, inspect.StructType):
            return {"type": "object", "$ref": self._defined(of)}
        if isinstance(of, inspect.UnionType):
            return self._union(of.types)
        if isinstance(of, inspect.LiteralType):
            return {"type": "string", "enum": list(of.values)}
        if isinstance(of, inspect.VarTupleType):
            return {"type": "array", "items": self.place(of.item_type)}
        if isinstance(of, inspect.DictType):
            return {"type": "object", "additionalProperties": self.place(of.value_type)}
        if isinstance(of, inspect.AnyType):
            return {}
        if isinstance(of, inspect.CustomType):
            return dict(_CUSTOM[of.cls])
        return {"type": _NUMBERS[type(of)]}

    def _union(self, members: Sequence[inspect.Type]) -> Schema:
        kinds = [one for one in members if isinstance(one, inspect.StructType)]
        found: Schema = self._chosen(kinds) if len(kinds) > 1 else {}
        for member in members:
            if member not in kinds or len(kinds) == 1:
                found = _either(found, self.place(member))
        return found

    def _chosen(self, kinds: Sequence[inspect.StructType]) -> Schema:
        """Return the schema of a value that is one of several structs. Its tag (``kind``) selects the struct."""
        key = str(kinds[0].tag_field)
        cases: list[Json] = [
            {"if": {"properties": {key: {"const": one.tag}}, "required": [key]}, "then": {"$ref": self._defined(one)}}
            for one in kinds
        ]
        names: list[Json] = [one.tag for one in kinds]
        text = "\n\n".join(f"`{one.tag}`: {_summary(one.cls)}" for one in kinds)
        choice: Schema = {"enum": names, "description": text}
        return {"type": "object", "required": [key], "properties": {key: choice}, "allOf": cases}

    def _defined(self, of: inspect.StructType) -> str:
        name = of.cls.__name__
        if name not in self.definitions:
            self.definitions[name] = {}  # its place, should it hold itself
            self.definitions[name] = self._struct(of)
        return f"#/$defs/{name}"

    def _struct(self, of: inspect.StructType) -> Schema:
        """Return the schema keywords for a struct's keys, without ``type``: the caller may also allow null."""
        properties: Schema = {}
        if of.tag_field is not None:
            properties[of.tag_field] = {"const": of.tag, "description": _summary(of.cls)}
        required: list[Json] = [*properties]
        for field in of.fields:
            if (of.cls, field.name) == (types.Runtimes, "settings"):
                properties.update({name: self._settings(name) for name in extensions.runtimes()})
            else:
                properties[field.encode_name] = self._field(of.cls, field)
            if field.required:
                required.append(field.encode_name)
        found: Schema = {"description": _summary(of.cls), "properties": properties, "additionalProperties": False}
        if required:
            found["required"] = required
        if of.cls is types.Environment:
            found["anyOf"] = [{"required": ["image"]}, {"required": ["kernel"]}]
        if of.cls is types.Allow:
            found["anyOf"] = [{"required": ["cidr"]}, {"required": ["name"]}]
        return found

    def _settings(self, runtime: str) -> Schema:
        """Return the schema of one runtime's settings.

        It isn't a shared definition, because the types of all runtimes' settings have the same name.
        """
        of = inspect.type_info(extensions.runtime(runtime).Settings)
        assert isinstance(of, inspect.StructType)
        return {"type": "object", **self._struct(of)}

    def _field(self, owner: type, field: inspect.Field) -> Schema:
        found = self._special(owner, field.encode_name) or self.place(field.type)
        own_part = owner is types.Tenant and field.encode_name in ("environments", "links")
        if own_part or owner in (types.Declaration, types.Runtimes):  # an empty section is an absent one
            found = _either(found, {"type": "null"})
        text = _params(owner).get(field.encode_name)
        if text is None and isinstance(field.type, inspect.StructType):
            text = _summary(field.type.cls)
        if text is not None:
            found["description"] = text
        if (default := _default(field)) is not None:
            found["default"] = default
        return found

    def _special(self, owner: type, key: str) -> Schema | None:
        """Return the schema of a key that allows fewer values than its type; None for any other key."""
        if (owner, key) == (types.Environment, "interface"):
            kinds = inspect.multi_type_info(typing.get_args(extensions.interface_kinds()))
            return self._union([*kinds, inspect.NoneType()])
        if (owner, key) == (types.Tenant, "interfaces"):
            kinds = inspect.multi_type_info(typing.get_args(extensions.interface_kinds()))
            return {"type": "array", "items": self._union([*kinds, inspect.NoneType()])}
        mappings: Mapping[tuple[type, str], type] = {
            (types.Declaration, "environments"): types.Environment,
            (types.LocalBroker, "hosts"): types.RemoteHost,
            (types.Environment, "spawns"): types.Template,
            (types.Declaration, "tenants"): types.Tenant,
            (types.Tenant, "environments"): types.Environment,
            (types.Environment, "delegates"): types.Delegable,
        }
        if (value := mappings.get((owner, key))) is not None:
            place = self.place(inspect.type_info(value))
            return {"type": "object", "propertyNames": _text(types.NAME.pattern), "additionalProperties": place}
        known = _special_values().get((owner, key))
        return None if known is None else dict(known)


def _special_values() -> Mapping[tuple[type, str], Schema]:
    names: Schema = {"type": "array", "items": _text(types.NAME.pattern)}
    images: list[Json] = [*extensions.runtimes_of("images")]
    kernels: list[Json] = [*extensions.runtimes_of("kernels")]
    profiles: list[Json] = [*checks.SECCOMP_PROFILES]
    image: Schema = {"type": "string", "pattern": f"^(?:{'|'.join(extensions.image_sources())}):."}
    return {
        (types.Environment, "image"): image,
        (types.Template, "image"): image,
        (types.Environment, "runtime"): {"type": ["string", "null"], "enum": [*images, *kernels, None]},
        (types.Environment, "seccomp"): {"type": "string", "anyOf": [{"enum": profiles}, {"pattern": "^file:/"}]},
        (types.Environment, "after"): names,
        (types.Environment, "tenant"): {**_text(types.NAME.pattern), "type": ["string", "null"]},
        (types.Tenant, "reaches"): names,
        (types.LocalBroker, "passwords"): names,
        (types.Runtimes, "default"): {"type": "string", "enum": images},
        (types.Runtimes, "kernels"): {"type": "string", "enum": kernels},
        (types.Link, "from"): _text(types.END.pattern),
        (types.Link, "to"): _text(types.END.pattern),
        (types.Link, "as"): {**_text(types.NAME.pattern), "type": ["string", "null"]},
    }


def _either(one: Schema, other: Schema) -> Schema:
    """Return the schema of a value that either of two schemas allows.

    The keywords can be merged, because each keyword except ``type`` concerns only one type.
    """
    if not one:
        return other
    listed = [kind for schema in (one, other) for kind in _listed(schema["type"])]
    found: Schema = {**one, **other, "type": list(dict.fromkeys(listed))}
    if "enum" in found and None not in _listed(found["enum"]) and "null" in listed:
        found["enum"] = [*_listed(found["enum"]), None]
    return found


def _listed(value: Json) -> list[Json]:
    return value if isinstance(value, list) else [value]


def _default(field: inspect.Field) -> Json:
    """Return the default that an editor shows for a key; None if the key has no default, or an empty one."""
    value = field.default
    if isinstance(value, types.Size):
        return value.written if value and value % 1024 == 0 else int(value)
    if value is msgspec.NODEFAULT or isinstance(value, msgspec.Struct) or value in (None, "", ()):
        return None
    plain: Json = parse.encode(value)
    return plain


def _plain(text: str) -> str:
    """Return a docstring's text as one line, with its markup converted to Markdown."""
    return re.sub(r":(?:data|class|mod|func):`([^`]*)`", r"`\1`", " ".join(text.split())).replace("``", "`")


def _summary(of: type) -> str:
    return _plain(_PARAM.split(_unindented(of))[0])


def _params(of: type) -> dict[str, str]:
    """Return the descriptions of a type's keys, from the docstrings of the type and its bases."""
    found: dict[str, str] = {}
    for one in reversed(of.__mro__):
        parts = _PARAM.split(_unindented(one))[1:]
        found.update({name: _plain(text) for name, text in zip(parts[::2], parts[1::2], strict=True)})
    return found


def _unindented(of: type) -> str:
    return "\n".join(line.strip() for line in (of.__doc__ or "").splitlines())
