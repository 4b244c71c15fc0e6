"""Permissions of tenants: the values that the operator lets a tenant declare for its environments. Pure.

Each key of an environment is either harmless for others, or bounded here by the section ``tenants``, which the operator
writes. A value that this section doesn't permit is refused.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator

import msgspec

from netspace.errors import Problem
from netspace.spec import checks, extensions
from netspace.spec.paths import clean, plain
from netspace.spec.publish import published
from netspace.spec.types import Allow, Cidr, Environment, Filtered, HostName, Interface, Runtimes, Template, Tenant

FREE = frozenset({"allow", "rate", "connections", "publish", "audit"})
"""Keys of an interface that a tenant chooses. Rules, ports and connections have bounds of their own."""
STOP_TIMEOUT, SETTLE, INTERVAL = 60.0, 10.0, 1.0
"""Bounds of seconds for which one tenant can keep the host busy: for a stop, for a start, and between two probes."""
_PINNED = re.compile(r"(?s)(.*?)(?:@sha256:([0-9a-f]{64}))?")
_HASH = re.compile(r"(?:sha256[:=])?([0-9a-fA-F]{64})")
_LOCATION = (
    "expected <source>:<location> or kernel:<path>, with * for characters except /, and @sha256:<hex> if need be"
)


# -- what the operator wrote -------------------------------------------------------------------------
def wrong(tenant: Tenant) -> Iterator[tuple[str, str]]:
    """Yield the problems of the permissions in a tenant's section: (key, message)."""
    for index, image in enumerate(tenant.images):
        location = _parts(image)[0]
        if not _located(location) or not clean(_path(location)):
            yield f"images:{index}", f"{image!r:.100}: {_LOCATION}"
    for index, runtime in enumerate(tenant.runtimes):
        if runtime not in extensions.runtimes():
            known = ", ".join(extensions.runtimes())
            yield f"runtimes:{index}", f"{runtime!r:.60} is not a runtime; choose from {known}"
    for index, profile in enumerate(tenant.seccomp):
        if profile not in checks.SECCOMP_PROFILES and not clean(profile.removeprefix("file:")):
            choice = ", ".join(checks.SECCOMP_PROFILES)
            yield (
                f"seccomp:{index}",
                f"{profile!r:.60} is not a profile; choose from {choice}, file:/profile.json",
            )
    for index, text in enumerate(tenant.outside):
        if _network(text) is None and _name(text) is None:
            yield f"outside:{index}", f"{text!r:.60}: expected a network such as 198.51.100.0/24, or a full DNS name"
    for index, port in enumerate(tenant.ports):
        if isinstance(port, bool) or checks.ports(port) is None:
            yield f"ports:{index}", f"{port!r:.20}: expected a port in 1..65535 or 'first-last'"
    for index, folder in enumerate(tenant.folders):
        within = any(checks.within(folder, one) for one in checks.HOST_FOLDERS)
        if not clean(folder) or folder in checks.HOST_ROOTS or within:
            yield (
                f"folders:{index}",
                f"{folder!r:.100}: expected the path of a folder that isn't the host's own",
            )
    for index, verb in enumerate(tenant.host):
        if verb not in extensions.host_verbs():
            known = ", ".join(extensions.host_verbs())
            yield f"host:{index}", f"{verb!r:.60} is not a request that the host answers; choose from {known}"
    for index, file in enumerate(tenant.include):
        if not clean(file) or file in tenant.include[:index]:
            yield f"include:{index}", f"{file!r:.100}: expected the absolute path of a file, which no other entry names"


