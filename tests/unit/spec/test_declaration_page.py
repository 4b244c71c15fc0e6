"""The page of the declaration: each key with its type in words, and its default as in YAML."""

from __future__ import annotations

import importlib.util
import inspect
import re
from types import ModuleType

import msgspec
import pytest
import yaml
from support import checkout

from netspace.spec import parse, types

PAGE = (checkout.ROOT / "docs/declaration.md").read_text()
DECLARED = re.findall(r"^\.\. autoclass:: (\w+)$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("declared_keys", checkout.ROOT / "docs/declared_keys.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", DECLARED)
def test_each_key_has_words_type_and_default(page: ModuleType, name: str) -> None:
    declared = getattr(types, name)
    lines = (inspect.getdoc(declared) or "").split("\n")
    page.docstring(None, "class", name, declared, None, lines)
    text = "\n".join(lines)
    for field in msgspec.structs.fields(declared):
        if (name, field.name) == ("Runtimes", "settings"):
            continue  # "Each further key is the name of a runtime"
        (said,) = re.findall(rf"^:param {field.encode_name}: (.*(?:\n .*)*)", text, re.MULTILINE)
        assert len(said) > 10, (field.encode_name, said)
        assert ("**Required.**" in said) == field.required, field.encode_name
        shown = re.findall(r"Default: ``(.*)``\.", said)
        if shown:
            assert parse.convert(yaml.safe_load(shown[0]), field.type, field.encode_name) == field.default
    assert page.signature(None, "class", name, declared) == ("", "")


def test_sizes_need_no_calculator(page: ModuleType) -> None:
    lines = (inspect.getdoc(types.Limits) or "").split("\n")
    page.docstring(None, "class", "Limits", types.Limits, None, lines)
    assert "Default: ``256M``." in "\n".join(lines) and "268435456" not in "\n".join(lines)


def test_other_classes_keep_their_signatures(page: ModuleType) -> None:
    lines = ["A class."]
    page.docstring(None, "class", "Path", type(checkout.ROOT), None, lines)
    assert lines == ["A class."]
    assert page.signature(None, "class", "Path", type(checkout.ROOT)) is None
    assert page.signature(None, "function", "convert", parse.convert) is None
