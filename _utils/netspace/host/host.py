"""One host: the use cases that join attestation, interfaces, links and environments.

The four kinds know nothing of each other. This module splits the declaration among
them, withholds the parts for which trust doesn't suffice, and gives each environment
its card, which lists its links. The order is attestation, interfaces, links, environments.
So everything that an environment needs exists before it starts, and its revoked links
are gone before it is stopped.

Every method holds the instance's lock, unless ``test`` is set: then nothing
is written.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Literal

import msgspec

from netspace import files
from netspace.errors import NetspaceError, Problem, SpecError
from netspace.layout import Layout
from netspace.plan import Outcome, Plan, Refusal, Result, Step
from netspace.spec import checks as check
from netspace.spec import trust
from netspace.spec.trust import Trust, Verdict
from netspace.spec.types import Attestation, Declaration, Environment, Link
from netspace.threads import Meanwhile

Progress = Callable[[str], None]
RunState = Literal["running", "present", "stopped"]


def _silent(_: str) -> None:
    """Ignore a progress message."""


class Host:
    """This host, under one instance's names.

    :param layout: the instance's paths and names.
    :param progress: called with a short text while something takes long.
    :param remote: the fetcher of image sources that are not on this host; see ``images.remote``.

    A whole declaration is applied by the four ``converge_*`` methods in their order, each
    with ``whole=True``, which removes undeclared things. Without ``whole``, only the things
    named in the declaration are observed and changed.
    """

    def __init__(self, layout: Layout, progress: Progress = _silent, remote: Any = None) -> None:
        self.layout = layout
        self.progress = progress
        self.remote = remote

    # -- the four kinds, imported on demand -----------------------------------
    @functools.cached_property
    def supervisor(self) -> Any:
        from netspace import supervision

        return supervision.select(self.layout)

    @functools.cached_property
    def attestations(self) -> Any:
        from netspace.attestation.reconciler import Attestations

        return Attestations(self.layout)

    @functools.cached_property
    def interfaces(self) -> Any:
        from netspace.interface.reconciler import Interfaces

        return Interfaces(self.layout)

    @functools.cached_property
    def links(self) -> Any:
        from netspace.link.reconciler import Links

        return Links(self.layout, self.supervisor, progress=self.progress)

    @functools.cached_property
    def environments(self) -> Any:
        from netspace.environment.reconciler import Environments

        return Environments(self.layout, self.supervisor, self.remote, give=lambda owners: self.interfaces.own(owners))

    @functools.cached_property
    def images(self) -> Any:
        """Operations on images."""
        from netspace.environment.images.admin import Images

        return Images(self.environments.store, self._image_users)

    def _image_users(self) -> dict[str, list[str]]:
        users: dict[str, list[str]] = {}
        for name, record in self.environments.recorded().items():
            users.setdefault(record.image.digest, []).append(name)
        return users

    @functools.cached_property
    def operations(self) -> Any:
        """Operations on existing environments (start, stop, exec, logs...)."""
        from netspace.environment.operations import Operations

        return Operations(self.layout, self.supervisor, self.withheld)

    def withheld(self, applied: Mapping[str, Environment]) -> dict[str, str]:
        """Return the applied environments that must not be started, with the reasons.

        If there are any, the host is appraised again first, because its attestation result may have expired.
        """
        if not trust.withheld(applied, self.trust()):
            return {}
        self.attestations.restore()
        return trust.withheld(applied, self.trust())

    # -- attestation -----------------------------------------------------------
    def converge_attestation(self, settings: Attestation, *, test: bool = False) -> Result:
        """Appraise the host if its last attestation result is no longer valid.

        The result has a refusal (a failure) if the host's policy is ``require`` and its level is below the minimum.
        """
        with self._lock(test):
            result = self._run(self.attestations, settings, (), test)
        if result.failures or (test and result.plan.steps):
            return result
        verdict = trust.judge(settings, self.trust())
        return _say(result, "attestation", {"host": verdict})

    def trust(self) -> Trust:
        """Return this host's present trust."""
        from netspace.attestation import result

        return result.trust(self.layout)

    # -- interfaces --------------------------------------------------------------
    def converge_interfaces(self, declared: Declaration, *, whole: bool = False, test: bool = False) -> Result:
        """Create or change the namespace and interface of each declared environment."""
        with self._lock(test):
            self._tidy(test)
            # A declaration of an interface alone lacks the environment's requirement, so take it from the record.
            withheld = self._withheld(declared, test) if whole else self._withheld_so_far(declared.environments)
            return self._interfaces(declared, whole, test, withheld)

    def _withheld(self, declared: Declaration, test: bool) -> dict[str, str]:
        """Return the declared environments that are withheld for lack of trust, with the reasons."""
        verdicts = self._verdicts(trust.environments, declared, test)
        return {name: verdict.comment for name, verdict in verdicts.items() if not verdict.allowed}

    def _withheld_so_far(self, names: Collection[str]) -> dict[str, str]:
        """Return the recorded environments among *names* that are withheld for lack of trust, with the reasons."""
        known = self.environments.recorded()
        return trust.withheld({name: known[name].spec for name in names if name in known}, self.trust())

    def connect(self, declared: Declaration) -> Result:
        """Create the namespaces of twins; the caller holds the lock (:mod:`netspace.audit`)."""
        return self._interfaces(declared, False, False, {})

    def _interfaces(self, declared: Declaration, whole: bool, test: bool, withheld: Mapping[str, str]) -> Result:
        from netspace.interface.reconciler import DesiredInterfaces

        there = self.interfaces.recorded() if withheld else {}
        kept = {name: trust.narrowed(there[name], declared.interfaces[name]) for name in withheld.keys() & there.keys()}
        desired = DesiredInterfaces(declared.network, {**declared.interfaces, **kept})
        if whole:
            remove = self.interfaces.names() - set(declared.environments)
            result = self._run(self.interfaces, desired, remove, test, self.interfaces.observe(desired, doomed=remove))
        else:
            result = self._run_interfaces(desired, (), test)
        waiting = [name for name in sorted(kept) if kept[name] != declared.interfaces[name]]
        if whole:  # The environment itself is refused later in the same apply, so a note is enough.
            told = Plan(notes=[f"interface {name}: its change waits for trust: {withheld[name]}" for name in waiting])
        else:
            told = Plan(refusals=[Refusal("interface", name, withheld[name]) for name in waiting])
        return _join(result, Result(told))

    def _run_interfaces(self, desired: Any, remove: Collection[str], test: bool) -> Result:
        """Apply interfaces, and observe only the concerned ones, because a host may have a thousand others."""
        seen = self.interfaces.observe(desired, {*desired.interfaces, *remove}, remove)
        plan: Plan = self.interfaces.plan(desired, seen, remove)
        if self.interfaces.concerns_all(plan):
            plan = self.interfaces.plan(desired, self.interfaces.observe(desired, doomed=remove), remove)
        return Result(plan) if test or not plan.steps else Result(plan, self.interfaces.apply(plan.steps))

    # -- links ---------------------------------------------------------------------
    def converge_links(self, declared: Declaration, *, whole: bool = False, test: bool = False) -> Result:
        """Create or change the declared links that trust permits, and revoke withheld ones."""
        with self._lock(test):
            clashes = () if whole else self._name_clashes(declared.links)
            if clashes and not test:
                raise SpecError(clashes)
            attended = self._attend(test)
            # Links that conflict with these may be removed before the apply, so a dry run only notes the conflict.
            attended = _join(attended, Result(Plan(notes=[f"link {clash}" for clash in clashes])))
            verdicts = self._verdicts(trust.links, declared, test)
            result = self._links(declared.broker, self._permitted(declared, verdicts), verdicts.keys(), whole, test)
            result = _say(result, "link", verdicts)
            if not whole:
                ends = {end for link in declared.links for end in (link.source, link.target)}
                result = _join(result, self._refresh_cards(ends, test))
            return _join(attended, result)

    def _name_clashes(self, declared: Collection[Link]) -> list[Problem]:
        """Return the conflicts of declared links' local names with those of recorded links."""
        links = {**self._linked().links, **{link.name: link for link in declared}}
        return [Problem(f"{name}:as", message) for name, message in check.local_names(links.values()).items()]

    def renew_seals(self, names: Collection[str] = ()) -> tuple[list[str], Result]:
        """Give environments new keys for their sealed links, and update the cards of their peers.

        :param names: the environments; empty: all that have sealed links.
        :return: the environments with new keys, and the result of the updates.
        """
        from netspace.link.seal import keys as seals

        with self._lock(False):
            sealed = [link for link in self.links.recorded() if link.seal]
            ends = seals.members(sealed)
            renewed = self.links.renew_keys(ends & set(names) if names else ends)
            told = seals.members(link for link in sealed if {link.source, link.target} & set(renewed))
            return renewed, self._refresh_cards(told, False)

    def seal_bundles(self) -> tuple[dict[str, str], Result]:
        """Renew due keys for sealed links, and update the cards of the peers.

        :return: this host's bundles for other hosts (``link.bundles``), by host, and the result of the updates.
        """
        from netspace.link.seal import keys as seals

        with self._lock(False):
            bundles, renewed = self.links.seal_bundles()
            told = seals.members(link for link in self.links.recorded() if {link.source, link.target} & set(renewed))
            return bundles, self._refresh_cards(told, False)

    def adopt_seals(self, bundles: Iterable[str]) -> tuple[dict[str, bool], list[str], Result]:
        """Adopt other hosts' bundles of keys for sealed links, and update the cards of the environments concerned.

        :return: for each host with an accepted bundle, whether the bundle was new; the reasons for refused bundles; and
            the result of the updates.
        """
        from netspace.errors import NetspaceError
        from netspace.link.seal import peers

        adopted, refused = {}, []
        with self._lock(False):
            for bundle in bundles:
                try:
                    host, news = self.links.adopt_seals(bundle)
                    adopted[host] = news
                except NetspaceError as err:
                    refused.append(str(err))
            new = {host for host, news in adopted.items() if news}
            told = peers.members(link for link in self.links.recorded() if {link.to_host, link.from_host} & new)
            return adopted, refused, self._refresh_cards(told, False)

    def _links(
        self, broker: Any, permitted: tuple[Link, ...], considered: Collection[str], whole: bool, test: bool
    ) -> Result:
        known = self._linked()
        if not permitted and not known.links and not known.parked:
            return Result(Plan())
        from netspace.link.reconciler import DesiredLinks

        there = set(known.links)
        kept = {link.name for link in permitted}
        remove = there - kept if whole else (there & set(considered)) - kept
        return self._run(self.links, DesiredLinks(broker, permitted), remove, test)

    def _permitted(self, declared: Declaration, verdicts: Mapping[str, Verdict]) -> tuple[Link, ...]:
        """Return the desired links: permitted ones, and existing ones whose loss of trust is only reported."""
        there = self._linked().links if any(verdict.on_loss == "report" for verdict in verdicts.values()) else {}
        found = []
        for link in declared.links:
            verdict = verdicts[link.name]
            if verdict.allowed:
                found.append(link)
            elif verdict.on_loss == "report" and link.name in there:
                # Take the declared local name: it grants nothing, and another link may have the old one by now.
                found.append(msgspec.structs.replace(there[link.name], local=link.local))
        return tuple(found)

    def _linked(self) -> Any:
        """Return the record of applied links, without loading the code that connects to brokers."""
        from netspace.link import record

        return record.read(self.layout)

    # -- environments ------------------------------------------------------------------
    def converge_environments(
        self, declared: Declaration, *, whole: bool = False, test: bool = False, state: RunState = "running"
    ) -> Result:
        """Create or change the declared environments, and bring them to *state*.

        :param state: ``running``, ``present`` (don't start or stop), or ``stopped``.
        """
        with self._lock(test):
            attended = self._attend(test)
            self._tidy(test)
            namespaces = Result(Plan())
            if not whole:
                # With a whole declaration, converge_interfaces has created the namespaces already.
                there = self.interfaces.names()
                lacking = {
                    name: spec
                    for name, spec in declared.environments.items()
                    if name not in there or _kind(spec) != "none"
                }
                if lacking:
                    only = msgspec.structs.replace(declared, environments=lacking, links=())
                    namespaces = self._interfaces(only, False, test, self._withheld(only, test))
            return _join(attended, _join(namespaces, self._environments(declared, whole, test, state)))

    def _environments(self, declared: Declaration, whole: bool, test: bool, state: RunState) -> Result:
        from netspace.environment.container import seccomp_profile

        looked = _runtimes(declared)
        verdicts = self._verdicts(trust.environments, declared, test)
        links = self._card_links(declared, whole, test)
        access = self.links.access(declared.broker if whole and test and declared.links else None) if links else None
        there = self.environments.recorded() if any(verdict.runs_on for verdict in verdicts.values()) else {}
        wanted: dict[str, tuple[Environment, RunState, Any, Any]] = {}
        kept = set()
        for name, spec in declared.environments.items():
            # Record the requirement in force, for later starts without the declaration.
            required = trust.requirement(spec, declared.attestation)
            record = there.get(name) if verdicts[name].runs_on else None
            # Stopping needs no trust.
            if record is not None and record.state != "stopped" and spec.state != "stopped":
                as_it_is = msgspec.structs.replace(record.spec, attestation=required, state=spec.state)
                wanted[name] = as_it_is, "present", record.profile, record.runtime
                kept.add(name)
                continue
            wanted[name] = (
                msgspec.structs.replace(spec, attestation=required),
                state if verdicts[name].allowed and spec.state != "stopped" else "stopped",
                seccomp_profile.look(spec.seccomp),
                looked[name],
            )
        remove = self.environments.names() - set(declared.environments) if whole else ()
        result = self._run_environments(self._desired(wanted, links, access, kept), remove, test)
        return _say(result, "environment", trust.told(declared, verdicts))

    def _desired(
        self,
        wanted: Mapping[str, tuple[Environment, RunState, Any, Any]],
        links: tuple[Link, ...],
        access: Any = None,
        kept: Collection[str] = (),
        recorded: bool = False,
    ) -> dict[str, Any]:
        """Return the desired environments, with their cards and other injected files.

        :param wanted: specification, state, system call profile and runtime of each environment.
        :param links: the links that the cards list.
        :param kept: environments that go on unchanged, because the host lacks trust.
        :param recorded: the specifications come from records, which lack the interfaces.
        """
        from netspace.environment.plan import DesiredEnvironment
        from netspace.link.seal import keys as seals

        known, cards, keys = self.trust(), _alone, {}
        asking = {link.source for link in links if link.pattern == "request"}
        if links:
            access = access or self.links.access()
            keys = self.links.keys()
            cards = self.links.cards(access, keys)
        level = {"level": known.name, "verifier": known.verifier}
        linked: dict[str, list[Link]] = {}
        for link in links:
            for end in {link.source, link.target}:
                linked.setdefault(end, []).append(link)
        kernels = any(spec.kernel is not None for spec, *_ in wanted.values())
        interfaces = self.interfaces.list() if kernels else {}
        desired = {}
        for name, (spec, state, profile, runtime) in wanted.items():
            own = linked.get(name, [])
            content = {**cards(name, own), "trust": level}
            handed: dict[str, bytes] = {"environment.json": files.encode(content)}
            if own:
                handed.update(access.files(name))
                handed.update(seals.handed(name, own, keys))
            if spec.kernel is not None:
                handed = self._disk(name, handed, interfaces.get(name, {}))
            summary = {"links": sorted(f"{link.name} ({_manner(link, name)})" for link in own), "trust": known.name}
            single = "the answer to a question of one could reach the other" if name in asking else ""
            if recorded:
                single = "that is decided by its declaration"
            desired[name] = DesiredEnvironment(
                spec, handed, summary, state, profile, runtime, single, kept=name in kept
            )
        return desired

    def _disk(self, name: str, handed: Mapping[str, bytes], interface: Mapping[str, Any]) -> dict[str, bytes]:
        """Return the disk image that a unikernel gets instead of files.

        It holds *handed* and a description of the unikernel's interface.
        """
        from netspace.environment.container import unikernel

        if interface.get("addresses"):
            told = {key: interface.get(key) for key in ("addresses", "gateways")}
            handed = {**handed, "interface.json": files.encode({**told, "mac": self.layout.mac(name)})}
        return {unikernel.DISK: unikernel.disk(handed)}

    def _card_links(self, declared: Declaration, whole: bool, test: bool) -> tuple[Link, ...]:
        """Return the links for cards: the recorded ones, or the permitted ones in a test of the whole host."""
        if not (whole and test):
            return tuple(self._linked().links.values())
        return self._permitted(declared, self._verdicts(trust.links, declared, test))

    def _refresh_cards(self, names: Collection[str], test: bool) -> Result:
        """Update the cards of environments whose links were just created or revoked. It restarts none."""
        if not names:
            return Result(Plan())
        known = {name: record for name, record in self.environments.recorded().items() if name in names}
        links = tuple(self._linked().links.values())
        withheld = trust.withheld({name: record.spec for name, record in known.items()}, self.trust())
        # A new card must not start an environment that is withheld now.
        kept = {name for name in withheld if known[name].state != "stopped"}
        wanted: dict[str, tuple[Environment, RunState, Any, Any]] = {
            name: (record.spec, "present" if name in kept else record.state, record.profile, record.runtime)
            for name, record in known.items()
        }
        if not wanted:
            return Result(Plan())
        result = self._run_environments(self._desired(wanted, links, kept=kept, recorded=True), (), test)
        # Refusals are reported when the environments themselves are applied.
        return Result(msgspec.structs.replace(result.plan, refusals=()), result.outcomes)

    def _run_environments(self, desired: Any, remove: Collection[str], test: bool, **options: Any) -> Result:
        """Observe, plan and apply environments. One observation is enough, since the lock is held."""
        observed = self.environments.observe({*desired, *remove}, {one.image for one in desired.values()})
        return self._run(self.environments, desired, remove, test, observed, observed=observed, **options)

    # -- images ------------------------------------------------------------------------
    def converge_images(self, wanted: Mapping[str, Any], *, test: bool = False) -> Result:
        """Build images.

        :param wanted: the images (``images.admin.Wanted``), by the names of the states that ask for them.
        """
        with self._lock(test):
            plan: Plan = self.images.plan(wanted)
            return Result(plan) if test or not plan.steps else Result(plan, self.images.apply(plan.steps))

    def remove_image(self, name: str, *, test: bool = False) -> Result:
        """Remove one image. The removal is refused while an environment uses the image."""
        return self._remove_images(lambda: self.images.plan_absent(name), test)

    def prune_images(self, *, test: bool = False) -> Result:
        """Remove every image that no environment uses."""
        return self._remove_images(self.images.plan_prune, test)

    def _remove_images(self, look: Callable[[], Plan], test: bool) -> Result:
        with self._lock(test):
            plan = look()
            return Result(plan) if test or plan.refusals else Result(plan, self.images.apply_removal(plan.steps))

    # -- removal -----------------------------------------------------------------------
    def remove_links(self, names: Collection[str], *, test: bool = False, purge: bool = False) -> Result:
        """Revoke links.

        :param purge: also delete messages that no environment can read any more.
        """
        with self._lock(test):
            result = self._remove_links(names, test, purge, {*names, *(name.partition(".")[2] for name in names)})
            ends = {end for name in names for end in name.split(".")}
            return _join(result, self._refresh_cards(ends, test))

    def _remove_links(self, names: Collection[str], test: bool, purge: bool, owners: Collection[str] = ()) -> Result:
        """Revoke links.

        :param purge: also delete parked messages of *owners*.
        """
        known = self._linked()
        there = set(known.links) & set(names)
        if not there and not (purge and known.parked):
            return Result(Plan())
        from netspace.link.reconciler import DesiredLinks

        mail = self.links.plan_purge(owners, there) if purge else Plan()
        if not there:
            return Result(mail, () if test else self.links.apply_purge(mail.steps))
        revoked = self._run(self.links, DesiredLinks(self.links.recorded_broker(), ()), there, test, purge=purge)
        told = () if test or revoked.failures else [Outcome(step) for step in mail.steps]
        return _join(revoked, Result(mail, told))

    def remove_environments(self, names: Collection[str], *, test: bool = False, purge: bool = False) -> Result:
        """Remove environments with their links, programs, layers and namespaces. Their volumes stay.

        :param purge: also remove the volumes that netspace keeps (not folders of the host), even of environments
            that were removed earlier.
        """
        with self._lock(test):
            self._tidy(test)
            theirs = {link.name for link in self._linked().links.values() if {link.source, link.target} & set(names)}
            others = {end for name in theirs for end in name.split(".")} - set(names)
            parked = {one for one in self._linked().parked if set(one.split(".")) & set(names)}
            result = self._remove_links(theirs, test, purge, parked)
            result = _join(result, self._refresh_cards(others, test))
            there = self.environments.names() & set(names)
            # Remove interfaces in a thread once the programs have ended, because the kernel takes long to remove links.
            links = Meanwhile(lambda: self._remove_interfaces(names, test))
            try:
                if there:
                    result = _join(result, self._run_environments({}, there, test, purge=purge, gone=links.begin))
                if purge:
                    left = self.environments.plan_purge(names)
                    result = _join(result, Result(left, () if test else self.environments.apply_purge(left.steps)))
            finally:
                links.end()
            return _join(result, links.result())

    def remove_interfaces(self, names: Collection[str], *, test: bool = False) -> Result:
        """Remove namespaces and interfaces."""
        with self._lock(test):
            return self._remove_interfaces(names, test)

    def _remove_interfaces(self, names: Collection[str], test: bool) -> Result:
        from netspace.interface.reconciler import DesiredInterfaces

        there = self.interfaces.names() & set(names)
        if not there:
            return Result(Plan())
        return self._run_interfaces(DesiredInterfaces(Declaration().network, {}), there, test)

    def teardown(self, *, test: bool = False) -> Result:
        """Remove everything of this instance from this host, including messages and images. Volumes stay."""
        with self._lock(test):
            self._tidy(test)
            result = self._remove_links(set(self._linked().links), test, True)
            if names := self.environments.names():
                result = _join(result, self._run_environments({}, names, test))
            result = _join(result, self._remove_interfaces(self.interfaces.names(), test))
            if test or not result.ok:
                return result
            self.links.purge()
            self.environments.purge()
            self.supervisor.purge()
        for folder in (self.layout.run, self.layout.logs):
            shutil.rmtree(folder, ignore_errors=True)
        kept = self.layout.volumes("")
        if not kept.is_dir():
            shutil.rmtree(self.layout.state, ignore_errors=True)
        else:
            for path in self.layout.state.iterdir():
                if path != kept:
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
            note = f"volumes of environments that there were are kept in {kept}"
            result = _join(result, Result(Plan(notes=[note])))
        return result

    def sweep(self) -> None:
        """Remove the twins that a killed audit left; the caller holds the lock."""
        from netspace.environment.audit import twin

        for names in twin.noted(self.layout):
            for name in names:
                twin.erase(self.layout, name)
            if self._remove_interfaces(names, False).ok:
                twin.forget(self.layout, names)

    def _attend(self, test: bool) -> Result:
        """Start the supervisor if it is down, before services are observed. It restarts those that ended meanwhile."""
        if self.supervisor.attended():
            return Result(Plan())
        change = {"state": {"old": "down", "new": "running"}}
        step = Step("service", self.layout.service("supervisor"), "start", change, "nothing that ends is started again")
        if test:
            return Result(Plan([step]))
        try:
            self.supervisor.attend()
        except NetspaceError as err:
            return Result(Plan([step]), [Outcome(step, str(err))])
        return Result(Plan([step]), [Outcome(step)])

    def _tidy(self, test: bool) -> None:
        """Remove the leftovers of a killed audit or update. If that fails for an update, the next run reports it."""
        if test:
            return
        if self.layout.records("audits").is_dir():
            self.sweep()
        if self.layout.records("beside").is_dir():
            self.environments.sweep()

    # -- observing -----------------------------------------------------------------------
    def check(self, declared: Declaration) -> list[Problem]:
        """Return the reasons why this host could not apply a declaration: the refusals of a test. Changes nothing."""
        results = (
            self.converge_attestation(declared.attestation, test=True),
            self.converge_interfaces(declared, whole=True, test=True),
            self.converge_links(declared, whole=True, test=True),
            self.converge_environments(declared, whole=True, test=True),
        )
        return list(dict.fromkeys(_problem(refusal) for result in results for refusal in result.plan.refusals))

    def overview(self) -> dict[str, Any]:
        """Return trust, environments with their interfaces, links, and whether a supervisor watches, for a table."""
        known = self.trust()
        interfaces = self.interfaces.list()
        return {
            "trust": {"level": known.name, "verifier": known.verifier, "reason": known.reason},
            "environments": {
                name: {**entry, "interface": interfaces.get(name, {})}
                for name, entry in self.environments.list().items()
            },
            "links": self.links.list(),
            "supervised": self.supervisor.attended(),
        }

    def link_health(self) -> dict[str, Any]:
        """Return the problems of links. Messages that wait for a stopped environment are not a problem."""
        known, _ = self.environments.readable()
        stopped = {name for name, record in known.items() if record.spec.state == "stopped"}
        found: dict[str, Any] = self.links.health(stopped)
        return found

    # -- plumbing ------------------------------------------------------------------------
    @contextlib.contextmanager
    def _lock(self, test: bool) -> Iterator[None]:
        """Hold the lock unless it is a test, and turn system errors into netspace's errors."""
        with files.refusals_told(), contextlib.nullcontext() if test else files.locked(self.layout.lock):
            yield

    def _run(
        self, kind: Any, desired: Any, remove: Collection[str], test: bool, seen: Any = None, **options: Any
    ) -> Result:
        plan: Plan = kind.plan(desired, kind.observe() if seen is None else seen, remove)
        if test or not plan.steps:
            return Result(plan)
        return Result(plan, kind.apply(plan.steps, **options))

    def _verdicts(
        self, judge: Callable[[Declaration, Trust], dict[str, Verdict]], declared: Declaration, test: bool
    ) -> Mapping[str, Verdict]:
        known = self.trust()
        if test and known.verifier == "none":
            # The host was never appraised. The apply does that first, so the verdict is unknown now.
            best = Trust(5, "none", "")
            unsure = judge(declared, known)
            return {
                name: Verdict(verdict.allowed, "depends on the trust level that the host will be found to have")
                if unsure[name].comment
                else verdict
                for name, verdict in judge(declared, best).items()
            }
        return judge(declared, known)


