"""Exponential moving average of weights, θ̄ ← d·θ̄ + (1 − d)·θ, with the warm-up d = min(decay, (1 + n)/(10 + n)).

Without an average, the FID of the published DDPM is 12.1 instead of 3.17 (Ho et al. 2020, arXiv:2006.11239, section 4). The warm-up keeps
the random initial weights out of the average.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from daguerre.nn.torch_private import lerp_each_


class EMA:
    """Averaged float32 copies of the floating-point parameters and buffers of several networks, named `network.parameter`."""

    def __init__(self, networks: Mapping[str, nn.Module], decay: float):
        self.decay = decay
        self.updates = 0
        # With keep_vars these are the live tensors: they stay the same objects when their values or memory change.
        tensors = {f"{n}.{k}": value for n, network in networks.items() for k, value in network.state_dict(keep_vars=True).items()}
        self._live = {name: value for name, value in tensors.items() if value.is_floating_point()}
        self.averaged = {name: value.detach().float().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages one step towards the live weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        live = [value.float() for value in self._live.values()]
        lerp_each_(list(self.averaged.values()), live, 1 - decay)

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Inside the block the networks have the averaged weights; afterwards exactly their own again."""
        live = {name: value.clone() for name, value in self._live.items()}
        self._assign(self.averaged)
        try:
            yield
        finally:
            self._assign(live)

    @torch.no_grad()
    def load(self, averaged: Mapping[str, Tensor], updates: int) -> None:
        """Load averages that were saved earlier. Raises KeyError if their names differ."""
        if averaged.keys() != self.averaged.keys():
            raise KeyError(f"averaged weights differ by {sorted(averaged.keys() ^ self.averaged.keys())[:5]}")
        for name, value in averaged.items():
            self.averaged[name].copy_(value)
        self.updates = updates

    def assign(self) -> None:
        """Copy the averages into the networks."""
        self._assign(self.averaged)

    @torch.no_grad()
    def _assign(self, values: Mapping[str, Tensor]) -> None:
        for name, live in self._live.items():
            live.copy_(values[name])
