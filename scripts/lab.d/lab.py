"""The commands of ``scripts/lab``.

No running process holds the lab's state; commands find the lab's processes by the PIDs in the lab's folder. So any
command may be killed, and the next command continues its work.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import choices
import config
import tpms
from config import MASTER, ROOT
from hosts import Host, discard
from processes import Failed
from switch import Switch

FOLDER = Path(os.environ.get("NETSPACE_LAB") or ROOT / ".cache/lab").absolute()
SERVED = FOLDER / "srv"
FLEET = FOLDER / "fleet.yaml"
MARK = FOLDER / ".netspace-lab"
"""The file that says that the folder is a lab's, so that ``down`` removes nothing else."""
MACHINES = FOLDER / "machines"
"""The file that says that the lab's hosts are machines, and how many of them have a TPM: a number, or ``all``."""
PATIENCE = 300.0  # seconds until all minions answer
PROGRESS = 30.0  # seconds after which a long step says how far it is


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
    chosen = choices.parse(arguments, FLEET)
    if chosen.vm and FLEET.exists() and not MACHINES.exists():
        raise Failed("up: --vm is for a new lab; end this one: lab down")
    if chosen.file or FLEET.exists():
        text, where = _read(chosen.file or FLEET), str(chosen.file or FLEET)
    else:
        text, where = chosen.default_fleet(), "the default fleet"
    addresses = choices.declared(text, where)
    with_tpm = 0 if FLEET.exists() else chosen.tpms(len(addresses))
    if with_tpm and (why := tpms.missing()):
        raise Failed(f"up: --tpm: {why}")
    if chosen.vm or MACHINES.exists():
        _announce(addresses)
    began = time.monotonic()
    with locked(create=True) as lock:
        if chosen.vm and not MACHINES.exists():
            MACHINES.write_text("all\n" if chosen.tpm is None else f"{chosen.tpm}\n")
        if (FOLDER / "hosts.json").exists():
            let_go(addresses)
        prepare(addresses, chosen.file, text, with_tpm)
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


def _announce(addresses: dict[str, str]) -> None:
    """Build the machines' image if it is missing, and tell how long it will take.

    :raises Failed: the machines can't run here.
    """
    running = known() if (FOLDER / "hosts.json").exists() else {}
    asked = [name for name in addresses if name not in running or not host(name).init()]
    if asked and (why := _machines().missing(len(asked))):
        raise Failed(f"up: --vm: {why}")
    _machines().machine_image.build()
    if asked and not _machines().accelerated():
        say("no KVM here: QEMU translates what the machines run, so each step takes minutes")


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


def admit(names: Iterable[str]) -> None:
    """Let each host with a TPM request the acceptance of its minion's key, if the key isn't accepted yet.

    :raises Failed: a key isn't accepted in time.
    """
    names = list(names)
    await_boot(names)
    url, deadline = f"http://{MASTER}:{config.ADMISSION}", time.monotonic() + patience(names)
    books = FOLDER / "master/attestation"
    if (FOLDER / "maker").exists() and not (books / "ca").exists():
        # A killed command may have left a root without its intermediate.
        host("master").run("salt-run", f"netspace_attestation.{'ca_renew' if (books / 'root').exists() else 'ca_init'}")
    for name in names:
        command = ("salt-call", "--local", "--out=json", "netspace_admission.apply", url, f"tpm={host(name).tcti}")
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
    if MACHINES.exists():
        count = MACHINES.read_text().strip()
        with_tpm = len(homes) if count == "all" else int(count)
    for home in homes[:with_tpm]:
        tpms.make(home, maker)
    if file is None and not FLEET.exists():
        FLEET.write_text(text)
    others = None
    if maker.exists():
        others = [home.name for home in homes if not tpms.folder(home).exists()]
        tpms.write_inventory(FOLDER / "master", homes, maker)
    config.write_master(FOLDER / "master", SERVED, FLEET, others, machines=MACHINES.exists())
    for home in homes:
        config.write_minion(home)
    names = {"localhost": "127.0.0.1", "ip6-localhost": "::1", "master": MASTER, **addresses}
    (FOLDER / "names").write_text("".join(f"{address} {name}\n" for name, address in names.items()))
    (FOLDER / "hosts.json").write_text(json.dumps(addresses) + "\n")


def switch_on(name: str, address: str, switch: Switch, lock: int) -> None:
    """Start a host if it doesn't run, and connect it to the switch if it isn't connected."""
    one = host(name)
    if not one.init():
        one.start(lock)
    switch.connect(one, address)


def await_minions(names: set[str], command: str) -> None:
    """Wait until the master gets an answer from each minion.

    :param command: the lab's command, for messages.
    """
    began = said = time.monotonic()
    answers: set[str] = set()
    while True:
        # A minion that is away costs salt more than its timeout.
        with contextlib.suppress(ValueError, AttributeError, Failed):
            options = ("--out=json", "--static", "--timeout=10", "-L", ",".join(sorted(names)))
            done = host("master").run("salt", *options, "test.ping")
            answers = {name for name, answer in json.loads(done.stdout).items() if answer is True}
            if names <= answers:
                return
        if (now := time.monotonic()) - began > patience(names):
            raise Failed(f"{command}: not every minion answers within {now - began:.0f} s; see {FOLDER}/*/log")
        if now - said >= PROGRESS:
            said = now
            say(f"  still away: {', '.join(sorted(names - answers))} ({now - began:.0f} s)")
        time.sleep(1)


def await_boot(names: Iterable[str]) -> None:
    """Wait until machines among the hosts are booted."""
    if MACHINES.exists():
        _machines().await_boot([host(name) for name in names])


def patience(names: Iterable[str]) -> float:
    """Return the number of seconds until all minions answer."""
    return float(_machines().patience() * len(set(names))) if MACHINES.exists() else PATIENCE


def status(arguments: list[str]) -> int:
    none("status", arguments)
    addresses = {"master": MASTER, **known()}
    width = max(map(len, addresses))
    for name, address in addresses.items():
        say(f"{name:{width}}  {address:15}  {host(name).state()}")
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
    await_boot(names)
    if names and host("master").init():
        admit(sorted(names))
        await_minions(names, "start")
    return 0


def wipe(arguments: list[str]) -> int:
    """Delete a host's disk and TPM, so that its next start is that of a new machine."""
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
        raise Failed(f"down: {FOLDER} is not a lab's folder; nothing is removed")
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
            raise Failed(f"up: {FOLDER} has files and is not a lab's folder; set NETSPACE_LAB to another one")
        MARK.touch()


# -- helpers ------------------------------------------------------------------------
def host(name: str) -> Host:
    if name == "master":
        return Host(FOLDER / name, "salt-master")
    return _machines().Machine(FOLDER / name) if MACHINES.exists() else Host(FOLDER / name, "salt-minion")


def _machines() -> ModuleType:
    """Return the module for machines, which labs of namespaces don't need."""
    if str(ROOT / "tests") not in sys.path:
        sys.path.append(str(ROOT / "tests"))  # for vmlab
    import machines

    return machines


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
