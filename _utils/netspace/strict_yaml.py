"""Strict reader for YAML. A repeated key is an error, as in :mod:`netspace.strict_json`. Callers limit the size."""

from __future__ import annotations

from netspace.errors import MissingError


def loads(text: str, *, aliases: bool = True) -> object:
    """Return the value that *text* encodes.

    :param aliases: whether a part of the text may refer to another part. A short text could then mean a very large
        value.
    :raises ValueError: *text* is not YAML, is nested too deep, or repeats a key.
    :raises MissingError: this Python has no PyYAML.
    """
    try:
        import yaml
    except ImportError as err:
        remedy = "install it for this Python (apt-get install python3-yaml), or write the declaration as JSON"
        raise MissingError("PyYAML, which reads YAML,", remedy) from err

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            if not aliases and self.check_event(yaml.AliasEvent):
                raise ValueError("an alias (*) isn't allowed here; repeat the value")
            return super().compose_node(parent, index)

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
