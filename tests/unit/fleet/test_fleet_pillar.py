"""The external pillar by Salt's own loader, file server and renderers."""

from __future__ import annotations

import contextlib
import logging
import subprocess
from pathlib import Path
from typing import Any

import pytest
import salt.config
import salt.fileserver
import salt.loader
import salt.template
import salt.utils.event
from support import checkout
from support.fleet.fleets import published

from netspace.errors import NetspaceError
from netspace.fleet.declaration import FleetDeclaration
from netspace.fleet.published import Register
from netspace.plugin import fleet_files, own_pillar

FLEET = """
{% set names = ["h1", "h2"] %}
include: [shop.yaml]
hosts:
{%- for name in names %}
  {{ name }}: {address: 198.51.100.{{ loop.index }}}
{%- endfor %}
"""
SHOP = """
environments:
  web:    {on: h1, image: tar:salt://images/shop.tar, command: [/usr/bin/web]}
  orders: {on: h2, image: tar:salt://images/shop.tar, command: [/usr/bin/orders]}
links:
  - {from: web, to: orders, pattern: request, seal: true}
"""


class Master:
    """A master's configuration, with a file server on a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "fleet").mkdir()
        (folder / "fleet/init.sls").write_text(FLEET)
        (folder / "fleet/shop.yaml").write_text(SHOP)
        self.opts: dict[str, Any] = salt.config.apply_master_config(
            {
                "root_dir": str(folder),
                "cachedir": str(folder / "cache"),
                "sock_dir": str(folder),
                "file_roots": {"base": [str(folder)]},
                "netspace.fleet": {"folder": str(folder / "kept"), "served": True},
                "pillar_dirs": [str(checkout.ROOT / "_pillar")],
            }
        )

    def pillar(
        self, minion: str, grains: dict[str, Any] | None = None, file: str = "salt://fleet/init.sls", **more: Any
    ) -> Any:
        """Return the pillar of one minion.

        As in Salt, the plugin gets options with the minion's id and grains.
        """
        opts = {**self.opts, "id": minion, "minion_id": minion, "grains": grains or {}, "pillarenv": "dev"}
        return salt.loader.pillars(opts, {})["netspace"](minion, {"netspace": {"stolen": True}}, file, **more)

    def declaration(self) -> FleetDeclaration:
        """Return the declaration, as a runner would load it."""
        return fleet_files.declaration(
            self.opts,
            "salt://fleet/init.sls",
            salt.fileserver.Fileserver,
            salt.loader.render,
            salt.template.compile_template,
            salt.utils.event.get_event,
        )


@pytest.fixture
def master(tmp_path: Path) -> Master:
    made = Master(tmp_path)
    for facts in published(["h1", "h2"]).values():
        Register(tmp_path / "kept/hosts").write(facts)
    return made


@pytest.mark.parametrize("file", ["salt://fleet/init.sls", "{folder}/fleet/init.sls"])
def test_jinja_and_includes_make_the_slice(master: Master, file: str) -> None:
    found = master.pillar("h1", file=file.format(folder=master.folder))["netspace"]
    assert found["links"] == [{"from": "web", "to": "orders@h2", "pattern": "request", "seal": True, "as": "orders"}]
    assert found["broker"]["hosts"]["h2"]["address"] == "198.51.100.2:5671"
    assert master.pillar("stranger", file=file.format(folder=master.folder)) == {}


@pytest.mark.parametrize(
    "file", ["salt://fleet/init.sls", "{folder}/fleet/init.sls", "{folder}/other/../fleet/init.sls"]
)
def test_a_file_that_every_minion_can_read_is_refused(
    master: Master, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    master.opts["netspace.fleet"] = {"folder": str(master.folder / "kept")}
    with pytest.raises(NetspaceError) as raised:
        master.pillar("h1", file=file.format(folder=master.folder))
    assert str(raised.value) == "no pillar of the fleet can be served; the master's log has more"  # Salt sends it on
    assert "every minion can read this file; name a file outside of file_roots" in caplog.text
    master.opts["file_roots"] = {"base": [str(master.folder / "served")]}
    assert master.pillar("h1", file=f"{master.folder}/fleet/init.sls")


@pytest.mark.parametrize("key", ["include", "uses"])
def test_no_file_of_a_declaration_may_be_one_that_every_minion_can_read(
    master: Master, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    master.opts["netspace.fleet"] = {"folder": str(master.folder / "kept")}
    master.opts["file_roots"] = {"base": [str(master.folder / "fleet")]}
    (master.folder / "own").mkdir()
    file = master.folder / "own/fleet.yaml"
    file.write_text(f"{key}: [shop.yaml]\nhosts: {{h1: , h2: {{address: 198.51.100.2}}}}")
    (master.folder / "own/shop.yaml").symlink_to(master.folder / "fleet/shop.yaml")
    with pytest.raises(NetspaceError):
        master.pillar("h1", file=str(file))
    assert "every minion can read this file" in caplog.text
    master.opts["file_roots"] = {"base": [str(master.folder / "served")]}  # counts at once
    assert master.pillar("h1", file=str(file))


def test_grains_of_the_minion_that_asks_count_for_nothing(master: Master) -> None:
    hosts = "hosts: {h1: {address: 198.51.100.1, minion: 'is-{{ grains }}-{{ opts.id }}-{{ pillar }}'}}"
    (master.folder / "fleet/init.sls").write_text(hosts)
    found = master.pillar("is-{}-master-{}", {"role": "db"})
    assert found["netspace"]["broker"] == {"kind": "local", "host": "h1"}


def test_functions_of_the_minion_that_asks_are_not_there(master: Master, caplog: pytest.LogCaptureFixture) -> None:
    (master.folder / "fleet/init.sls").write_text("domain: {{ salt['grains.get']('role') }}")
    with caplog.at_level(logging.ERROR), pytest.raises(NetspaceError, match="log has more"):
        master.pillar("h1", {"role": "a.example.org"})
    assert "none is in force" in caplog.text and "refused: salt://fleet/init.sls: SaltRenderError" in caplog.text


def test_a_broken_declaration_is_an_alarm_and_changes_nothing(master: Master, caplog: pytest.LogCaptureFixture) -> None:
    before = master.pillar("h1")
    (master.folder / "fleet/shop.yaml").write_text(SHOP.replace("to: orders", "to: order"))
    with caplog.at_level(logging.ERROR):
        assert master.pillar("h1") == before
    assert "salt://fleet/shop.yaml: links:0:to: no environment is called 'order'" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.ERROR):
        assert master.pillar("h2") and not caplog.records


def test_a_template_imports_by_an_absolute_path(master: Master) -> None:
    master.opts["netspace.fleet"] = {"folder": str(master.folder / "kept")}
    master.opts["file_roots"] = {"base": [str(master.folder / "served")]}
    own = master.folder / "own"
    own.mkdir()
    (own / "words.jinja").write_text("{% set domain = 'a.example.org' %}")
    first = f"{{% from '{own}/words.jinja' import domain %}}"
    (own / "fleet.yaml").write_text(f"{first}\nuses: [words.jinja]\nhosts: {{h1: }}\ndomain: {{{{ domain }}}}")
    assert master.pillar("h1", file=str(own / "fleet.yaml"))["netspace"]["broker"]["host"] == "h1"


def test_an_alarm_goes_to_the_bus_once(master: Master) -> None:
    fired: list[tuple[dict[str, Any], str]] = []

    class Bus:
        def fire_event(self, data: dict[str, Any], tag: str) -> None:
            fired.append((data, tag))

    @contextlib.contextmanager
    def event(*arguments: Any, **more: Any) -> Any:
        yield Bus()

    (master.folder / "fleet/shop.yaml").write_text(SHOP.replace("to: orders", "to: order"))
    for _ in range(2):
        made = fleet_files.declaration(
            master.opts,
            "salt://fleet/init.sls",
            salt.fileserver.Fileserver,
            salt.loader.render,
            salt.template.compile_template,
            event,
        )
        assert made.apply() is not None
    assert [(data["count"], tag) for data, tag in fired] == [(1, "netspace/fleet/refused")]


def test_the_runner_tells_of_a_broken_file_and_cuts_a_host_out(
    master: Master, caplog: pytest.LogCaptureFixture
) -> None:
    opts = {
        **master.opts,
        "ext_pillar": [{"netspace": "salt://fleet/init.sls"}],
        "runner_dirs": [str(checkout.ROOT / "_runners")],
    }
    runner = salt.loader.runner(opts)
    assert "h2" in runner["netspace_fleet.slice"]("h1")["netspace"]["broker"]["hosts"]
    (master.folder / "fleet/shop.yaml").write_text("{")
    assert runner["netspace_fleet.slice"]("h1")["netspace"]["links"]
    assert "refused: salt://fleet/shop.yaml" in caplog.text
    found = runner["netspace_fleet.leave"]("h2")
    assert found["h2"].pop("warning") and found == {"h2": {"left": True, "apply": ["h1"]}}
    assert "links" not in runner["netspace_fleet.slice"]("h1")["netspace"]
    assert runner["netspace_fleet.leave"]("h7")["retcode"] == 1


def candidate(generation: Any) -> dict[str, Any]:
    """Return the extra data of a minion's request for a candidate."""
    return {"extra_minion_data": {"netspace": {"candidate": generation}, "other": 1}}


