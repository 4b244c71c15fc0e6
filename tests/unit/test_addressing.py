"""Addresses of jobs on a minion with targets, interpreted by Salt's own minion after netspace's patches."""

from __future__ import annotations

import asyncio
import fnmatch
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import salt.config
import salt.loader
import salt.minion
import salt.utils.minions

from netspace.errors import NetspaceError
from netspace.host import salt_addressing

pytestmark = pytest.mark.skipif(
    not hasattr(salt.loader, "resource"), reason="this Salt has no resources: 3008 brought them"
)

HOST, WEB, DB, OTHER = "h1", "h1-web", "h1-db", "switch-1"
RESOURCES = {"netspace": [WEB, DB], "other": [OTHER]}
GRAINS = {
    f"netspace:{WEB}": {"environment": "web", "os": "Debian"},
    f"netspace:{DB}": {"environment": "db", "os": "Debian"},
}


@pytest.fixture(scope="module")
def minion() -> Iterator[Any]:
    """A minion of the real class that runs nothing and has no connection."""

    class Corrected(salt.minion.Minion):  # type: ignore[misc]
        """A subclass for the patches, so that other tests get the unpatched class."""

        told: list[dict[str, Any]]
        ran: list[dict[str, Any]]

        async def _send_req_async_main(self, load: dict[str, Any], timeout: float) -> None:
            self.told.append(load)

        @classmethod
        def _thread_return(cls, instance: Any, opts: Any, data: dict[str, Any]) -> None:
            instance.ran.append(data)

    for name in ("_target_load", "_resolve_resource_targets"):
        setattr(Corrected, name, getattr(salt.minion.Minion, name))
    salt_addressing.correct(Corrected)
    salt_addressing.correct(Corrected)  # as after a synchronisation
    made = Corrected.__new__(Corrected)
    opts = {**salt.config.DEFAULT_MINION_OPTS, "id": HOST, "grains": {"os": "Debian"}, "resources": RESOURCES}
    made.opts, made.matchers, made._resource_grains_cache = opts, salt.loader.matchers(opts), GRAINS
    made.told, made.ran = [], []
    yield made


def reached(minion: Any, address: str, kind: str, function: str) -> tuple[bool, set[str]]:
    """Return whether a job runs on the host itself, and the resources in which it runs."""
    load = {"tgt": address, "tgt_type": kind, "fun": function, "jid": "1", "arg": []}
    if not minion._target_load(load):
        return False, set()
    targets = {one["id"] for one in load["resource_targets"]}
    if function != "state.apply":
        return load["minion_is_target"], targets
    assert load["minion_is_target"], "a state function is run in targets by the host's own job"
    minion.ran.clear()
    type(minion)._thread_return(minion, {}, load)
    own = [one for one in minion.ran if not one["pure_resource_target"]]
    inside = [one for one in minion.ran if one["resource_targets"]]
    assert not set(map(id, own)) & set(map(id, inside)), "of a host in one job with its targets the return is lost"
    return bool(own), {one["id"] for job in inside for one in job["resource_targets"]}


@pytest.mark.parametrize("function", ["cmd.run", "netspace_environment.list", "state.apply"])
@pytest.mark.parametrize(
    ("address", "kind", "host", "targets"),
    [
        (HOST, "glob", True, set()),
        (WEB, "glob", False, {WEB}),
        (f"{HOST},h2", "list", True, set()),
        (f"{WEB},h2", "list", False, set()),
        ("os:Debian", "grain", True, set()),
        ("os:Deb.*", "grain_pcre", True, set()),
        ("environment:web", "grain", False, set()),
        (f"T@netspace:{WEB}", "compound", False, {WEB}),
        (f"T@netspace:{WEB} or T@netspace:{DB}", "compound", False, {WEB, DB}),
        (f"T@netspace:{WEB} or {HOST}", "compound", True, {WEB}),
        (f"T@netspace:{WEB} or h2", "compound", False, {WEB}),
        (f"T@netspace:{WEB} or G@os:Debian", "compound", True, {WEB}),
        (f"T@netspace:{WEB} and G@os:Debian", "compound", False, set()),
        ("T@netspace or h2", "compound", False, set()),
        (f"h2 or ( T@netspace:{WEB} and not h3 )", "compound", False, set()),
        (f"T@netspace:{WEB} and not G@environment:web", "compound", False, set()),
        (f"* and not T@netspace:{WEB}", "compound", True, set()),
        (f"E@{HOST}.*", "compound", True, set()),
        ("E@h1-.*", "compound", False, set()),
        (f"L@{HOST},{WEB}", "compound", True, set()),
        ("G@os:Debian", "compound", True, set()),
        ("not G@os:Windows", "compound", True, set()),
        ("not h2", "compound", True, set()),
    ],
)
def test_a_target_runs_what_is_addressed_to_it_and_a_host_what_is_not(
    minion: Any, address: str, kind: str, host: bool, targets: set[str], function: str
) -> None:
    found, resources = reached(minion, address, kind, function)
    assert (found, resources - {OTHER}) == (host, targets)


