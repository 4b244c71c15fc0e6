"""Logins at the broker: by certificates, with their renewal and expiry, and by passwords where these are declared."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pika
import pytest
from pika.exceptions import AMQPError
from support.sampling import todays
from support.waiting import until

from netspace.host import renew
from netspace.link.mail.dead_letters import Letters
from netspace.link.pki import authority, certificates, passwords
from netspace.link.pki.authority import Issuer
from netspace.spec.types import Link, LocalBroker

pytestmark = pytest.mark.root

ASK = Link(source="web", target="orders", pattern="request")
TELL = Link(source="orders", target="audit")
LINKS = (ASK, TELL)
NAMES = ("web", "orders", "audit")
EXAMPLES = Path(__file__).parents[3] / "examples"
GO = Path("/usr/share/gocode/src/github.com/rabbitmq/amqp091-go")


@pytest.fixture(scope="module")
def linked(standing):
    standing.environment(*NAMES)
    standing.apply(*LINKS)
    return standing


@pytest.fixture
def host(linked):
    linked.apply(*LINKS, purge=True)
    return linked


def publish(host, channel, link: str = "link.web.orders") -> None:
    channel.basic_publish(host.n(link), "", b"x", mandatory=True)


def admitted(host, name: str, **how) -> bool:
    try:
        host.connect(name, **how).close()
    except (AMQPError, OSError):
        return False
    return True


def made(folder: Path, content: bytes) -> Path:
    path = folder / "made.pem"
    path.write_bytes(content)
    return path


# -- who is let in -----------------------------------------------------------------------
def test_a_certificate_of_ones_own_lets_in_and_nothing_else_does(host, tmp_path):
    known = authority.read(host.layout)
    now = time.time()
    assert admitted(host, "web")
    assert not admitted(host, "web", password="")
    assert not admitted(host, "web", password="x", certificate=certificates.path(host.layout, "web"))
    assert not admitted(host, "web", password="x"), "TLS without a certificate"
    past = Issuer(known).environment("web", now - 7200, life=3600)
    assert not admitted(host, "web", certificate=made(tmp_path, past)), "expired"
    future = Issuer(known).environment("web", now + 7200)
    assert not admitted(host, "web", certificate=made(tmp_path, future)), "not yet valid"
    other = Issuer(authority._make(known.host, now)).environment("web", now)
    assert not admitted(host, "web", certificate=made(tmp_path, other)), "another authority's, for the same name"
    nobody = Issuer(known).environment("nobody", now)
    assert not admitted(host, "web", certificate=made(tmp_path, nobody)), "one that has no account"
    broker = (certificates.server_folder(host.layout) / "server.pem").read_bytes()
    assert not admitted(host, "web", certificate=made(tmp_path, broker)), "the broker's own"
    assert admitted(host, "web", certificate=made(tmp_path, Issuer(known).environment("web", now)))


def test_the_broker_shows_who_it_is_and_no_environment_can_be_it(host):
    known = authority.read(host.layout)
    with host.inside("web"), socket.create_connection(("127.0.0.1", 5671), timeout=10) as raw:
        with host.tls(certificates.path(host.layout, "web")).wrap_socket(raw, server_hostname="127.0.0.1") as stream:
            assert stream.version() == "TLSv1.3"
            names = stream.getpeercert()["subjectAltName"]
    assert ("URI", f"{known.host}/broker") in names
    # An environment's certificate is for clients alone.
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificates.path(host.layout, "orders"))
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = host.tls().wrap_bio(theirs, ours, server_hostname="localhost")
    server = serving.wrap_bio(ours, theirs, server_side=True)
    with pytest.raises(ssl.SSLCertVerificationError):
        for _ in range(10):
            for end in (client, server):
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()


@pytest.mark.revocation
def test_a_revoked_environments_certificate_is_of_no_use(host, tmp_path):
    kept = made(tmp_path, certificates.path(host.layout, "web").read_bytes())
    with host.connect("web") as connection:
        host.apply(TELL, Link(source="web", target="audit"))
        connection.process_data_events(0.5)  # what it is told by now
        assert connection.is_open
        host.apply(TELL)
        with pytest.raises(AMQPError):
            while True:
                connection.process_data_events(1)
    host.apply(TELL, Link(source="audit", target="web"), only=False)  # so that there is a port for it again
    host.links.renew(replace=True, distrust=True)
    assert not admitted(host, "web", certificate=kept)
    assert admitted(host, "web")


# -- renewal ---------------------------------------------------------------------------------
def test_certificates_are_renewed_and_nothing_is_interrupted(host):
    path = certificates.path(host.layout, "web")
    known = authority.read(host.layout)
    with host.client("web") as channel:
        publish(host, channel)
        old = Issuer(known).environment("web", time.time() - 17 * 3600)  # of 24 hours, 7 are left
        path.write_bytes(old)
        assert "certificates:web" in host.plan(*LINKS).steps[0].changes
        assert renew.renew(host.layout) == ({"web"}, {})
        assert path.read_bytes() != old
        assert host.plan(*LINKS).steps == []
        for _ in range(20):
            publish(host, channel)
        assert admitted(host, "web")
        assert renew.renew(host.layout) == (set(), {})
    path.unlink()
    assert "certificates:web" in str(host.links.health()["problems"])
    host.apply(*LINKS)
    host.no_mail()  # which nobody reads
    until(lambda: host.links.health()["problems"] == [], "the broker's figures are up to 5 s old")


def test_another_authority_takes_over_while_mail_flows(host, tmp_path):
    former = made(tmp_path, certificates.path(host.layout, "web").read_bytes())
    with host.client("web") as channel:
        publish(host, channel)
        assert host.links.renew(replace=True) == set(NAMES)
        publish(host, channel)
        assert admitted(host, "web"), "with the new one, at once"
        assert admitted(host, "web", certificate=former), "with the one that a client may have read a moment ago"
        host.links.renew(distrust=True)
        assert not admitted(host, "web", certificate=former)
        publish(host, channel)
    assert admitted(host, "web")
    assert host.plan(*LINKS).steps == []


def test_a_fleets_intermediate_issues(host, tmp_path):
    folder = tmp_path / "authority"
    folder.mkdir(mode=0o700)
    intermediate(folder)
    broker = LocalBroker(authority=str(folder), trust_domain="example.org")
    try:
        host.apply(*LINKS, broker=broker)
        assert host.links.access().identity("web").startswith("spiffe://example.org/host/")
        with host.client("web") as channel:
            publish(host, channel)
        assert host.plan(*LINKS, broker=broker).steps == []
        with host.api() as api:
            names = {user["name"] for user in api.get("users")}
        assert names == {"netspace.admin", *(host.links.access().identity(name) for name in NAMES)}
        (folder / "authority.pem").chmod(0o644)
        plan = host.plan(*LINKS, broker=broker, remove=[TELL.name])
        outcomes = host.links.apply(plan.steps)
        assert {"users other than root can read the key" in outcome.error for outcome in outcomes} == {True}
        with host.client("web") as channel:  # and what there is goes on
            publish(host, channel)
    finally:
        host.apply(*LINKS)
    assert admitted(host, "web")


def intermediate(folder: Path) -> None:
    """A fleet's root CA, and an intermediate CA with a certificate from this root."""
    commands = """
        openssl ecparam -name prime256v1 -genkey -noout -out root.key
        openssl req -x509 -new -key root.key -subj /CN=fleet -addext keyUsage=critical,keyCertSign -out root.pem
        openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out key.pem
        openssl req -new -key key.pem -subj /CN=host -out request.pem
        printf 'basicConstraints=critical,CA:true,pathlen:0\\nkeyUsage=critical,keyCertSign\\n' >extensions
        openssl x509 -req -in request.pem -CA root.pem -CAkey root.key -CAcreateserial -days 20 \\
            -extfile extensions -out c.pem
        cat key.pem c.pem root.pem >authority.pem
        chmod 600 authority.pem
    """
    subprocess.run(["sh", "-ec", commands], cwd=folder, check=True, capture_output=True)


