"""Rendered configurations, the management client, and plans without a broker."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import json
import runpy
import threading
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace import files
from netspace.errors import MissingError, NetspaceError, StateError
from netspace.layout import Layout
from netspace.link import health, problems
from netspace.link.broker import access, management, plugin
from netspace.link.broker import node as broker
from netspace.link.broker.management import Login, Management, RefusedError, UnreachableError
from netspace.link.forwarder import launch, process
from netspace.link.forwarder.process import Wanted
from netspace.link.mail import dead_letters
from netspace.link.pki import passwords
from netspace.link.problems import Problem
from netspace.link.reconciler import DesiredLinks, Links, Observed, Record
from netspace.link.record import read, write
from netspace.spec.types import ClusterBroker, Link, LocalBroker
from netspace.supervision.service import Status

LINK = Link(source="web", target="orders", pattern="request")
CLUSTER = ClusterBroker(url="amqps://mq.example", management="https://mq.example:15671", credentials="/nowhere")
NODES = ClusterBroker(url=("amqp://n1", "amqp://n2"), management=("http://n1", "http://n2"), credentials="/nowhere")


# -- forwarder ---------------------------------------------------------------------
def test_the_forwarder_listens_in_each_namespace_and_knows_its_inode():
    config = process.render(Layout(), Wanted(LocalBroker(), {"web": 11, "a-b": 12}))
    assert process.served(config) == ["a-b", "web"]
    assert "    bind 127.0.0.1:5671 namespace netspace-web\n" in config
    assert "    server broker 127.0.0.1:5682\n" in config
    assert " ssl " not in config, "TLS is between client and broker"
    assert config != process.render(Layout(), Wanted(LocalBroker(), {"web": 13, "a-b": 12}))
    for each in ("rate-limit sessions ", "filter bwlim-in ", "set-bandwidth-limit "):
        assert config.count(each) == 2, "one share for each environment"
    assert config == process.render(Layout(), Wanted(LocalBroker(), {"a-b": 12, "web": 11}))


@pytest.mark.parametrize(
    ("status", "after", "given_up"),
    [
        (Status("running", 7), 200.0, False),  # an emulated processor takes so long
        (Status("starting"), 200.0, False),
        (Status("starting", restarts=1), 10.0, False),
        (Status("starting", restarts=1), 30.0, True),
        (Status("running", 9, restarts=3), 30.0, True),
        (Status("failed"), 0.0, True),
        (None, 0.0, True),
    ],
)
def test_a_forwarder_that_starts_slowly_is_waited_for(monkeypatch, status, after, given_up):
    now, asked = [1000.0], []

    def serves(layout, seconds, ended):
        now[0] += after
        asked.append((seconds, ended()))
        return not ended()

    monkeypatch.setattr(process.haproxy, "serves", serves)
    monkeypatch.setattr(process.time, "monotonic", lambda: now[0])
    supervisor = SimpleNamespace(observe=lambda names: {} if status is None else {"forwarder": status})
    with pytest.raises(NetspaceError, match="doesn't start") if given_up else contextlib.nullcontext():
        process._wait(Layout(), supervisor)
    assert asked == [(300.0, given_up)]


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("amqp://mq.example", "mq.example:5672 init-addr"),
        ("amqp://[fd00::1]:99", "[fd00::1]:99 init-addr"),
        ("amqps://mq.example", "mq.example:5671 init-addr"),
    ],
)
def test_the_forwarder_goes_where_the_url_says(url, server):
    config = process.render(Layout(), Wanted(ClusterBroker(url=url, management="http://x", credentials="/x"), {}))
    assert f"server broker {server}" in config
    assert ("ssl verify required" in config) == url.startswith("amqps")


def test_the_forwarder_goes_to_any_node_of_a_cluster():
    nodes = ("amqps://n1", "amqps://n2:99")
    spec = ClusterBroker(url=nodes, management="http://x", credentials="/x", ca="/etc/ca.pem")
    servers = [line for line in process.render(Layout(), Wanted(spec, {})).splitlines() if "    server " in line]
    assert [line.split()[1:3] for line in servers] == [["node1", "n1:5671"], ["node2", "n2:99"]]
    assert all(f'ca-file "/etc/ca.pem" verifyhost n{number}' in line for number, line in enumerate(servers, 1))


def test_a_path_is_one_word_of_the_forwarder_s_configuration():
    def configuration(ca: str) -> str:
        spec = ClusterBroker(url="amqps://n1", management="http://x", credentials="/x", ca=ca)
        return process.render(Layout(), Wanted(spec, {}))

    assert r'ca-file "/a b/\"\$\\ #/" verifyhost n1' in configuration('/a b/"$\\ #/')
    with pytest.raises(NetspaceError, match="control character"):
        configuration("/etc/ca.pem\n    lua-load /tmp/x")


def test_a_cluster_is_the_same_by_any_of_its_nodes():
    def cluster(*nodes: str, vhost: str = "v") -> ClusterBroker:
        return ClusterBroker(
            url="amqp://x", management=nodes if len(nodes) > 1 else nodes[0], credentials="", vhost=vhost
        )

    assert access.same(cluster("http://n1"), cluster("http://n2", "http://n1"))
    assert not access.same(cluster("http://n1", "http://n2"), cluster("http://n3"))
    assert not access.same(cluster("http://n1"), cluster("http://n1", vhost="w"))
    assert not access.same(cluster("http://n1"), LocalBroker())
    assert access.same(LocalBroker(port=1), LocalBroker())


def test_the_forwarder_can_be_started_for_a_thousand_environments():
    """The forwarder is started with -n, also under a low hard limit, since haproxy by default allows 250 namespaces."""
    command = process.command(Layout())
    assert int(command[command.index("-n") + 1]) >= 8 * 1000
    assert "no strict-limits" in process.render(Layout(), Wanted(LocalBroker(), {}))


def test_a_port_that_is_taken_takes_one_section_out_of_the_configuration():
    layout = Layout()
    broker = LocalBroker(passwords=("old",))
    config = process.render(layout, Wanted(broker, {"web": 11, "old": 12, "a-b": 13}))
    assert process.entries(config) == {"web": (11, 5671), "old": (12, 5672), "a-b": (13, 5671)}
    staying = launch.without(config, ["old", "a-b"])
    assert process.served(staying) == ["web"]
    assert [line for line in config.splitlines() if line not in staying.splitlines()] == [
        line
        for name, inode, port in (("a-b", 13, 5671), ("old", 12, 5672))
        for line in (
            f"frontend environment:{name}",
            f"    # network namespace {inode}",
            f"    bind 127.0.0.1:{port} namespace netspace-{name}",
        )
    ] + ["    default_backend broker-by-password"]
    assert launch.without(config, []) == config


# -- broker ------------------------------------------------------------------------
def test_the_node_listens_on_loopback_and_has_no_secret_in_its_service():
    layout, spec = Layout(), LocalBroker()
    node = broker.service(layout, spec)
    assert (node.user, node.after) == ("rabbitmq", ())
    config = broker.configuration(layout, spec)
    listeners = [line for line in config.splitlines() if line.startswith(("listeners", "management.tcp.ip"))]
    assert listeners == ["listeners.tcp = none", "listeners.ssl.1 = 127.0.0.1:5682", "management.tcp.ip = 127.0.0.1"]
    arguments = node.variables["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"]
    assert "{127,0,0,1}" in arguments
    assert node.variables["RABBITMQ_CTL_ERL_ARGS"] in arguments, "who asks it finds it in the same way"
    assert "-start_epmd false" in arguments and "-erl_epmd_port 25682" in arguments


def test_another_port_is_another_configuration(tmp_path, monkeypatch):
    monkeypatch.setattr(plugin, "installed", lambda folder: True)
    layout = Layout(root=tmp_path)
    files.write_json(layout.records("link") / "management.json", {"username": "u", "password": "p", "hash": "h"})
    for spec in (LocalBroker(), LocalBroker(distribution_port=2), LocalBroker(port=3)):
        assert not broker.installed(layout, spec)
        for name, content in broker._files(layout, spec, {"username": "u", "hash": "h"}).items():
            files.write(layout.broker / "etc" / name, content)
        assert broker.installed(layout, spec)


def test_a_guard_that_cannot_be_compiled_is_told_and_leaves_the_former_one(tmp_path, monkeypatch):
    former = tmp_path / "former"
    former.touch()
    monkeypatch.setattr(plugin, "COMPILER", tmp_path / "erlc")
    with pytest.raises(MissingError, match="erlang-base"):
        plugin.install(tmp_path, 0)
    plugin.COMPILER.write_text("#!/bin/sh\necho no such module; exit 1\n")
    plugin.COMPILER.chmod(0o755)
    with pytest.raises(NetspaceError, match="can't be compiled: no such module"):
        plugin.install(tmp_path, 0)
    assert former.exists() and not plugin.installed(tmp_path)


# -- credentials -------------------------------------------------------------------
def test_credentials_are_made_once_and_root_only(tmp_path):
    layout = Layout(root=tmp_path)
    made = passwords.ensure(layout, ["web", "orders"], {})
    assert len(set(made.values())) == 2
    assert passwords.ensure(layout, ["web"], passwords.read_all(layout)) == {"web": made["web"]}
    assert (layout.records("credentials") / "web.json").stat().st_mode & 0o777 == 0o600
    passwords.remove(layout, ["web", "orders"])
    assert passwords.read(layout, "web") is None
    assert not layout.records("credentials").exists()


def test_credentials_that_hold_none_are_an_error(tmp_path):
    layout = Layout(root=tmp_path)
    files.write_json(layout.records("credentials") / "web.json", {})
    with pytest.raises(StateError, match="web"):
        passwords.read(layout, "web")


# -- plans without a broker ------------------------------------------------------------
@pytest.fixture
def links(tmp_path) -> Links:
    return Links(Layout(root=tmp_path), supervisor=None)


def test_planning_before_anything_is_there(links):
    plan = links.plan(DesiredLinks(LocalBroker(), (LINK,)), links.observe())
    assert [(step.name, step.action) for step in plan.steps] == [
        ("broker", "create"),
        ("web.orders", "create"),
        ("forwarder", "create"),
    ]
    assert plan.steps[1].changes["pattern"] == {"old": None, "new": "request"}


def test_nothing_is_removed_for_being_absent(links):
    record = Record(LocalBroker(), {LINK.name: LINK})
    observed = Observed(record, "stopped")
    plan = links.plan(DesiredLinks(LocalBroker(), ()), observed)
    assert {step.action for step in plan.steps} & {"remove"} == set()
    plan = links.plan(DesiredLinks(LocalBroker(), ()), observed, [LINK.name])
    assert {step.name: step.action for step in plan.steps} == {"broker": "remove", LINK.name: "remove"}


@pytest.mark.parametrize("state", ["stopped", "starting"])
def test_a_broker_that_does_not_answer_is_a_change(links, state):
    record = Record(LocalBroker(), {LINK.name: LINK})
    plan = links.plan(DesiredLinks(LocalBroker(), (LINK,)), Observed(record, state))
    assert plan.steps[0].changes["state"] == {"old": state, "new": "running"}
    assert plan.notes


def test_a_foreign_broker_out_of_reach_is_refused(links):
    record = Record(CLUSTER, {LINK.name: LINK})
    plan = links.plan(DesiredLinks(CLUSTER, (LINK,)), Observed(record, "unreachable", "no answer"))
    assert not plan.steps
    assert "unknown" in plan.refusals[0].message


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"links": [{"from": "a"}], "broker": {"kind": "local"}}'])
def test_a_broken_record_is_an_error_that_says_what_to_do(links, content):
    path = links.layout.records("link") / "applied.json"
    files.write(path, content.encode())
    with pytest.raises(StateError, match="remove the file"):
        links.names()


@pytest.mark.parametrize(
    "record",
    [Record(LocalBroker(port=9), {LINK.name: LINK}, ("a",)), Record(CLUSTER, {}), Record(NODES, {LINK.name: LINK})],
)
def test_records_are_read_as_they_were_written(links, record):
    write(links.layout, record)
    assert read(links.layout) == record
    assert links.names() == set(record.links)
    assert links.access().vhost == "netspace"


# -- management ------------------------------------------------------------------------
class Api(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str, str]] = []

    def do_GET(self) -> None:
        Api.seen.append((self.command, self.path, self.headers["Authorization"]))
        status = {"missing": 404, "refused": 401, "wrong": 400}.get(self.path.rsplit("/", 1)[-1], 200)
        reason = f"no queue '{self.path.split('/')[-2]}'" if "mailbox" in self.path else "because"
        body = b"<html>" if "html" in self.path else json.dumps({"reason": reason}).encode()
        if "deep" in self.path:
            body = body[:-1] + b', "x": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if "idle" in self.path:  # closes without saying so, as the server does with idle connections
            self.close_connection = True

    do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def api():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    Api.seen.clear()
    with Management((f"http://127.0.0.1:{server.server_port}",), Login("me", "secret")) as client:
        yield client
    server.shutdown()
    server.server_close()


def test_names_are_quoted_and_credentials_are_in_the_header(api):
    assert api.get("queues", "a/b", "c d~%") == {"reason": "because"}
    assert Api.seen == [("GET", "/api/queues/a%2Fb/c%20d~%25", "Basic bWU6c2VjcmV0")]


def test_a_dropped_idle_connection_is_made_again(api):
    for _ in range(3):
        assert api.get("idle")
    assert len(Api.seen) == 3


def test_absent_and_refused(api):
    assert api.get("missing") is None
    assert api.delete("missing") is False
    assert api.delete("there") is True
    with pytest.raises(RefusedError, match="credentials") as caught:
        api.get("refused")
    assert caught.value.status == 401
    with pytest.raises(RefusedError, match="because"):
        api.get("wrong")
    with pytest.raises(RefusedError, match="RabbitMQ"):
        api.get("html")


# Whatever JSON may hold, with what could be taken for a bracket or a text's end in its texts.
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='ab"\\\\[]{},:\\n\u20ac', max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
)


@given(VALUES, st.integers(0, 5))
def test_only_what_is_too_deep_is_left_out(value, most):
    def cut(value, left: int):
        if not isinstance(value, dict | list):
            return value
        if not left:
            return None
        if isinstance(value, dict):
            return {key: cut(one, left - 1) for key, one in value.items()}
        return [cut(one, left - 1) for one in value]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(management, "DEEPEST", most)
        assert json.loads(management._shallow(json.dumps(value).encode())) == cut(value, most)


def test_an_answer_of_a_hundred_thousand_levels_is_read(api):
    assert api.get("deep")["reason"] == "because"
    with pytest.raises(RefusedError, match="because"):
        api.get("deep", "wrong")


def test_a_refusal_tells_no_name_that_cannot_be_guessed(api):
    with pytest.raises(RefusedError) as caught:
        api.get("queues", "v", f"mailbox.web.{'0a' * 16}", "wrong")
    assert "/api/queues/v/mailbox.web/wrong with 400: no queue 'mailbox.web'" in str(caught.value)


def test_of_several_nodes_the_first_that_answers_is_asked(api):
    where = api.where
    with Management(("http://127.0.0.1:1", where), Login("me", "secret")) as client:
        assert client.get("queues") == {"reason": "because"}
        assert client.where == where
    with Management(("http://127.0.0.1:1", "http://127.0.0.1:2"), Login("me", "secret")) as client:
        with pytest.raises(UnreachableError, match=r"127.0.0.1:1 gives.*127.0.0.1:2 gives"):
            client.get("queues")


def test_no_answer():
    client = Management(("http://127.0.0.1:1",), Login("me", "secret"))
    with pytest.raises(UnreachableError) as caught:
        client.get("x")
    assert "secret" not in str(caught.value) + repr(Login("me", "secret"))


@pytest.mark.parametrize("url", ["ftp://x", "x", "http://"])
def test_other_urls(url):
    with pytest.raises(NetspaceError):
        Management((url,), Login("me", "secret"))


# -- health ------------------------------------------------------------------------------
class Answers:
    """A management API that returns given answers."""

    def __init__(self, **answers: object) -> None:
        self.answers = answers

    def get(self, path: str, *_: str, query: str = "") -> object:
        return self.answers[path]


def test_guard_that_is_missing_among_plugins_is_told():
    node = {"name": "rabbit@one", "running": True, "uptime": 61_000}
    others = [{"name": "rabbit", "version": "4.0.5"}]
    for listed, own, told in (
        (others, True, ["guard-down"]),
        (others, False, []),
        ([*others, {"name": "netspace_guard", "version": "1.0.0"}], True, []),
        ([], True, []),  # it was just started, and has not looked at itself yet
        (None, True, []),
    ):
        found = health._alarms(Answers(nodes=[{**node, "applications": listed}]), own)
        assert [one.key for one in found] == told, (listed, own)
    assert health._alarms(Answers(nodes=[{**node, "uptime": 9_000, "applications": others}]), True) == [], "it starts"


def test_alarms_of_a_broker_are_told():
    node = {"name": "rabbit@one", "running": True, "mem_alarm": False, "disk_free_alarm": False}
    assert health._alarms(Answers(nodes=[node]), False) == []
    for about, code in (({"mem_alarm": True}, "memory-alarm"), ({"disk_free_alarm": True}, "disk-alarm")):
        assert [one.key for one in health._alarms(Answers(nodes=[{**node, **about}]), False)] == [f"{code}:rabbit@one"]
    assert [one.key for one in health._alarms(Answers(nodes=[node, {**node, "running": False}]), False)] == [
        "node-down:rabbit@one"
    ]


@pytest.mark.parametrize(
    ("queue", "number"),
    [
        ({"messages": 7999, "message_bytes": 5, "consumers": 1}, 0),
        ({"messages": 8000, "message_bytes": 5, "consumers": 1}, 1),
        ({"messages": 1, "message_bytes": 60 * 1024**2, "consumers": 1}, 1),
        ({"messages": 1, "message_bytes": 5, "consumers": 0}, 1),
        ({"messages": 0, "message_bytes": 0, "consumers": 0}, 0),
        ({}, 0),
        (None, 1),
    ],
)
def test_full_and_unread_mailboxes_are_told(tmp_path, queue, number):
    named = [] if queue is None else [{"name": "mailbox.orders", **queue}]
    record = Record(LocalBroker(), {LINK.name: LINK})
    assert len(health._queues(Layout(root=tmp_path), record, Answers(queues=named), ())) == number


def test_mail_of_who_is_meant_to_read_nothing_is_told_only_where_it_fills_the_mailbox(tmp_path):
    record = Record(LocalBroker(), {LINK.name: LINK})
    for messages, number in ((1, 0), (8000, 1)):
        waiting = Answers(queues=[{"name": "mailbox.orders", "messages": messages, "message_bytes": 5, "consumers": 0}])
        assert len(health._queues(Layout(root=tmp_path), record, waiting, {"orders"})) == number


# -- the beacon ----------------------------------------------------------------------------
def test_the_beacon_tells_what_changes_and_not_how_much():
    beacon = runpy.run_path("_beacons/netspace_link.py")
    said: dict[str, object] = {}
    context: dict[str, object] = {}

    def once(*found: Problem) -> list[dict]:
        said.update(problems.told(found))
        return beacon["beacon"]([{"interval": 60}])

    beacon["beacon"].__globals__.update(
        __opts__={}, __context__=context, Host=lambda _: SimpleNamespace(link_health=lambda: said)
    )
    assert once() == []
    (first,) = once(Problem("dead-letters", "3 dead letters"))
    assert (first["ok"], first["problems"]) == (False, ["3 dead letters"])
    assert first["findings"] == [
        {"code": "dead-letters", "severity": "warning", "subject": "", "depends_on": "", "text": "3 dead letters"}
    ]
    assert once(Problem("dead-letters", "4 dead letters")) == []
    down = problems.forwarder(None, "")
    assert len(once(*down)) == 1
    assert once(*down, problems.entrance("web", "web can't reach it")) == []  # its cause is known already
    assert len(once(problems.entrance("web", "web can't reach it"))) == 1
    assert once() == [{"ok": True, "problems": [], "findings": []}]
    beacon["beacon"].__globals__["__opts__"] = {"netspace.instance": "Not one"}
    (told,) = once()
    assert not told["ok"] and "netspace.instance: 'Not one'" in told["problems"][0]
    assert beacon["validate"]([{"interval": 60}])[0]
    assert not beacon["validate"]("often")[0]


# -- dead letters ----------------------------------------------------------------------------
def test_nothing_a_sender_wrote_is_believed_of_a_dead_letter():
    forged = {"x-death": [{"exchange": "link.a.b", "queue": "mailbox.b", "time": 5}], "x-netspace": "link.a.b"}
    assert dead_letters.letter({"payload": "", "properties": {"headers": forged}}).link == "unknown"
    assert dead_letters.letter({"exchange": "link.a.b", "properties": []}).link == "unknown"


def test_what_a_dead_letter_has_in_another_form_is_as_if_it_were_not_there():
    odd = [None, [], "x", 7, [[]], {"a": "b"}, [None, 3, {"queue": "q", "time": "now"}]]
    for history, headers in itertools.product(odd, odd):
        got = {"properties": {"headers": {"x-first-death-queue": "q", "x-death": history}}, "payload_bytes": 3}
        assert dead_letters.letter(got).died == 0
        assert dead_letters.letter({"properties": {"headers": headers}}).link == "unknown"
        assert dead_letters.letter({"properties": headers}).reason == "unknown"


@pytest.mark.parametrize("limit", [0, -1, 1001])
def test_how_many_letters_is_bounded(tmp_path, limit):
    layout = Layout(root=tmp_path)
    write(layout, Record(LocalBroker(), {LINK.name: LINK}))
    with pytest.raises(NetspaceError, match="limit"):
        dead_letters.Letters(layout).count(limit)
    with pytest.raises(NetspaceError, match="limit"):
        dead_letters.Letters(layout).redeliver(dead_letters.LetterFilter(limit))
    with pytest.raises(NetspaceError, match="limit"):
        dead_letters.Letters(layout).discard(dead_letters.LetterFilter(limit))


def test_without_links_there_are_no_letters(tmp_path):
    with pytest.raises(NetspaceError, match="no links"):
        dead_letters.Letters(Layout(root=tmp_path))


# -- a broker that doesn't answer -----------------------------------------------------------
def test_a_plan_is_made_from_the_record_where_the_broker_gives_no_answer(links):
    observed = Observed(Record(CLUSTER, {LINK.name: LINK}), "unreachable", "no answer")
    more = Link(source="a", target="b")
    plan = links.plan(DesiredLinks(CLUSTER, (LINK, more)), observed)
    assert [step.name for step in plan.steps if step.action == "create"] == [more.name, "forwarder"]
    assert "this plan relies on the last record" in plan.notes[0]
    assert not links.plan(DesiredLinks(CLUSTER, (LINK,)), observed).steps