def shared(tenants: dict[str, Tenant], path: str) -> list[Problem]:
    """Return a problem for each port, folder, file and interface that is permitted to two tenants.

    If one tenant used it first, the other's part would be refused.
    """
    problems: list[Problem] = []
    folders: list[tuple[str, str]] = []
    ranges: list[tuple[int, int, str]] = []
    owners: dict[str, str] = {}

    def refuse(where: str, what: str, other: str) -> None:
        problems.append(
            Problem(f"{path}:{where}", f"{what} also belongs to the tenant {other}; give each tenant its own")
        )

    for name, tenant in tenants.items():
        for index, folder in enumerate(tenant.folders):
            for held, other in folders:
                if other != name and (checks.within(folder, held) or checks.within(held, folder)):
                    refuse(f"{name}:folders:{index}", folder, other)
            folders.append((folder, name))
        for index, port in enumerate(tenant.ports):
            if (found := checks.ports(port)) is None:
                continue
            for first, last, other in ranges:
                if other != name and found[0] <= last and first <= found[1]:
                    refuse(f"{name}:ports:{index}", str(port), other)
            ranges.append((*found, name))
        claimed = [(f"include:{index}", file) for index, file in enumerate(tenant.include)]
        for index, given in enumerate(tenant.interfaces):
            claimed += [(f"interfaces:{index}", what) for _, what in given.claims()]
        for where, what in claimed:
            if owners.setdefault(what, name) != name:
                refuse(f"{name}:{where}", what, owners[what])
    return problems


# -- what the tenant wrote --------------------------------------------------------------------------
def beyond(spec: Environment, tenant: Tenant, usual: Runtimes) -> Iterator[tuple[str, str]]:
    """Yield a problem for each value of an environment that its tenant may not declare: (key, message).

    :param usual: the host's default runtimes.
    """
    yield from _root(spec, tenant, "")
    used = checks.used(spec, usual)
    if used not in tenant.runtimes if tenant.runtimes else spec.runtime is not None:
        chosen = ", ".join(tenant.runtimes) or "none, so leave it out"
        yield "runtime", f"the tenant may not have {used}; it may name: {chosen}"
    if spec.seccomp not in tenant.seccomp:
        yield "seccomp", f"{spec.seccomp!r:.100} is not permitted to the tenant; it may name: {_listed(tenant.seccomp)}"
    if spec.apparmor == "off":
        yield "apparmor", "a tenant can't switch it off; leave it out"
    if spec.secrets:
        yield "secrets", "a tenant could name the secrets of others; leave them out"
    if spec.target:
        yield "target", "Salt's targets are the operator's alone; leave it out"
    yield from _interface(spec.interface, tenant)
    for index, volume in enumerate(spec.volumes):
        if volume.source is not None and not any(checks.within(volume.source, one) for one in tenant.folders):
            text = f"{volume.source!r:.200} is in none of the tenant's folders ({_listed(tenant.folders)})"
            yield f"volumes:{index}:source", f"{text}; give a size, or another folder"
    if spec.kernel is None and not spec.read_only and spec.limits.disk is None:
        yield "limits:disk", "missing; declare this limit, or read_only: true"
    for index, verb in enumerate(spec.host):  # a child may ask no more than its parent
        if verb not in tenant.host:
            yield (
                f"host:{index}",
                f"{verb!r:.60}: the tenant may not request that; it may request: {_listed(tenant.host)}",
            )
    if spec.stop_timeout > STOP_TIMEOUT:
        yield "stop_timeout", f"{spec.stop_timeout:g}: at most {STOP_TIMEOUT:g} seconds are accepted for a tenant"
    if spec.settle > SETTLE:
        yield "settle", f"{spec.settle:g}: at most {SETTLE:g} seconds are accepted for a tenant"
    if spec.health is not None and spec.health.interval < INTERVAL:
        text = f"{spec.health.interval:g}: at least {INTERVAL:g} seconds are necessary for a tenant"
        yield "health:interval", text
    for name, template in spec.spawns.items():
        yield from _root(template, tenant, f"spawns:{name}:")


def _root(spec: Environment | Template, tenant: Tenant, where: str) -> Iterator[tuple[str, str]]:
    """Yield a problem for an image or kernel that the tenant may not use."""
    kernel = getattr(spec, "kernel", None)
    text = spec.image if kernel is None else f"kernel:{kernel}"
    if not any(matches(one, text, spec.source_hash or "") for one in tenant.images):
        key = "image" if kernel is None else "kernel"
        yield f"{where}{key}", f"{text!r:.200} isn't an image of the tenant; it may name: {_listed(tenant.images)}"


