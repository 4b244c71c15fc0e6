"""``python -m netspace``: declarations in files, exit codes and output."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from netspace.__main__ import main
from netspace.errors import SpecError
from netspace.host import declaration_file

ROOT = Path(__file__).parents[2]
WEB: dict[str, Any] = {"netspace": {"environments": {"web": {"image": "tar:/srv/web.tar"}}}}


def written(folder: Path, text: str) -> str:
    path = folder / "pillar"
    path.write_text(text)
    return str(path)


def refused(folder: Path, text: str) -> str:
    with pytest.raises(SpecError) as caught:
        declaration_file.read(written(folder, text))
    return str(caught.value).removeprefix(f"{folder}/")


def test_yaml_and_json_are_one_declaration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps(WEB)
    found = declaration_file.read(written(tmp_path, text))
    assert found == declaration_file.read(
        written(tmp_path, "netspace:\n  environments:\n    web: {image: 'tar:/srv/web.tar'}\n")
    )
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert declaration_file.read("-") == found


def test_package_s_command_calls_itself_by_its_name(tmp_path: Path) -> None:
    """The command of the Debian package, run with the library of this checkout."""
    text = (ROOT / "debian/bin/netspace").read_text().replace("/usr/bin/python3 -I", sys.executable)
    command = tmp_path / "netspace"
    command.write_text(text)
    variables = {"PYTHONPATH": str(ROOT / "_utils"), "COLUMNS": "80"}
    done = subprocess.run(["sh", command, "plan"], env=variables, capture_output=True, text=True)
    assert done.returncode == 1
    wanted = "netspace plan: the following arguments are required: FILE; netspace plan --help tells more\n"
    assert done.stderr.replace("\n", " ").strip() == wanted.strip(), done.stderr


@pytest.mark.parametrize("arguments", [["nonsense"], ["apply"], ["--instance", "x" * 100, "list"], []])
def test_wrong_arguments_name_help_in_eighty_columns(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as err:
        main(arguments, "netspace")
    told = capsys.readouterr().err
    assert err.value.code == 1 and "--help tells more" in told.replace("\n", " ")
    assert all(len(line) <= 80 for line in told.splitlines())


def test_pillar_example_is_read_whole() -> None:
    assert len(declaration_file.read(str(ROOT / "pillar.example")).environments) > 10


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("netspace: [", "pillar: not valid YAML: "),
        ("netspace: {}\nnetspace: {}\n", "pillar: not valid YAML: line 2: netspace is given twice; correct it there"),
        ("a: {<<: {b: 1}, b: 2}", "netspace: missing in "),
        ("netspace: 2026-13-41", "pillar: not valid YAML: month must be in 1..12"),
        ("? [a]\n: b", "pillar: not valid YAML: "),
        ("!!python/object:os.system {}", "pillar: not valid YAML: "),
        ("[" * 5000, "pillar: not valid YAML: nested too deep"),
        ('{"netspace": {}', "pillar: not valid JSON: "),
        ('{"netspace": {}, "netspace": {}}', "pillar: not valid JSON: a key is given twice; correct it there"),
        ('{"a": ' * 100_000, "pillar: not valid JSON: nested too deep"),
        ("", "netspace: missing in "),
        ("[]", "netspace: missing in "),
        ("netspace:", "netspace: missing in "),
        ("netspace: 7", "netspace: expected a mapping, got int"),
        ("netspace: {environmnets: {}}", "netspace:environmnets: unknown; did you mean environments?"),
    ],
)
def test_file_with_a_mistake_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    assert refused(tmp_path, text).startswith(problem)


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pillar"
    for content, problem in (
        (b"\xff", "not encoded in UTF-8"),
        (b" " * (declaration_file.MOST + 1), "larger than 4 MiB"),
    ):
        path.write_bytes(content)
        with pytest.raises(SpecError, match=problem):
            declaration_file.read(str(path))
    with pytest.raises(SpecError, match="Is a directory; name a file"):
        declaration_file.read(str(tmp_path))


def test_yaml_without_pyyaml_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert main(["check", "--no-host", written(tmp_path, "netspace: {}")]) == 1
    assert "python3-yaml), or write the declaration as JSON" in capsys.readouterr().err
    assert main(["check", "--no-host", written(tmp_path, json.dumps(WEB))]) == 0


def test_check_answers_by_code_text_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = written(tmp_path, json.dumps(WEB))
    assert main(["check", "--no-host", good]) == 0
    assert capsys.readouterr() == ("The declaration is valid.\n", "")
    assert main(["check", "--no-host", "--json", good]) == 0
    assert json.loads(capsys.readouterr().out) == {"valid": True, "problems": []}
    bad = written(
        tmp_path, "netspace: {links: [{from: web, to: 'x\x1b[31m'}]}".replace("\x1b", "\\e").replace("'", '"')
    )
    assert main(["check", "--no-host", bad]) == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("netspace:links:0:to: ") and "\x1b" not in told.err
    assert main(["check", "--no-host", "--json", bad]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert not answer["valid"] and answer["problems"][0]["path"] == "netspace:links:0:to"


@pytest.mark.parametrize("command", ["check", "plan", "apply", "list"])
def test_help_tells_arguments_and_exit_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as err:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert err.value.code == 0 and "--json" in text and "exit codes: 0" in text
    assert ("FILE" in text) == (command != "list")
    assert all(len(line) <= 80 for line in text.splitlines())
