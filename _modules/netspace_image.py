"""Images of environments
======================

See, check and remove the images of a host. netspace builds an image from its source when an environment needs the
image, or earlier by ``netspace_image`` states. Only ``netspace_image.prune``, the state ``netspace_image.absent`` and
``netspace.teardown`` remove images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import netspace

netspace.refresh(__file__)

from salt.exceptions import CommandExecutionError  # noqa: E402

from netspace.errors import NetspaceError  # noqa: E402
from netspace.host.host import Host  # noqa: E402
from netspace.plugin import arguments, dates, refusal, state_return  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]
    __context__: dict[str, Any]

__virtualname__ = "netspace_image"
__func_alias__ = {"list_": "list"}
__outputter__ = dict.fromkeys(("list_", "inspect", "prune"), "netspace")

T = TypeVar("T")


def __virtual__() -> str:
    return __virtualname__


def _do(action: Callable[[Host], T]) -> T:
    try:
        return action(Host(arguments.layout(__opts__)))
    except NetspaceError as err:
        raise CommandExecutionError(refusal.told(__opts__, err)) from err


def list_() -> dict[str, dict[str, Any]]:
    """
    Return every image with its sources and the environments that use
    it.

    Each row, by the ``sha256:`` of the image's file, has ``sources``,
    ``size`` in bytes, ``built`` (seconds since the epoch), ``built_at``
    (the same as ISO 8601), ``used_by`` (environments) and ``mounted``.
    If an environment uses an image whose file is missing, the row has
    no size.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_image.list
    """
    return dates.with_texts(_do(lambda host: host.images.list()))


def inspect(name: str) -> dict[str, Any]:
    """Return all data on one image.

    The result has the row of ``netspace_image.list``, the image's file,
    and the file's fs-verity digest or the reason why there is none. For
    each source, it has the identity of the source's content, the
    image's own settings (``entrypoint``, ``cmd``, ``env`` without the
    values, ``user``, ``group``, ``working_dir``) and ``notes`` on parts
    that were left out of the image.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_image.inspect tar:/srv/images/shop.tar
        salt '*' netspace_image.inspect 0a1b2c3d4e5f

    name
        A source, a digest, or at least the first 12 digits of a digest.
    """
    return dates.with_texts(_do(lambda host: host.images.inspect(name)))


def verify(*names: str) -> dict[str, str]:
    """Read images and compare them with their digests.

    Returns, for each image, ``ok``, or the damage and the remedy. If an
    image is damaged, the return code is not 0.

    netspace makes the same check before it mounts an image for the
    first time after a boot. The check takes as long as reading the
    files.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_image.verify
        salt '*' netspace_image.verify tar:/srv/images/shop.tar

    names
        Sources or digests. By default, all images.
    """
    found = _do(lambda host: host.images.verify([str(name) for name in names]))
    if any(found.values()):
        __context__["retcode"] = 1
    return {digest: error or "ok" for digest, error in found.items()}


def prune(test: bool = False) -> dict[str, Any]:
    """Remove every image that no environment uses. Stopped environments use
    their images, too.

    Returns ``{name, result, changes, comment}``, as a state does.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_image.prune test=True

    test
        Return what would be removed, and remove nothing. If there is
        something, ``result`` is ``None``, so ``salt-call`` exits with
        1.
    """
    result = _do(lambda host: host.prune_images(test=test))
    return state_return.state("netspace_image.prune", result, test=test)