def test_a_minion_gets_its_own_slice_of_a_candidate(master: Master) -> None:
    (master.folder / "fleet/init.sls").write_text(f"apply: planned\n{FLEET}")
    assert master.pillar("h1") == {}
    _, made = master.declaration().candidate()
    assert made is not None
    for minion, own, other in (("h1", "web", "orders"), ("h2", "orders", "web")):
        found = master.pillar(minion, **candidate(made.generation))
        assert found.pop(own_pillar.MARK) == made.generation
        assert set(found["netspace"]["environments"]) == {own}
        assert f"/usr/bin/{own}" in str(found) and f"/usr/bin/{other}" not in str(found)
        assert master.pillar(minion) == {} == master.pillar(minion, extra_minion_data={"other": 1})
    assert master.pillar("stranger", **candidate(made.generation)) == {own_pillar.MARK: made.generation}


@pytest.mark.parametrize("generation", ["0" * 16, "../given", "", None, ["0"], "0" * 17])
def test_a_candidate_that_is_not_kept_is_refused(master: Master, generation: Any) -> None:
    (master.folder / "fleet/init.sls").write_text(f"apply: planned\n{FLEET}")
    master.declaration().candidate()
    with pytest.raises(NetspaceError, match="no pillar of the fleet can be served"):
        master.pillar("h1", **candidate(generation))


