"""The host as a peer: requests as hostile bytes, the verbs, and the record of uses."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.environment import record
from netspace.environment.images import Image
from netspace.environment.images.sources import Defaults
from netspace.environment.record import Record
from netspace.errors import SpecError, StateError
from netspace.host.host import Host
from netspace.host.peer import process, publish, requests, service, told, uses
from netspace.host.peer.asker import Asker
from netspace.host.peer.requests import CODES, Refused
from netspace.host.peer.told import Known, Offering, Reached, Told, Trust
from netspace.layout import Layout
from netspace.link import host_peer
from netspace.link import record as link_record
from netspace.link.forwarder import process as forwarder
from netspace.spec import parse, peer
from netspace.spec.types import Broker, ClusterBroker, Declaration, Environment, Link, LocalBroker
from netspace.supervision import process as supervised
from netspace.supervision.service import Status, Supervisor
from netspace.supervision.systemd import unit_file

VERBS = process.verbs()
HEX = "0" * 64
SHARED = ClusterBroker("amqps://b.example.org:5671", "https://b.example.org:15671", "/srv/credentials")


def process_group() -> str:
    """Return the control group of this process, in the peer's form."""
    for line in Path("/proc/1/cgroup").read_text().splitlines():
        if supervised.members(group := line.split(":", 2)[2]):
            return group
    pytest.skip("no control group can be read here")


def asker(*verbs: str, until: float = 100.0, now: float = 50.0) -> Asker:
    own = Known(verbs, f"sha256:{HEX}", f"sha256:{HEX}", "/nowhere/web")
    return Asker("web", own, Told(told.VERSION, "h1", Trust("L3", "master", until), {"web": own}), now)


def answer(body: bytes, *verbs: str) -> dict:
    """Return the answer as the peer gives it."""
    try:
        return json.loads(requests.answer(asker(*verbs), requests.parse(body, len(body)), VERBS))
    except Refused as err:
        return json.loads(requests.refusal(err.code, str(err)))


def code(body: bytes, *verbs: str) -> str:
    found = answer(body, *verbs)["error"]
    assert found["code"] in CODES and found["text"]
    return str(found["code"])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "request-malformed"),
        (b"{", "request-malformed"),
        (b"[1]", "request-malformed"),
        (b'{"verb": "whoami"}', "request-malformed"),
        (b'{"v": "1", "verb": "whoami"}', "request-malformed"),
        (b'{"v": 1}', "request-malformed"),
        (b'{"v": 1, "verb": ""}', "request-malformed"),
        (b'{"v": 1, "verb": "whoami\\n"}', "request-malformed"),
        (b'{"v": 1, "verb": "../whoami"}', "request-malformed"),
        (b'{"v": 1, "verb": "whoami", "name": "orders"}', "request-malformed"),
        (b'{"v": 1, "verb": "whoami", "arguments": ' + b"[" * 16000, "request-malformed"),
        (b"\xff\xfe", "request-malformed"),
        (b'{"v": 2, "verb": "whoami", "new": {}}', "version-unknown"),
        (b'{"v": 0}', "version-unknown"),
        (b'{"v": 1, "verb": "reboot"}', "verb-unknown"),
        (b'{"v": 1, "verb": "whoami", "arguments": {"name": "orders"}}', "arguments-invalid"),
        (b'{"v": 1, "verb": "whoami", "arguments": 7}', "arguments-invalid"),
    ],
)
def test_bad_request_has_its_code(body: bytes, expected: str) -> None:
    assert code(body, "whoami") == expected


def test_values_are_those_that_were_told() -> None:
    body = b'{"v": 1, "verb": "values"}'
    given = {"greeting": "hello", "more": {"regions": ["north", 1, True]}}
    own = Known(("values",), "", "", "", given)
    asked = Asker("web", own, Told(told.VERSION, None, Trust(), {"web": own}), 1.0)
    found = json.loads(requests.answer(asked, requests.parse(body, len(body)), VERBS))
    assert found["answer"] == {"values": given}
    assert code(body, "whoami") == "verb-not-permitted"


