"""The random numbers of a training step: those of a sample depend only on the seed, the step and its index in the whole batch.

Every process draws the numbers of the whole batch and takes those of its part. So the noise of a sample is the same in any number of
processes and accumulation steps. It costs little: a step of a network takes much longer than its noise.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class BatchRandom:
    """Random numbers for a part of a batch.

    generator: on the CPU, in the same state for all parts of the batch; what must be equal for all samples comes from it. Take from it only
    amounts that do not depend on the samples, else the parts no longer agree.
    total: the number of samples in the whole batch. part: those that the numbers are for.
    """

    generator: torch.Generator
    total: int
    part: slice = field(default_factory=lambda: slice(None))

    @classmethod
    def of_step(cls, seed: int, step: int, total: int, first: int, last: int) -> "BatchRandom":
        """The numbers of the samples first ≤ i < last of one step. Also seeds torch's global generator, because dropout has no other; its
        numbers depend on the division of the batch."""
        torch.manual_seed(_mix(seed, step, first // (last - first)))
        return cls(torch.Generator().manual_seed(_mix(seed, step, 0)), total, slice(first, last))

    def normal(self, shape: Sequence[int] = (), device: torch.device = _CPU, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers (B, *shape).

        A GPU generates its own from a seed of `generator`: the CPU would need longer than the GPU needs for the rest of the step.
        """
        generator = self.generator
        if device.type != "cpu":
            seed = int(torch.randint(1 << 62, (), generator=generator))
            generator = torch.Generator(device).manual_seed(seed)
        return torch.randn(self.total, *shape, generator=generator, device=device, dtype=dtype)[self.part]

    def uniform(self, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        """Numbers (B, *shape) in [0, 1), on the CPU."""
        return torch.rand(self.total, *shape, generator=self.generator, dtype=dtype)[self.part]

    def integers(self, high: int, shape: Sequence[int] = ()) -> Tensor:
        """Integers (B, *shape) in 0 … high − 1, on the CPU."""
        return torch.randint(high, (self.total, *shape), generator=self.generator)[self.part]

    def generators(self) -> list[torch.Generator]:
        """A generator for each sample, on the CPU."""
        return [torch.Generator().manual_seed(seed) for seed in self.integers(1 << 62).tolist()]


def _mix(seed: int, step: int, part: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {step} {part} 0".encode(), digest_size=8).digest(), "little") >> 1
