"""What ControlNets, T2I-Adapters and IP-Adapters share: they take images of the request, and apply in a part of the steps."""

from dataclasses import dataclass, replace
from typing import Self

from daguerre.adapters.record import AdapterRecord


@dataclass(frozen=True, eq=False)
class ImageAdapter:
    """An adapter that takes images. record: name, file, scale, start and end, and the number of its images."""

    record: AdapterRecord

    def scaled(self, scale: float, *, start: float = 0.0, end: float = 1.0, guess_mode: bool = False) -> Self:
        """The same with another strength. start, end: the shares of the steps between which it applies."""
        return replace(self, record=replace(self.record, scale=scale, start=start, end=end, guess_mode=guess_mode))

    def applies(self, step: int, steps: int) -> bool:
        """Whether it applies in a step, counted from 0; never at scale 0, so that results are exactly those without it."""
        return self.record.scale != 0 and step / steps >= self.record.start and (step + 1) / steps <= self.record.end
