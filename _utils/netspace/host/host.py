"""One host: the use cases that join attestation, interfaces, links and environments.

The four kinds know nothing of each other. This module splits the declaration among them, withholds the parts for which
the host lacks trust, and gives each environment its card with its links. The order is attestation, interfaces, links,
environments. So everything that an environment needs exists before it starts, and its revoked links are gone before it
is stopped.

Every method holds the instance's lock, except with ``test``, when nothing is written.
"""

from __future__ import annotations

from netspace.host.children import Children
from netspace.host.delegations import Delegations
from netspace.host.drift import Drift
from netspace.host.planned import Planned
from netspace.host.preparation import Preparation
from netspace.host.removal import Removal
from netspace.host.seals import Seals


class Host(Planned, Drift, Removal, Seals, Preparation, Children, Delegations):
    """This host, under one instance's names.

    A whole declaration is applied by the four ``converge_*`` methods in their order, each with ``whole=True``, which
    removes undeclared things. Without ``whole``, only the things named in the declaration are observed and changed.

    :param layout: the instance's paths and names.
    :param progress: called with a short text before something that takes long.
    :param remote: the fetcher of image sources that are not on this host; see ``images.remote``.
    :param applied: called with the outcomes of each kind's steps, as soon as they are known.
    :param source: returns the secret at a source (``sdb://...``); None: the caller can't read any.
    :param minion: the id by which the master knows this host; empty: the caller doesn't know it.
    """
