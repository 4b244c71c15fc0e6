"""A whole host for fault points: its declarations, their apply in a fork, and the host's state afterwards.

The host has foreign objects (a namespace, a packet filter, files, a queue), which must not change. Its broker is a real
RabbitMQ that is also foreign, so that it needn't start in every round. A separate scenario starts and stops netspace's
own broker.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import json
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import netspace
from netspace.environment import user_ids
from netspace.environment.storage import mounts
from netspace.errors import NetspaceError
from netspace.host import restore
from netspace.host.host import Host
from netspace.layout import Layout
from netspace.link.broker import node
from netspace.link.broker.management import Management
from netspace.link.topology.policies import POLICIES
from netspace.spec import parse
from netspace.spec.types import LocalBroker
from netspace.supervision import process
from netspace.supervision.daemon import presence
from netspace.supervision.service import Service, Status
from support.environments.environment_host import STAY, shell
from support.hosts import snapshot
from support.rulesets import uncounted
from support.waiting import until

LAYOUT = Layout()
# Somebody else's broker, in folders of this test's own.
OTHER = Layout("other", Path("/run/elsewhere"))
OTHERS = LocalBroker(port=5711, management_port=15711, distribution_port=25711, epmd_port=4411)
VHOST = "shared"

Declared = dict[str, Any]
KINDS = ("attestation", "interfaces", "links", "environments")
TAG = re.compile(r"\b[0-9a-f]{32}\b")
_VARIES = (re.compile(r"[0-9a-f]{32,}"), re.compile(r"\b\d{3,}\b"))


def warm_up() -> None:
    """Import all modules that a run may need, so that a fork needs no import."""
    for module in pkgutil.walk_packages(netspace.__path__, "netspace."):
        if not module.name.endswith(("__main__", ".probe", ".tpm.device", ".dbus", ".bus")):
            importlib.import_module(module.name)
    for name in ("http.client", "concurrent.futures.thread", "tempfile", "difflib", "json", "pwd"):
        importlib.import_module(name)


def busybox(folder: Path) -> Path:
    """Return a root with a static busybox."""
    (folder / "bin").mkdir(parents=True, mode=0o755)
    folder.chmod(0o755)
    shutil.copy("/bin/busybox", folder / "bin/busybox")
    for applet in ("sh", "sleep", "cat", "true"):
        (folder / "bin" / applet).symlink_to("busybox")
    return folder


# -- doing, in this process ------------------------------------------------------
def converge(declared: Declared, test: bool = False) -> dict[str, list[str]]:
    """Apply a declaration as Salt's states do; return ``steps`` and ``errors`` as texts.

    If a kind raises an error for operators, it becomes one entry of ``errors``, and the other kinds continue. Any other
    exception would be a traceback in Salt, and is raised here.
    """
    spec = parse.declaration(declared)
    host = Host(LAYOUT)
    steps, errors = [], []
    for kind in KINDS:
        act = getattr(host, f"converge_{kind}")
        try:
            result = act(spec.attestation, test=test) if kind == "attestation" else act(spec, whole=True, test=test)
        except NetspaceError as err:
            errors.append(f"{kind}: {err}")
            continue
        steps += [str(step) for step in result.plan.steps]
        errors += [f"{outcome.step.kind} {outcome.step.name}: {outcome.error}" for outcome in result.failures]
        errors += [f"{refusal.kind} {refusal.name}: {refusal.message}" for refusal in result.plan.refusals]
    return {"steps": steps, "errors": errors}


def teardown() -> dict[str, list[str]]:
    result = Host(LAYOUT).teardown()
    return {
        "steps": [str(step) for step in result.plan.steps],
        "errors": [f"{outcome.step.name}: {outcome.error}" for outcome in result.failures],
    }


def restored() -> dict[str, list[str]]:
    return {"steps": [], "errors": ["restore failed"] if restore.run(LAYOUT) else []}


# -- what is there -----------------------------------------------------------------
def _plain(text: str) -> str:
    for pattern in _VARIES:
        text = pattern.sub("#", text)
    return text


def _files(*roots: Path) -> dict[str, str]:
    """Return every file with its owner and mode; for records, also with their content."""
    found = {}
    for path in sorted(path for root in roots for path in snapshot.files(root)):
        try:
            info = os.lstat(path)
        except FileNotFoundError:
            continue
        content = ""
        if path.endswith(".json") and "/handout/" not in path and "/inside/" not in path:
            with contextlib.suppress(OSError, ValueError):
                value = json.loads(Path(path).read_bytes())
                if path.startswith(f"{LAYOUT.run}/services/"):
                    del value["service"]  # as it was started: what needs no restart may have changed since
                content = TAG.sub("TAG", json.dumps(_steady(value), sort_keys=True))
        found[path] = f"{info.st_mode:o} {info.st_uid} {content}"
    return found


# What of a record may differ between two hosts that are alike.
_UNSTEADY = frozenset({"pid", "ticks", "since", "restarts", "exit", "fingerprint", "issued", "expires", "boot"})
_UNSTEADY |= {
    "generation",
    "listed",
    "structure",
    "namespaces",
    "sources",
    "evidence",
    "key",
    "named",
    "nonce",
    "password",
    "hash",
}


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _steady(item) for key, item in value.items() if key not in _UNSTEADY}
    return [_steady(item) for item in value] if isinstance(value, list) else value


class _Plainly:
    """A supervisor that only starts and stops foreign programs; see ``supervision.Supervisor``."""

    def __init__(self) -> None:
        self.known: dict[str, Service] = {}
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def observe(self, names: Collection[str] | None = None, *, noticed: bool = False) -> dict[str, Status]:
        return {name: Status("running" if name in self.running else "stopped") for name in self.known}

    def define(self, services: Sequence[Service]) -> bool:
        self.known.update({service.name: service for service in services})
        return True

    def start(self, names: Collection[str]) -> dict[str, str]:
        for name in names:
            service = self.known[name]
            self.running[name] = subprocess.Popen(
                service.command,
                env=dict(service.variables),
                cwd=service.working_dir,
                user=service.user,
                group=service.user,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        return {}

    def remove(self, names: Collection[str]) -> dict[str, str]:
        for name in names:
            if name in self.running:
                process = self.running.pop(name)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return {}


class World:
    """One host with foreign objects on it.

    :param folder: a folder that root owns, for images, volumes and foreign files.
    :param linked: whether there is a foreign broker, and the declaration has links on this broker.
    """

    def __init__(self, folder: Path, linked: bool = True) -> None:
        self.folder = folder
        self.linked = linked
        self.image = busybox(folder / "image")
        self.others = folder / "others"
        self.others.mkdir()
        (self.others / "file").write_text("somebody's\n")
        self.secret = folder / "credentials"
        self._supervisor: Any = _Plainly()

    # -- what is others' -------------------------------------------------------------
    def __enter__(self) -> World:
        for folder in (LAYOUT.state, LAYOUT.logs):
            assert os.path.ismount(folder), f"{folder} is this machine's own: run this by scripts/sandbox"
        for command in (
            ["ip", "netns", "add", "somebody"],
            ["ip", "link", "add", "somebodys", "type", "veth", "peer", "somebodys2"],
            ["nft", "add", "table", "inet", "somebody"],
            ["nft", "add", "chain", "inet", "somebody", "input"],
        ):
            subprocess.run(command, check=True)
        if self.linked:
            self._broker()
        return self

    def _broker(self) -> None:
        node.start(OTHER, OTHERS, self._supervisor, lambda text: None)
        account = node.login(OTHER)
        assert account is not None
        self.secret.write_text(f"{account.username}:{account.password}\n")
        with self.api() as api:
            api.post(
                "definitions",
                body={
                    "vhosts": [{"name": VHOST}],
                    "permissions": [
                        {"user": account.username, "vhost": VHOST, "configure": ".*", "write": ".*", "read": ".*"}
                    ],
                    "queues": [
                        {"name": "somebodys", "vhost": VHOST, "durable": True, "auto_delete": False, "arguments": {}}
                    ],
                },
            )

    def __exit__(self, *_: object) -> None:
        if self.linked:
            node.remove(OTHER, self._supervisor, keep_data=False)
        shutil.rmtree(OTHER.root, ignore_errors=True)
        for command in (
            ["ip", "netns", "del", "somebody"],
            ["ip", "link", "del", "somebodys"],
            ["nft", "delete", "table", "inet", "somebody"],
        ):
            subprocess.run(command, check=True)

    def api(self) -> Any:
        return node.management(OTHER, OTHERS)

    # -- what is declared --------------------------------------------------------------
    def declared(self) -> Declared:
        """Return a declaration of two environments, only one of them with veth and volume, and a link."""
        image = f"dir:{self.image}"
        common = {"image": image, "command": shell(STAY), "stop_timeout": 2}
        value = {
            "attestation": {"policy": "off"},
            "broker": {
                "kind": "cluster",
                "url": f"amqp://127.0.0.1:{OTHERS.port}",
                "management": f"http://127.0.0.1:{OTHERS.management_port}",
                "credentials": str(self.secret),
                "vhost": VHOST,
            },
            "environments": {
                "a": {
                    **common,
                    "interface": {"kind": "veth"},
                    "volumes": [{"source": str(self.folder / "volumes/a"), "target": "/data"}],
                },
                "b": {**common, "read_only": True},
            },
            "links": [{"from": "a", "to": "b", "pattern": "request"}],
        }
        if not self.linked:
            del value["broker"], value["links"]
        copy: Declared = json.loads(json.dumps(value))
        return copy

    # -- what is there -------------------------------------------------------------------
    def look(self) -> dict[str, Any]:
        """Return the host's state, without values that differ between two equal hosts."""
        whole = snapshot.host()
        del whole["files"]
        # One that was changed in place lists the same things in another order.
        rules = _plain(uncounted("\n".join(snapshot._run("nft", "-s", "list", "ruleset"))))
        whole["nftables"] = sorted(re.split(r"(?<=\n\t}\n)|(?<= {\n)|\n(?=})", rules.replace("\n\n", "\n")))
        ours = (*map(str, (LAYOUT.run, LAYOUT.state, LAYOUT.logs, self.folder)), "/run/netns")
        whole["mounts"] = sorted(_plain(line) for line in whole["mounts"] if line.startswith(ours))
        whole["processes"] = sorted(
            # A reload gives it other arguments.
            "haproxy" if "haproxy" in line else re.sub(r" --lock \d+", "", _plain(line))
            for line in snapshot.processes().values()
            if line != "a zombie" and not line.startswith("sleep 0.05")
        )
        found = _files(LAYOUT.run, LAYOUT.state, LAYOUT.logs, Path("/run/netns"), self.folder)
        # The folder of the links' record may be left, empty.
        found.pop(str(LAYOUT.records("link")), None)
        # An index notes what records say, and may lack any of them.
        found = {path: about for path, about in found.items() if not path.startswith(f"{LAYOUT.run}/index")}
        # A volume is never removed, nor the folder above it that was made for it.
        volumes = f"{self.folder}/volumes"
        whole["files"] = {_plain(path): about for path, about in found.items() if not path.startswith(volumes)}
        whole["others"] = (self.others / "file").read_text()
        if not self.linked:
            return whole
        # What all links need stays on a broker that isn't ours.
        whole["broker"] = objects(self.api(), {"dead", "dead-late", *POLICIES})
        return whole

    def rested(self) -> dict[str, Any]:
        """Return the host's state once the state no longer changes."""
        return snapshot.rested(self.look)

    def settled(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Compare the host with *wanted* repeatedly, for a while, until it is equal; return the remaining differences.

        Ending processes take a moment.
        """
        deadline = time.monotonic() + 30
        while True:
            found = differences(wanted, self.look())
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.02)

    def reboot(self) -> None:
        """Remove all that a reboot removes: processes, mounts, namespaces, links, the packet filter, all of /run."""
        if presence.running(LAYOUT):
            for pid, name in snapshot.processes().items():
                if "lib/netspace/lib/current supervise" in name:
                    os.kill(pid, 9)
        deadline = time.monotonic() + 60
        while found := self._ours():
            assert time.monotonic() < deadline, found
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            time.sleep(0.01)
        for target in sorted(mounts.table(), reverse=True):
            if target.startswith((f"{LAYOUT.run}/", f"/run/netns/{LAYOUT.instance}-")):
                mounts.unmount(Path(target))
        shutil.rmtree(LAYOUT.run)
        for path in Path("/run/netns").glob(f"{LAYOUT.instance}-*"):
            path.unlink()
        subprocess.run(["nft", "delete", "table", "inet", LAYOUT.nft_table], check=True)
        Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
        for hierarchy in Path("/sys/fs/cgroup").glob(f"*/{LAYOUT.instance}"):
            for folder in sorted(hierarchy.rglob("*"), reverse=True):
                if folder.is_dir():
                    until(functools.partial(_removed, folder))
            until(functools.partial(_removed, hierarchy))

    def _ours(self) -> list[int]:
        marked = set(process.left_over([f"{LAYOUT.instance}/{name}" for name in ("forwarder",)], []).found)
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if entry.isdigit() and os.stat(f"/proc/{entry}").st_uid >= user_ids.FIRST:
                    marked.add(int(entry))
        return sorted(marked)


def _removed(cgroup: Path) -> bool:
    """Remove *cgroup*; return whether it was removed. A killed process stays in its cgroup for a moment."""
    try:
        cgroup.rmdir()
    except OSError as err:
        if err.errno != errno.EBUSY:
            raise
        return False
    return True


def objects(api: Management, without: Collection[str] = ()) -> dict[str, list[str]]:
    """Return a broker's objects by kind, except those with the given names.

    Passwords and random parts of names are left out.
    """
    with api:
        found = api.get("definitions")
    return {
        kind: sorted(
            TAG.sub(
                "TAG",
                json.dumps({key: value for key, value in one.items() if "password" not in key}, sort_keys=True),
            )
            for one in found[kind]
            if not {one.get("name"), one.get("source")} & set(without)
        )
        for kind in ("users", "vhosts", "permissions", "queues", "exchanges", "bindings", "policies")
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the differences by part. For lists and mappings, return only items that are missing on one side."""
    found: dict[str, Any] = {}
    for key in old.keys() | new.keys():
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found[key] = {
                name: (before.get(name), after.get(name))
                for name in before.keys() | after.keys()
                if before.get(name) != after.get(name)
            }
        elif isinstance(before, list) and isinstance(after, list):
            found[key] = {
                "lacks": [item for item in before if item not in after],
                "has": [item for item in after if item not in before],
                "count": (len(before), len(after)),
            }
        else:
            found[key] = (before, after)
    return found
