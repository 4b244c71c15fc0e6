"""``file`` states in an environment
=================================

States for files inside an environment. They have only the rights of the environment's own user, and need no program in
the image.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

import salt.utils.templates  # noqa: E402

from netspace.errors import NetspaceError  # noqa: E402
from netspace.host import salt_targets  # noqa: E402

if TYPE_CHECKING:
    __context__: dict[str, Any]
    __grains__: dict[str, Any]
    __opts__: dict[str, Any]
    __pillar__: dict[str, Any]
    __resource__: dict[str, str]
    __salt__: dict[str, Callable[..., Any]]

MOST = 16 * 1024 * 1024
_SALTS = {"creates", "unless", "onlyif", "check_cmd"}

# Arguments: access to the environment's files, and whether this is a test. It returns changes and a comment.
Change = Callable[[Any, bool], tuple[dict[str, Any], str]]


def _inside(name: str, kwargs: dict[str, Any], change: Change) -> dict[str, Any]:
    """Call *change* with access to the environment's files. Return a state's result, also if *change* fails."""
    ret: dict[str, Any] = {"name": name, "result": False, "changes": {}, "comment": ""}
    unknown = [key for key in kwargs if not key.startswith("__") and key not in _SALTS]
    if unknown:
        return {**ret, "comment": f"in an environment, this state has no {', '.join(sorted(unknown))}"}
    test = bool(__opts__["test"])
    try:
        with salt_targets.of(__opts__).files(__resource__["id"]) as inside:
            changes, comment = change(inside, test)
    except NetspaceError as err:
        return {**ret, "comment": str(err)}
    if not changes:
        return {**ret, "result": True, "comment": comment or f"{name} is as it should be."}
    result = None if test else True
    return {**ret, "result": result, "changes": changes, "comment": f"{name} {'would be' if test else 'was'} changed."}


def _mode(value: Any) -> int | None:
    if value is None or value == "keep":
        return None
    try:
        mode = int(str(value), 8)
    except ValueError as err:
        raise NetspaceError(f"mode: expected octal digits such as '0644', got {value!r}") from err
    # No program is privileged inside, so refuse setuid, setgid and sticky bits.
    if not 0 <= mode <= 0o777:
        raise NetspaceError(f"mode: expected at most 0777, got {value!r}")
    return mode


def _octal(mode: int | None) -> str | None:
    return None if mode is None else f"{mode:04o}"


def _folders(inside: Any, path: str, mode: int, test: bool) -> dict[str, Any]:
    """Create *path* and the folders above it if they are missing; return the changes."""
    changes: dict[str, Any] = {}
    missing = []
    while path != "/" and inside.look(path) is None:
        missing.append(path)
        path = os.path.dirname(path)
    for folder in reversed(missing):
        changes[folder] = {"old": None, "new": "folder"}
        if not test:
            inside.make_folder(folder, mode)
    return changes


def managed(
    name: str,
    source: str | None = None,
    contents: Any = None,
    mode: Any = None,
    makedirs: bool = False,
    replace: bool = True,
    template: str | None = None,
    context: dict[str, Any] | None = None,
    defaults: dict[str, Any] | None = None,
    saltenv: str | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """Ensure that a file with this content exists. It belongs to the environment's user.

    name
        The file's path inside.

    source
        The URL of the content: ``salt://...``, at most 16 MiB.

    contents
        The content itself: a text, or a list of lines.

    mode
        The file's permissions. By default, an existing file keeps its own, and a new file gets ``0600``.

    makedirs
        Whether missing parent folders are created, with mode ``0755``.

    replace
        False: an existing file keeps its content.

    template
        ``jinja``: the content is a template.

    context
        Values for the template.

    defaults
        Values for template variables that *context* doesn't have.
    """

    def change(inside: Any, test: bool) -> tuple[dict[str, Any], str]:
        wanted = _mode(mode)
        there = inside.look(name)
        changes: dict[str, Any] = {}
        if there is not None and there.kind == "folder":
            raise NetspaceError(f"{name}: is a folder; expected a file, or nothing")
        old = inside.read(name, MOST) if there is not None else None
        new = old if old is not None and not replace else _content(source, contents, template, values, saltenv)
        if makedirs:
            changes.update(_folders(inside, os.path.dirname(name), 0o755, test))
        if new != old:
            changes["content"] = {"old": _digest(old), "new": _digest(new)}
        if wanted is not None and (there is None or (there.kind == "file" and there.mode != wanted)):
            changes["mode"] = {"old": there and _octal(there.mode), "new": _octal(wanted)}
        if test:
            return changes, ""
        if "content" in changes:
            inside.write(name, new, wanted)
        elif "mode" in changes:
            inside.chmod(name, wanted)
        return changes, ""

    values = {**(defaults or {}), **(context or {})}
    return _inside(name, kwargs, change)


def _digest(content: bytes | None) -> str | None:
    # Never show the content: it may be a secret.
    return None if content is None else f"sha256:{hashlib.sha256(content).hexdigest()}"


def _content(
    source: str | None, contents: Any, template: str | None, values: dict[str, Any], saltenv: str | None
) -> bytes:
    if (source is None) == (contents is None):
        raise NetspaceError("give one of: source, contents")
    environment = saltenv or __opts__.get("saltenv") or "base"
    if source is not None:
        if not str(source).startswith("salt://"):
            raise NetspaceError(f"source: expected salt://..., got {source!r}")
        path = __context__["fileclient"].cache_file(source, environment)
        if not path:
            raise NetspaceError(f"{source}: Salt's file server has no such file")
        if os.path.getsize(path) > MOST:
            raise NetspaceError(f"{source} is larger than {MOST} bytes")
        with open(path, "rb") as stream:
            content = stream.read()
    else:
        text = "\n".join(map(str, contents)) if isinstance(contents, list) else str(contents)
        content = (text if text.endswith("\n") or not text else f"{text}\n").encode()
    return content if template is None else _rendered(content, template, values, environment)


def _rendered(content: bytes, template: str, values: dict[str, Any], saltenv: str) -> bytes:
    if template != "jinja":
        raise NetspaceError(f"template: {template!r}: expected jinja")
    done = salt.utils.templates.JINJA(
        content.decode(), from_str=True, to_str=True, context=values, saltenv=saltenv, salt=__salt__,
        grains=__grains__, pillar=__pillar__, opts=__opts__,
    )  # fmt: skip
    if not done["result"]:
        raise NetspaceError(f"template: {done['data']}")
    return str(done["data"]).encode()


def directory(
    name: str, mode: Any = None, dir_mode: Any = None, makedirs: bool = False, **kwargs: Any
) -> dict[str, Any]:
    """Ensure that a folder exists.

    name
        The folder's path inside.

    mode
        The folder's permissions (also ``dir_mode``). By default, an existing folder keeps its own, and a new folder
        gets ``0755``.

    makedirs
        Whether missing parent folders are created, too.
    """

    def change(inside: Any, test: bool) -> tuple[dict[str, Any], str]:
        wanted = _mode(mode if mode is not None else dir_mode)
        there = inside.look(name)
        if there is not None and there.kind != "folder":
            raise NetspaceError(f"{name}: exists already, as a {there.kind}")
        changes = _folders(inside, os.path.dirname(name), 0o755, test) if makedirs else {}
        if there is None:
            changes[name] = {"old": None, "new": "folder"}
            if not test:
                inside.make_folder(name, 0o755 if wanted is None else wanted)
        elif wanted is not None and there.mode != wanted:
            changes["mode"] = {"old": _octal(there.mode), "new": _octal(wanted)}
            if not test:
                inside.chmod(name, wanted)
        return changes, ""

    return _inside(name, kwargs, change)


def symlink(name: str, target: str, makedirs: bool = False, **kwargs: Any) -> dict[str, Any]:
    """Ensure that a symbolic link exists.

    If the path is a link to another target, the link is replaced. If it is a file or a folder, the state fails.

    name
        The link's path inside.

    target
        The path that the link points to.

    makedirs
        Whether missing parent folders are created.
    """

    def change(inside: Any, test: bool) -> tuple[dict[str, Any], str]:
        there = inside.look(name)
        if there is not None and there.kind != "link":
            raise NetspaceError(f"{name}: exists already, as a {there.kind}")
        if there is not None and there.target == target:
            return {}, ""
        changes = _folders(inside, os.path.dirname(name), 0o755, test) if makedirs else {}
        changes[name] = {"old": there and there.target, "new": target}
        if not test:
            inside.make_link(name, target)
        return changes, ""

    return _inside(name, kwargs, change)


def absent(name: str, **kwargs: Any) -> dict[str, Any]:
    """
    Ensure that nothing exists at a path. **A folder is removed with all its content.**

    name
        The path inside.
    """

    def change(inside: Any, test: bool) -> tuple[dict[str, Any], str]:
        there = inside.look(name)
        if there is None:
            return {}, f"{name} is not there."
        if not test:
            inside.remove(name)
        return {name: {"old": there.kind, "new": None}}, ""

    return _inside(name, kwargs, change)
