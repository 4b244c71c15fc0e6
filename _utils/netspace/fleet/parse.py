"""Parser of a fleet's declaration: returns typed values, or every problem with its file and path. Pure.

A declaration may be spread over several files. Each environment and each host is declared once. A second declaration
under the same name is refused, and the error names both files.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from netspace.errors import SpecError
from netspace.fleet import edition, policy
from netspace.fleet.policy import Policy
from netspace.fleet.types import (
    DOMAIN,
    MAX_TERMS,
    Assertion,
    AssertionEntry,
    Defaults,
    EnvironmentEntry,
    Fleet,
    FleetError,
    Host,
    HostEntry,
    LinkEntry,
    Placing,
    Problem,
    broker_address,
)
from netspace.spec import hosts, parse, reach, renames
from netspace.spec.types import NAME, NAME_RULE, Broker

T = TypeVar("T")

KEYS = (
    *("hosts", "environments", "links", "never", "defaults", "domain", "trusted_grains", "apply", "rollout"),
    *("edition", "include", "uses"),
)
_SINGLE = ("defaults", "domain", "trusted_grains", "apply", "rollout", "edition")
"""Keys that stand in one file of a declaration, because two values of one could contradict each other."""
APPLY = ("at-once", "planned")
_EMPTY = {"hosts": "{}", "environments": "{}", "links": "[]", "never": "[]"}
"""The notation for an empty value of each key."""
_PLACING = ("on", "replicas", "spread", "at_least")
_DERIVED = ("host", "hosts", "listen", "trust_domain")
_REMEDY = "leave it out: it is derived from the fleet's hosts and links"
_MINION = re.compile(r"[^\s/\\\x00-\x1f\x7f]{1,255}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_GRAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_:.-]{0,62}")
MAX_REPLICAS = 10_000


class _Reading:
    """The problems found in one file, and conversions that add problems."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.file, self._problems = file, problems

    def refuse(self, path: str, reason: str) -> None:
        self._problems.append(Problem(self.file, path, reason))

    def convert(self, data: Any, of: type[T], path: str) -> T | None:
        try:
            found: T = parse.convert(data, of, path)
        except SpecError as err:
            for path, reason in err.problems:
                self.refuse(path, reason)
            return None
        return found

    def mapping(self, data: Any, path: str) -> Mapping[Any, Any]:
        if isinstance(data, Mapping):
            return data
        if data is not None:
            self.refuse(path, f"expected a mapping, got {type(data).__name__}")
        return {}

    def listed(self, data: Any, path: str) -> Iterable[tuple[str, Any]]:
        if isinstance(data, (list, tuple)):
            return [(f"{path}:{index}", one) for index, one in enumerate(data)]
        if data is not None:
            self.refuse(path, f"expected a list, got {type(data).__name__}")
        return ()

    def named(self, data: Any, path: str, what: str, owners: dict[str, str]) -> Iterable[tuple[str, str, Any]]:
        """Yield name, path and value of each entry whose name is valid and not yet in *owners*.

        The names are added to *owners*; other entries become problems.
        """
        for name, value in self.mapping(data, path).items():
            where = f"{path}:{name}"
            if not isinstance(name, str) or not NAME.fullmatch(name):
                self.refuse(where, f"{name!r:.80} can't be {what}'s name: use {NAME_RULE}")
            elif name in owners:
                self.refuse(where, f"is declared in {owners[name]}, too; declare it once")
            else:
                owners[name] = self.file
                yield name, where, value


def fleet(documents: Mapping[str, Any]) -> Fleet:
    """Parse a fleet's declaration.

    :param documents: the rendered content of each file, by the file's name.
    :raises FleetError: there are problems; the error has all of them.
    """
    problems: list[Problem] = []
    owners: tuple[dict[str, str], dict[str, str]] = ({}, {})
    single: dict[str, tuple[str, Any]] = {}
    named: dict[str, HostEntry] = {}
    environments: dict[str, EnvironmentEntry] = {}
    links: list[LinkEntry] = []
    never: list[AssertionEntry] = []
    for file, data in documents.items():
        reading = _Reading(file, problems)
        data = reading.mapping(data, "")
        for key in data:
            if key not in KEYS:
                reading.refuse(str(key), f"unknown; there are {', '.join(KEYS)}")
            elif data[key] is None and key in _EMPTY:
                reading.refuse(key, f"no value, as in a file that is cut off; leave it out or write {_EMPTY[key]}")
        for key in _SINGLE:
            if data.get(key) is not None and single.setdefault(key, (file, data[key]))[0] != file:
                reading.refuse(key, f"stands in {single[key][0]}, too; keep one of the two")
        for name, where, value in reading.named(data.get("hosts"), "hosts", "a host", owners[0]):
            host = reading.convert({} if value is None else value, Host, where)
            if host is not None:
                _check_host(reading, where, host)
                named[name] = HostEntry(file, host)
        for name, where, value in reading.named(data.get("environments"), "environments", "an environment", owners[1]):
            entry = _environment(reading, where, value)
            if entry is not None:
                environments[name] = entry
        links += filter(None, (_link(reading, where, one) for where, one in reading.listed(data.get("links"), "links")))
        for where, value in reading.listed(data.get("never"), "never"):
            asserted = reading.convert(value, Assertion, where)
            if asserted is not None and _check_assertion(reading, where, asserted):
                never.append(AssertionEntry(file, where, asserted))
    settings = _settings(single, problems)
    file, when = single.get("apply", ("", "at-once"))
    if when not in APPLY:
        _Reading(file, problems).refuse("apply", f"{when!r:.40} is not accepted here; choose from {', '.join(APPLY)}")
    settings_file = single.get("defaults", ("",))[0]
    result = Fleet(named, environments, tuple(links), tuple(never), *settings, settings_file, planned=when == "planned")
    file, number = single.get("edition", ("", 0))
    if not edition.valid(number):
        _Reading(file, problems).refuse(
            "edition", f"{number!r:.40}: expected a whole number, which you raise with each change"
        )
        number = 0
    result = result._replace(rollout=_rollout(single, named, problems), edition=number)
    _check_names(result, owners, problems)
    if problems:
        raise FleetError(problems)
    return result


