"""The JSON Schema of the declaration refuses the same malformed values as the parser, at the same paths."""

from __future__ import annotations

import contextlib
import copy
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jinja2
import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from netspace.__main__ import main
from netspace.errors import Problem, SpecError
from netspace.interface import kinds
from netspace.spec import checks, delegations, extensions, never, parse, renames, spawns, types
from netspace.spec.publish import Publication
from netspace.spec.tenancy import names, parts, permissions, quota, separation

ROOT = Path(__file__).parents[3]
Validator = jsonschema.Draft202012Validator


def test_published_schema_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    text = "Write it anew: python -m netspace schema > docs/declaration.schema.json"
    assert (ROOT / "docs/declaration.schema.json").read_text() == capsys.readouterr().out, text


def test_schema_is_one_and_describes_every_key(validator: Validator) -> None:
    Validator.check_schema(validator.schema)
    definitions = validator.schema["$defs"]
    assert len(definitions) > 25
    for name, definition in definitions.items():
        assert definition["description"], name
        assert all(one.get("description") for one in definition["properties"].values()), name
        assert definition["additionalProperties"] is False, name


@pytest.mark.parametrize("file", ["pillar.example", "pillar/netspace/demo.sls"])
def test_pillar_files_are_valid(validator: Validator, file: str) -> None:
    text = jinja2.Template((ROOT / file).read_text()).render(opts={})
    validator.validate(yaml.safe_load(text))


# -- refusals, with their paths -----------------------------------------------------------------------
def places(validator: Validator, document: Any) -> dict[str, str]:
    """Return, for the path of each refused value (in pillar notation), the keyword of the schema that refuses it."""
    found: dict[str, str] = {}
    for error in validator.iter_errors(document):
        path = ":".join(str(step) for step in error.absolute_path)
        wrong = [path]
        if error.validator == "additionalProperties":
            wrong = [f"{path}:{key}" for key in set(error.instance) - set(error.schema["properties"])]
        if error.validator == "pattern" and error.instance in error.absolute_schema_path:
            wrong = [f"{path}:{error.instance}"]
        found.update(dict.fromkeys(wrong, str(error.validator)))
    return found


WEB = {"image": "tar:/srv/web.tar"}


@pytest.mark.parametrize(
    ("declaration", "path"),
    [
        ({"environmnets": {}}, "environmnets"),
        ({"environments": {"web": {**WEB, "limits": {"memroy": "1M"}}}}, "environments:web:limits:memroy"),
        ({"environments": {"web": {**WEB, "limits": {"memory": "12X"}}}}, "environments:web:limits:memory"),
        ({"environments": {"web": {**WEB, "command": "/bin/sh"}}}, "environments:web:command"),
        ({"environments": {"web": {**WEB, "env": {"A": 1}}}}, "environments:web:env:A"),
        ({"environments": {"web": {**WEB, "user": True}}}, "environments:web:user"),
        ({"environments": {"web": {**WEB, "state": "paused"}}}, "environments:web:state"),
        ({"environments": {"web": {**WEB, "seccomp": "none"}}}, "environments:web:seccomp"),
        ({"environments": {"web": {**WEB, "interface": {"kind": "vteh"}}}}, "environments:web:interface:kind"),
        ({"environments": {"web": {**WEB, "interface": {}}}}, "environments:web:interface"),
        (
            {"environments": {"web": {**WEB, "interface": {"kind": "veth", "parent": "eth0"}}}},
            "environments:web:interface:parent",
        ),
        (
            {"environments": {"web": {**WEB, "interface": {"kind": "veth", "allow": [{"direction": "up"}]}}}},
            "environments:web:interface:allow:0:direction",
        ),
        ({"environments": {"web": {"command": ["/x"]}}}, "environments:web"),
        ({"broker": {"port": 5682}}, "broker"),
        ({"broker": {"kind": "cluster", "url": ["amqps://h", 5]}}, "broker:url:1"),
        ({"runtimes": {"default": "qemu"}}, "runtimes:default"),
        ({"runtimes": {"qemu": {"machine": "vax"}}}, "runtimes:qemu:machine"),
        ({"links": {}}, "links"),
        ({"links": [{"from": "web", "to": "orders", "priority": 1}]}, "links:0:priority"),
        ({"links": [{"from": "web"}]}, "links:0"),
    ],
)
def test_wrong_key_or_type_is_refused_at_its_path(validator: Validator, declaration: Any, path: str) -> None:
    assert f"netspace:{path}" in places(validator, {"netspace": declaration})
    with pytest.raises(SpecError):
        parse.declaration(declaration)


def test_name_of_an_environment_is_refused_by_schema(validator: Validator) -> None:
    assert not validator.is_valid({"netspace": {"environments": {"Web": WEB}}})


