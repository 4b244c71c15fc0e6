"""Three RabbitMQ nodes that form one cluster, and hosts that share it, on a separate network.

Each node and each host has a network namespace. A bridge in a further namespace connects them. Names are only in files
(``/etc/hosts`` of the sandbox, Erlang's inetrc), so no process asks a name server. Data is only in memory.
"""

from __future__ import annotations

import contextlib
import datetime
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from netspace.link.broker.management import Login, Management
from netspace.link.broker.node import _NAMES, _NO_QUESTIONS
from netspace.spec.types import ClusterBroker

SWITCH = "lan"
NODES = {"n1": "10.77.0.11", "n2": "10.77.0.12", "n3": "10.77.0.13"}
HOSTS = {"h1": "10.77.0.21", "h2": "10.77.0.22"}
RABBITMQ = Path("/usr/lib/rabbitmq/bin")
READY_SECONDS = 90.0


def run(*command: str, **options: object) -> None:
    subprocess.run(command, check=True, **options)  # type: ignore[call-overload]


class Network:
    """Members, each with an address, connected by a bridge. The whole sandbox knows their names."""

    def __init__(self, members: dict[str, str], folder: Path) -> None:
        self.members = members
        self._hosts = folder / "hosts"
        self._made: list[str] = []

    def __enter__(self) -> Network:
        run("ip", "netns", "add", SWITCH)
        self._made.append(SWITCH)
        run("ip", "-n", SWITCH, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", SWITCH, "link", "set", "br0", "up")
        for name, address in self.members.items():
            run("ip", "netns", "add", name)
            self._made.append(name)
            ends = ("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", name, "netns", SWITCH)
            run("ip", *ends)
            run("ip", "-n", SWITCH, "link", "set", name, "master", "br0", "up")
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                run("ip", "-n", name, "link", "set", link, "up")
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in self.members.items())]
        self._hosts.write_text("\n".join(lines) + "\n")
        run("mount", "--bind", str(self._hosts), "/etc/hosts")
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "/etc/hosts"], check=False)
        for name in reversed(self._made):
            run("ip", "netns", "del", name)

    def cable(self, member: str, *, plugged: bool) -> None:
        """Disconnect a member from all others, or connect it again."""
        run("ip", "-n", SWITCH, "link", "set", member, "up" if plugged else "down")

    def part(self, member: str, others: list[str], *, parted: bool) -> None:
        """Drop the packets between a member and *others*. The rest of the network keeps working."""
        verb = "add" if parted else "del"
        for other in others:
            for here, there in ((member, other), (other, member)):
                run("ip", "-n", here, "route", verb, "blackhole", f"{self.members[there]}/32")


