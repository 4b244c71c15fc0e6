"""netspace's own RabbitMQ node. It uses the programs of Debian's package, but not the package's service.

The node is one service. It needs no epmd (Erlang's port mapper; see ``mapper``). It listens on loopback only. Data, log
and configuration are in ``layout.broker``. The node runs as the package's user ``rabbitmq``, which may write only to
the data and the log. The node never asks a name server, whatever the host's resolver is set to. There is no user
``guest``: the node loads our management account and vhost from a definitions file, which holds only a password hash.

Clients must use TLS and show a certificate of this host's authority; the SPIFFE ID in it is the account
(:mod:`netspace.link.pki.certificates`). Passwords are accepted only if the declaration lists environments that need
them.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from netspace import files
from netspace.errors import MissingError, NetspaceError, StateError
from netspace.layout import Layout
from netspace.link.broker import disk, first_start, listening, log, loopback, mapper, plugin
from netspace.link.broker.management import Login, Management, RefusedError, UnreachableError
from netspace.link.pki import authority, certificates
from netspace.link.topology import diff
from netspace.spec.types import LocalBroker
from netspace.supervision.service import Service, Supervisor

USER = "rabbitmq"
SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
NODE = "broker"
FORMER = "epmd"  # the service for epmd that older versions of netspace ran beside the node
QUIET_SECONDS = 90.0  # a start is given up after so long without a new line in the node's log
START_SECONDS = 900.0  # and after so long altogether: a processor that is emulated needs some minutes
DEAF_SECONDS = 30.0  # for an answer of a busy broker; then it is restarted, which ends all connections
CONSUMERS = 256  # per channel; an environment needs one for each queue that it reads
PLUGINS = ("rabbitmq_auth_mechanism_ssl", "rabbitmq_event_exchange", "rabbitmq_management", plugin.NAME)
SHOVEL = ("rabbitmq_shovel", "rabbitmq_shovel_management")  # only if other hosts are declared

# Erlang's schedulers must not busy-wait: the node shares the host with other programs. RabbitMQ asks for a table of
# 1,048,576 processes, which takes 16 MB at once. Half of them are enough for the 9,000 connections that the forwarder
# lets in, with all channels that their accounts may open: 10 processes for a connection, 4 for a channel.
_EMULATOR = "+P 524288 +sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}"

# RabbitMQ looks up the host's own name at its start and for many requests to the management API. It would wait for
# name servers that may never answer. https://www.erlang.org/doc/apps/erts/inet_cfg.html
_NAMES = """% Written by netspace: names are looked up in files only, never in the DNS.
{lookup, [file]}.
{host, {127,0,0,1}, ["localhost"]}.
"""

# Before Erlang reads that file, it has the C library look up a host name without a dot. With these options, the C
# library looks up such a name only below the search domain. A search domain with a label of more than 63 octets
# (RFC 1035, 2.3.4) makes every such query invalid, so none is sent. resolv.conf(5)
_NO_QUESTIONS = {"RES_OPTIONS": "ndots:1 no-tld-query", "LOCALDOMAIN": "x" * 64}


# Read by the start script. The usual limit of 1,024 descriptors permits only some 800 connections, including those from
# other hosts. The limit has an upper bound because Erlang allocates memory for each descriptor that it may have.
# RabbitMQ's own plugins are in a folder whose name contains RabbitMQ's version, so an upgrade changes it.
_START = """# Written by netspace.
most=$(ulimit -H -n)
if [ "$most" = unlimited ] || [ "$most" -gt 65536 ]; then most=65536; fi
ulimit -S -n "$most"
own=$(echo /usr/lib/rabbitmq/lib/rabbitmq_server-*/plugins)
export RABBITMQ_PLUGINS_DIR="${{own##* }}:{plugins}"
"""

# Milliseconds until RabbitMQ moves a dead letter to a full queue again; the bounds on a log (``disk``) of 4.0 and 4.3.
_ADVANCED = f"""[{{rabbit, [
    {{dead_letter_worker_publisher_confirm_timeout, 10000}},
    {{quorum_min_checkpoint_interval, {disk.ENTRIES}}},
    {{quorum_wal_max_size_bytes, {disk.WAL}}}
]}}].
"""


def service(layout: Layout, spec: LocalBroker) -> Service:
    """Return the definition of the service that runs the node."""
    base = layout.broker
    return Service(
        name=NODE,
        command=(str(SERVER),),
        description=f"RabbitMQ node of {layout.instance}",
        variables={
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "HOME": str(base / "data"),
            # With this variable, the start script execs the node instead of waiting for it.
            "RUNNING_UNDER_SYSTEMD": "true",
            "ERL_INETRC": str(base / "etc/inetrc"),
            **_NO_QUESTIONS,
            "RABBITMQ_NODENAME": f"{layout.instance}@localhost",
            "RABBITMQ_MNESIA_BASE": str(first_start.data(layout)),
            "RABBITMQ_LOG_BASE": str(base / "log"),
            "RABBITMQ_CONFIG_FILE": str(base / "etc/rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(base / "etc/advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(base / "etc/rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(base / "etc/enabled_plugins"),
            "RABBITMQ_DIST_PORT": str(spec.distribution_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{_EMULATOR} {_mapped(layout, spec)}",
            "RABBITMQ_CTL_ERL_ARGS": _mapped(layout, spec),
        },
        working_dir=str(base / "data"),
        user=USER,
        stop_timeout=30.0,
        log=layout.logs / "broker.log",
    )


def _mapped(layout: Layout, spec: LocalBroker) -> str:
    return mapper.arguments(plugin.place(_plugins(layout)), spec.distribution_port)


def configuration(layout: Layout, spec: LocalBroker) -> str:
    """Return the content of ``rabbitmq.conf``."""
    tls = certificates.server_folder(layout)
    allowed = ("EXTERNAL", "PLAIN") if spec.passwords else ("EXTERNAL",)
    mechanisms = "\n".join(f"auth_mechanisms.{number} = {name}" for number, name in enumerate(allowed, 1))
    return f"""# Written by netspace: the broker of the links between environments.