def _runtimes(declared: Declaration) -> dict[str, Any]:
    """Return the observed runtime of each declared environment. Each runtime is looked up once."""
    from netspace.environment import runtimes

    names = {name: check.used(spec, declared.runtimes) for name, spec in declared.environments.items()}
    found = {one: runtimes.look(one, declared.runtimes.settings.get(one, {})) for one in set(names.values())}
    return {name: found[one] for name, one in names.items()}


def _problem(refusal: Refusal) -> Problem:
    """Return a refusal as a problem with the path of the refused part. Some messages begin with a path already."""
    path, parted, message = refusal.message.partition(": ")
    if parted and path.startswith("netspace:"):
        return Problem(path, message)
    places = {
        "environment": f"netspace:environments:{refusal.name}",
        "interface": f"netspace:environments:{refusal.name}:interface",
        "link": f"netspace:links:{refusal.name}",
    }
    return Problem(places.get(refusal.kind, f"netspace:{refusal.kind}"), refusal.message)


def _manner(link: Link, name: str) -> str:
    """Return a short description of a link, for the environment *name*."""
    local = f", as {link.local}" if link.local is not None and link.source == name else ""
    return f"{link.pattern}{', sealed' if link.seal else ''}{local}"


def _kind(spec: Environment) -> str:
    from netspace.interface import kinds

    return kinds.name(spec.interface) if spec.interface is not None else "none"


def _alone(name: str, links: Collection[Link]) -> dict[str, Any]:
    """Return the card of an environment on a host without links. It has no broker and no object names."""
    from netspace.link import card
    from netspace.link.topology import names

    return card.card(name, links, "", names.PLAIN)


def _say(result: Result, kind: str, verdicts: Mapping[str, Verdict]) -> Result:
    """Return *result* with a refusal for each withheld thing, and a note for each other comment."""
    refusals = [Refusal(kind, name, v.comment) for name, v in verdicts.items() if not v.allowed]
    notes = [f"{kind} {name}: {v.comment}" for name, v in verdicts.items() if v.allowed and v.comment]
    plan = Plan(result.plan.steps, [*result.plan.refusals, *refusals], [*result.plan.notes, *notes])
    return Result(plan, result.outcomes)


def _join(first: Result, second: Result) -> Result:
    """Return one result with the plans and outcomes of both."""
    plan = Plan(
        [*first.plan.steps, *second.plan.steps],
        [*first.plan.refusals, *second.plan.refusals],
        [*first.plan.notes, *second.plan.notes],
    )
    return Result(plan, [*first.outcomes, *second.outcomes])