class Cluster:
    """The nodes. The user rabbitmq must be able to read ``folder``."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network = network
        self.folder = folder
        self.login = Login("fleet", secrets.token_urlsafe(24))
        self._owner = pwd.getpwnam("rabbitmq")
        self._cookie = secrets.token_hex(20)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._mappers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cluster:
        self._certificates()
        for name in NODES:
            self._install(name)
            self._mappers.append(self._spawn(name, "/usr/bin/epmd", quiet=True))
            self.start(name)
        try:
            for name in NODES:
                self.wait(name)
            self.control("n1", "enable_feature_flag", "--experimental", "khepri_db")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self._processes.values(), *self._mappers):
            process.kill()
            process.wait()

    # -- one node ----------------------------------------------------------------
    def start(self, name: str) -> None:
        self._processes[name] = self._spawn(name, str(RABBITMQ / "rabbitmq-server"))

    def kill(self, name: str) -> None:
        """Kill a node (``kill -9``)."""
        self._processes[name].send_signal(signal.SIGKILL)
        self._processes[name].wait()

    def wait(self, name: str) -> None:
        """Wait until a node serves; its log has its errors."""
        deadline = time.monotonic() + READY_SECONDS
        while self._control(name, "await_startup", "--timeout", "60").returncode:
            ended = self._processes[name].poll()
            assert ended is None and time.monotonic() < deadline, f"{name}: {ended}\n{self.log(name)}"
            time.sleep(0.2)

    def log(self, name: str) -> str:
        with contextlib.suppress(OSError):
            return (self.folder / name / "log/broker.log").read_text(errors="replace")[-3000:]
        return "(it has no log)"

    def control(self, name: str, *arguments: str) -> str:
        done = self._control(name, *arguments)
        assert done.returncode == 0, f"{arguments[0]} on {name}: {done.stdout}{done.stderr}"
        return done.stdout

    def _control(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = self._command(name, str(RABBITMQ / "rabbitmqctl"), "--quiet", *arguments)
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd="/")

    # -- how it is reached ---------------------------------------------------------
    def broker(self, host: str, vhost: str = "fleet") -> ClusterBroker:
        """Return the broker that a host of the fleet declares."""
        credentials, key = self.folder / "credentials", self.folder / "names.key"
        credentials.write_text(f"{self.login.username}:{self.login.password}\n")
        if not key.exists():
            key.write_text(secrets.token_hex(32))
            key.chmod(0o600)
        for path in (credentials, key):
            path.chmod(0o600)
        return ClusterBroker(
            host=host,
            url=tuple(f"amqps://{name}:5671" for name in NODES),
            management=tuple(f"https://{name}:15671" for name in NODES),
            credentials=str(credentials),
            vhost=vhost,
            names_key=str(key),
            ca=str(self.folder / "ca.pem"),
        )

    def api(self, *names: str) -> Management:
        urls = [f"https://{name}:15671" for name in names or NODES]
        return Management(urls, self.login, ca=str(self.folder / "ca.pem"))

    # -- making it -------------------------------------------------------------------
    def _command(self, name: str, *command: str) -> list[str]:
        base = self.folder / name
        variables = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "HOME": str(base),
            "RUNNING_UNDER_SYSTEMD": "true",
            "ERL_INETRC": str(self.folder / "inetrc"),
            **_NO_QUESTIONS,
            "RABBITMQ_NODENAME": f"rabbit@{name}",
            "RABBITMQ_MNESIA_BASE": str(base / "data"),
            "RABBITMQ_LOG_BASE": str(base / "log"),
            "RABBITMQ_CONFIG_FILE": str(base / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(base / "none.config"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"
            # A node out of reach is noticed after so many seconds; until then others wait for its answers.
            " -kernel net_ticktime 8",
        }
        setting = [f"{key}={value}" for key, value in variables.items()]
        who = ["setpriv", "--reuid=rabbitmq", "--regid=rabbitmq", "--clear-groups"]
        return ["ip", "netns", "exec", name, *who, "env", "-i", *setting, *command]

    def _spawn(self, name: str, *command: str, quiet: bool = False) -> subprocess.Popen[bytes]:
        output = subprocess.DEVNULL if quiet else (self.folder / name / "output").open("ab")
        return subprocess.Popen(
            self._command(name, *command), stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/"
        )

    def _install(self, name: str) -> None:
        base = self.folder / name
        base.mkdir(exist_ok=True)
        peers = "\n".join(
            f"cluster_formation.classic_config.nodes.{number} = rabbit@{one}" for number, one in enumerate(NODES, 1)
        )
        (base / "rabbitmq.conf").write_text(
            f"""cluster_formation.peer_discovery_backend = classic_config
{peers}
listeners.tcp = none
listeners.ssl.1 = {NODES[name]}:5671
ssl_options.cacertfile = {self.folder}/ca.pem
ssl_options.certfile = {base}/server.pem
ssl_options.keyfile = {base}/server.pem
ssl_options.verify = verify_none
management.ssl.ip = {NODES[name]}
management.ssl.port = 15671
management.ssl.cacertfile = {self.folder}/ca.pem
management.ssl.certfile = {base}/server.pem
management.ssl.keyfile = {base}/server.pem
log.console = false
log.file = broker.log
vm_memory_high_watermark.absolute = 512MB
disk_free_limit.absolute = 50MB
raft.wal_max_size_bytes = 16777216
default_user = {self.login.username}
default_pass = {self.login.password}
"""
        )
        (base / ".erlang.cookie").write_text(self._cookie)
        (base / ".erlang.cookie").chmod(0o400)
        for path in (base, *base.iterdir()):
            shutil.chown(path, self._owner.pw_uid, self._owner.pw_gid)

    def _certificates(self) -> None:
        hosts = "".join(f'{{host, {{{a.replace(".", ",")}}}, ["{n}"]}}.\n' for n, a in self.network.members.items())
        (self.folder / "inetrc").write_text(_NAMES + hosts)
        (self.folder / "plugins").write_text("[rabbitmq_management].\n")
        key = ec.generate_private_key(ec.SECP256R1())
        authority = _certificate("a fleet's authority", key, None, key)
        (self.folder / "ca.pem").write_bytes(authority.public_bytes(Encoding.PEM))
        for name in NODES:
            own = ec.generate_private_key(ec.SECP256R1())
            made = _certificate(name, own, authority, key)
            (self.folder / name).mkdir(exist_ok=True)
            content = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            (self.folder / name / "server.pem").write_bytes(content + made.public_bytes(Encoding.PEM))


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Certificate | None, by: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(issuer is None, None), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), False)
    )
    if issuer is None:  # Python 3.13 and newer demand it of an authority (RFC 5280, 4.2.1.3)
        signs = {"key_cert_sign": True, "crl_sign": True}
        no = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
        usage = x509.KeyUsage(**signs, **dict.fromkeys((*no, "encipher_only", "decipher_only"), False))
        builder = builder.add_extension(usage, True)
    else:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
    return builder.sign(by, hashes.SHA256())