def test_who_tells_of_peers_that_offer_the_service_alone() -> None:
    peers = (Reached("till", "shop", "request"), Reached("audit", "audit", "send"), Reached("idle", "idle", "send"))
    own = Known(("who",), "", "", "", {}, peers)
    here = process_group()
    offering = {
        "till": Offering(("sales", "x"), here, checked=True),
        "idle": Offering(("sales",), "/gone"),
        "else": Offering(("sales",), here),
    }
    known = Told(told.VERSION, None, Trust(), {"web": own}, offering)
    asked = Asker("web", own, known, 1.0, health={"till": "unhealthy", "idle": "healthy"}.get)

    def who(arguments: object) -> dict:
        body = json.dumps({"v": 1, "verb": "who", "arguments": arguments}).encode()
        return json.loads(requests.answer(asked, requests.parse(body, len(body)), VERBS))

    idle = {"name": "idle", "pattern": "send", "up": False, "health": None}
    shop = {"name": "shop", "pattern": "request", "up": True, "health": "unhealthy"}
    assert who({"service": "sales"})["answer"]["peers"] == [idle, shop]
    assert who({"service": "else"})["answer"]["peers"] == []
    for wrong in (
        {},
        {"service": 1},
        {"service": "x\n"},
        {"service": "x" * 49},
        {"service": "x", "unless": "x"},
        {"service": "x", "all": 1},
    ):
        with pytest.raises(Refused) as refused:
            who(wrong)
        assert refused.value.code == "arguments-invalid"


def test_unpermitted_verb_is_refused_before_its_arguments() -> None:
    assert code(b'{"v": 1, "verb": "whoami", "arguments": 7}') == "verb-not-permitted"


def test_large_request_is_refused_by_its_whole_size() -> None:
    body = json.dumps({"v": 1, "verb": "whoami"}).encode()
    with pytest.raises(Refused) as refused:
        requests.parse(body, requests.SIZE + 1)
    assert refused.value.code == "request-too-large"
    assert requests.parse(body + b" " * (requests.SIZE - len(body)), requests.SIZE).verb == "whoami"


@given(st.binary(max_size=300))
def test_any_bytes_get_one_answer(body: bytes) -> None:
    found = answer(body, "whoami")
    assert found["v"] == 1 and ("answer" in found) != ("error" in found)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.fixed_dictionaries({"v": st.just(1), "verb": st.sampled_from(sorted(VERBS)) | st.text(), "arguments": _JSON}))
def test_any_json_gets_an_answer_of_bounded_size(request_: dict) -> None:
    found = answer(json.dumps(request_).encode(), "whoami")
    assert len(json.dumps(found)) < 2000
    assert "answer" in found or found["error"]["code"] in CODES


def test_each_verb_has_its_schema_and_its_answer() -> None:
    assert VERBS
    for name, module in VERBS.items():
        assert issubclass(module.Arguments, msgspec.Struct) and module.Arguments.__struct_config__.forbid_unknown_fields
        assert issubclass(module.Answer, msgspec.Struct)
        assert next(iter(inspect.signature(module.answer).parameters)) == "asker", name
        assert module.__doc__ and module.__doc__.startswith(f"``{name}``")


def test_no_token_is_made_without_a_host_that_vouches() -> None:
    body = b'{"v": 1, "verb": "attest", "arguments": {"nonce": "b3duLXF1ZXN0aW9uLTE"}}'
    assert code(body, "attest") == "not-available"
    for wrong in ("short", "b3duLXF1ZXN0aW9uLTE\\n", "x" * 89, "b3duLXF1ZXN0aW9u LTE"):
        asked = json.dumps({"v": 1, "verb": "attest", "arguments": {"nonce": wrong}}).encode()
        assert code(asked, "attest") == "arguments-invalid", wrong


def test_whoami_tells_the_hosts_trust_until_its_end() -> None:
    def level(now: float) -> str:
        return str(VERBS["whoami"].answer(asker("whoami", now=now), None).trust.level)

    assert (level(99.0), level(100.0)) == ("L3", "L0")
    said = answer(b'{"v": 1, "verb": "whoami"}', "whoami")["answer"]
    assert said["trust"] == {"level": "L3", "verifier": "master", "told_by": "host"}
    assert (said["name"], said["host"], said["started"]) == ("web", "h1", None)


def test_log_of_a_flood_is_bounded_for_each_asker(capsys: pytest.CaptureFixture[str]) -> None:
    found = uses.Uses()
    said = [found.note("web", "whoami", 10.0) for _ in range(1000)]
    assert sum(said) == uses.LINES
    assert found.note("orders", "whoami", 10.0)
    assert found.note("web", "whoami", 10.0 + uses.MINUTE)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == uses.LINES + 3
    assert f"netspace peer: web: {1000 - uses.LINES} more requests" in lines
    assert found.counts["web"]["whoami"].times == 1001


