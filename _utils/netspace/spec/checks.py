"""Checks of a declaration after its types are checked: bounds of single values, and conflicts between values.

Pure. Every check returns the problems that it finds; an empty result means that there is no problem.
"""

from __future__ import annotations

import graphlib
import ipaddress
import re
import urllib.parse
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from netspace.errors import Problem
from netspace.patterns import pattern
from netspace.spec import extensions, hosts, never, peer, publish, reach, secrets, values
from netspace.spec.paths import PLAINLY, bare, clean
from netspace.spec.paths import plain as plain  # other modules import it from here
from netspace.spec.types import (
    END,
    NAME,
    NAME_RULE,
    PORTS,
    Address,
    ClusterBroker,
    Declaration,
    Environment,
    Filtered,
    Interface,
    Link,
    LocalBroker,
    Never,
    Rate,
    Runtimes,
    Size,
    Volume,
)

SECCOMP_PROFILES = ("strict", "standard")  # or file:/path
# Bounds of a file system's size: a smaller one has no room for the journal, a larger one exceeds ext4's limit.
DISK_SIZES = (16 * 1024**2, 2**44)
MAX_QUOTED = 200
MAX_ARGUMENT = 128 * 1024  # the kernel's MAX_ARG_STRLEN
MAX_ITEMS = 1024
MAX_OFFERS = 32
_KERNEL_MEMORY = 8 * 1024**2  # the least memory that must be left for a unikernel
_NOT_PLAIN = "a NUL character, invalid Unicode, or longer than 128 KiB"
# netspace mounts its own file systems here; a volume at, above or below one would cover it.
RESERVED_TARGETS = ("/proc", "/sys", "/dev", "/run/netspace")
# Neither these folders of the host nor anything in them can be a volume's source.
HOST_FOLDERS = (
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/boot",
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
)
# These folders can't be a volume's source, but folders in them can.
HOST_ROOTS = ("/", "/etc", "/root", "/var", "/var/lib", "/var/log", "/home", "/opt", "/srv", "/tmp", "/mnt", "/media")  # noqa: S108 (refused, not used)
VARIABLE = pattern(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_WORD = pattern(r"[^\s\x00-\x1f\x7f-\x9f]+")
_HOST = pattern(r"[A-Za-z0-9.:-]{1,253}")
_DOMAIN = pattern(r"[a-z0-9](?:[a-z0-9._-]{0,200}[a-z0-9])?")
_HASH = pattern(r"(?:sha256[:=])?[0-9a-fA-F]{64}")
_PORTS = pattern(r"(\d{1,5})(?:-(\d{1,5}))?")


def runtimes(spec: Runtimes, path: str) -> list[Problem]:
    """Check that each default runtime exists and can run its kind of thing: images or kernels."""
    wrong = {"default": runtime(spec.default, "images"), "kernels": runtime(spec.kernels, "kernels")}
    return [Problem(f"{path}:{key}", message) for key, message in wrong.items() if message]


def runtime_settings(spec: Any, path: str) -> list[Problem]:
    """Check the settings that all runtimes have."""
    if spec.program is not None and not clean(spec.program):
        return [Problem(f"{path}:program", f"{spec.program!r}: expected an absolute path without '..'")]
    return []


def runtime(name: str, thing: Literal["images", "kernels"]) -> str:
    """Return why the runtime *name* can't run *thing* (``images``, ``kernels``); empty if the runtime can."""
    if name in extensions.runtimes() and thing == extensions.runtime(name).RUNS:
        return ""
    return f"{name!r} is not a runtime for {thing}; choose from {', '.join(extensions.runtimes_of(thing))}"


def image(text: str) -> str:
    """Return the problem of an image's text (``<source>:<location>``); empty if the text is valid."""
    source, _, location = text.partition(":")
    if source not in extensions.image_sources() or not location:
        return f"{text!r}: write <source>:<location> with one of {', '.join(extensions.image_sources())}"
    if location.startswith("salt://"):
        if source == "dir":
            return f"{text!r}: a folder can't be fetched; pack it: tar:salt://..."
    elif not location.startswith("/"):
        return f"{text!r}: the location must be an absolute path, or salt://..."
    if not plain(text):
        return "a NUL character, invalid Unicode, or longer than 4096 characters"
    return ""


def source_hash(text: str) -> str:
    """Return the problem of a hash text (``sha256:<hex>``); empty if the text is valid."""
    return "" if _HASH.fullmatch(text) else f"{text!r}: expected sha256: and 64 hexadecimal digits"


def environment(spec: Environment, path: str) -> list[Problem]:
    """Check the values of one environment."""
    problems: list[Problem] = []

    def refuse(key: str, message: str) -> None:
        problems.append(Problem(f"{path}:{key}", message))

    if spec.kernel is not None:
        problems += kernel(spec, path)
    elif not spec.image:
        refuse("image", "missing; give an image or a kernel")
    elif message := image(spec.image):
        refuse("image", message)
    thing: Literal["images", "kernels"] = "images" if spec.kernel is None else "kernels"
    if spec.runtime is not None and (message := runtime(spec.runtime, thing)):
        refuse("runtime", message)
    if spec.source_hash is not None and (message := source_hash(spec.source_hash)):
        refuse("source_hash", message)
    for key, arguments in (("command", spec.command), ("args", spec.args or ())):
        if len(arguments) > MAX_ITEMS:
            refuse(key, f"more than {MAX_ITEMS} arguments")
        for index, argument in enumerate(arguments):
            if not plain(argument, MAX_ARGUMENT):
                refuse(f"{key}:{index}", _NOT_PLAIN)
    if spec.command and not spec.command[0]:
        refuse("command:0", "empty program name")
    if len(spec.env) > MAX_ITEMS:
        refuse("env", f"more than {MAX_ITEMS} variables")
    for name, value in spec.env.items():
        if not VARIABLE.fullmatch(name):
            refuse(f"env:{name}", "not a variable's name (letters, digits and '_')")
        if not plain(value, MAX_ARGUMENT):
            refuse(f"env:{name}", _NOT_PLAIN)
    if spec.user is not None and not 1 <= spec.user <= 65535:
        refuse("user", f"{spec.user} is out of 1..65535 (0, root, is not possible)")
    if spec.working_dir is not None and not clean(spec.working_dir):
        refuse("working_dir", f"{spec.working_dir!r}: expected an absolute path without '..'")
    limits = spec.limits
    _between(problems, f"{path}:limits:memory", limits.memory, 4 * 1024**2, 2**50)
    _between(problems, f"{path}:limits:cpus", limits.cpus, 0.01, 4096)
    _between(problems, f"{path}:limits:pids", limits.pids, 1, 4_194_304)
    if spec.init and spec.limits.pids == 1:
        refuse("limits:pids", "init needs one process, so give at least 2")
    _between(problems, f"{path}:limits:files", limits.files, 64, 1_048_576)
    _between(problems, f"{path}:limits:shm", limits.shm, 0, 2**50)
    _between(problems, f"{path}:limits:tmp", limits.tmp, 0, 2**50)
    if limits.disk is not None:
        _between(problems, f"{path}:limits:disk", limits.disk, *DISK_SIZES)
    for key in ("read", "write", "read_ops", "write_ops"):
        rate = getattr(limits.io, key)
        if rate is not None:
            # Less than a page per second is useless; the kernel counts operations in 32 bits.
            _between(problems, f"{path}:limits:io:{key}", rate, *((1, 2**32 - 1) if "ops" in key else (4096, 2**50)))
    _between(problems, f"{path}:stop_timeout", spec.stop_timeout, 0, 3600)
    _between(problems, f"{path}:settle", spec.settle, 0, 600)
    problems += _health(spec, path)
    problems += _host_verbs(spec, path)
    problems += [Problem(f"{path}:{key}", message) for key, message in values.problems(spec.values)]
    problems += [Problem(f"{path}:{key}", message) for key, message in secrets.problems(spec)]
    if len(spec.offers) > MAX_OFFERS:
        refuse("offers", f"{len(spec.offers)} services; at most {MAX_OFFERS} are accepted")
    for index, service in enumerate(spec.offers):
        if not NAME.fullmatch(service):
            refuse(f"offers:{index}", f"{service!r:.60} can't be a service's name: use {NAME_RULE}")
        elif service in spec.offers[:index]:
            refuse(f"offers:{index}", f"{service} is listed twice; leave one out")
    scheme, _, file = spec.seccomp.partition("file:")
    if spec.seccomp not in SECCOMP_PROFILES and (scheme or not clean(file)):
        choice = ", ".join(SECCOMP_PROFILES)
        refuse("seccomp", f"{spec.seccomp!r} is not a profile; choose from {choice}, file:/absolute/path.json")
    targets: set[str] = set()
    for index, volume in enumerate(spec.volumes):
        problems += _volume(volume, f"{path}:volumes:{index}")
        if volume.target in targets:
            refuse(f"volumes:{index}:target", f"{volume.target} is already the target of another volume")
        elif inner := [other for other in targets if within(other, volume.target)]:
            refuse(f"volumes:{index}:target", f"{volume.target} would cover {inner[0]}; list the outer volume first")
        targets.add(volume.target)
    return problems


def _health(spec: Environment, path: str) -> list[Problem]:
    """Check the keys ``health``, ``after`` and ``update`` of an environment."""
    problems: list[Problem] = []
    health = spec.health
    if health is not None:
        where = f"{path}:health"
        if bool(health.exec) == health.mailbox:
            problems.append(Problem(where, "give either exec (an argument vector) or mailbox: true"))
        if len(health.exec) > MAX_ITEMS or not all(plain(part, MAX_ARGUMENT) for part in health.exec):
            problems.append(Problem(f"{where}:exec", f"more than {MAX_ITEMS} arguments, {_NOT_PLAIN}"))
        elif health.exec and not health.exec[0]:
            problems.append(Problem(f"{where}:exec:0", "empty program name"))
        _between(problems, f"{where}:interval", health.interval, 0.1, 86_400)
        _between(problems, f"{where}:timeout", health.timeout, 0.1, 3600)
        _between(problems, f"{where}:retries", health.retries, 1, 1000)
        _between(problems, f"{where}:start_period", health.start_period, 0, 86_400)
    seen: set[str] = set()
    for index, name in enumerate(spec.after):
        if not NAME.fullmatch(name) or name in seen:
            why = "listed twice" if name in seen else "can't be an environment's name"
            problems.append(Problem(f"{path}:after:{index}", f"{name!r} is {why}"))
        seen.add(name)
    _between(problems, f"{path}:update:deadline", spec.update.deadline, 1, 86_400)
    return problems


def _host_verbs(spec: Environment, path: str) -> list[Problem]:
    """Check the key ``host`` of an environment: each verb exists, and is listed once."""
    known = extensions.host_verbs()
    problems = []
    for index, verb in enumerate(spec.host):
        where = f"{path}:host:{index}"
        if verb not in known:
            import difflib  # a declaration without mistakes doesn't need it

            near = difflib.get_close_matches(verb, known, n=1)
            help_ = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
            problems.append(Problem(where, f"{verb!r:.60} is not a request that the host answers; {help_}"))
        elif verb in spec.host[:index]:
            problems.append(Problem(where, f"{verb} is listed twice; leave one out"))
    return problems


def no_environment(name: str, names: Collection[str]) -> str:
    """Return the problem text for a reference to an undeclared environment, with the most similar declared name."""
    import difflib

    near = difflib.get_close_matches(name, names, n=1)
    return f"there is no environment {name}" + (f"; did you mean {near[0]}?" if near else "")


def circle(after: Mapping[str, Collection[str]]) -> list[str]:
    """Return the names of a cycle in *after*, with the first name repeated at the end; empty if there is no cycle.

    :param after: by each environment's name, the names that its key ``after`` lists. Listed names that aren't keys of
        *after* are ignored.
    """
    try:
        graphlib.TopologicalSorter(after).prepare()
    except graphlib.CycleError as err:
        return [*reversed(err.args[1])]  # graphlib lists each name before the one that comes after it
    return []


def _order(declared: Declaration, path: str, names: Collection[str]) -> list[Problem]:
    """Check ``after`` in all environments: each listed environment is declared, and there is no cycle."""
    problems = [
        Problem(f"{path}:environments:{name}:after:{index}", no_environment(other, names))
        for name, spec in declared.environments.items()
        for index, other in enumerate(spec.after)
        if other not in names
    ]
    if found := circle({name: spec.after for name, spec in declared.environments.items()}):
        index = declared.environments[found[0]].after.index(found[1])
        where = f"{path}:environments:{found[0]}:after:{index}"
        problems.append(
            Problem(where, f"these environments would wait for each other; remove one 'after': {' after '.join(found)}")
        )
    return problems


def whole(declared: Declaration, path: str, names: Collection[str]) -> list[Problem]:
    """Check that a whole declaration refers only to parts that it has.

    :param names: the names of all environments, including those that didn't parse.
    """
    targets = {link.target for link in declared.links}
    problems = _order(declared, path, names)
    problems += [
        Problem(
            f"{path}:environments:{name}:health:mailbox",
            f"{name} has no mailbox, since no link leads to it; declare a link, or use exec",
        )
        for name, spec in declared.environments.items()
        if spec.health is not None and spec.health.mailbox and name not in targets
    ]
    if names and isinstance(declared.broker, LocalBroker):  # without names, states declare the environments one by one
        problems += [
            Problem(f"{path}:broker:passwords:{index}", no_environment(name, names))
            for index, name in enumerate(declared.broker.passwords)
            if NAME.fullmatch(name) and name not in names
        ]
    return problems


def assertions(declared: Declaration, asserted: Mapping[str, Never], names: Collection[str]) -> list[Problem]:
    """Check that a whole declaration violates no assertion, and that all environments in assertions are declared.

    :param asserted: the assertions (``never``) that concern this host, by their paths in the declaration.
    :param names: the names of all environments, including those that didn't parse.
    """
    problems = never.problems(reach.declared(declared), asserted) if asserted else []
    if names:  # without names, states declare the environments one by one
        problems += [
            Problem(f"{where}:{key}", no_environment(end, names))
            for where, spec in asserted.items()
            for key, end in never.unknown(spec, names)
        ]
    return problems


def kernel(spec: Environment, path: str) -> list[Problem]:
    """Check the keys that an environment with a kernel can't have. The parser checks its interface's kind."""
    problems = []
    assert spec.kernel is not None
    if not clean(spec.kernel):
        problems.append(Problem(f"{path}:kernel", f"{spec.kernel!r}: expected an absolute path without '..'"))
    instead = {
        "image": "an environment has either an image or a kernel; leave out one of them",
        "command": "a kernel has no command; put its arguments into args",
        "env": "a kernel has no variables; put its arguments into args",
        "working_dir": "a kernel has no folders; leave it out",
        "volumes": "a kernel has no folders; leave it out",
        "read_only": "a kernel has no root file system; leave it out",
        "init": "a kernel runs no processes of the host; leave it out",
        "target": "Salt can't run programs in a kernel; leave it out",
    }
    problems += [Problem(f"{path}:{key}", message) for key, message in instead.items() if getattr(spec, key)]
    if spec.limits.disk is not None:
        problems.append(Problem(f"{path}:limits:disk", "a kernel has no root file system; leave it out"))
    if spec.seccomp != "strict" and not spec.seccomp.startswith("file:"):
        problems.append(Problem(f"{path}:seccomp", "the program that runs a kernel has its own profile; leave it out"))
    return problems


def used(spec: Environment, usual: Runtimes) -> str:
    """Return the name of an environment's runtime: the declared one, or else the host's default.

    :param usual: the host's default runtimes.
    """
    return spec.runtime or (usual.default if spec.kernel is None else usual.kernels)


def under(spec: Environment, used: str, path: str) -> list[Problem]:
    """Check that an environment meets the demands of its runtime.

    :param used: the name of the environment's runtime.
    """
    if used not in extensions.runtimes():
        return []
    module, problems = extensions.runtime(used), []
    for limit, least in getattr(module, "LEAST", {}).items():
        if getattr(spec.limits, limit) < least:
            said = f"{least // 1024**2}M" if limit == "memory" else least
            why = f"the runtime {used} needs a part of it for itself"
            problems.append(Problem(f"{path}:limits:{limit}", f"{why}; give at least {said}"))
    if module.RUNS == "kernels":
        for index, argument in enumerate(spec.args or ()):
            if module.ONE_LINE and not _WORD.fullmatch(argument):
                message = (
                    f"{argument!r}: {used} gives a kernel one line, so an argument can't be empty, "
                    "and can't have a space or control character"
                )
                problems.append(Problem(f"{path}:args:{index}", message))
        longest = getattr(module, "LONGEST", None)
        if longest is not None and len(" ".join(spec.args or ()).encode(errors="surrogateescape")) > longest:
            problems.append(Problem(f"{path}:args", f"{used} gives a kernel one line of at most {longest} bytes"))
        if getattr(module, "OUTSIDE", False) and spec.seccomp != "strict":
            message = f"{used} runs no program on this host whose calls could be filtered; leave it out"
            problems.append(Problem(f"{path}:seccomp", message))
        if spec.health is not None and spec.health.exec:
            problems.append(Problem(f"{path}:health:exec", "a probe can't run programs in a kernel; use mailbox"))
        if spec.limits.memory < module.RESERVE + _KERNEL_MEMORY:
            least, own = (size // 1024**2 for size in (module.RESERVE + _KERNEL_MEMORY, module.RESERVE))
            message = f"a kernel under {used} needs at least {least}M, of which {used} itself takes {own}M"
            problems.append(Problem(f"{path}:limits:memory", message))
    return problems


def _volume(volume: Volume, path: str) -> list[Problem]:
    problems = []
    if volume.source is None:
        if volume.size is None:
            problems.append(Problem(path, "give a source (a folder of the host), or a size (netspace keeps the files)"))
        else:
            _between(problems, f"{path}:size", volume.size, *DISK_SIZES)
        if len(quoted(volume.target)) > MAX_QUOTED:
            problems.append(
                Problem(f"{path}:target", f"longer than {MAX_QUOTED} characters; give a shorter target, or a source")
            )
    elif volume.size is not None:
        problems.append(
            Problem(
                f"{path}:size",
                "netspace can't limit the size of a host's folder; leave out size, or leave out source: netspace then "
                "keeps a file system of this size (copy the folder's files into it)",
            )
        )
    elif not clean(volume.source):
        problems.append(Problem(f"{path}:source", f"{volume.source!r}: expected an absolute path without '..'"))
    elif volume.source in HOST_ROOTS or any(within(volume.source, folder) for folder in HOST_FOLDERS):
        problems.append(
            Problem(
                f"{path}:source",
                f"{volume.source} belongs to the host and can't be given to an environment; use another folder",
            )
        )
    if not clean(volume.target):
        problems.append(Problem(f"{path}:target", f"{volume.target!r}: expected an absolute path without '..'"))
    elif any(within(volume.target, own) or within(own, volume.target) for own in RESERVED_TARGETS):
        problems.append(Problem(f"{path}:target", f"{volume.target} would cover a mount of netspace; use another path"))
    return problems


NAMES = 64  # the most names that one environment's rules may have


def interface(spec: Interface, path: str) -> list[Problem]:
    """Check the values of one interface of any kind."""
    problems: list[Problem] = []
    # Below 1280 there is no IPv6 (RFC 8200 section 5).
    _between(problems, f"{path}:mtu", getattr(spec, "mtu", 1500), 1280, 65535)
    if not isinstance(spec, Filtered):
        return problems
    if spec.rate is not None:
        # At a lower rate a packet of 1,500 bytes takes more than a second.
        _between(problems, f"{path}:rate", spec.rate, 8_000, 10**12)
    _between(problems, f"{path}:connections", spec.connections, 1, 1_000_000)
    problems += _names(spec, path)
    for index, rule in enumerate(spec.allow):
        if rule.port is None:
            continue
        where = f"{path}:allow:{index}:port"
        if rule.protocol == "icmp":
            problems.append(Problem(where, "icmp has no ports"))
        elif ports(rule.port) is None:
            problems.append(Problem(where, f"{rule.port!r}: expected a port in 1..65535 or 'first-last'"))
    if len(publish.published(spec)) > publish.MOST:
        problems.append(Problem(f"{path}:publish", f"more than {publish.MOST}"))
    problems += [Problem(f"{path}:{key}", message) for key, message in spec.problems()]
    return problems


def _names(spec: Filtered, path: str) -> list[Problem]:
    """Check that each rule names its peers by a network, by a name, or by a name within a network."""
    problems = []
    for index, rule in enumerate(spec.allow):
        where = f"{path}:allow:{index}"
        if rule.name is None and rule.cidr is None:
            problems.append(Problem(where, "cidr or name is missing; name the peers of this rule"))
        elif rule.name is not None and rule.direction == "in":
            text = "a name can't select incoming connections; give cidr, or direction: out"
            problems.append(Problem(f"{where}:name", text))
    if len({rule.name for rule in spec.allow if rule.name is not None}) > NAMES:
        problems.append(Problem(f"{path}:allow", f"more than {NAMES} names"))
    return problems


def together(interfaces: Mapping[str, publish.Claimant], path: str = "netspace") -> list[tuple[str, str, str]]:
    """Return the conflicts among the interfaces of one host: (the environment's name, key, message).

    :param interfaces: the interfaces, by their environments' names.
    :param path: the declaration's path, for messages.
    """
    found: list[tuple[str, str, str]] = []
    owners: dict[str, str] = {}
    agreed: dict[str, tuple[str, str]] = {}
    for name, spec in interfaces.items():
        for key, what in spec.claims():
            owner = owners.setdefault(what, name)
            if owner != name:
                found.append((name, key, f"{what} already belongs to {owner}"))
        for key, subject, value in spec.shares():
            first, other = agreed.setdefault(subject, (name, value))
            if other != value:
                found.append(
                    (name, key, f"{subject} is {value} here, but {other} for {first}; give both the same value")
                )
    return found + publish.conflicts(interfaces, path)


def ports(value: int | str) -> tuple[int, int] | None:
    """Return (first, last) of a port or of a range of ports; None if *value* is neither."""
    match = _PORTS.fullmatch(str(value))
    if match is None:
        return None
    first, last = int(match[1]), int(match[2] or match[1])
    return (first, last) if 1 <= first <= last <= 65535 else None


_MEDIA_TYPE = pattern(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,63}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}")  # RFC 6838, 4.2
MESSAGE_SIZES = (1024, 512 * 1024**2)  # the upper bound is RabbitMQ's
LINK_TTL = 7 * 24 * 3600  # the longest ttl of a link; every mailbox has 30 days
LINK_LENGTH = 10_000
LINK_RATES = (0.001, 100_000.0)
LINK_SIZES = (1, 16 * 1024**2)
# Keys that are refused, because neither the broker nor anything else on the way enforces them on a sender.
LINK_REFUSED = {
    "priority": "any sender could claim a priority; give links that must not wait for others a `length` or `ttl`, "
    "so that they have queues of their own",
}


def link(spec: Link, path: str) -> list[Problem]:
    """Check the values of one link."""
    problems = []
    for key, name in (("from", spec.source), ("to", spec.target)):
        if not END.fullmatch(name):
            problems.append(Problem(f"{path}:{key}", f"{name!r} is neither an environment's name nor <name>@<host>"))
    if spec.source == spec.target:
        problems.append(Problem(path, f"{spec.source} can't be linked to itself"))
    if spec.local is not None and not NAME.fullmatch(spec.local):
        problems.append(Problem(f"{path}:as", f"{spec.local!r:.60} can't be a local name: use {NAME_RULE}"))
    if spec.ttl is not None and not 0.001 <= spec.ttl <= LINK_TTL:
        problems.append(Problem(f"{path}:ttl", f"{spec.ttl:g}: expected 0.001 to {LINK_TTL} seconds, a week"))
    if spec.length is not None and not 1 <= spec.length <= LINK_LENGTH:
        problems.append(Problem(f"{path}:length", f"{spec.length}: expected 1 to {LINK_LENGTH} messages"))
    if spec.rate is not None and not LINK_RATES[0] <= spec.rate <= LINK_RATES[1]:
        problems.append(Problem(f"{path}:rate", f"{spec.rate:g}: expected 0.001 to 100000 messages per second"))
    if spec.rate is not None and spec.length is None:
        problems.append(
            Problem(f"{path}:rate", "needs length, because messages above the rate wait in the link's own queue")
        )
    if spec.size is not None:
        _between(problems, f"{path}:size", spec.size, *LINK_SIZES)
    if spec.content_type is not None and not _MEDIA_TYPE.fullmatch(spec.content_type):
        text = f"{spec.content_type!r}: expected a media type in lower case, without parameters, such as text/plain"
        problems.append(Problem(f"{path}:content_type", text))
    if spec.full != "reject" and spec.length is None:
        problems.append(
            Problem(
                f"{path}:full",
                "needs length, so that the link has its own queue; in a shared mailbox, other links fill it, too",
            )
        )
    return problems


def local_names(links: Iterable[Link]) -> dict[str, str]:
    """Return the reason for each link whose local name (``as``) is refused, by the link's name.

    A local name is refused if it means two environments to the sender's program. The names of environments that send to
    the sender count, too, because its program receives messages under these names.
    """
    links = list(links)
    if all(one.local is None for one in links):
        return {}
    others: dict[str, set[str]] = {}
    for one in links:
        others.setdefault(one.source, set()).add(one.target)
        others.setdefault(one.target, set()).add(one.source)
    wrong: dict[str, str] = {}
    owners: dict[tuple[str, str], Link] = {}
    for one in links:
        if one.local is None:
            continue
        first = owners.setdefault((one.source, one.local), one)
        if first.target != one.target:
            why = f"{one.source} already uses {one.local} for {first.target}"
            wrong[one.name] = f"{why}; remove that link, or choose another name"
        elif one.local != one.target and one.local in others[one.source]:
            why = f"{one.source} has a link with another environment named {one.local}"
            wrong[one.name] = f"{why}; choose another name"
    return wrong


def clashes(
    declared: Declaration, path: str, known: Collection[str] = (), places: Sequence[str] | None = None
) -> list[Problem]:
    """Check for conflicts within a whole declaration.

    :param known: names of declared environments that didn't parse.
    :param places: the path of each link, for messages; None: make the path from the link's position in the list.
    """
    problems: list[Problem] = []
    names = {*declared.environments, *known}

    seen: dict[str, str] = {}
    for index, one in enumerate(declared.links):
        where = places[index] if places else f"{path}:links:{index}"
        for key, name in (("from", one.source), ("to", one.target)):
            if name not in names and name != peer.NAME and not hosts.remote(name):
                problems.append(Problem(f"{where}:{key}", no_environment(name, names)))
        problems += hosts.link(one, declared.broker, where)
        if one.source.startswith(peer.NAME) or one.target.startswith(peer.NAME):
            problems += [Problem(f"{where}:{key}", message) for key, message in peer.misnamed(one)]
        if isinstance(declared.broker, ClusterBroker):
            problems += [
                Problem(
                    f"{where}:{key}", "this host has an environment of the same name; give one of the two another name"
                )
                for key, name in (("from", one.source), ("to", one.target))
                if hosts.remote(name) and name.partition("@")[0] in names
            ]
        if one.name in seen:
            problems.append(Problem(where, f"the same link as {seen[one.name]}"))
        seen.setdefault(one.name, where)

        if one.monitor and isinstance(declared.broker, ClusterBroker):
            problems.append(
                Problem(f"{where}:monitor", "needs netspace's own broker, which reports when programs start and stop")
            )
        if not one.durable and isinstance(declared.broker, ClusterBroker):
            why = "a queue in memory is lost with its node of the cluster; leave it out, or use a broker of "
            problems.append(Problem(f"{where}:durable", f"{why}netspace's own"))
        if one.attested is not None and isinstance(declared.broker, ClusterBroker):
            why = "needs netspace's own broker: on a broker that hosts share, no host can refuse messages"
            problems.append(Problem(f"{where}:attested", why))
    every = (*declared.links, *peer.links(declared.environments))
    problems += [Problem(f"{seen[name]}:as", message) for name, message in local_names(every).items()]

    if isinstance(declared.broker, ClusterBroker):
        problems += [
            Problem(f"{path}:environments:{name}:host", peer.SHARED)
            for name, spec in declared.environments.items()
            if spec.host
        ]
    addresses: dict[str, str] = {}
    for name, spec in declared.environments.items():
        for family in ("ipv4", "ipv6"):
            address = getattr(spec.interface, family, None)
            if not isinstance(address, Address):
                continue  # no fixed address of netspace's ranges
            where = f"{path}:environments:{name}:interface:{family}"
            range_ = getattr(declared.network, family).network
            if ipaddress.ip_address(address) not in range_:  # never true for another family
                problems.append(Problem(where, f"{address} is outside of {path}:network:{family} ({range_})"))
            if address in addresses:
                problems.append(Problem(where, f"{address} already belongs to {addresses[address]}"))
            addresses.setdefault(address, name)

    known_ones = {name: spec.interface for name, spec in declared.environments.items() if spec.interface is not None}
    problems += [
        Problem(f"{path}:environments:{name}:interface:{key}", message)
        for name, key, message in (*together(known_ones, path), *_published(declared, known_ones, path))
    ]

    problems += _volumes(declared, path)
    problems += _settings(declared, path)
    return problems


def _published(declared: Declaration, interfaces: Mapping[str, Interface], path: str) -> Iterable[tuple[str, str, str]]:
    """Return the publications that conflict with a port of the broker: (name, key, message)."""
    broker = declared.broker
    if not isinstance(broker, LocalBroker):
        return ()
    return publish.against_broker(interfaces, broker, hosts.address(broker.listen or ""), path)


def _volumes(declared: Declaration, path: str) -> list[Problem]:
    """Check that each volume's source belongs to one environment only.

    Volumes of other environments may not name the same path, a path above it, or a path below it.
    """
    problems = []
    sources = sorted(
        (volume.source, name, f"{path}:environments:{name}:volumes:{index}:source")
        for name, spec in declared.environments.items()
        for index, volume in enumerate(spec.volumes)
        if volume.source is not None
    )
    # Sorted with '/' lowest, a path comes right before the paths within it.
    sources.sort(key=lambda entry: entry[0].replace("/", "\0"))
    for index, (source, name, where) in enumerate(sources):
        for other, owner, _ in reversed(sources[:index]):
            if within(source, other):
                problems.append(
                    Problem(
                        where,
                        f"{source} already belongs to {owner} (as {other}); give {name} another folder",
                    )
                )
                break
    return problems


def _settings(declared: Declaration, path: str) -> list[Problem]:
    problems: list[Problem] = []
    broker = declared.broker
    if isinstance(broker, LocalBroker):
        least, most = MESSAGE_SIZES
        sizes = {"": broker.message_size}
        sizes.update({f":hosts:{name}": host.message_size for name, host in broker.hosts.items()})
        for where, size in sizes.items():
            _between(problems, f"{path}:broker{where}:message_size", size, least, most)
        used: dict[int, str] = {}
        for key in PORTS:
            port = getattr(broker, key)
            if not 1 <= port <= 65535:
                problems.append(Problem(f"{path}:broker:{key}", f"{port} is out of 1..65535"))
            if port in used:
                problems.append(Problem(f"{path}:broker:{key}", f"{port} is already used as {used[port]}"))
            used.setdefault(port, key)
        for index, name in enumerate(broker.passwords):
            if not NAME.fullmatch(name):
                problems.append(
                    Problem(f"{path}:broker:passwords:{index}", f"{name!r:.60} is not an environment's name")
                )
        if broker.trust_domain is not None and not _DOMAIN.fullmatch(broker.trust_domain):
            problems.append(
                Problem(f"{path}:broker:trust_domain", "expected a name such as example.org: a-z, 0-9, '.', '-', '_'")
            )
        if broker.authority is not None and not bare(broker.authority):
            problems.append(Problem(f"{path}:broker:authority", f"expected the absolute path of a folder, {PLAINLY}"))
        problems += hosts.settings(broker, f"{path}:broker")
    elif isinstance(broker, ClusterBroker):
        problems += _urls(broker.url, ("amqp", "amqps"), f"{path}:broker:url")
        problems += _urls(broker.management, ("http", "https"), f"{path}:broker:management")
        if not bare(broker.credentials):
            problems.append(Problem(f"{path}:broker:credentials", f"expected the absolute path of a file, {PLAINLY}"))
        if broker.ca is not None and not bare(broker.ca):
            problems.append(Problem(f"{path}:broker:ca", f"expected the absolute path of a file, {PLAINLY}"))
        if broker.names_key is not None and not bare(broker.names_key):
            problems.append(Problem(f"{path}:broker:names_key", f"expected the absolute path of a file, {PLAINLY}"))
        if broker.host is not None and not NAME.fullmatch(broker.host):
            problems.append(Problem(f"{path}:broker:host", f"{broker.host!r} can't be a host's name: use {NAME_RULE}"))
    for index, pcr in enumerate(declared.attestation.pcrs):
        if not 0 <= pcr <= 23:
            problems.append(Problem(f"{path}:attestation:pcrs:{index}", f"{pcr} is not a PCR; expected 0 to 23"))
    if declared.attestation.verifier == "master" and not declared.attestation.verifier_keys:
        problems.append(
            Problem(
                f"{path}:attestation:verifier_keys",
                "missing; give the thumbprints of the master's keys (salt-run netspace_attestation.jwks)",
            )
        )
    for index, key in enumerate(declared.attestation.verifier_keys):
        if not re.fullmatch(r"[A-Za-z0-9_-]{43}", key):
            problems.append(
                Problem(f"{path}:attestation:verifier_keys:{index}", f"{key!r:.60} is not a thumbprint (RFC 7638)")
            )
    if declared.network.ipv4.network.version != 4:
        problems.append(Problem(f"{path}:network:ipv4", f"{declared.network.ipv4} is not an IPv4 network"))
    if declared.network.ipv6.network.version != 6:
        problems.append(Problem(f"{path}:network:ipv6", f"{declared.network.ipv6} is not an IPv6 network"))
    return problems


def _urls(value: str | tuple[str, ...], schemes: tuple[str, str], path: str) -> list[Problem]:
    """Check one URL, or each URL in a list (one for each node of a cluster)."""
    if isinstance(value, str):
        return _url(value, schemes, path)
    if not value:
        return [Problem(path, "names no node of the cluster")]
    return [problem for index, one in enumerate(value) for problem in _url(one, schemes, f"{path}:{index}")]


def _url(value: str, schemes: tuple[str, str], path: str) -> list[Problem]:
    """Check one URL. No message repeats the URL, because it may contain a password.

    :param schemes: two schemes: the one without TLS, allowed for loopback only, and the one with TLS.
    """
    wanted = f"expected {schemes[0]}://HOST:PORT or {schemes[1]}://HOST:PORT"
    try:
        parts = urllib.parse.urlsplit(value)
        host, port = parts.hostname or "", parts.port
    except ValueError as err:
        return [Problem(path, f"{wanted}: {err}")]
    if parts.username is not None or parts.password is not None:
        return [Problem(path, "the URL has a user or a password; put them into the file that 'credentials' names")]
    if parts.scheme not in schemes or not _HOST.fullmatch(host) or port == 0 or parts.query or parts.fragment:
        return [Problem(path, wanted)]
    clear, secret = schemes
    if parts.scheme == clear and not _loopback(host):
        text = f"{clear}:// to another host sends passwords unencrypted; use {secret}://"
        return [Problem(path, text)]
    return []


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def within(path: str, folder: str) -> bool:
    """Return whether *path* is *folder* or lies below *folder* (both absolute and normalized)."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def quoted(target: str) -> str:
    """Return the name of the file or folder in which netspace keeps a volume that has no ``source``.

    :param target: the path of the volume in the environment, from which the name is made.
    """
    return urllib.parse.quote(target.strip("/"), safe="")


def _between(problems: list[Problem], path: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # NaN is in no range; an int may be larger than any float
        if isinstance(value, (Size, Rate)):
            told = [type(value)(one).written for one in (value, least, most)]
        else:
            told = [f"{one!s:.40}" for one in (value, least, most)]
        in_bytes = isinstance(value, Size) and told[0].isdigit() and least <= value * 1024**2 <= most
        remedy = f"; a number alone is bytes: write {int(value)}M" if in_bytes else ""
        problems.append(Problem(path, f"{told[0]} is out of {told[1]}..{told[2]}{remedy}"))