# Distribution port {spec.distribution_port}.
listeners.tcp = none
listeners.ssl.1 = 127.0.0.1:{spec.port}
# Without this, Erlang may not notice the end of a TLS connection that data came before; the others are the defaults.
tcp_listen_options.exit_on_close = true
tcp_listen_options.backlog = 128
tcp_listen_options.nodelay = true
tcp_listen_options.linger.on = true
tcp_listen_options.linger.timeout = 0
ssl_options.cacertfile = {tls}/{certificates.ANCHORS}
ssl_options.certfile = {tls}/server.pem
ssl_options.keyfile = {tls}/server.pem
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = {"false" if spec.passwords else "true"}
ssl_options.versions.1 = tlsv1.3
ssl_options.versions.2 = tlsv1.2
ssl_cert_login_from = subject_alternative_name
ssl_cert_login_san_type = uri
ssl_cert_login_san_index = 0
{mechanisms}
management.tcp.ip = 127.0.0.1
management.tcp.port = {spec.management_port}
management.rates_mode = none
deprecated_features.permit.amqp_address_v1 = false
load_definitions = {layout.broker}/etc/definitions.json
event_exchange.vhost = {layout.instance}
log.console = false
log.file = broker.log
log.file.level = info
log.file.rotation.size = 10485760
log.file.rotation.count = 3
vm_memory_high_watermark.relative = 0.4
disk_free_limit.absolute = 200MB
raft.wal_max_size_bytes = {disk.WAL}
raft.segment_max_entries = {disk.ENTRIES}
handshake_timeout = 10000
channel_max = 64
consumer_max_per_channel = {CONSUMERS}
max_message_size = {spec.message_size}
consumer_timeout = 1800000
"""


def definitions(layout: Layout, username: str, password_hash: str) -> dict[str, Any]:
    """Return the definitions that the node loads at each start: our vhost, and the management account.

    The account needs permissions, because the management API deletes and reads queues with this account.
    """
    vhost = layout.instance
    return {
        "users": [
            {
                "name": username,
                "password_hash": password_hash,
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": ["administrator"],
                "limits": {},
            }
        ],
        "vhosts": [{"name": vhost}],
        "permissions": [{"user": username, "vhost": vhost, "configure": ".*", "write": ".*", "read": ".*"}],
    }


def _admin(layout: Layout) -> Path:
    return layout.records("link") / "management.json"


def _plugins(layout: Layout) -> Path:
    """Return the folder of netspace's own plugin."""
    return layout.broker / "plugins"


def login(layout: Layout) -> Login | None:
    """Return our node's management account; None if the node was never installed."""
    record = files.read_json(_admin(layout))
    if record is None:
        return None
    try:
        return Login(record["username"], record["password"])
    except KeyError as err:
        raise StateError(f"{_admin(layout)}: {err} is missing; remove the file and apply again") from err


def management(layout: Layout, spec: LocalBroker, timeout: float = 10.0) -> Management:
    """Return a client of our node's management API."""
    account = login(layout)
    if account is None:
        raise UnreachableError("the broker's management credentials are missing; apply again to make new ones")
    return Management((f"http://127.0.0.1:{spec.management_port}",), account, timeout)