def test_log_goes_on_after_the_clock_was_set_back() -> None:
    found = uses.Uses()
    assert [found.note("web", "whoami", 1000.0) for _ in range(uses.LINES + 1)][-1] is False
    assert found.note("web", "whoami", 10.0)


ODD = (
    *(b"", b"{", b"[]", b'{"web": {"whoami": {"times": "1"}}}', b"[" * 100000),
    # As a peer that was taken over could write for an operator's terminal.
    *(b'{"web": {"%s": {"times": 1, "last": 1.0}}}' % what for what in (b"a\\u001b[2J", b"a\\nroot# x", b"a" * 129)),
    b'{"web": {%s}}' % b",".join(b'"a%d": {"times": 1, "last": 1.0}' % number for number in range(65)),
)


@pytest.mark.parametrize("content", ODD, ids=range(len(ODD)))
def test_damaged_counts_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / uses.FILE).write_bytes(content)
    assert uses.read(tmp_path) == {}


def test_counts_that_are_a_link_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text('{"web": {"whoami": {"times": 1, "last": 1.0}}}')
    (tmp_path / uses.FILE).symlink_to(tmp_path / "elsewhere")
    assert uses.read(tmp_path) == {}


@pytest.mark.parametrize("what", ["whoami", "? verb-unknown", "no address for the answer"])
def test_counts_of_the_peer_are_read(tmp_path: Path, what: str) -> None:
    (tmp_path / uses.FILE).write_text(json.dumps({"web": {what: {"times": 1, "last": 1.0}}}))
    assert uses.read(tmp_path) == {"web": {what: uses.Use(1, 1.0)}}


def test_counts_outlive_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path)
    first, second = uses.Uses(), uses.Uses()
    first.note("web", "whoami", 5.0)
    first.save()
    second.load()
    second.note("web", "whoami", 6.0)
    assert second.counts["web"]["whoami"] == uses.Use(2, 6.0)
    second.forget({"orders"})
    assert not second.counts


