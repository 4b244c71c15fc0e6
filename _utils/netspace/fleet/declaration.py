"""A fleet's declaration on the master: its files are read and compiled, and each minion gets its slice as pillar.

The plugins use the class :class:`FleetDeclaration`, and give it the functions that find and render files. So this
module never imports Salt.
"""

from __future__ import annotations

import posixpath
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import netspace
from netspace.errors import NetspaceError, StateError
from netspace.fleet import compile as compiler
from netspace.fleet import in_force, place, trust, trust_book
from netspace.fleet.compile import Compiled
from netspace.fleet.drained import Drained
from netspace.fleet.edition import EditionFile
from netspace.fleet.given import Candidate, GivenSlices
from netspace.fleet.in_force import Change, Inputs, Manifest, Refusal, Stamp
from netspace.fleet.place import Reasons
from netspace.fleet.published import Register
from netspace.fleet.types import Fleet, FleetError, Problem

FOLDER = "/var/lib/netspace-master/fleet"
MAX_FILES = 256
REGISTER = "what hosts published"
"""The path of a problem that is not in the declaration's files, but in a damaged file with facts about a host."""
_NESTED = 16
_TRIES = 5
PAUSE = 30.0
"""Seconds from a failure to compile until the next attempt; until then, minions get the declaration in force."""
SALT = "salt://"


class Sources(NamedTuple):
    """Functions of Salt that reading a declaration needs.

    :param find: returns the path of a file on the master's file server, by its ``salt://`` name; None if there is none.
    :param render: renders a file by Salt's renderers. Any exception is a problem of the file.
    :param tell: reports to the operator why a declaration isn't put in force.
    :param exposed: returns why a file (by its path) must not be read; empty if it may be read.
    :param context: the settings on which the results of *exposed* depend.
    """

    find: Callable[[str], str | None]
    render: Callable[[str], Any]
    tell: Callable[[Refusal], None] = lambda refusal: None
    exposed: Callable[[str], str] = lambda path: ""
    context: str = ""


class Answer(NamedTuple):
    """The answer to a minion's request for its pillar.

    :param pillar: the minion's slice; None: the minion is no host of the fleet.
    :param alarm: the report for the operator if this request has just refused a declaration; else None.
    """

    pillar: dict[str, Any] | None
    alarm: Refusal | None


class _Now(NamedTuple):
    """The state of the declaration by its present files.

    :param manifest: the declaration in force: the present one, or the last good one before it.
    :param refusal: why the present declaration is refused.
    :param news: whether the present declaration has just been refused.
    :param changing: whether a file was written a moment ago and may be incomplete, so that compiling waits.
    """

    manifest: Manifest | None
    refusal: Refusal | None
    news: bool
    changing: bool = False


