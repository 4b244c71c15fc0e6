"""Text of metrics, in two formats: OpenMetrics 1.0, and Prometheus' text format 0.0.4. Pure.

The formats differ in two points. OpenMetrics names the family of a counter without ``_total``, and ends with ``# EOF``.
The textfile collector of node_exporter and ``promtool check metrics`` read the older format. No sample has a timestamp,
so the reader's clock counts; node_exporter refuses a file with timestamps.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

Kind = Literal["gauge", "counter"]
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


class Family(NamedTuple):
    """A metric with all its samples.

    :param name: the metric's name; for a counter, without ``_total``.
    :param kind: ``gauge`` or ``counter``.
    :param help: its description.
    :param labels: the labels of each sample (:func:`labels`). Families of the same environments share one collection.
    :param values: the value of each sample.

    Two collections, not one of pairs: Python's garbage collector would look at tens of thousands of pairs.
    """

    name: str
    kind: Kind
    help: str
    labels: Collection[str]
    values: Collection[float]

    @property
    def samples(self) -> Iterator[tuple[str, float]]:
        """The labels and the value of each sample."""
        return zip(self.labels, self.values, strict=True)


def labels(**values: str) -> str:
    """Return labels in the form of a sample: ``{link="web.orders"}``; empty if there are none."""
    if not values:
        return ""
    return "{" + ",".join([f'{name}="{_escaped(value)}"' for name, value in values.items()]) + "}"


def _escaped(value: str) -> str:
    if "\\" in value or '"' in value or "\n" in value:  # few values need escapes, and each escape costs more
        return value.translate(_ESCAPES)
    return value


def text(families: Iterable[Family]) -> str:
    """Return the families as OpenMetrics. Families without a sample are left out."""
    return "".join(_family(one, one.name) for one in families if one.values) + "# EOF\n"


def textfile(families: Iterable[Family]) -> str:
    """Return the families in Prometheus' text format. Families without a sample are left out."""
    return "".join(_family(one, _sample_name(one)) for one in families if one.values)


def _sample_name(family: Family) -> str:
    return f"{family.name}_total" if family.kind == "counter" else family.name


def _family(family: Family, called: str) -> str:
    name = _sample_name(family)
    head = f"# HELP {called} {family.help}\n# TYPE {called} {family.kind}"
    # Most families have whole numbers alone; a call for each would take half of the time, and a text for each sample a
    # third.
    shown = map(str if set(map(type, family.values)) == {int} else _value, family.values)
    parts = [f"\n{name}", "", " ", ""] * len(family.values)
    parts[1::4], parts[3::4] = family.labels, shown
    return f"{head}{''.join(parts)}\n"


def _value(value: float) -> str:
    if isinstance(value, int):
        return str(int(value))  # True is 1
    shown = repr(value)
    if shown[-2:] != ".0" and shown[-1] not in "fn":  # inf, nan
        return shown
    return str(int(value)) if math.isfinite(value) else "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def counted(name: str, kind: Kind, about: str, values: Mapping[str, float | None]) -> Family:
    """Return a family from values by labels. Values that are None are left out."""
    there = {key: value for key, value in values.items() if value is not None}
    return Family(name, kind, about, there.keys(), there.values())
