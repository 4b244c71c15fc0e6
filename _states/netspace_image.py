"""Images of environments as states
================================

An image is built automatically when an environment needs it. These states build an image earlier (for example, before a
maintenance window), pin its content, or remove it.

.. code-block:: yaml

    oci:/srv/images/shop:orders:
      netspace_image.present

    shop:
      netspace_image.present:
        - source: tar:salt://images/shop.tar
        - source_hash: sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

An environment uses the image if its ``image`` is the same text as the ``source``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from netspace.environment.images.admin import Wanted  # noqa: E402
from netspace.errors import NetspaceError  # noqa: E402
from netspace.host.host import Host  # noqa: E402
from netspace.plugin import apply_progress, arguments, state_return  # noqa: E402
from netspace.plugin.fileserver import SaltFiles  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]
    __salt__: dict[str, Any]

__virtualname__ = "netspace_image"
__running__: Mapping[str, Mapping[str, Any]] = {}  # while a state runs, Salt sets it: the results of earlier states


def __virtual__() -> str:
    return __virtualname__


def _host() -> Host:
    return Host(
        arguments.layout(__opts__),
        remote=SaltFiles(__salt__, __opts__),
        **apply_progress.hooks(__opts__, __salt__),
    )


def present(
    name: str, source: str | None = None, source_hash: str | None = None, digest: str | None = None
) -> dict[str, Any]:
    """Ensure that the image of a source's present content is built.

    An unchanged source is neither fetched nor read again. ``test=True``
    examines a local source, or asks the master for the source's hash,
    but fetches nothing.

    name
        The source, or any text if ``source`` is given.

    source
        ``<source>:<location>`` as in an environment's ``image``:
        ``oci:``, ``tar:``, ``erofs:`` and ``dir:``. A file may be on
        Salt's file server: ``tar:salt://images/shop.tar``,
        ``oci:salt://images/shop.tar:orders``,
        ``erofs:salt://shop.erofs?saltenv=prod``.

    source_hash
        ``sha256:<hex>`` that the source's file must have (for an OCI
        layout folder: its manifest). By default, a file from
        ``salt://`` must have the master's hash, and a local file may
        have any hash.

    digest
        ``sha256:<hex>`` that the image must have, as
        ``netspace_image.list`` shows it.
    """
    test = bool(__opts__["test"])
    try:
        host = _host()
        # YAML may read a hash as a number: that is refused, not ignored.
        hashes = ("" if value is None else str(value) for value in (source_hash, digest))
        wanted = Wanted(name if source is None else str(source), *hashes)
        result = host.converge_images({name: wanted}, test=test)
    except NetspaceError as err:
        return state_return.failure(name, err, __running__)
    return state_return.state(name, result, test=test, only=name)


def absent(name: str) -> dict[str, Any]:
    """Ensure that an image doesn't exist. The state fails while an environment
    uses the image.

    name
        A source, a digest, or at least the first 12 digits of a digest.
    """
    test = bool(__opts__["test"])
    try:
        result = _host().remove_image(name, test=test)
    except NetspaceError as err:
        return state_return.failure(name, err, __running__)
    return state_return.state(name, result, test=test, only=name)