def test_a_cache_that_would_serve_candidates_is_refused(master: Master, caplog: pytest.LogCaptureFixture) -> None:
    (master.folder / "fleet/init.sls").write_text(f"apply: planned\n{FLEET}")
    _, made = master.declaration().candidate()
    assert made is not None
    master.opts["pillar_cache"] = True
    with pytest.raises(NetspaceError):
        master.pillar("h1", **candidate(made.generation))
    assert "pillar_cache would serve a planned declaration as the one in force" in caplog.text


@pytest.mark.parametrize(
    ("pillar", "message"),
    [
        ({"_errors": ["no"]}, "can't render this minion's pillar"),
        ([], "can't render this minion's pillar"),
        ({"netspace": {}}, "gave no planned declaration"),
        ({"netspace": {}, own_pillar.MARK: "1" * 16}, "gave no planned declaration"),
    ],
)
def test_a_pillar_without_the_candidate_is_not_taken_for_it(pillar: Any, message: str) -> None:
    asked: list[Any] = []

    class Compiled:
        def compile_pillar(self) -> Any:
            return pillar

    def get_pillar(
        opts: dict[str, Any],
        grains: dict[str, Any],
        minion_id: str,
        saltenv: str | None = None,
        ext: Any = None,
        funcs: Any = None,
        pillar_override: Any = None,
        pillarenv: str | None = None,
        extra_minion_data: dict[str, Any] | None = None,
        clean_cache: bool = False,
    ) -> Compiled:
        asked.append((minion_id, extra_minion_data))
        return Compiled()

    with pytest.raises(NetspaceError, match=message):
        own_pillar.fetch({"id": "h1"}, {}, get_pillar, "0" * 16)
    assert asked == [("h1", {"netspace": {"candidate": "0" * 16}})]


def test_a_declaration_in_git_counts_from_its_commit_on(master: Master) -> None:
    pytest.importorskip("git")
    source = master.folder / "source"
    git = ["git", "-C", str(source), "-c", "user.name=n", "-c", "user.email=n@example.org"]

    def commit(what: str, *more: list[str]) -> None:
        for words in (*more, ["add", "-A"], ["commit", "-q", "-m", what]):
            subprocess.run([*git, *words], check=True, capture_output=True)

    def environments(minion: str) -> set[str]:
        return set(master.pillar(minion)["netspace"]["environments"])

    source.mkdir()
    (master.folder / "fleet").rename(source / "fleet")
    commit("both", ["init", "-q", "-b", "master"])
    master.opts |= {
        "fileserver_backend": ["gitfs"],
        "gitfs_remotes": [f"file://{source}"],
        "gitfs_provider": "gitpython",
    }
    server = salt.fileserver.Fileserver(master.opts)
    server.update()
    assert environments("h1") == {"web"} and environments("h2") == {"orders"}
    shop = source / "fleet/shop.yaml"
    shop.write_text(SHOP.replace("links:", "  till:   {on: h1, image: tar:salt://images/shop.tar}\nlinks:"))
    assert environments("h1") == {"web"}, "what isn't committed counts for nothing"
    commit("till")
    server.update()
    assert environments("h1") == {"web", "till"}
    shop.write_text(SHOP.replace("to: orders", "to: order"))
    commit("broken")
    server.update()
    assert environments("h1") == {"web", "till"}, "the last good one"