@pytest.mark.parametrize("document", [{}, {"netspace": None}, [], {"netspce": {}}])
def test_file_without_declaration_is_refused(validator: Validator, document: Any) -> None:
    assert not validator.is_valid(document)


@pytest.mark.parametrize("section", ["environments", "links"])
@pytest.mark.parametrize("tenant", [False, True])
def test_empty_section_is_valid(validator: Validator, section: str, tenant: bool) -> None:
    declaration: dict[str, Any] = {section: None}
    if tenant:
        quota = {"environments": 1, "memory": "1G", "cpus": 1, "pids": 9, "disk": "1G", "links": 1, "messages": 9}
        declaration = {"tenants": {"orders": {"quota": quota, **declaration}}}
    parse.declaration(declaration)
    validator.validate({"netspace": declaration})


@pytest.mark.parametrize(
    ("what", "declaration"),
    [
        ("a whole number with a point is a whole number in JSON", {"attestation": {"pcrs": [1.0]}}),
        ("an address is known by its characters alone", {"network": {"ipv4": "999.1.1.1/8"}}),
        ("a publication's address and ports likewise", {"publish": ["443:99999"]}),
        ("a bound of a number", {"user": 0}),
        ("a reference to another part", {"links": [{"from": "a", "to": "b"}]}),
        ("a key that another one excludes", {"kernel": "/k", "interface": {"kind": "veth"}}),
    ],
)
def test_schema_does_not_know_all(validator: Validator, what: str, declaration: dict[str, Any]) -> None:
    if not set(declaration) & {"attestation", "network", "links"}:
        interface = {"interface": {"kind": "veth", **declaration}} if "publish" in declaration else declaration
        own = {**interface} if "kernel" in declaration else {**WEB, **interface}
        declaration = {"environments": {"web": own}}
    assert validator.is_valid({"netspace": declaration}), what
    with pytest.raises(SpecError):
        parse.declaration(declaration)


# -- generated declarations -----------------------------------------------------------------------------
KINDS = [inspect.type_info(spec) for spec in kinds.specs()]
TEXTS: dict[type, list[Any]] = {
    types.Size: ["128M", "1 GiB", 4096, "0"],
    types.Rate: ["10M", "1Gbit/s", 8000],
    types.Cidr: ["198.51.100.0/24", "fd00::/64", "198.51.100.7"],
    types.HostName: ["deb.example.org", "Deb.Example.ORG"],
    types.Address: ["10.203.1.7", "fd6e:6574:7370::7"],
    types.Prefixed: ["198.51.100.7/24", "2001:db8::7/64"],
    Publication: ["443:8443", "[2001:db8::1]:80:8080", "53:53/udp"],
}
KNOWN: dict[str, list[str]] = {
    "image": ["tar:/srv/web.tar", "oci:/srv/shop:web"],
    "seccomp": ["strict", "file:/etc/p.json"],
    "runtime": ["crun", "qemu"],
    "default": ["runc"],
    "kernels": ["solo5"],
    "source_hash": ["sha256:" + "0" * 64],
}
NAMES = st.sampled_from(["web", "orders", "a", "x-1"])


def values(of: inspect.Type, key: str = "") -> st.SearchStrategy[Any]:
    """Return values of a type that are well-formed, but may be invalid."""
    if isinstance(of, inspect.StructType):
        return structs(of)
    if isinstance(of, inspect.UnionType):
        return st.one_of([values(one, key) for one in of.types])
    if isinstance(of, inspect.LiteralType):
        return st.sampled_from(of.values)
    if isinstance(of, inspect.VarTupleType):
        return st.lists(values(of.item_type, key), max_size=2)
    if isinstance(of, inspect.DictType):
        return st.dictionaries(NAMES, values(of.value_type), max_size=2)
    if isinstance(of, inspect.CustomType):
        return st.sampled_from(TEXTS[of.cls])
    if isinstance(of, inspect.AnyType):
        return st.none() | st.one_of([values(one) for one in KINDS])
    simple: dict[type[inspect.Type], st.SearchStrategy[Any]] = {
        inspect.StrType: st.sampled_from(KNOWN[key]) if key in KNOWN else NAMES,
        inspect.IntType: st.integers(-5, 70_000),
        inspect.FloatType: st.floats(allow_nan=False, allow_infinity=False) | st.integers(0, 5),
        inspect.BoolType: st.booleans(),
        inspect.NoneType: st.none(),
    }
    return simple[type(of)]


