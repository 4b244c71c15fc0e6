"""Preparation for a declaration that is applied later: its images are built, and the host's trust is compared."""

from __future__ import annotations

from netspace.host.images import Images
from netspace.spec.types import Declaration


class Preparation(Images):
    """Everything that takes long or can fail before an apply, and changes nothing that runs."""

    def prepare(self, declared: Declaration, *, trusted: bool) -> list[str]:
        """Build the images of a declaration; return why this host isn't ready to apply it. Programs go on unchanged.

        :param trusted: whether lack of trust for one of its environments is a reason.
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
