"""The commands of the installation page and the README, run word for word, with a Salt without other packages."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from support import checkout
from support.hosts import as_written
from support.hosts.as_written import PAGE, README, adjust, commands, section, settings
from support.hosts.salt_modes import Salt, bare, build, configure

from netspace import REQUIREMENTS

pytestmark = pytest.mark.root

UPGRADE = checkout.ROOT / "docs/day-2/upgrade.md"
REMOTE = checkout.ROOT / "docs/remote-links.md"
SHOP = {
    "environments": {
        "orders": {"image": "dir:/srv/shop", "command": ["/bin/busybox", "sleep", "1000"], "stop_timeout": 1},
        "web": {"image": "dir:/srv/shop", "command": ["/bin/busybox", "sleep", "1000"], "stop_timeout": 1},
    }
}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_written.wheels(tmp_path_factory.mktemp("wheels"))


@pytest.fixture
def nothing(tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Salt]:
    """A Salt without a master that has neither netspace nor the packages that netspace needs.

    Pip finds packages in a folder.
    """
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)  # this Salt has compiled modules of its own
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    shop = tmp_path / "shop"
    (shop / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", shop / "bin/busybox")
    declared = json.loads(json.dumps(SHOP).replace("/srv/shop", str(shop)))
    config = configure(tmp_path / "salt", None)
    (tmp_path / "pillar").mkdir()
    (tmp_path / "pillar/top.sls").write_text("base: {'*': [shop]}\n")
    (tmp_path / "pillar/shop.sls").write_text(json.dumps({"netspace": declared}))
    salt = Salt(bare(tmp_path / "venv"), config, checkout.copy(tmp_path / "netspace"), Path())
    adjust(salt, pillar_roots={"base": [str(tmp_path / "pillar")]})
    yield salt
    if "netspace.teardown" in salt.call("sys.list_functions", "netspace")[0]:
        salt.call("netspace.teardown")


def type_in(salt: Salt, words: list[str]) -> Any:
    """Run one command of a page: ``salt '*'`` becomes ``salt-call``, and paths are adapted to this machine."""
    words = [word.replace("/srv/netspace", str(salt.source)) for word in words]
    if words[:2] == ["salt", "*"]:
        returned, log = salt.call(*words[2:])
    elif words[0] == "salt-run":
        returned, _ = salt.run(*words[1:])
        log = ""
    else:
        python = {"salt-pip": [str(salt.python), "-m", "pip"], "/opt/saltstack/salt/bin/python3": [str(salt.python)]}
        # Nothing is fetched here but what the test itself offers.
        offline = ["--no-build-isolation"] if words[1:2] == ["install"] else []
        done = subprocess.run(
            [*python[words[0]], *words[1:], *offline], capture_output=True, text=True, check=False, cwd="/"
        )
        assert done.returncode == 0, done.stderr
        return done.stdout
    assert "Traceback" not in log, log
    return returned


def follow(salt: Salt, lines: list[list[str]]) -> None:
    """Run *lines*, commands of a page; each applied state must succeed."""
    for words in lines:
        returned = type_in(salt, words)
        if "state.apply" in words:
            assert isinstance(returned, dict), returned
            wanted = (True, None) if "test=True" in words else (True,)
            failed = {one["__id__"]: one["comment"] for one in returned.values() if one["result"] not in wanted}
            assert not failed, (words, failed)


def test_readme_leads_from_bare_salt_to_environments(nothing: Salt) -> None:
    text = section(README, "Use it in a repository of your own")
    roots = settings(text)["file_roots"]["base"]
    adjust(nothing, file_roots={"base": [one.replace("/srv/netspace", str(nothing.source)) for one in roots]})
    lines = commands(text)[:6]  # then comes a line about targets
    assert [line[2:] for line in lines] == [
        ["saltutil.sync_all"], ["state.apply", "netspace.packages"],
        ["saltutil.refresh_pillar", "wait=True"], ["netspace.check"],
        ["state.apply", "netspace", "test=True"], ["state.apply", "netspace"],
    ]  # fmt: skip
    type_in(nothing, lines[0])
    # What is missing is named, and how to get it, by whatever is asked first.
    for function in ("netspace.check", "netspace_environment.list", "netspace_link.list"):
        done = nothing.fails(function)
        lacks, _, remedy = done.partition("; install what is missing by ")
        assert all(name in lacks for name in REQUIREMENTS.keys() - {"cryptography"}), done
        assert remedy.startswith("'salt-call state.apply netspace.packages'"), done
    served, _ = nothing.call("cp.list_master")
    top = {name.partition("/")[0] for name in served}
    assert top <= {
        "_beacons",
        "_engines",
        "_grains",
        "_modules",
        "_output",
        "_pillar",
        "_resources",
        "_runners",
        "_states",
        "_utils",
        "netspace",
    }
    follow(nothing, lines[1:])
    listed, _ = nothing.call("netspace_environment.list")
    assert {name: one["state"] for name, one in listed.items()} == {"orders": "running", "web": "running"}
    follow(nothing, commands(section(PAGE, "Try it")))


def test_pip_brings_plugins_library_and_sls(nothing: Salt) -> None:
    for words in commands(section(PAGE, "By pip")):
        printed = type_in(nothing, words)
    adjust(nothing, file_roots={"base": [printed.strip()]})
    lines = commands(section(PAGE, "What hosts need")) + commands(section(PAGE, "Try it"))
    follow(nothing, lines)
    listed, _ = nothing.call("netspace_environment.list")
    assert {name: one["state"] for name, one in listed.items()} == {"orders": "running", "web": "running"}

    # The next release, by the page on upgrades: nothing is restarted.
    module = nothing.source / "_utils/netspace/__init__.py"
    module.write_text(re.sub('^__version__ = ".*"$', '__version__ = "9.9.9"', module.read_text(), flags=re.MULTILINE))
    (words,) = commands(section(UPGRADE, "netspace, installed by pip"))
    type_in(nothing, words)
    assert nothing.call("netspace.version")[0] == "9.9.9"
    follow(nothing, [["salt", "*", "state.apply", "netspace"]])
    again, _ = nothing.call("netspace_environment.list")
    assert {name: one["pid"] for name, one in again.items()} == {name: one["pid"] for name, one in listed.items()}


def test_folder_serves_modules_and_runners(nothing: Salt) -> None:
    text = section(PAGE, "From a folder")
    roots = settings(text)["file_roots"]["base"]
    adjust(nothing, file_roots={"base": [one.replace("/srv/netspace", str(nothing.source)) for one in roots]})
    minion, master = (type_in(nothing, words) for words in commands(text))
    assert "modules.netspace_link" in minion["modules"] and "utils.netspace.spec.parse" in minion["utils"]
    assert "runners.netspace_attestation" in master["runners"]


def test_authority_without_a_master_is_made_by_the_page_s_lines(tmp_path: Path) -> None:
    """The page's lines make a host's CA certificate without a master: from Salt's output to a file that is accepted."""
    salt = build("sync", tmp_path)
    adjust(salt, **{"netspace.link": {"root": str(tmp_path / "root")}})
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("salt-call", "salt-run"):
        code = f"import sys; from salt.scripts import {name.replace('-', '_')} as run; sys.argv[0] = '{name}'; run()"
        words = shlex.join([str(salt.python), "-c", code, "-c", str(salt.config.parent)])
        (programs / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (programs / name).chmod(0o755)
    text = section(REMOTE, "Set it up")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    lines = [line.strip() for line in lines if "h1.csr" in line or "h1.pem" in line]
    assert len(lines) == 3
    for line in lines:  # the authority's folder is this test's, not the machine's
        line = re.sub(r"(authority_\w+)", rf"\1 folder={tmp_path}/authority", line)
        done = subprocess.run(
            ["bash", "-euc", line], env={"PATH": f"{programs}:/usr/bin:/bin"}, cwd=tmp_path, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (line, done.stdout, done.stderr)
    (ca, *_) = x509.load_pem_x509_certificates((tmp_path / "h1.pem").read_bytes())
    (adopted, *_) = x509.load_pem_x509_certificates((tmp_path / "authority/authority.pem").read_bytes())
    assert adopted == ca


def test_gitfs_serves_what_is_needed_and_no_more(nothing: Salt) -> None:
    pytest.importorskip("git")
    git = ["git", "-C", str(nothing.source), "-c", "user.name=n", "-c", "user.email=n@example.org"]
    (nothing.source / "secret").write_text("no minion's\n")
    for words in (["init", "-q", "-b", "master"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    text = section(PAGE, "From git").replace("https://git.example.org/netspace.git", f"file://{nothing.source}")
    adjust(nothing, **settings(text), gitfs_provider="gitpython", file_roots={"base": []})
    synced, _ = nothing.call("saltutil.sync_all")
    assert "modules.netspace_link" in synced["modules"] and "utils.netspace.spec.parse" in synced["utils"]
    served, _ = nothing.call("cp.list_master")
    assert "netspace/init.sls" in served and "netspace/packages.yaml" in served
    assert not [name for name in served if name == "secret" or name.startswith(("tests", ".git", "docs", "setup"))]
