"""The commands of ``scripts/lab``.

No running process holds the lab's state; commands find the lab's processes by the PIDs in the lab's folder. So any
command may be killed, and the next command continues its work.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import ipaddress
import json
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn

import config
import tpms
import yaml
from config import MASTER, MOST, ROOT
from hosts import Host, discard
from processes import Failed
from switch import Switch

FOLDER = Path(os.environ.get("NETSPACE_LAB") or ROOT / ".cache/lab").absolute()
SERVED = FOLDER / "srv"
FLEET = FOLDER / "fleet.yaml"
MARK = FOLDER / ".netspace-lab"
"""The file that says that the folder is a lab's, so that ``down`` removes nothing else."""
PATIENCE = 300.0  # seconds until all minions answer
NAME = re.compile(r"[a-z][a-z0-9-]{0,13}[a-z0-9]|[a-z]")  # also a network interface's name: 15 bytes
RESERVED = {"master", "maker", "names", "srv", "lab", "lo", "all", "default"}  # folders, interfaces and words of ip(8)


def main() -> int:
    parser = argparse.ArgumentParser(prog="lab", add_help=False)
    parser.add_argument("command", choices=sorted(COMMANDS))
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    chosen = parser.parse_args()
    try:
        return COMMANDS[chosen.command](chosen.arguments)
    except Failed as err:
        print(f"lab: {err}", file=sys.stderr)
        return 1


def up(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="lab up")
    parser.add_argument("--hosts", type=int, metavar="N", help="hosts of the default fleet (default 2)")
    parser.add_argument("--tpm", type=int, metavar="N", help="how many of them have a TPM (default 0)")
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="declaration of a fleet")
    chosen = parser.parse_args(arguments)
    if chosen.file and chosen.hosts:
        raise Failed("up: --hosts is for the default fleet; FILE declares its own hosts")
    if chosen.hosts is not None and not 1 <= chosen.hosts <= MOST:
        raise Failed(f"up: --hosts {chosen.hosts} is not between 1 and {MOST}")
    if chosen.tpm is not None and (chosen.file or FLEET.exists()):
        raise Failed(f"up: --tpm is for a new lab with the default fleet; {FLEET} or FILE declares its own hosts")
    if chosen.tpm is not None and not 1 <= chosen.tpm <= (chosen.hosts or 2):
        raise Failed(f"up: --tpm {chosen.tpm} is not between 1 and the number of hosts")
    if chosen.tpm and (why := tpms.missing()):
        raise Failed(f"up: --tpm: {why}")
    file: Path | None = chosen.file
    if file is not None and FLEET.exists() and file.resolve() == FLEET.resolve():
        file = None  # it is the lab's own
    if file is not None and FLEET.exists() and not FLEET.is_symlink():
        raise Failed(f"up: this lab declares its fleet in {FLEET}; edit that file, or end the lab: lab down")
    if chosen.hosts and FLEET.exists():
        raise Failed(f"up: --hosts is for a new lab; edit {FLEET}, or end the lab: lab down")
    if file is not None or FLEET.exists():
        text, where = _read(file or FLEET), str(file or FLEET)
    else:
        text, where = config.default_fleet(chosen.hosts or 2, chosen.tpm or 0), "the default fleet"
    addresses = declared(text, where)
    began = time.monotonic()
    with locked(create=True) as lock:
        if (FOLDER / "hosts.json").exists():
            let_go(addresses)
        prepare(addresses, file, text, chosen.tpm or 0)
        switch = Switch(FOLDER)
        switch.start(lock)
        for name, address in {"master": MASTER, **addresses}.items():
            say(f"{name}: {address}")
            switch_on(name, address, switch, lock)
    admit(addresses)
    say("waiting until each minion answers")
    await_minions(set(addresses), "up")
    say(f"up in {time.monotonic() - began:.0f} s; the fleet is declared in {FLEET}")
    return 0


