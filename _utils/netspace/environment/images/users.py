"""The user that an image names for its program, by number or by a name in its own /etc/passwd. Pure.

For root, a name that is not in the image, or an id above 65535, this module returns no user, and a note. If the group
is root's, the user's number is used as its group.
"""

from __future__ import annotations

from collections.abc import Callable

from netspace.patterns import pattern

_NUMBER = pattern(r"\d{1,10}")
_LAST = 65535
_MOST = 1024 * 1024


def resolve(user: str, read: Callable[[str, int], bytes]) -> tuple[int, int, str]:
    """Return uid, gid (both 0 if the image's user can't be used) and a note for the operator.

    :param user: ``USER[:GROUP]`` of an OCI configuration.
    :param read: returns the beginning of a file of the image; empty if there is none.
    """
    name, _, group = user.partition(":")
    if not name:
        return 0, 0, "names no user: the program runs as the declared user"
    people = _table(read("/etc/passwd", _MOST))
    uid, gid = _person(name, people)
    if uid is None:
        return 0, 0, f"user {name!r} is not in its /etc/passwd: the program runs as the declared user"
    if uid == 0:
        return 0, 0, f"user {name!r} is root, which netspace never allows: the program runs as the declared user"
    if group:
        found = int(group) if _NUMBER.fullmatch(group) else _group(group, _table(read("/etc/group", _MOST)))
        if found is None:
            return 0, 0, f"group {group!r} is not in its /etc/group: the program runs as the declared user"
        gid = found
    if uid > _LAST or (gid or 0) > _LAST:
        return 0, 0, f"user {user!r} is beyond {_LAST}: the program runs as the declared user"
    if gid == 0:
        return uid, uid, f"its group is root's, which netspace never allows: the program runs with group {uid}"
    return uid, gid if gid is not None else uid, ""


def _person(name: str, people: list[list[str]]) -> tuple[int | None, int | None]:
    number = int(name) if _NUMBER.fullmatch(name) else None
    for fields in people:
        if len(fields) < 4 or not _NUMBER.fullmatch(fields[2]) or not _NUMBER.fullmatch(fields[3]):
            continue
        if fields[0] == name or (number is not None and int(fields[2]) == number):
            return int(fields[2]), int(fields[3])
    return number, None


def _group(name: str, groups: list[list[str]]) -> int | None:
    for fields in groups:
        if len(fields) >= 3 and fields[0] == name and _NUMBER.fullmatch(fields[2]):
            return int(fields[2])
    return None


def _table(content: bytes) -> list[list[str]]:
    return [line.split(":") for line in content.decode(errors="replace").splitlines()]