def structs(of: inspect.StructType) -> st.SearchStrategy[dict[str, Any]]:
    fields = {
        field.encode_name: values(field.type, field.encode_name)
        for field in of.fields
        if (of.cls, field.name) != (types.Runtimes, "settings")
    }
    if of.cls is types.Runtimes:
        fields.update({name: settings_of(name) for name in extensions.runtimes()})
    if of.cls is types.Tenant:  # what it holds is tried in its other place
        fields.update(environments=st.just({}) | st.just({"web": WEB}), links=st.just([{"from": "a", "to": "b"}]))
    needed = {field.encode_name for field in of.fields if field.required} | {"image"} & set(fields)
    needed |= {"cidr"} if of.cls is types.Allow else set()
    required = {key: value for key, value in fields.items() if key in needed}
    if of.tag_field:
        required[of.tag_field] = st.just(of.tag)
    return st.fixed_dictionaries(required, optional={key: fields[key] for key in fields if key not in required})


def settings_of(runtime: str) -> st.SearchStrategy[Any]:
    return values(inspect.type_info(extensions.runtime(runtime).Settings))


DECLARATIONS = values(inspect.type_info(types.Declaration))
WRONG = st.sampled_from([None, True, 7, 1.5, "text", [], {}, ["a"], {"a": 1}])


def containers(value: Any) -> Iterator[Any]:
    """Yield each mapping and list within a document that is not empty."""
    if isinstance(value, (dict, list)) and value:
        yield value
        for one in value.values() if isinstance(value, dict) else value:
            yield from containers(one)


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """Return a well-formed declaration with one key misspelt or one value replaced."""
    declaration = copy.deepcopy(draw(DECLARATIONS.filter(bool)))
    inside = draw(st.sampled_from(list(containers(declaration))))
    key = draw(st.sampled_from(sorted(inside) if isinstance(inside, dict) else range(len(inside))))
    if isinstance(inside, dict) and draw(st.booleans()):
        inside[key + draw(st.sampled_from(string.ascii_lowercase))] = inside.pop(key)
    else:
        inside[key] = draw(WRONG)
    return declaration


PARSE = parse.declaration  # as it is, before conftest.py has its results validated
CHECKS = ("environment", "interface", "link", "runtimes", "runtime_settings", "under", "clashes", "whole", "assertions")
"""The functions of ``checks`` that the parser calls. What they and ``never.check`` find is no matter of form."""
TENANCY: dict[Any, tuple[str, ...]] = {
    names: ("wrong", "known", "misplaced"),
    permissions: ("wrong", "shared"),
    parts: ("permitted", "owned", "unread"),
    quota: ("unsound", "problems"),
    separation: ("problems",),
}
"""Likewise, of the checks of tenants."""


def problems(declaration: Any) -> dict[str, str]:
    """Return the parser's messages on form, by path. An interface kind that the kernel lacks isn't a matter of form."""

    def told(found: tuple[Problem, ...]) -> dict[str, str]:
        return {problem.path: problem.message for problem in found if "stack of its own" not in problem.message}

    try:
        PARSE(declaration)
    except SpecError as err:
        return told(err.problems)
    return {}


def of_form(declaration: Any) -> dict[str, str]:
    unchecked = {name: lambda *_, **__: [] for name in CHECKS}
    free: dict[str, Any] = {"wrong": lambda *_: (), "expand": lambda declared, *_: (declared, [], [])}
    with contextlib.ExitStack() as stack:
        for module, functions in TENANCY.items():
            stack.enter_context(mock.patch.multiple(module, **{name: lambda *_: [] for name in functions}))
        stack.enter_context(mock.patch.object(parts, "inside", lambda *_: ({}, [])))
        stack.enter_context(mock.patch.multiple(checks, **unchecked))
        stack.enter_context(mock.patch.object(never, "check", lambda *_: []))
        stack.enter_context(mock.patch.object(renames, "problems", lambda *_: []))
        stack.enter_context(mock.patch.multiple(spawns, **free))
        stack.enter_context(mock.patch.multiple(delegations, **free))
        return problems(declaration)


def near(path: str) -> str:
    """Return a path in msgspec's form, without the keys of a mapping within a struct."""
    steps = path.split(":")
    mappings = ("hosts", "env", "appraised", "secrets", *(["links"] if "spawns" in steps else []))
    return ":".join(step for before, step in zip(["", *steps], steps, strict=False) if before not in mappings)


@settings(max_examples=60, deadline=None)
@given(DECLARATIONS)
def test_well_formed_declaration_is_valid(validator: Validator, declaration: Any) -> None:
    assert of_form(declaration) == {}
    assert places(validator, {"netspace": declaration}) == {}


@settings(max_examples=150, deadline=None)
@given(mutated())
def test_mutated_declaration_is_refused_as_parsed(validator: Validator, declaration: Any) -> None:
    form, found = of_form(declaration), places(validator, {"netspace": declaration})
    if form:
        assert {near(path) for path in found} >= set(form), (form, found)
        return
    # What the schema knows beyond form, the parser's checks refuse, too, and there.
    told = problems(declaration)
    for path, keyword in found.items():
        assert keyword in ("anyOf", "enum", "pattern"), (path, keyword)
        assert any(one == path or one == f"{path}:image" for one in told), (path, told)
