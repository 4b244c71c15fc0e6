"""Operations of a host on images (build, remove, prune), and on existing environments (start, stop, exec, logs)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from netspace.host.trust_gate import TrustGate
from netspace.plan import Plan, Result

if TYPE_CHECKING:
    from netspace.environment.images.admin import Images as ImageAdmin
    from netspace.environment.images.admin import Wanted
    from netspace.environment.operations import Operations


class Images(TrustGate):
    """Operations of a host on images, and on existing environments."""

    @functools.cached_property
    def images(self) -> ImageAdmin:
        """The operations on images."""
        from netspace.environment.images.admin import Images as ImageAdmin

        return ImageAdmin(self.environments.store, self._image_users)

    def _image_users(self) -> dict[str, list[str]]:
        users: dict[str, list[str]] = {}
        for name, record in self.environments.recorded().items():
            users.setdefault(record.image.digest, []).append(name)
        return users

    @functools.cached_property
    def operations(self) -> Operations:
        """The operations on existing environments (start, stop, exec, logs...)."""
        from netspace.environment.operations import Operations

        return Operations(self.layout, self.supervisor, self.withheld, self._publish)

    def converge_images(self, wanted: Mapping[str, Wanted], *, test: bool = False) -> Result:
        """Build images that are missing.

        :param wanted: the images (``images.admin.Wanted``), by the names of the Salt states that declare them.
        """
        with self._lock(test):
            plan = self.images.plan(wanted)
            return Result(plan) if test or not plan.steps else self._applied(plan, self.images.apply)

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