def let_go(addresses: dict[str, str]) -> None:
    """Forget hosts that don't run and are no longer declared.

    :raises Failed: a running host is no longer declared, or a host's address has changed.
    """
    for name, address in known().items():
        if addresses.get(name) == address:
            continue
        if name in addresses:
            raise Failed(f"up: {name} has the address {address}; declare this address, or end the lab: lab down")
        if host(name).init():
            raise Failed(f"up: {name} is on and no longer declared; switch it off: lab kill {name}")
        discard(FOLDER / name)
        (FOLDER / "master/pki/minions" / name).unlink(missing_ok=True)  # it comes back with another key


def declared(text: str, where: str) -> dict[str, str]:
    """Return the address of each host in a fleet's declaration.

    :param where: the declaration's place, for messages.
    """
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise Failed(f"{where}: {err}") from err
    hosts = found.get("hosts") if isinstance(found, dict) else None
    if not isinstance(hosts, dict) or not hosts:
        raise Failed(f"{where}: it declares no hosts; write hosts: {{h1: {{address: 198.51.100.1}}}}")
    if len(hosts) > MOST:
        raise Failed(f"{where}: hosts: {len(hosts)} are too many; a lab has at most {MOST}")
    addresses: dict[str, str] = {}
    for name, host_ in hosts.items():
        address = host_.get("address") if isinstance(host_, dict) else None
        if not isinstance(name, str) or not NAME.fullmatch(name) or name in RESERVED:
            raise Failed(f"{where}: hosts: {name!r} is no name for a host of a lab; use a short one, such as h1")
        try:
            value = str(ipaddress.ip_address(str(address)))
        except ValueError:
            raise Failed(f"{where}: hosts: {name}: address: {address!r} is no IP address") from None
        if value in (MASTER, *addresses.values()):
            raise Failed(f"{where}: hosts: {name}: address: {value} is taken; choose another one")
        addresses[name] = value
    return addresses


def admit(names: Iterable[str]) -> None:
    """Let each host with a TPM request the acceptance of its minion's key, if the key isn't accepted yet.

    :raises Failed: a key isn't accepted in time.
    """
    url, deadline = f"http://{MASTER}:{config.ADMISSION}", time.monotonic() + PATIENCE
    books = FOLDER / "master/attestation"
    if (FOLDER / "maker").exists() and not (books / "ca").exists():
        # A killed command may have left a root without its intermediate.
        host("master").run("salt-run", f"netspace_attestation.{'ca_renew' if (books / 'root').exists() else 'ca_init'}")
    for name in names:
        command = ("salt-call", "--local", "--out=json", "netspace_admission.apply", url, f"tpm={tpms.TCTI}")
        while tpms.folder(FOLDER / name).exists() and not (FOLDER / "master/pki/minions" / name).exists():
            done = host(name).run(*command)
            if done.returncode == 0:
                say(f"{name}: its key is accepted by its TPM")
            elif (why := tpms.refused(name, done.stderr)) or time.monotonic() > deadline:
                raise Failed(f"{name}: its key isn't accepted: {why or (done.stderr or done.stdout).strip()}")
            else:
                time.sleep(1)  # the minion may not have shown its key yet, or the master may still start


def prepare(addresses: dict[str, str], file: Path | None, text: str, with_tpm: int) -> None:
    """Write the files that the hosts read; existing files are kept.

    :param with_tpm: how many hosts of a new fleet have a TPM, from the first on.
    """
    (SERVED / "pillar").mkdir(parents=True, exist_ok=True)
    (SERVED / "images").mkdir(exist_ok=True)
    image = SERVED / "images/shop.tar"
    if not image.exists():
        shutil.copyfile(ROOT / ".cache/demo.tar", image)
    if file is not None and not (FLEET.is_symlink() and FLEET.readlink() == file.absolute()):
        FLEET.unlink(missing_ok=True)
        FLEET.symlink_to(file.absolute())
    homes, maker = [FOLDER / name for name in addresses], FOLDER / "maker"
    for home in (FOLDER / "master", *homes):
        home.mkdir(mode=0o700, exist_ok=True)
    # The fleet's file comes last: once it is there, each host of the fleet that is to have a TPM has one.
    for home in homes[:with_tpm]:
        tpms.make(home, maker)
    if file is None and not FLEET.exists():
        FLEET.write_text(text)
    others = None
    if maker.exists():
        others = [home.name for home in homes if not tpms.folder(home).exists()]
        tpms.write_inventory(FOLDER / "master", homes, maker)
    config.write_master(FOLDER / "master", SERVED, FLEET, others)
    for home in homes:
        config.write_minion(home)
    names = {"localhost": "127.0.0.1", "ip6-localhost": "::1", "master": MASTER, **addresses}
    (FOLDER / "names").write_text("".join(f"{address} {name}\n" for name, address in names.items()))
    (FOLDER / "hosts.json").write_text(json.dumps(addresses) + "\n")