def _interface(spec: Interface | None, tenant: Tenant) -> Iterator[tuple[str, str]]:
    if spec is None or spec.NONE:
        return
    if not any(_same(spec, one) for one in tenant.interfaces):
        kind, known = extensions.interface_kind(spec), ", ".join(map(_told, tenant.interfaces)) or "none"
        text = f"no interface of the kind {kind} with these keys is permitted to the tenant; it may declare: {known}"
        yield "interface", text
    if not isinstance(spec, Filtered):
        return
    for index, rule in enumerate(spec.allow):
        if text := _rule(rule, tenant.outside):
            yield f"interface:allow:{index}", text
    ranges = [found for port in tenant.ports if (found := checks.ports(port)) is not None]
    for index, one in enumerate(published(spec)):
        if not any(first <= one.host.port <= last for first, last in ranges):
            text = f"{one.host.port} is none of the tenant's ports of the host ({_listed(map(str, tenant.ports))})"
            yield f"interface:publish:{index}", text


def _same(spec: Interface, given: Interface) -> bool:
    """Return whether an interface equals a permitted one, apart from keys that the tenant may choose freely."""
    if type(spec) is not type(given):
        return False
    return all(getattr(spec, key) == getattr(given, key) for key in spec.__struct_fields__ if key not in FREE)


def _told(given: Interface) -> str:
    """Return a permitted interface in the form of a declaration, without defaults."""
    fields = msgspec.structs.fields(given)
    keys = {field.encode_name: getattr(given, field.name) for field in fields if field.name not in FREE}
    usual = {field.encode_name: field.default for field in fields}
    more = "".join(f", {key}: {value}" for key, value in keys.items() if value != usual[key])
    return f"{{kind: {extensions.interface_kind(given)}{more}}}"


def _rule(rule: Allow, outside: Iterable[str]) -> str:
    """Return why a tenant may not have a rule; empty if it may."""
    outside = tuple(outside)
    if rule.name is not None and str(rule.name) not in {_name(one) for one in outside}:
        return f"{rule.name} is none of the names outside that are permitted to the tenant ({_listed(outside)})"
    if rule.cidr is None:
        return ""
    wanted, granted = rule.cidr.network, [found for one in outside if (found := _network(one)) is not None]
    # A rule for a single address lets packets pass to the host itself, if the address is the host's.
    if wanted.num_addresses == 1 and wanted not in granted and rule.name is None:
        return f"{rule.cidr}: a rule for a single address needs this very address in the tenant's outside"
    same = (one for one in granted if one.version == wanted.version)
    if not any(one.supernet_of(wanted) for one in same):  # type: ignore[arg-type]
        return f"{rule.cidr} is in none of the networks outside that are permitted to the tenant ({_listed(outside)})"
    return ""


# -- patterns ------------------------------------------------------------------------------------------
def matches(pattern: str, image: str, source_hash: str) -> bool:
    """Return whether a permission for images covers an image or kernel.

    The location must be a normalized path, because ``..`` would lead elsewhere. A permission can't consist of a digest
    alone: a tenant could then make the host read any file, to compare its digest.
    """
    location, digest = _parts(pattern)
    found = _HASH.fullmatch(source_hash)
    if not _located(image) or not clean(_path(image)) or (digest and (not found or found[1].lower() != digest)):
        return False
    return re.fullmatch(re.escape(location).replace(r"\*", "[^/]*"), image) is not None


def _parts(pattern: str) -> tuple[str, str]:
    """Return the location and the digest of a permission for images; the digest is empty if there is none."""
    found = _PINNED.fullmatch(pattern)
    assert found is not None
    return found[1], found[2] or ""


def _located(image: str) -> bool:
    """Return whether a text is an image with a location on the host or on Salt's file server, or a kernel."""
    source, _, location = image.partition(":")
    known = {*extensions.image_sources(), "kernel"}
    return source in known and plain(image) and location.startswith(("/", "salt://")) and not set(image) & {"?", "|"}


def _path(image: str) -> str:
    """Return the path in an image's location, absolute also for Salt's file server."""
    location = image.partition(":")[2]
    return f"/{location.removeprefix('salt://')}" if location.startswith("salt://") else location


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return Cidr.parse(text).network
    except ValueError:
        return None


def _name(text: str) -> str | None:
    try:
        return HostName.parse(text)
    except ValueError:
        return None


def _listed(some: Iterable[str]) -> str:
    return ", ".join(some) or "none"