def _settings(single: Mapping[str, tuple[str, Any]], problems: list[Problem]) -> tuple[Defaults, str, tuple[str, ...]]:
    file, value = single.get("defaults", ("", {}))
    reading = _Reading(file, problems)
    defaults = reading.convert(value, Defaults, "defaults") or Defaults()
    _check_broker(reading, "defaults:broker", defaults.broker)
    file, domain = single.get("domain", ("", DOMAIN))
    if not isinstance(domain, str) or not hosts.DOMAIN.fullmatch(domain):
        _Reading(file, problems).refuse("domain", f"{domain!r:.80}: expected a name such as fleet.example.org")
        domain = DOMAIN
    file, value = single.get("trusted_grains", ("", ()))
    reading = _Reading(file, problems)
    grains = reading.convert(value, tuple[str, ...], "trusted_grains") or ()
    for grain in grains:
        if not _GRAIN.fullmatch(grain):
            reading.refuse("trusted_grains", f"{grain!r:.80} can't be a grain's name")
    return defaults, domain, grains


def _rollout(single: Mapping[str, tuple[str, Any]], known: Iterable[str], problems: list[Problem]) -> Policy:
    """Return the declared policy of rollouts."""
    file, value = single.get("rollout", ("", {}))
    reading = _Reading(file, problems)
    found = reading.convert(value, Policy, "rollout") or Policy()
    for key, why in policy.wrong(found, known):
        reading.refuse(f"rollout:{key}", why)
    return found


def _check_host(reading: _Reading, where: str, host: Host) -> None:
    if host.minion is not None and not _MINION.fullmatch(host.minion):
        reading.refuse(f"{where}:minion", f"{host.minion!r:.80} can't be a minion's id")
    if host.address is not None and broker_address(host.address) is None:
        wanted = "expected an address such as 198.51.100.1, or with a port 198.51.100.1:5671; no names are looked up"
        reading.refuse(f"{where}:address", f"{host.address!r:.80}: {wanted}")
    if host.trust_domain is not None and not hosts.DOMAIN.fullmatch(host.trust_domain):
        reading.refuse(f"{where}:trust_domain", f"{host.trust_domain!r:.80}: expected a name such as h1.example.org")
    for name, value in host.labels.items():
        if not _LABEL.fullmatch(name) or not _LABEL.fullmatch(value):
            reading.refuse(f"{where}:labels:{name:.63}", "expected 1 to 63 letters, digits, '.', '_' and '-'")
    _check_broker(reading, f"{where}:broker", host.broker)


def _check_broker(reading: _Reading, where: str, broker: Mapping[str, Any]) -> None:
    for key in _DERIVED:
        if key in broker:
            reading.refuse(f"{where}:{key}", _REMEDY)
    if broker.get("kind", "local") != "local":
        reading.refuse(f"{where}:kind", "a fleet's links use the brokers of its hosts; declare a cluster in pillar")
    elif broker:
        reading.convert({"kind": "local", **broker}, Broker, where)  # type: ignore[arg-type]


def _environment(reading: _Reading, where: str, value: Any) -> EnvironmentEntry | None:
    if not isinstance(value, Mapping):
        reading.refuse(where, "expected a mapping with on, image and the other keys of an environment")
        return None
    body = dict(value)
    if True in body and "on" not in body:
        body["on"] = body.pop(True)  # YAML 1.1 reads the word on as true
    if "on" not in body:
        reading.refuse(f"{where}:on", "is missing: name a host, or a glob or list of hosts")
        return None
    placing = reading.convert({key: body.pop(key) for key in _PLACING if key in body}, Placing, where)
    if placing is None:
        return None
    if not 0 < len(placing.terms) <= MAX_TERMS or not all(placing.terms):
        reading.refuse(f"{where}:on", f"expected 1 to {MAX_TERMS} hosts or patterns")
    if isinstance(placing.replicas, int) and not 1 <= placing.replicas <= MAX_REPLICAS:
        reading.refuse(f"{where}:replicas", f"{placing.replicas}: expected 1 to {MAX_REPLICAS}, or all")
    if placing.at_least is not None:
        wanted = body.setdefault("attestation", {"policy": "require", "minimum": placing.at_least})
        minimum = wanted.get("minimum", "L1") if isinstance(wanted, Mapping) else "L5"
        if isinstance(minimum, str) and minimum < placing.at_least:
            why = f"{minimum} is lower than at_least ({placing.at_least}); declare that level, or no attestation"
            reading.refuse(f"{where}:attestation:minimum", why)
    return EnvironmentEntry(reading.file, placing, body)


