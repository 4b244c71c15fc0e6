"""Strict reader for YAML. A repeated key is an error, as in :mod:`netspace.strict_json`. Callers limit the size."""

from __future__ import annotations

import types

from netspace.errors import MissingError

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_LONGEST = 100


def loads(text: str, *, most: int | None = None) -> object:
    """Return the value that *text* encodes.

    :param most: the most values that a text may have whose author isn't trusted. Such a text has no aliases (``*``),
        since a short text with aliases could mean a very large value. None: any number, and aliases.
    :raises ValueError: *text* is not YAML, is nested too deep, repeats a key, or exceeds a bound.
    :raises MissingError: this Python has no PyYAML.
    """
    try:
        import yaml
    except ImportError as err:
        remedy = "install it for this Python (apt-get install python3-yaml), or write the declaration as JSON"
        raise MissingError("PyYAML, which reads YAML,", remedy) from err

    class Loader(yaml.SafeLoader):
        def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> str:
            # A long one is read slowly, or can't be written again.
            if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and len(node.value) > _LONGEST:
                raise ValueError(f"line {node.start_mark.line + 1}: a number of more than {_LONGEST} characters")
            text: str = super().construct_scalar(node)
            return text

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
            seen = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if (key.tag, key.value) in seen:
                    raise ValueError(f"line {key.start_mark.line + 1}: {key.value} is given twice")
                seen.add((key.tag, key.value))
            return super().construct_mapping(node, deep)

    try:
        if most is not None:
            _bounded(yaml, text, most)
        document: object = yaml.load(text, Loader)  # noqa: S506 (it is a safe one)
    except yaml.YAMLError as err:
        raise ValueError(str(err)) from err
    except (ArithmeticError, AttributeError, LookupError, TypeError) as err:  # PyYAML's own, for !!int '' or !!bool x
        raise ValueError("a value isn't of the type that its tag or form says") from err
    except RecursionError as err:
        raise ValueError("nested too deep") from err
    return document


def _bounded(yaml: types.ModuleType, text: str, most: int) -> None:
    """Check the number of values before the slow reader makes them, by the fast one (libyaml) if it is there.

    :raises ValueError: there are too many, or an alias.
    """
    count = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("an alias (*) isn't allowed here; repeat the value")
        count += isinstance(event, yaml.NodeEvent)
        if count > most:
            raise ValueError(f"more than {most} values; split the file")