class FleetDeclaration:
    """The declaration that begins in the file *root*.

    :param root: an absolute path, or ``salt://...``.
    :param folder: where the master keeps the facts about hosts, and the declaration in force.
    :param sources: the functions of Salt that reading needs.
    :param nodegroups: the nodegroups in the master's configuration.
    """

    def __init__(self, root: str, folder: Path, sources: Sources, nodegroups: Mapping[str, object]) -> None:
        if not root.startswith(("/", SALT)) or "\0" in root:
            raise NetspaceError(f"ext_pillar: netspace: {root!r:.200}: name a file by its absolute path, or salt://...")
        self.root = root
        self.register = Register(folder / "hosts")
        self.drained = Drained(folder / "drained.json")
        self.store = in_force.store(folder / "compiled")
        self.trust = trust_book.book(folder)
        self.given = GivenSlices(folder / "compiled")
        self.edition = EditionFile(folder / "edition.json")
        self._sources = sources
        self._nodegroups = nodegroups
        self._context = in_force.context(
            netspace.__version__, str(netspace.LOADED), root, dict(nodegroups), sources.context
        )

    def answer(self, minion: str) -> Answer:
        """Return a minion's pillar by the present declaration, or by the last good one if it is refused.

        With ``apply: planned``, the pillar is the slice that the minion was given, and the present declaration isn't
        read. Links to and from a host that the master distrusts are left out, unless the declaration keeps them.

        :raises NetspaceError: the declaration is refused and no earlier one is in force, or the list of distrusted
            hosts (``trust_book``) is damaged.
        """
        if self.given.active():
            return Answer(self._trusted(self.given.pillar(minion), minion), None)
        now = self._served()
        alarm = now.refusal if now.news else None
        if self.given.active():
            return Answer(self._trusted(self.given.pillar(minion), minion), alarm)
        if now.manifest is None:
            raise NetspaceError("the fleet's declaration is refused, and none is in force; the master's log has more")
        try:
            whole = self.store.slice(now.manifest, minion)
        except StateError as err:
            whole = self.store.slice(self._again(now.manifest, err), minion)
        return Answer(self._trusted(whole, minion), alarm)

    def planned_pillar(self, generation: str, minion: str) -> dict[str, Any]:
        """Return a minion's pillar by a candidate (a compiled declaration that isn't in force).

        :param generation: the candidate's id.
        :raises NetspaceError: the candidate isn't kept, or the list of distrusted hosts (``trust_book``) is damaged.
        """
        return self._trusted(self.given.candidate_slice(generation, minion), minion) or {}

    def _trusted(self, whole: dict[str, Any] | None, minion: str) -> dict[str, Any] | None:
        if whole is None:
            return None
        book = self.trust.read()
        return trust.served(whole, minion, book.hosts, book.levels)

    def whole(self, minion: str) -> dict[str, Any] | None:
        """Return one minion's slice in force and the facts from ``trust.noted``; None if it has no slice.

        The result has the keys ``netspace`` (the slice) and ``trust`` (the facts).

        :raises StateError: the slices in force are damaged.
        """
        if self.given.active():
            return self.given.pillar(minion)
        manifest = self.store.current().manifest
        return self.store.slice(manifest, minion) if manifest is not None else None

    def stamps(self, *, settled: bool = False) -> tuple[Stamp, ...]:
        """Return stamps of the files in force; any change of these files changes a stamp.

        :param settled: whether to wait for the next tick of the kernel's clock if a file has just changed. Without the
            wait, a second change within the same tick would not change the stamp. Wait if the files are read next.
        """
        found = in_force.settled if settled else in_force.stamp
        return found(self.given.folder), found(self.store.folder)

    def wholes(self) -> dict[str, dict[str, Any]]:
        """Return the result of :meth:`whole` for each minion that has a slice.

        :raises StateError: the slices in force are damaged.
        """
        if self.given.active():
            return self.given.pillars()
        manifest = self.store.current().manifest
        return dict(self.store.pillars(manifest)) if manifest is not None else {}

    def _again(self, manifest: Manifest, error: StateError) -> Manifest:
        """Return the manifest in force after its slices could not be read.

        Another process may have just replaced it. If not, the slices are damaged, and the declaration is compiled
        again.

        :raises StateError: the given *error*, if the declaration can't be compiled now.
        """
        with self.store.lock():
            current = self.store.current().manifest
            if current is not None and current.generation != manifest.generation:
                return current
            compiled, inputs = self._compile()
            if compiled.problems or not self._written(inputs):
                raise error
            return self.store.commit(compiled, inputs)

    def _served(self) -> _Now:
        """Return the declaration in force, even if compiling a newer one fails."""
        manifest = self.store.current().manifest
        if manifest is not None and time.monotonic() < self.store.paused:
            return _Now(manifest, None, False)
        try:
            return self._now()
        except Exception as err:  # such as a full disk: it must not leave all minions without pillar
            self.store.paused = time.monotonic() + PAUSE
            reason = f"can't be compiled or put in force: {type(err).__name__}: {err}"
            self._sources.tell(Refusal(Inputs({}, {}, ""), ((self.root, "", reason),), 1, time.time()))
            if manifest is None:
                raise
            return _Now(manifest, None, False)

    def sections(self) -> dict[str, dict[str, Any]]:
        """Return the slice in force of each minion, as it stands under ``netspace`` in the pillar.

        :raises StateError: the slices in force are damaged.
        """
        if self.given.active():
            return self.given.sections()
        manifest = self.store.current().manifest
        return dict(self.store.sections(manifest)) if manifest is not None else {}

    def cut(self, change: Change) -> None:
        """Change the slices in force by the function *change*, without reading the declaration."""
        with self.store.lock():
            if self.given.active():
                self.given.cut(change)
            else:
                self.store.cut(change)

    def apply(self) -> Refusal | None:
        """Put the declaration in force if anything has changed; return the refusal if it is refused.

        With ``apply: planned``, the declaration is only compiled, and nothing is put in force.

        :raises NetspaceError: the declaration's files keep changing.
        """
        for _ in range(_TRIES):
            if self.given.active():
                compiled, inputs = self._compile()
                return in_force.refused(compiled.problems, inputs) if compiled.problems else None
            now = self._now()
            if not now.changing:
                return now.refusal
            time.sleep(in_force.UNCHANGED / 1e9)
        raise NetspaceError(f"{self.root}: it, or a file that it includes, keeps changing; try again later")

    def candidate(self) -> tuple[Compiled, Candidate | None]:
        """Compile the declaration, and keep the result as a candidate.

        :return: the compiled declaration and the candidate. The candidate is None if the declaration has problems.
        :raises NetspaceError: the declaration's files keep changing.
        """
        for _ in range(_TRIES):
            with self.store.lock():
                compiled, inputs = self._compile()
                if compiled.problems:
                    return compiled, None
                if self._written(inputs):
                    self.edition.note_declared(compiled.declared)
                    return compiled, self.given.keep(compiled, inputs)
            time.sleep(in_force.UNCHANGED / 1e9)
        raise NetspaceError(f"{self.root}: it, or a file that it includes, keeps changing; try again later")

    def check(self, *, edges: bool = False, drained: Collection[str] | None = None) -> Compiled:
        """Compile the present declaration, without putting it in force.

        :param edges: whether to compute who may reach whom.
        :param drained: the hosts to take as drained; None: those that are drained now.
        """
        return self._compile(edges=edges, drained=drained)[0]

    def reasons(self, fleet: Fleet, name: str) -> Reasons:
        """Return why a declared environment runs on its hosts and on no others."""
        return place.reasons(fleet, self.register.read_all()[0], self._nodegroups, name)

    def _now(self) -> _Now:
        known = self._known()
        if known is not None:
            return known
        with self.store.lock():
            if self.given.active():  # meanwhile, another process has set apply: planned, so hosts keep their slices
                return _Now(self.store.current().manifest, None, False)
            known = self._known()  # another process may have compiled the files
            if known is not None:
                return known
            compiled, inputs = self._compile()
            manifest = self.store.current().manifest
            if manifest is not None and not self._written(inputs):
                return _Now(manifest, None, False, True)
            if compiled.problems:
                refusal = self.store.refuse(compiled.problems, inputs)
                self._sources.tell(refusal)
                return _Now(manifest, refusal, True)
            self.edition.note_declared(compiled.declared)
            if compiled.declared is not None and compiled.declared.planned:
                self.given.begin(dict(self.store.pillars(manifest)) if manifest is not None else {})
                self.store.forget()
                return _Now(manifest, None, False)
            return _Now(self.store.commit(compiled, inputs), None, False)

    def _written(self, *of: Inputs) -> bool:
        """Return whether the files seem to be complete, because nobody has changed them in the last two seconds."""
        return in_force.unchanged(
            {path for one in of for path in one.files} - {str(self.register.folder), str(self.drained.path)}
        )

    def _known(self) -> _Now | None:
        """Return the state that is stored for the present files; None if the files have to be compiled."""
        manifest, refusal = self.store.current()
        if refusal is not None and in_force.fresh(refusal.inputs, self._context, self._find):
            return _Now(manifest, refusal, False)
        if manifest is not None and in_force.fresh(manifest.inputs, self._context, self._find):
            return _Now(manifest, None, False)
        known = [one.inputs for one in (manifest, refusal) if one is not None]
        if manifest is not None and not self._written(*known):
            return _Now(manifest, None, False, True)
        return None

    def _compile(self, *, edges: bool = False, drained: Collection[str] | None = None) -> tuple[Compiled, Inputs]:
        own = (self.register.folder, self.drained.path)
        stamps: dict[str, Stamp] = {str(path): in_force.settled(path) for path in own}
        published, damaged = self.register.read_all()
        problems = list[Problem]()
        if drained is None:
            try:
                drained = self.drained.read()
            except StateError as err:
                problems.append(Problem("", "what is drained", str(err)))
        names: dict[str, str | None] = {}
        documents = self._documents(stamps, names, problems)
        inputs = Inputs(stamps, names, self._context)
        if problems:
            return Compiled(None, {}, {}, (), (), tuple(problems)), inputs
        try:
            known = self.given if self.given.active() else self.store
            given = (documents, published, self._nodegroups, known.placed())
            gone, claimed = known.remembered(), known.claimed
            found = compiler.fleet(*given, remembered=gone, drained=drained or (), claimed=claimed, edges=edges)
            unread = (Problem("", REGISTER, reason) for reason in damaged)
            return found._replace(
                problems=(
                    *found.problems,
                    *unread,
                    *self._vanished(found, documents),
                    *self.edition.lower(self.root, found.declared),
                )
            ), inputs
        except FleetError as err:
            return Compiled(None, {}, {}, (), (), err.problems), inputs

    def _vanished(self, found: Compiled, documents: Mapping[str, Any]) -> Iterator[Problem]:
        """Yield a problem if the files have lost all hosts, or all environments, by mistake.

        It is no mistake if a file has the empty mapping (``hosts: {}``).
        """
        manifest = self.store.current().manifest
        planned = self.given.active()
        if (manifest is None and not planned) or found.declared is None:
            return
        hosts = len(self.given.sections()) if planned else len(manifest.slices) if manifest is not None else 0
        placed = (self.given if planned else self.store).placed()
        for key, was, now in (
            ("hosts", hosts, found.declared.hosts),
            ("environments", len(placed), found.declared.environments),
        ):
            if was and not now and not any(isinstance(one.get(key), Mapping) for one in documents.values()):
                why = f"the files declare none, but {was} are in force; if that is intended, write `{key}: {{}}`"
                yield Problem(self.root, key, why)

    def _documents(
        self, stamps: dict[str, Stamp], names: dict[str, str | None], problems: list[Problem]
    ) -> dict[str, Any]:
        """Return the content of the first file and of all included files, by name."""
        documents: dict[str, Any] = {}
        waiting = [(self.root, 0)]
        while waiting:
            name, depth = waiting.pop(0)
            if name in documents:
                continue
            if len(documents) == MAX_FILES or depth > _NESTED:
                problems.append(
                    Problem(name, "", f"more than {MAX_FILES} files, or more than {_NESTED} levels of includes")
                )
                break
            documents[name] = data = self._read(name, stamps, names, problems)
            if not isinstance(data, Mapping):
                if name not in {one.file for one in problems}:
                    problems.append(Problem(name, "", f"expected a mapping, got {type(data).__name__}"))
                continue
            for key in ("include", "uses"):
                for index, other in enumerate(_listed(data.get(key), name, key, problems)):
                    found = _beside(name, other, self.root)
                    if found is None:
                        why = f"{other!r:.200}: expected the name of a file in the folder of {self.root} or below"
                        problems.append(Problem(name, f"{key}:{index}", why))
                    elif key == "include":
                        waiting.append((found, depth + 1))
                    elif reason := self._unreadable(self._note(found, stamps, names), stamps):
                        problems.append(Problem(name, f"{key}:{index}", f"{found}: {reason}"))
        return {name: data for name, data in documents.items() if isinstance(data, Mapping)}

    def _read(self, name: str, stamps: dict[str, Stamp], names: dict[str, str | None], problems: list[Problem]) -> Any:
        path = self._note(name, stamps, names)
        if reason := self._unreadable(path, stamps):
            problems.append(Problem(name, "", reason))
            return None
        try:
            found = self._sources.render(str(path))
        except Exception as err:  # a renderer may raise any error
            problems.append(Problem(name, "", f"{type(err).__name__}: {err}"))
            return None
        if found is None or found == {}:
            problems.append(Problem(name, "", "the file is empty; if that is intended, write `links: []` into it"))
        return found

    def _unreadable(self, path: str | None, stamps: Mapping[str, Stamp]) -> str:
        if path is None or stamps[path] is None:
            return "there is no such file"
        return self._sources.exposed(path)

    def _note(self, name: str, stamps: dict[str, Stamp], names: dict[str, str | None]) -> str | None:
        """Add a file and its stamp to the inputs of this compilation; return the file's path."""
        names[name] = path = self._find(name)
        if path is not None:
            stamps[path] = in_force.settled(path)
        return path

    def _find(self, name: str) -> str | None:
        return self._sources.find(name) if name.startswith(SALT) else name


def _listed(data: Any, name: str, key: str, problems: list[Problem]) -> list[Any]:
    if data is None or isinstance(data, list):
        return data or []
    problems.append(Problem(name, key, f"expected a list of files, got {type(data).__name__}"))
    return []


def _beside(name: str, other: Any, root: str) -> str | None:
    """Return the full name of the file *other*, which the file *name* includes by a relative path.

    Return None if *other* isn't in the folder of *root* or below.
    """
    if not isinstance(other, str) or not other or other.startswith("/") or "://" in other or "\0" in other:
        return None
    scheme = SALT if name.startswith(SALT) else ""
    joined = posixpath.normpath(posixpath.join(posixpath.dirname(name.removeprefix(SALT)), other))
    folder = posixpath.dirname(root.removeprefix(SALT))
    inside = joined.startswith(f"{folder.rstrip('/')}/") if folder else joined.split("/")[0] != ".."
    return f"{scheme}{joined}" if inside else None