def _link(reading: _Reading, where: str, value: Any) -> LinkEntry | None:
    if not isinstance(value, Mapping):
        reading.refuse(where, "expected a mapping with from, to and the other keys of a link")
        return None
    body = dict(value)
    if renames.KEY in body:
        reading.refuse(f"{where}:{renames.KEY}", "leave it out: the renamed environment's own key counts for its links")
        return None
    ends = []
    for key in ("from", "to"):
        end = body.pop(key, None)
        if not isinstance(end, str) or not NAME.fullmatch(end):
            hint = "; leave out the host: `on` chooses it" if isinstance(end, str) and "@" in end else ""
            reading.refuse(f"{where}:{key}", f"{end!r:.100}: expected the name of an environment{hint}")
            return None
        ends.append(end)
    which = body.pop("reach", "one")
    if which not in ("one", "each"):
        reading.refuse(f"{where}:reach", f"{which!r:.40} is not accepted here; choose from one, each")
        return None
    reaction = body.pop("on_distrust", None)
    if reaction not in (None, "cut", "report"):
        reading.refuse(f"{where}:on_distrust", f"{reaction!r:.40} is not accepted here; choose from cut, report")
        return None
    return LinkEntry(reading.file, where, ends[0], ends[1], which, body, reaction)


def _check_assertion(reading: _Reading, where: str, spec: Assertion) -> bool:
    networks = 0
    for key, end in (("from", spec.source), ("to", spec.target)):
        try:
            network = reach.asked(end)
        except ValueError as err:
            reading.refuse(f"{where}:{key}", f"{end!r:.100}: {err}; name an environment or a network")
            return False
        networks += network is not None
        if network is None and not NAME.fullmatch(end):
            reading.refuse(f"{where}:{key}", f"{end!r:.100} is neither an environment nor a network")
            return False
    if networks == 2:
        reading.refuse(where, "neither end is an environment; name one")
    elif networks and spec.by == "messages":
        reading.refuse(f"{where}:by", "messages never go to or come from a network; write by: packets")
    elif spec.source == spec.target:
        reading.refuse(where, f"both ends are {spec.source:.100}; name two different ends")
    else:
        return True
    return False


def _check_names(found: Fleet, owners: tuple[dict[str, str], dict[str, str]], problems: list[Problem]) -> None:
    """Check names across the parts: each named environment exists; minions and trust domains are unique.

    :param owners: the file of each declared host and environment, including those with problems.
    """
    environments = owners[1]
    for link in found.links:
        for key, end in (("from", link.source), ("to", link.target)):
            if end not in environments:
                problems.append(Problem(link.file, f"{link.path}:{key}", _no_environment(end, environments)))
        if link.source == link.target:
            problems.append(Problem(link.file, link.path, f"{link.source} is at both ends; name two environments"))
    for file, where, spec in found.never:
        for key, end in (("from", spec.source), ("to", spec.target)):
            if reach.network(end) is None and end not in environments:
                problems.append(Problem(file, f"{where}:{key}", _no_environment(end, environments)))
    former = found.former()
    for name, why in renames.wrong(former, environments):
        problems.append(Problem(found.environments[name].file, f"environments:{name}:{renames.KEY}", why))
    minions: dict[str, str] = {}
    domains: dict[str, str] = {}
    for name, (file, _) in found.hosts.items():
        first = minions.setdefault(found.minion(name), name)
        if first != name:
            problems.append(
                Problem(file, f"hosts:{name}:minion", f"{found.minion(name)} is {first}'s; each has its own")
            )
        domain = found.trust_domain(name)
        if not hosts.DOMAIN.fullmatch(domain):
            why = f"{domain!r:.80} can't be a trust domain; declare one such as h1.example.org"
            problems.append(Problem(file, f"hosts:{name}:trust_domain", why))
        first = domains.setdefault(domain, name)
        if first != name:
            problems.append(Problem(file, f"hosts:{name}:trust_domain", f"{domain} is {first}'s; each has its own"))
    for domain, name in domains.items():
        above = domain
        while "." in above:
            above = above.partition(".")[2]
            if above in domains:
                why = f"{domain} is below {above}, which is {domains[above]}'s: that host could certify this one"
                problems.append(Problem(found.hosts[name].file, f"hosts:{name}:trust_domain", why))


def _no_environment(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known)[:MAX_REPLICAS], n=1)
    return f"no environment is called {name!r:.60}" + (f"; did you mean {near[0]}?" if near else "; declare it")