# -- from an older version ------------------------------------------------------------------------
def test_accounts_of_the_version_that_had_passwords_are_replaced(host):
    with host.api() as api:
        old = {"name": "env.web", "password_hash": "aGFzaA==", "hashing_algorithm": "rabbit_password_hashing_sha256"}
        api.post(
            "definitions",
            body={
                "users": [{**old, "tags": [], "limits": {}}],
                "permissions": [
                    {"user": "env.web", "vhost": "netspace", "configure": "^$", "write": "^$", "read": "^mailbox"}
                ],
            },
        )
        plan = host.apply(*LINKS)
        assert list(plan.steps[0].changes) == ["user:env.web"]
        assert "env.web" not in {user["name"] for user in api.get("users")}
    assert host.plan(*LINKS).steps == []


# -- the transport ------------------------------------------------------------------------------------
HOSTILE = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "amqp without tls": b"AMQP\x00\x00\x09\x01",
    "nothing of sense": bytes(range(256)) * 64,
    "a proxy's header": b"PROXY TCP4 127.0.0.1 127.0.0.1 1 5672\r\nAMQP\x00\x00\x09\x01",
    "an endless handshake": b"\x16\x03\x01\xff\xff",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_other_bytes_get_nothing_but_an_end(host, what):
    with host.inside("web"), socket.create_connection(("127.0.0.1", 5671), timeout=30) as stream:
        stream.sendall(HOSTILE[what])
        answer = b""
        with contextlib.suppress(ConnectionError):
            while part := stream.recv(4096):
                answer += part
    # A TLS alert at most: no greeting, no page.
    assert len(answer) <= 7, answer
    with host.client("web") as channel:
        publish(host, channel)