@pytest.fixture
def master(tmp_path: Path) -> Any:
    """Return Salt's own check of users' rights, at a master that has accepted ``h1`` and ``h2``."""
    folders = {"pki_dir": str(tmp_path), "cachedir": str(tmp_path), "conf_file": str(tmp_path / "master")}
    made = salt.utils.minions.CkMinions({**salt.config.DEFAULT_MASTER_OPTS, **folders, "__role": "master"})
    made._pki_minions = lambda: {"h1", "h2"}
    made.key = types.SimpleNamespace(
        ACC="minions",
        glob_match=lambda pattern, **_: {"minions": fnmatch.filter(["h1", "h2"], pattern)},
        list_match=lambda names, **_: {"minions": [one for one in names if one in ("h1", "h2")]},
    )
    return made


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        (f"T@netspace:{WEB}", "compound"),
        (f"h2 or T@netspace:{WEB}", "compound"),
        ("h2 or T@netspace", "compound"),
        (f"h2 or ( T@netspace:{WEB} and not h3 )", "compound"),
        (f"h2 or ( T@netspace:{WEB} and G@environment:web )", "compound"),
        (f"h2 or not T@netspace:{WEB}", "compound"),
        (f"L@h2,{WEB}", "compound"),
        (f"h2,{WEB}", "list"),
        ("h2", "glob"),
    ],
)
def test_a_right_to_one_host_reaches_no_target_of_another(minion: Any, master: Any, address: str, kind: str) -> None:
    """A user with rights to one host reaches no target of another host.

    The master checks rights by the minion ids that match the address; it doesn't know which targets a minion has.
    """
    given: Any = address.split(",") if kind == "list" else address
    found = master.check_minions(given, kind, fun="cmd.run")["minions"]
    allowed = master.auth_check([{"h2": ["cmd.run"]}], "cmd.run", [["id"]], given, kind, minions=found)
    targets = reached(minion, given, kind, "cmd.run")[1] - {OTHER}
    assert not (found and allowed and targets), (found, targets)


@pytest.mark.parametrize("function", ["cmd.run", "state.apply"])
@pytest.mark.parametrize(
    ("address", "kind"),
    [("h2*", "glob"), ("h[23]", "glob"), ("h2.*", "pcre"), ("a:b", "pillar"), ("192.0.2.0/24", "ipcidr")],
)
def test_a_pattern_that_matches_neither_runs_in_neither(
    minion: Any, monkeypatch: pytest.MonkeyPatch, address: str, kind: str, function: str
) -> None:
    monkeypatch.setitem(minion.opts, "resources", {"netspace": [WEB, DB]})
    assert reached(minion, address, kind, function) == (False, set())
    if kind in ("glob", "pcre"):
        assert reached(minion, address.replace("2", "1").replace("[13]", "[1]"), kind, function) == (True, set())


def test_resources_of_other_types_are_salt_s(minion: Any) -> None:
    assert reached(minion, "*", "glob", "cmd.run") == (True, {OTHER})
    assert reached(minion, f"T@other:{OTHER}", "compound", "cmd.run") == (False, {OTHER})


def test_the_master_is_told_of_other_resources_alone(minion: Any) -> None:
    load = {
        "cmd": "_register_resources",
        "id": HOST,
        "resources": RESOURCES,
        "resource_grains": {**GRAINS, "other:s": {}},
    }
    asyncio.run(minion._send_req_async_main(load, 5))
    asyncio.run(minion._send_req_async_main({"cmd": "_return", "resources": RESOURCES}, timeout=5))
    assert minion.told[-2:] == [
        {"cmd": "_register_resources", "id": HOST, "resources": {"other": [OTHER]}, "resource_grains": {"other:s": {}}},
        {"cmd": "_return", "resources": RESOURCES},
    ]


def test_another_salt_s_minion_has_no_targets() -> None:
    with pytest.raises(NetspaceError, match=r"has no _target_load, .*: environments can't be its targets"):
        salt_addressing.correct(type("Minion", (), {}))