def available() -> None:
    """Check that Debian's RabbitMQ is installed; raise MissingError if it isn't."""
    if not SERVER.exists():
        raise MissingError(f"RabbitMQ ({SERVER})", "apt-get install rabbitmq-server")


def installed(layout: Layout, spec: LocalBroker) -> bool:
    """Return whether configuration, credentials and plugin on disk match *spec*. Reads only."""
    record = files.read_json(_admin(layout))
    if record is None or "hash" not in record:
        return False
    etc = layout.broker / "etc"
    wanted = _files(layout, spec, record)
    try:
        same = all((etc / name).read_bytes() == content for name, content in wanted.items())
    except OSError:
        return False
    return same and plugin.installed(_plugins(layout))


def _files(layout: Layout, spec: LocalBroker, record: Mapping[str, Any]) -> dict[str, bytes]:
    return {
        "rabbitmq.conf": configuration(layout, spec).encode(),
        "advanced.config": _ADVANCED.encode(),
        "rabbitmq-env.conf": _START.format(plugins=_plugins(layout)).encode(),
        "inetrc": _NAMES.encode(),
        "enabled_plugins": f"[{','.join([*PLUGINS, *(SHOVEL if spec.hosts else ())])}].\n".encode(),
        "definitions.json": files.encode(definitions(layout, record["username"], record["hash"])),
    }


def install(layout: Layout, spec: LocalBroker) -> None:
    """Write the node's folders, configuration, credentials and plugin.

    :raises MissingError: RabbitMQ is not installed.
    """
    available()
    owner = _user()
    base = layout.broker
    for path, mode, uid in (
        (base, 0o750, 0),
        (base / "etc", 0o750, 0),
        (_plugins(layout), 0o750, 0),
        (base / "data", 0o700, owner.pw_uid),
        (base / "log", 0o750, owner.pw_uid),
    ):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chown(path, uid, owner.pw_gid, follow_symlinks=False)
        path.chmod(mode)
    record = files.read_json(_admin(layout))
    if record is None or not {"username", "password", "hash"} <= record.keys():
        password = secrets.token_urlsafe(32)
        record = {"username": f"{layout.instance}.admin", "password": password, "hash": diff.hashed(password)}
        files.write_json(_admin(layout), record)
    if not (certificates.server_folder(layout) / certificates.SERVER).exists():
        certificates.ensure(layout, spec, (), time.time(), reader())  # otherwise ``apply`` has issued it
    for name, content in _files(layout, spec, record).items():
        files.write(base / "etc" / name, content, mode=0o640, owner=(0, owner.pw_gid))
    plugin.install(_plugins(layout), owner.pw_gid)
    cookie = base / "data" / ".erlang.cookie"
    if not cookie.exists():
        files.write(cookie, secrets.token_hex(20).encode(), mode=0o400, owner=(owner.pw_uid, owner.pw_gid))


def _user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(USER)
    except KeyError as err:
        raise MissingError(f"the system user {USER}", "apt-get install rabbitmq-server") from err


def reader() -> tuple[int, int]:
    """Return the owner (root) and the group (the node's) for files that the node may read but not write.

    :raises MissingError: RabbitMQ is not installed.
    """
    available()
    return 0, _user().pw_gid