def test_another_vhost_is_refused(host):
    about = host.card("web")["broker"]
    login = pika.credentials.ExternalCredentials()
    tls = pika.SSLOptions(host.tls(certificates.path(host.layout, "web")), "localhost")
    for vhost in ("/", "other", ""):
        with host.inside("web"), pytest.raises(AMQPError):
            pika.BlockingConnection(
                pika.ConnectionParameters(about["host"], about["port"], vhost, login, ssl_options=tls)
            )


# -- the examples ---------------------------------------------------------------------------------------
def run(host, name: str, folder: Path, *command: str) -> str:
    """Run a program in an environment's namespace, with ``/run/netspace`` as the host would fill it."""
    cards = folder / f"card-{name}"
    if not cards.exists():
        host.write_cards(name, cards)
    program = [*host.place(name, str(cards)), *command]
    done = subprocess.run(program, capture_output=True, text=True, errors="replace", timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def try_out(host, folder: Path, *program: str, asks: str = "request") -> None:
    """Test an example program: send, also to a local name; read all queues; refuse strangers; ask; report problems.

    No message may end the program.

    :param asks: ``request`` if the program can ask a peer.
    """
    host.apply(TELL, Link(source="web", target="audit", local="log", length=5))
    assert run(host, "orders", folder, *program, "send", "audit", "sold") == ""
    assert run(host, "web", folder, *program, "send", "log", "by a lane") == ""
    heard = {run(host, "audit", folder, *program, "receive") for _ in range(2)}
    assert heard == {"orders: sold", "web: by a lane"}

    host.apply(TELL, Link(source="web", target="audit"))
    (folder / "later").mkdir()
    run(host, "orders", folder / "later", *program, "send", "audit", "stray")
    run(host, "web", folder / "later", *program, "send", "audit", "genuine")
    host.write_cards("audit", folder / "later/card-audit")
    card = folder / "later/card-audit/environment.json"
    about = json.loads(card.read_text())
    card.write_text(json.dumps({**about, "senders": [one for one in about["senders"] if one["from"] == "web"]}))
    assert run(host, "audit", folder / "later", *program, "receive") == "web: genuine"
    until(lambda: Letters(host.layout).count()["count"] == 1)
    Letters(host.layout).discard()

    with host.client("web") as channel:
        for body in (b"\xff\xfe no text", b""):
            channel.basic_publish(host.n("link.web.audit"), "", body, mandatory=True)
            assert run(host, "audit", folder / "later", *program, "receive").startswith("web:")

    if "request" in asks:
        host.apply(TELL, Link(source="web", target="audit"), ASK)
        (folder / "asking").mkdir()
        place = host.place("orders", host.write_cards("orders", folder / "asking/card-orders"))
        with subprocess.Popen([*place, sys.executable, str(EXAMPLES / "mail_pika.py"), "answer"]) as answering:
            try:
                assert run(host, "web", folder / "asking", *program, "request", "orders", "why?") == "web asked why?"
            finally:
                answering.terminate()

    for words, complaint in ((["send", "nobody", "x"], "no link to nobody"), ([], "send PEER TEXT")):
        with pytest.raises(AssertionError, match=complaint):
            run(host, "orders", folder, *program, *words)


@pytest.mark.parametrize("example", todays(["mail_pika.py", "mail_aio_pika.py"], 2))
def test_the_python_examples(host, tmp_path, example):
    asks = "" if "aio" in example else "request"
    try_out(host, tmp_path, sys.executable, str(EXAMPLES / example), asks=asks)


@pytest.mark.skipif("go" not in todays(["", "go", "", ""], 4), reason="every fourth day: Go compiles its library")
@pytest.mark.skipif(not GO.is_dir() or not shutil.which("go"), reason="no golang-github-rabbitmq-amqp091-go-dev")
def test_the_go_example(host, tmp_path):
    program = str(tmp_path / "mail")
    cache = EXAMPLES.parent / ".cache/go"  # a minute, where it is empty
    variables = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOCACHE": str(cache)}
    build = ["env", *(f"{key}={value}" for key, value in variables.items()), "go", "build", "-o", program]
    signal.alarm(0)
    subprocess.run([*build, str(EXAMPLES / "mail.go")], check=True, timeout=300)
    signal.alarm(600)
    try_out(host, tmp_path, program)


@pytest.mark.skipif(
    not all(Path("/usr/include", header).exists() for header in ("rabbitmq-c/amqp.h", "json-c/json.h")),
    reason="no librabbitmq-dev, or no libjson-c-dev",
)
def test_the_c_example(host, tmp_path):
    program, libraries = str(tmp_path / "mail"), ["-lrabbitmq", "-ljson-c"]
    subprocess.run(
        ["cc", "-Wall", "-Wextra", "-Werror", "-o", program, str(EXAMPLES / "mail.c"), *libraries], check=True
    )
    try_out(host, tmp_path, program)


@pytest.mark.skipif(not shutil.which("amqp-publish") or not shutil.which("jq"), reason="no amqp-tools, or no jq")
def test_the_shell_example_and_passwords_where_they_are_asked_for(host, tmp_path):
    broker = LocalBroker(passwords=("orders", "audit"))
    program = str(EXAMPLES / "mail.sh")
    lane = Link(source="web", target="audit", length=5)
    try:
        links = (ASK, Link(source="orders", target="audit", local="log"), lane)
        host.apply(*links, broker=broker)
        assert host.plan(*links, broker=broker).steps == []
        assert run(host, "orders", tmp_path, program, "send", "log", "sold") == ""
        with pytest.raises(AssertionError, match="no link to nobody"):
            run(host, "orders", tmp_path, program, "send", "nobody", "x")
        place = host.place("audit", host.write_cards("audit", tmp_path / "card-audit"))
        with subprocess.Popen([*place, program, "receive"], stdout=subprocess.PIPE, text=True) as hearing:
            with host.client("web") as channel:
                channel.basic_publish(host.links.called.exchange(lane), "", b"by a lane", mandatory=True)
            heard = {next(iter(hearing.stdout)).strip() for _ in range(2)}
            hearing.terminate()
        assert heard == {"sold", "by a lane"}
        card = json.loads((tmp_path / "card-audit/environment.json").read_text())["broker"]
        assert (card["port"], card["username"]) == (5672, "env.audit")
        assert not (tmp_path / "card-audit/identity.pem").exists()
        # Those that didn't ask for one have none, though the broker takes passwords now.
        assert admitted(host, "web")
        assert not admitted(host, "web", password="", certificate=certificates.path(host.layout, "web"))
        until(lambda: not host.listens("orders"), "the forwarder's former process leaves its socket")
        assert not admitted(host, "orders", password=passwords.read(host.layout, "audit"))
    finally:
        host.apply(*LINKS)
    assert passwords.read(host.layout, "audit") is None
    until(lambda: admitted(host, "audit"))
