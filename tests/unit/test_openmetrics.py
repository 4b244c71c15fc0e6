"""Strict parsers accept both forms of the text, and Prometheus' own tool accepts the examples for monitoring."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as prometheus_families
from support import checkout

from netspace import openmetrics
from netspace.openmetrics import Family, counted, labels

EXAMPLES = checkout.ROOT / "examples/monitoring"
FAMILIES = [
    counted(
        "netspace_x_up", "gauge", "Whether it runs.", {labels(environment="web"): True, labels(environment="b"): 0}
    ),
    Family("netspace_x_cpu_seconds", "counter", "Time.", [labels(environment="web")], [0.25]),
    counted("netspace_empty", "gauge", "Nothing.", {labels(environment="web"): None}),
]


def promtool(*arguments: str, given: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    assert shutil.which("promtool"), "promtool is missing: scripts/provision --test installs it"
    return subprocess.run(["promtool", *arguments], input=given, capture_output=True, text=True, check=False, cwd=cwd)


def test_openmetrics_text_is_as_written_here() -> None:
    assert openmetrics.text(FAMILIES) == (
        "# HELP netspace_x_up Whether it runs.\n"
        "# TYPE netspace_x_up gauge\n"
        'netspace_x_up{environment="web"} 1\n'
        'netspace_x_up{environment="b"} 0\n'
        "# HELP netspace_x_cpu_seconds Time.\n"
        "# TYPE netspace_x_cpu_seconds counter\n"
        'netspace_x_cpu_seconds_total{environment="web"} 0.25\n'
        "# EOF\n"
    )


def test_textfile_names_counters_as_their_samples() -> None:
    text = openmetrics.textfile(FAMILIES)
    assert "# TYPE netspace_x_cpu_seconds_total counter\n" in text
    assert "EOF" not in text


def test_textfile_passes_promtool() -> None:
    done = promtool("check", "metrics", given=openmetrics.textfile(FAMILIES))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    bad = promtool("check", "metrics", given="netspace_x_total 1\n")
    assert bad.returncode != 0, "promtool finds nothing"


_names = st.text(max_size=20).filter(lambda text: "\r" not in text)
_values = st.integers(-(2**60), 2**60) | st.floats() | st.booleans()


@given(st.dictionaries(_names, _values, min_size=1, max_size=5))
def test_any_label_and_value_comes_back_from_strict_parsers(values: dict[str, float]) -> None:
    keys = [labels(environment=name) for name in values]
    given_ = [Family("netspace_x", "gauge", "Help.", keys, list(values.values()))]
    for found in (
        list(openmetrics_families(openmetrics.text(given_))),
        list(prometheus_families(openmetrics.textfile(given_))),
    ):
        (family,) = found
        read = {sample.labels["environment"]: sample.value for sample in family.samples}
        assert read == pytest.approx({name: float(value) for name, value in values.items()}, nan_ok=True)


def test_alert_rules_pass_promtool_and_its_tests(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "alerts.yaml", tmp_path)
    shutil.copy(checkout.ROOT / "tests/fixtures/monitoring/alerts_test.yaml", tmp_path)
    for arguments in (("check", "rules", "--lint-fatal", "alerts.yaml"), ("test", "rules", "alerts_test.yaml")):
        done = promtool(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test() -> None:
    named = re.findall(r"alert: (\w+)", (EXAMPLES / "alerts.yaml").read_text())
    tested = re.findall(r"alertname: (\w+)", (checkout.ROOT / "tests/fixtures/monitoring/alerts_test.yaml").read_text())
    assert len(named) > 10 and set(named) == set(tested)


def test_rules_board_and_page_name_only_metrics_that_there_are() -> None:
    modules = ("host/metrics.py", "link/mail/counts.py")
    code = "".join((checkout.ROOT / f"_utils/netspace/{file}").read_text() for file in modules)
    page = (checkout.ROOT / "docs/metrics.md").read_text()
    listed = set(re.findall(r"^\| `(netspace_\w+)`", page, re.MULTILINE))
    assert len(listed) > 20
    board = json.loads((EXAMPLES / "grafana.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    used = set(re.findall(r"\bnetspace_\w+", (EXAMPLES / "alerts.yaml").read_text() + " ".join(expressions)))
    used -= {"netspace_link", "netspace_attestation"}  # modules of Salt, in the commands
    assert used <= listed, used - listed
    for name in listed:
        stem = name.removesuffix("_total").removeprefix("netspace_")
        assert stem in code or stem.removeprefix("environment_").removeprefix("interface_") in code, name


def test_board_has_valid_expressions(tmp_path: Path) -> None:
    board = json.loads((EXAMPLES / "grafana.json").read_text())
    rules = [
        {"record": f"panel:{panel['id']}", "expr": target["expr"].replace("$instance", "h1")}
        for panel in board["panels"]
        for target in panel["targets"]
    ]
    (tmp_path / "board.yaml").write_text(json.dumps({"groups": [{"name": "board", "rules": rules}]}))
    done = promtool("check", "rules", str(tmp_path / "board.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