def evaluate(layout: Layout, spec: LocalBroker, expression: str) -> str:
    """Evaluate an Erlang *expression* in a running node; return why that failed, or an empty text.

    Use this only for operations that no API offers.
    """
    import subprocess

    done = subprocess.run(
        ["/usr/lib/rabbitmq/bin/rabbitmqctl", "--quiet", "eval", expression],
        env=dict(service(layout, spec).variables),
        user=USER,
        group=USER,
        extra_groups=(),
        capture_output=True,
        text=True,
        cwd=layout.broker / "data",
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    return (done.stderr or done.stdout)[-400:] or f"exit {done.returncode}" if done.returncode else ""


def reread_certificates(layout: Layout, spec: LocalBroker) -> None:
    """Let a running node reload its certificate files now, instead of within two minutes as it does by itself.

    Established connections stay.
    """
    if why := evaluate(layout, spec, "ssl:clear_pem_cache()."):
        raise NetspaceError(f"the broker can't load its new certificates: {why}")


def restart_plugin(layout: Layout, spec: LocalBroker, name: str) -> None:
    """Restart a plugin of a running node. RabbitMQ doesn't restart a plugin that has ended (``access.ended``)."""
    if why := evaluate(layout, spec, f"application:stop({name}), ok = application:start({name})."):
        raise NetspaceError(f"the broker's plugin {name} can't be restarted: {why}")


def start(
    layout: Layout,
    spec: LocalBroker,
    supervisor: Supervisor,
    progress: Callable[[str], None],
    *,
    deaf: bool = False,
) -> None:
    """Install and start the node, and wait until clients can reach it.

    :param deaf: whether an earlier check found that the node runs but clients can't reach it. If so, the check is
        repeated for ``DEAF_SECONDS``, and the node is restarted if it still doesn't answer.
    :raises NetspaceError: another program uses one of its ports, or netspace can't run this RabbitMQ (in both cases
        nothing is changed); or the node doesn't start (the error contains the end of its log).
    """
    from netspace.link.broker import versions  # not needed where no broker is started

    available()
    versions.check_node(layout)
    status = supervisor.observe([NODE]).get(NODE)
    if refusal := listening.taken(spec, None if status is None else status.pid):
        raise NetspaceError(refusal)
    if deaf:
        progress(f"asking the broker again, for up to {DEAF_SECONDS:.0f} s")
        deaf = bool(listening.unanswered(layout, spec, seconds=DEAF_SECONDS))
    new = first_start.unfinished(layout) and bool(listening.unanswered(layout, spec))
    if status is not None and (new or deaf or not installed(layout, spec)):
        # Stop it before writing files: if this run is killed in between, the next run starts the node.
        _raise(layout, "can't stop the broker to reconfigure it", supervisor.stop([NODE]))
    if new:
        first_start.undo(layout)
    install(layout, spec)
    first_start.begin(layout)
    supervisor.define([service(layout, spec)])
    if FORMER in supervisor.observe([FORMER]):
        _raise(layout, "can't remove what the broker doesn't need any more", supervisor.remove([FORMER]))
    _raise(layout, "the broker can't be started", supervisor.start([NODE]))
    wait(layout, spec, supervisor, progress)
    first_start.finish(layout)


def wait(
    layout: Layout,
    spec: LocalBroker,
    supervisor: Supervisor,
    progress: Callable[[str], None],
    quiet: float = QUIET_SECONDS,
    longest: float = START_SECONDS,
) -> None:
    """Wait until the node's management API answers, our vhost exists, and the node accepts connections.

    :param quiet: seconds without a new line in the node's log after which the wait ends.
    :param longest: seconds after which the wait ends in any case.
    :raises NetspaceError: the node ended, or the wait did; the error contains the end of its log.
    """
    begun, said = time.monotonic(), 0.0
    written, size = begun, 0
    with management(layout, spec, timeout=5.0) as api:
        while True:
            try:
                if api.get("vhosts", layout.instance, query="columns=name") is None:
                    complaint = "its virtual host is missing"
                elif not (complaint := listening.unanswered(layout, spec)):
                    return
            except (UnreachableError, RefusedError) as err:  # it refuses requests while it loads its definitions
                complaint = str(err)
            now, status = time.monotonic(), supervisor.observe([NODE]).get(NODE)
            passed, (before, size) = now - begun, (size, log.size(layout))
            written = now if size != before else written
            late = now - written > quiet or passed > longest
            if status is None or status.state in ("failed", "stopped") or late:
                why = f"isn't ready after {passed:.0f} s ({complaint})" if late else "ended while starting"
                if status is not None and status.exit:
                    why += f" ({status.exit})"
                raise NetspaceError(f"the broker {why}; the end of its log:\n{log.tail(layout)}")
            if passed - said >= 1.0:
                said = passed
                progress(f"waiting for the broker to start ({passed:.0f} s)")
            time.sleep(0.1)


def remove(layout: Layout, supervisor: Supervisor, *, keep_data: bool) -> None:
    """Stop the node and remove its service.

    :param keep_data: whether to keep the node's mail for a later start.
    """
    known = list(supervisor.observe([NODE, FORMER]))
    if known:
        _raise(layout, "the broker can't be removed", supervisor.remove(known))
    loopback.remove(layout)
    if keep_data:
        return
    # The folder may be a mount point of the operator. Then it stays, empty.
    with contextlib.suppress(FileNotFoundError):
        for entry in list(os.scandir(layout.broker)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                files.remove(Path(entry.path))
        with contextlib.suppress(OSError):
            layout.broker.rmdir()
    files.remove(_admin(layout))
    authority.remove(layout)


def _raise(layout: Layout, what: str, errors: Mapping[str, str]) -> None:
    if errors:
        detail = "; ".join(f"{name}: {text}" for name, text in errors.items())
        raise NetspaceError(f"{what}: {detail}; the end of its log:\n{log.tail(layout)}")
