"""Preparation for a declaration that is applied later: builds its images, and compares trust with its requirements."""

from __future__ import annotations

from netspace.host.images import Images
from netspace.spec.types import Declaration


class Preparation(Images):
    """Operation of a host that does the slow and error-prone work of a later apply in advance.

    Running programs don't change.
    """

    def prepare(self, declared: Declaration, *, trusted: bool) -> list[str]:
        """Build the images of a declaration; return why this host isn't ready to apply it.

        Running programs don't change.

        :param trusted: whether an environment's lack of trust counts as a reason.
        """
        from netspace.environment.images.admin import Wanted

        wanted: dict[Wanted, str] = {}
        for name, spec in declared.environments.items():
            if spec.image:
                wanted.setdefault(Wanted(spec.image, spec.source_hash or ""), name)
        result = self.converge_images({name: one for one, name in wanted.items()})
        found = [f"{one.step.name}: {one.error}" for one in result.failures]
        found += [f"{one.name}: {one.message}" for one in result.plan.refusals]
        if trusted:
            found += [f"{name}: {reason}" for name, reason in self._withheld(declared, True).items()]
        return found
