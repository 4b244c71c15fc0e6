"""
Images of environments
======================

See, check and tidy up the images of a host. An image is built from its source when an
environment needs it, or by :py:mod:`netspace_image states <netspace.states.netspace_image>`
before that; it is never removed but by :py:func:`prune`,
:py:func:`netspace_image.absent <netspace.states.netspace_image.absent>` and
:py:func:`netspace.teardown <netspace.modules.netspace.teardown>`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import netspace

netspace.refresh(__file__)

from salt.exceptions import CommandExecutionError  # noqa: E402

from netspace import declared, report  # noqa: E402
from netspace.errors import NetspaceError  # noqa: E402
from netspace.host import Host  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]
    __context__: dict[str, Any]

__virtualname__ = "netspace_image"
__func_alias__ = {"list_": "list"}

T = TypeVar("T")


def __virtual__() -> str:
    return __virtualname__


def _do(action: Callable[[Host], T]) -> T:
    try:
        return action(Host(declared.layout(__opts__)))
    except NetspaceError as err:
        raise CommandExecutionError(str(err)) from err


def list_() -> dict[str, dict[str, Any]]:
    """
    Return every image with its sources and who uses it.

    Per image (by ``sha256:`` of its file): ``sources``, ``size`` in bytes, ``built`` (seconds
    since the epoch), ``used_by`` (environments) and ``mounted``. One that an environment uses and
    that is lost has no size.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_image.list
    """
    return _do(lambda host: host.images.list())


def inspect(name: str) -> dict[str, Any]:
    """
    Return all that is known of one image: what :py:func:`list <list_>` tells, its file, whether
    the kernel keeps it by fs-verity, and for each source what it was and what the image says about
    running it (``entrypoint``, ``cmd``, ``env`` without the values, ``user``, ``group``,
    ``working_dir``) with ``notes`` on what was left out.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_image.inspect tar:/srv/images/shop.tar
        salt '*' netspace_image.inspect 0a1b2c3d4e5f

    name
        A source, a digest, or at least the first 12 digits of one.
    """
    return _do(lambda host: host.images.inspect(name))


def verify(*names: str) -> dict[str, str]:
    """
    Read images and compare them with their digests. Returns ``ok`` per image, or what is wrong and
    what to do; then the return code is not 0.

    The same is done before an image is mounted, once after each boot. This takes as long as reading the files.

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
    """
    Remove every image that no environment uses, whether it runs or not.

    Returns ``{name, result, changes, comment}`` as a state would.

    CLI Example:

    .. code-block:: bash

        salt '*' netspace_image.prune test=True

    test
        Say what would be removed, and remove nothing.
    """
    result = _do(lambda host: host.prune_images(test=test))
    return report.state("netspace_image.prune", result, test=test)
