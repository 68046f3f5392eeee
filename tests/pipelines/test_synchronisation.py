"""A denoising loop reads no result of a network on the host: on a GPU, each such read waits for all work before it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines import stream


class HostReads(TorchDispatchMode):
    """Records the numbers that `item()`, `bool()` and the like read from tensors, and counts operations whose shape depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []
        self.other: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            self.values.append(result)
        elif name in ("nonzero", "masked_select", "equal", "is_nonzero"):
            self.other.append(name)
        return result


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler", "heun", "unipc"])
def test_only_noise_levels_are_read(make_tiny_model: Callable[..., LatentDiffusion], sampler: str):
    """The noise levels are on the CPU whatever the device of the model, so reading them waits for nothing."""
    model, reads = make_tiny_model(zero_terminal_snr=False), HostReads()
    levels = {*model.schedule.finite_sigmas.tolist(), *map(float, range(1000))}  # and the timesteps that a level lies between
    steps = stream(model, "a red apple", sampler=sampler, steps=4)
    levels.add(next(steps).sigma)  # before it, the prompt is encoded
    with reads:
        for step in steps:
            levels.add(step.sigma)
            if step.index == 2:  # the next one decodes
                break
    assert reads.values
    assert {float(value) for value in reads.values} <= levels
    assert not reads.other