def switch_on(name: str, address: str, switch: Switch, lock: int) -> None:
    """Start a host if it doesn't run, and connect it to the switch if it isn't connected."""
    if not host(name).init():
        host(name).start(lock)
    switch.connect(host(name), address)


def await_minions(names: set[str], command: str) -> None:
    """Wait until the master gets an answer from each minion.

    :param command: the lab's command, for messages.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        # A minion that is away costs salt more than its timeout.
        with contextlib.suppress(ValueError, AttributeError, Failed):
            options = ("--out=json", "--static", "--timeout=10", "-L", ",".join(sorted(names)))
            done = host("master").run("salt", *options, "test.ping")
            answers = {name for name, answer in json.loads(done.stdout).items() if answer is True}
            if names <= answers:
                return
        if time.monotonic() > deadline:
            raise Failed(f"{command}: not every minion answers within {PATIENCE:.0f} s; see {FOLDER}/*/log")
        time.sleep(1)


def status(arguments: list[str]) -> int:
    none("status", arguments)
    addresses = {"master": MASTER, **known()}
    width = max(map(len, addresses))
    for name, address in addresses.items():
        say(f"{name:{width}}  {address:15}  {'on' if host(name).init() else 'off'}")
    names = {address: name for name, address in addresses.items()}
    for one, other in sorted(Switch(FOLDER).cuts()):
        if one < other:
            say(f"cut: {names.get(one, one)} {names.get(other, other)}")
    return 0


def sh(arguments: list[str]) -> int:
    if not arguments:
        raise Failed("sh: it needs a host; see lab --help")
    enter(arguments[0], arguments[1:] or ["bash"])


def salt(arguments: list[str]) -> int:
    on_master("salt", arguments)


def salt_run(arguments: list[str]) -> int:
    on_master("salt-run", arguments)


def salt_key(arguments: list[str]) -> int:
    on_master("salt-key", arguments)


def on_master(program: str, arguments: list[str]) -> NoReturn:
    known()
    options = [] if any(word.startswith(("-c", "--config-dir")) for word in arguments) else ["--log-level=error"]
    enter("master", [program, *options, *arguments])


def enter(name: str, command: list[str]) -> NoReturn:
    which = host(one_of(name))
    os.environ["PYTHONPATH"] = str(ROOT / "_utils")  # for the tables of netspace's output
    os.environ["SALT_CONFIG_DIR"] = str(which.home / "etc")
    which.enter(command)


def cut(arguments: list[str]) -> int:
    one, other = pair("cut", arguments)
    Switch(FOLDER).cut(one, other)
    return 0


def mend(arguments: list[str]) -> int:
    one, other = pair("mend", arguments)
    Switch(FOLDER).mend(one, other)
    return 0


def kill(arguments: list[str]) -> int:
    for name in some("kill", arguments):
        with locked():
            host(name).kill()
    return 0


def start(arguments: list[str]) -> int:
    for name in some("start", arguments):
        with locked() as lock:
            switch_on(name, {"master": MASTER, **known()}[name], Switch(FOLDER), lock)
    names = set(arguments) - {"master"}
    if names and host("master").init():
        admit(sorted(names))
        await_minions(names, "start")
    return 0


def wipe(arguments: list[str]) -> int:
    """Take a host's disk and TPM away: at its next start it is another machine."""
    for name in some("wipe", arguments):
        if name == "master":
            raise Failed("wipe: the master can't be wiped; end the lab instead: lab down")
        with locked():
            if host(name).sandbox():
                raise Failed(f"wipe: {name} is on; switch it off: lab kill {name}")
            home, maker = FOLDER / name, FOLDER / "maker"
            for part in ("disk", "pki", "cache"):
                discard(home / part)
            if tpms.folder(home).exists():
                discard(tpms.folder(home))
                tpms.make(home, maker)
                tpms.write_inventory(FOLDER / "master", [FOLDER / other for other in known()], maker)
        say(f"{name}: another machine from its next start on; now see docs/lab.md, Replace a host")
    return 0