def test_no_link_leads_to_the_host_while_an_environment_has_its_name(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    image = Image("0" * 64, "x", Defaults())
    record.write(layout, "host", Record(Environment(image="tar:/srv/x.tar"), "running", 1879048192, image, "", "1"))
    result = Host(layout)._links(LocalBroker(), (peer.link("web"),), {"web.host"}, True, True)
    (refusal,) = result.plan.refusals
    assert (refusal.kind, refusal.name) == (
        "link",
        "web.host",
    ) and "has the name host, which is reserved" in refusal.message
    assert not result.plan.steps


def test_removal_of_the_name_host_revokes_no_link_to_the_host(tmp_path: Path) -> None:
    host, former = Host(Layout(root=tmp_path)), Link(source="cron", target="host")
    links = {link.name: link for link in (peer.link("web"), former)}
    link_record.write(host.layout, link_record.Record(LocalBroker(), links, ()))

    def revoked(name: str) -> list[str]:
        steps = host.remove_environments({name}, test=True).plan.steps
        return [step.name for step in steps if (step.kind, step.action) == ("link", "remove")]

    assert revoked("host") == ["cron.host"]
    assert revoked("web") == ["web.host"]


def test_no_link_leads_to_the_host_on_a_shared_broker(tmp_path: Path) -> None:
    result = Host(Layout(root=tmp_path))._links(SHARED, (peer.link("web"),), {"web.host"}, False, True)
    (refusal,) = result.plan.refusals
    assert (refusal.kind, refusal.name, refusal.message) == ("link", "web.host", peer.SHARED)
    assert not result.plan.steps


def test_links_to_the_host_do_not_move_to_a_shared_broker(tmp_path: Path) -> None:
    host = Host(Layout(root=tmp_path))
    link_record.write(host.layout, link_record.Record(LocalBroker(), {"web.host": peer.link("web")}, ()))
    declared = Declaration(links=(Link(source="web", target="cron"),), broker=SHARED)
    steps = {(step.name, step.action) for step in host.converge_links(declared, test=True).plan.steps}
    assert {("web.cron", "create"), ("web.host", "remove")} <= steps


def test_damaged_record_silences_its_environment_alone(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    image, spec = Image("0" * 64, "x", Defaults()), Environment(image="tar:/srv/x.tar", host=("whoami",))
    for name in ("web", "other"):
        record.write(layout, name, Record(spec, "running", 1879048192, image, "", "1"))
    record.path(layout, "other").write_text("{")
    links = (peer.link("web"), peer.link("other"), Link(source="web", target="other"))
    found = publish.knowledge(layout, links, "h1")
    assert list(found.environments) == ["web"] and found.environments["web"].verbs == ("whoami",)
    assert not found.offering


def test_no_link_leads_to_the_host_while_mail_of_its_name_is_kept(tmp_path: Path) -> None:
    host = Host(Layout(root=tmp_path))
    link_record.write(host.layout, link_record.Record(LocalBroker(), {}, ("host",)))
    (refusal,) = host._links(LocalBroker(), (peer.link("web"),), {"web.host"}, True, True).plan.refusals
    assert refusal.name == "web.host" and refusal.message.startswith("mail of an environment that was named host")


def test_environment_alone_can_not_ask_while_another_is_called_host(tmp_path: Path) -> None:
    host, named = Host(Layout(root=tmp_path)), Link(source="web", target="till", local="host")
    link_record.write(host.layout, link_record.Record(LocalBroker(), {named.name: named}, ()))
    declared = Declaration(environments={"web": Environment(image="tar:/srv/x.tar", host=("whoami",))})
    problem = "web.till:as: web has a link with another environment named host; choose another name"
    with pytest.raises(SpecError, match=re.escape(problem)):
        host._host_links(declared, False)
    assert f"link {problem}" in host._host_links(declared, True).plan.notes


class Supervised:
    """A supervisor with these services, all running."""

    def __init__(self, *names: str) -> None:
        self.names = set(names)

    def observe(self, names: Collection[str] | None = None, *, noticed: bool = False) -> dict[str, Status]:
        return {name: Status("running", 7) for name in (self.names if names is None else self.names & set(names))}


def test_apply_in_test_mode_starts_nothing_that_is_refused(tmp_path: Path) -> None:
    host = Host(Layout(root=tmp_path))
    web = {"image": "tar:/srv/x.tar", "interface": {"kind": "none"}, "host": ["whoami"]}
    declared = parse.declaration({"environments": {"web": web}})

    def asked(broker: Broker = declared.broker) -> set[str]:
        with_broker = msgspec.structs.replace(declared, broker=broker)
        plans = [host.converge_environments(with_broker, whole=whole, test=True).plan for whole in (True, False)]
        return {step.name for plan in plans for step in plan.steps if step.kind == "service"}

    assert "netspace-peer" in asked() and "netspace-peer" not in asked(SHARED)
    image = Image("0" * 64, "x", Defaults())
    record.write(host.layout, "host", Record(Environment(image="tar:/x"), "running", 1879048192, image, "", "1"))
    assert "netspace-peer" not in asked()


def test_folder_stays_while_the_forwarder_listens_in_it(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    place, served = host_peer.folder(layout), forwarder.served_file(layout)
    for config, stays in (("\n".join(host_peer.frontend(layout)), True), ("frontend web", False)):
        place.mkdir(parents=True, exist_ok=True)
        served.parent.mkdir(parents=True, exist_ok=True)
        served.write_text(config)
        service.forget(layout)
        assert place.exists() is stays


def test_systemd_bounds_the_service(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    lines = unit_file.render(layout, service.service(layout, "")).splitlines()
    assert {"MemoryMax=268435456", "CPUQuota=50%", "TasksMax=8"} <= set(lines)


def test_more_than_the_peer_reads_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    content = asker("whoami").told
    raw = publish._encoded(content)
    assert msgspec.json.decode(raw, type=Told) == content and b"\n" not in raw
    monkeypatch.setattr(told, "MOST", len(raw) - 1)
    with pytest.raises(StateError, match=rf"told.json: {len(raw)} bytes, and the host's peer reads {len(raw) - 1}"):
        publish._encoded(content)


def test_service_without_its_folder_is_removed(tmp_path: Path) -> None:
    host = Host(Layout(root=tmp_path))
    for names, actions in (((), []), ((host_peer.SERVICE,), ["remove"])):
        host.supervisor = cast(Supervisor, Supervised(*names))
        assert [step.action for step in host._peer(True, ()).plan.steps] == actions


def test_forwarder_without_a_link_to_the_host_is_as_before() -> None:
    layout, wanted = Layout(), forwarder.Wanted(LocalBroker(), {"web": 7})
    config = forwarder.render(layout, wanted)
    assert "host-peer" not in config
    more = forwarder.render(layout, dataclasses.replace(wanted, peer=True))
    assert more.replace("\n".join(host_peer.frontend(layout)) + "\n", "") == config
    assert forwarder.served(more) == forwarder.served(config) == ["web"]
