"""Renamed ends of links: the links to which the objects of former names belong now. Pure.

A renamed environment reads the mailbox of its former name until that mailbox is empty. Messages that it sent under its
former name are still accepted from it. A former name counts only while nobody has it: an environment or a link of this
name that is declared, too, keeps what is its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from netspace.spec.types import Link


class Renamed(NamedTuple):
    """The present names of renamed environments and links.

    :param environments: for the former name of each renamed environment of this host, its present name.
    :param links: for the former name of each link with a renamed end, its present name.
    """

    environments: Mapping[str, str] = {}
    links: Mapping[str, str] = {}


def of(links: Mapping[str, Link]) -> Renamed:
    """Return the renamed ends of the desired *links*."""
    if all(link.formerly is None for link in links.values()):
        return Renamed()
    members = {end for link in links.values() for end in link.here}
    environments: dict[str, str] = {}
    names: dict[str, str] = {}
    for name, link in links.items():
        if link.formerly is None:
            continue
        if (former := str(link.former_name)) not in links:
            names[former] = name
        for end, old in ((link.source, link.formerly.source), (link.target, link.formerly.target)):
            if old is not None and end in members and old not in members:
                environments[old] = end
    return Renamed(environments, names)


def pairs(before: Mapping[str, Link], after: Mapping[str, Link]) -> tuple[dict[str, str], dict[str, str]]:
    """Return what a change of links renames: present names by former ones, of links and of environments.

    :param before: the links before the change.
    :param after: the links after it.
    """
    renamed = of(after)
    links = {old: new for old, new in renamed.links.items() if old in before and new not in before}
    members = {end for link in before.values() for end in link.here}
    environments = {old: new for old, new in renamed.environments.items() if old in members and new not in members}
    return links, environments
