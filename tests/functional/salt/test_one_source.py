"""One source tree serves Salt's sync, ``pip install`` and ``pip install --editable``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support import checkout
from support.hosts.salt_modes import Salt, build, configure
from support.hosts.whole_host import unfolded

DECLARATION = '{"environments": {"web": {"image": "tar:/srv/web.tar", "limits": {"memroy": "1M"}}}}'


def test_every_plugin_loads_with_its_library(salt: Salt) -> None:
    loaded = salt.load()
    assert Path(loaded["library"]).is_relative_to(salt.library)
    for folder, found in loaded["plugins"].items():
        for plugin, functions in checkout.plugins(folder).items():
            # Salt knows an external pillar by the plugin's name alone.
            names = {plugin} if functions == {"ext_pillar"} else {f"{plugin}.{function}" for function in functions}
            missing = names - set(found)
            assert not missing, f"{folder}: Salt doesn't find {sorted(missing)}"


def test_an_environment_has_functions_of_its_own_and_no_others_or_there_is_a_reason(salt: Salt) -> None:
    loaded = salt.load()
    if "_resources" not in loaded["plugins"]:
        synced = salt.python == Path(sys.executable)  # older Salts don't sync what they have no use for
        assert synced or "environments are targets with Salt 3008" in loaded["reason"], loaded["reason"]
        return
    expected = {
        f"{name}.{function}"
        for name, functions in checkout.plugins("_resources/netspace/modules").items()
        for function in functions
    }
    assert {"test.ping", "cmd.run", "grains.items", "state.apply"} <= expected
    assert set(loaded["inside"]) == expected


def test_grains_are_there(salt: Salt) -> None:
    grains = salt.load()["grains"]
    assert {"tpm", "secure_boot", "netspace"} <= set(grains)


def test_a_function_reaches_the_library(salt: Salt) -> None:
    result, log = salt.call("netspace.check", f"declaration={DECLARATION}")
    assert result["valid"] is False
    assert result["problems"][0]["path"] == "netspace:environments:web:limits:memroy"
    assert "here twice" not in log


def test_a_state_reaches_the_library(salt: Salt) -> None:
    result, _ = salt.call(
        "state.single", "netspace_link.managed", "name=links", f"declaration={DECLARATION}", "test=True"
    )
    (state,) = result.values()
    assert state["result"] is False
    assert "did you mean memory" in unfolded(state["comment"])


def test_a_runner_reaches_the_library(salt: Salt) -> None:
    log = checkout.ROOT / "tests/fixtures/eventlogs/uki/binary_bios_measurements"
    found, status = salt.run("netspace_attestation.replay", str(log))
    assert status == 0 and len(found["banks"]["sha256"]) > 8
    found, status = salt.run("netspace_attestation.replay", str(log.parent / "ak.pub"))
    assert status == 1 and found["code"] == "log-malformed"


def test_both_at_once_is_warned_of(tmp_path: Path) -> None:
    pip = build("pip", tmp_path / "pip")
    both = Salt(pip.python, configure(tmp_path / "both", pip.source), pip.source, pip.library)
    both.call("saltutil.sync_all")
    _, log = both.call("netspace.check", f"declaration={DECLARATION}")
    assert log.count("netspace is here twice") == 1
    assert "pip uninstall netspace" in log


@pytest.mark.parametrize("folder", checkout.PLUGIN_FOLDERS)
def test_every_plugin_guards_against_an_old_library(folder: str) -> None:
    """Every plugin that imports the library calls ``netspace.refresh`` first, to run the last synced version."""
    for path in sorted((checkout.ROOT / folder).rglob("*.py")):
        text = path.read_text()
        if "from netspace" in text and path.stem != "__init__":
            first = text.index("from netspace")
            assert "\nimport netspace\n" in text[:first], path
            assert "\nnetspace.refresh(__file__)\n" in text[:first], path