def log(arguments: list[str]) -> int:
    for name in some("log", arguments):
        for part in ("console", "log"):
            path = FOLDER / name / part
            if path.exists():
                say(path.read_text(errors="replace").rstrip())
    return 0


def down(arguments: list[str]) -> int:
    none("down", arguments)
    if not FOLDER.exists():
        return 0
    if not MARK.exists():
        raise Failed(f"down: {FOLDER} is no lab's folder; nothing is removed")
    with locked():
        # Also hosts that a killed `up` has started and not yet written down.
        for home in sorted(FOLDER.iterdir()):
            if (home / "etc").is_dir():
                host(home.name).kill()
        Switch(FOLDER).stop()
        discard(FOLDER)
    return 0


def own() -> None:
    """Make the lab's folder, or check that an existing folder is a lab's.

    :raises Failed: the folder belongs to another user, or has other files.
    """
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        FOLDER.mkdir(mode=0o700)
    info = FOLDER.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
        raise Failed(f"up: {FOLDER} must be a folder of root's with mode 0700; remove it, or set NETSPACE_LAB")
    if not MARK.exists():
        if any(FOLDER.iterdir()):
            raise Failed(f"up: {FOLDER} has files and is no lab's folder; set NETSPACE_LAB to another one")
        MARK.touch()


# -- helpers ------------------------------------------------------------------------
def host(name: str) -> Host:
    return Host(FOLDER / name, "salt-master" if name == "master" else "salt-minion")


def known() -> dict[str, str]:
    """Return the address of each host of the lab that is up."""
    try:
        found: dict[str, str] = json.loads((FOLDER / "hosts.json").read_text())
    except FileNotFoundError:
        raise Failed("no lab is up; start one: lab up") from None
    except ValueError:
        raise Failed(f"{FOLDER / 'hosts.json'}: it can't be read; end the lab: lab down") from None
    return found


def one_of(name: str) -> str:
    names = ("master", *known())
    if name not in names:
        raise Failed(f"{name}: the lab has no such host; it has {', '.join(names)}")
    return name


def some(command: str, arguments: list[str]) -> list[str]:
    if not arguments:
        raise Failed(f"{command}: it needs a host; see lab --help")
    return [one_of(name) for name in arguments]


def pair(command: str, arguments: list[str]) -> tuple[str, str]:
    if len(arguments) != 2:
        raise Failed(f"{command}: it needs two hosts; see lab --help")
    one, other = some(command, arguments)
    if one == other:
        raise Failed(f"{command}: {one} is named twice; name two hosts")
    addresses = {"master": MASTER, **known()}
    return addresses[one], addresses[other]


def none(command: str, arguments: list[str]) -> None:
    if arguments:
        raise Failed(f"{command}: expected no arguments, got {arguments[0]}")


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as err:
        raise Failed(f"{file}: {err}") from err


def say(text: str) -> None:
    print(text, flush=True)


@contextlib.contextmanager
def locked(*, create: bool = False) -> Iterator[int]:
    """Hold the lab's lock, so that no two commands change the lab at the same time; return its descriptor."""
    if create:
        own()
    try:
        descriptor = os.open(FOLDER, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Failed("no lab is up; start one: lab up") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "up": up,
    "down": down,
    "status": status,
    "salt": salt,
    "salt-run": salt_run,
    "salt-key": salt_key,
    "sh": sh,
    "cut": cut,
    "mend": mend,
    "kill": kill,
    "start": start,
    "wipe": wipe,
    "log": log,
}

if __name__ == "__main__":
    sys.exit(main())
