"""Removal from a host: links, environments, interfaces, or everything."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence

from netspace.errors import NetspaceError
from netspace.host import delegation_records, recorded_calls, trials
from netspace.host.cards import Cards
from netspace.plan import Outcome, Plan, Result, Step
from netspace.spec import peer
from netspace.spec.types import Link
from netspace.threads import BackgroundTask


class Removal(Cards):
    """Operations of a host that remove links, environments or interfaces, each with everything that belongs to it."""

    _trying = False  # whether the environments of a trial are to stay

    @contextlib.contextmanager
    def trial(self, token: str, names: Collection[str]) -> Iterator[None]:
        """Hold the lock while a trial's environments are made and used; remove them afterwards.

        :param token: the trial's id.
        :param names: all environments that it makes.
        :raises NetspaceError: when one of them can't be removed; the next run tries again.
        """
        with self._lock(False):
            self._tidy(False)
            trials.note(self.layout, token, names)
            self._trying = True
            try:
                yield
            finally:
                left = self._end_trials()
            if left:
                raise NetspaceError(f"environments of the audit can't be removed: {'; '.join(left)}; apply again")

    def _tidy(self, test: bool) -> None:
        super()._tidy(test)
        if not test and not self._trying and self.layout.records(trials.KIND).is_dir():
            self._end_trials()

    def _end_trials(self) -> list[str]:
        """Remove the environments of all trials; return why some can't be. The caller holds the lock."""
        left: list[str] = []
        self._trying = True  # the removal tidies up first, too
        try:
            for token, names in trials.noted(self.layout).items():
                result = self.remove_environments(names, purge=True)
                if result.ok:
                    trials.forget(self, token)
                left += sorted({failure.error for failure in result.failures})
        finally:
            self._trying = False
        return left

    def remove_links(self, names: Collection[str], *, test: bool = False, purge: bool = False) -> Result:
        """Revoke links.

        :param purge: also delete messages that no environment can read any more.
        """
        with self._lock(test):
            names = {*names, *self._handed_on(names)}
            names |= self._lapsed(self._without(names))
            result = self._remove_links(names, test, purge, {*names, *(name.partition(".")[2] for name in names)})
            ends = {end for name in names for end in name.split(".")}
            result = result.joined(self._refresh_cards(ends, test))
            return result.joined(self._peer(test, self._without(names)))

    def _remove_links(self, names: Collection[str], test: bool, purge: bool, owners: Collection[str] = ()) -> Result:
        """Revoke links, after the delegations that depend on them have ended. The caller holds the lock.

        :param purge: also delete parked messages (kept for removed mailboxes) of *owners*.
        :param owners: the mailboxes and links whose parked messages are deleted, by name.
        """
        lapsed = self._lapsed(self._without(names)) | delegation_records.names(self.layout, names)
        every = {*names, *lapsed}
        if test or not lapsed:
            return self._revoke(every, test, purge, owners)
        return self._end_with(lapsed, lambda: self._revoke(every, test, purge, owners))

    def _revoke(self, names: Collection[str], test: bool, purge: bool, owners: Collection[str]) -> Result:
        known = self._linked()
        there = set(known.links) & set(names)
        if not there and not (purge and known.parked):
            return Result(Plan())
        from netspace.link.reconciler import DesiredLinks

        mail = self.links.plan_purge(owners, there) if purge else Plan()
        if not there:
            return Result(mail, () if test else self.links.apply_purge(mail.steps))

        def apply(steps: Sequence[Step]) -> list[Outcome]:
            return self.links.apply(steps, purge=purge)

        revoked = self._run(self.links, DesiredLinks(self.links.recorded_broker(), ()), there, test, apply=apply)
        told = () if test or revoked.failures else [Outcome(step) for step in mail.steps]
        return revoked.joined(Result(mail, told))

    def _without(self, names: Collection[str]) -> list[Link]:
        """Return the recorded links except those in *names*."""
        return [link for name, link in self._linked().links.items() if name not in names]

    def remove_environments(self, names: Collection[str], *, test: bool = False, purge: bool = False) -> Result:
        """Remove environments with their links, programs, layers and namespaces. Their volumes stay.

        :param purge: also remove the volumes that netspace keeps (not folders of the host). This includes volumes of
            environments removed earlier.
        """
        with self._lock(test):
            self._tidy(test)
            names = {*names, *(place for one in names for place in self._places(one))}
            theirs = {link.name for link in self._linked().links.values() if _ends(link) & set(names)}
            theirs |= self._lapsed(self._without(theirs))
            others = {end for name in theirs for end in name.split(".")} - set(names)
            parked = {one for one in self._linked().parked if set(one.split(".")) & set(names)}
            result = self._remove_links(theirs, test, purge, parked)
            result = result.joined(self._refresh_cards(others, test))
            there = self.environments.names(names)
            # Remove interfaces in a thread once the programs have ended, because the kernel takes long to remove links.
            links = BackgroundTask(lambda: self._remove_interfaces(names, test))
            try:
                if there:
                    result = result.joined(self._run_environments({}, there, test, purge=purge, gone=links.begin))
                if purge:
                    left = self.environments.plan_purge(names)
                    result = result.joined(Result(left, () if test else self.environments.apply_purge(left.steps)))
            finally:
                links.end()
            self._free_places(test)
            return result.joined(links.result()).joined(self._peer(test, self._without(theirs)))

    def _handed_on(self, names: Collection[str]) -> set[str]:
        """Return the links of children that may exist only while their parents have the links in *names*."""
        found = set()
        for name in names:
            parent, _, target = name.partition(".")
            found |= {f"{place}.{target}" for place in self._places(parent)}
        return found

    def remove_interfaces(self, names: Collection[str], *, test: bool = False) -> Result:
        """Remove namespaces and interfaces."""
        with self._lock(test):
            return self._remove_interfaces(names, test)

    def teardown(self, *, test: bool = False) -> Result:
        """Remove everything of this instance from this host, including messages and images. Volumes stay."""
        with self._lock(test):
            self._tidy(test)
            result = self._remove_links(set(self._linked().links), test, True)
            if names := self.environments.names():
                result = result.joined(self._run_environments({}, names, test))
            result = result.joined(self._remove_interfaces(self.interfaces.names(), test))
            result = result.joined(self._peer(test, ()))
            if test or not result.ok:
                return result
            self.links.purge()
            self.environments.purge()
            recorded_calls.end(self.layout)
            self.supervisor.purge()
        import shutil  # few runs remove everything

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
            result = result.joined(Result(Plan(notes=[note])))
        return result


def _ends(link: Link) -> set[str]:
    """Return the environments at a link's ends. The host as an end is left out."""
    return {link.source} if peer.is_link(link) else {link.source, link.target}
