"""The optimizers of the training loop: AdamW, Adafactor and Prodigy. All have decoupled weight decay.

AdamW      two moments for each weight (Loshchilov & Hutter 2019, arXiv:1711.05101); adamw8bit has them in 8 bits, by blocks
           (Dettmers et al. 2022, arXiv:2110.02861)
Adafactor  the second moment of a matrix from the means of its rows and columns, no first moment: almost no memory
           (Shazeer & Stern 2018, arXiv:1804.04235); here with the given learning rate, not relative to the size of the weights
Prodigy    Adam with an estimate d of the distance to the solution, which sets the step size
           (Mishchenko & Defazio 2024, arXiv:2306.06101, algorithm 4)
"""

from collections.abc import Collection, Iterable
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from daguerre.errors import DaguerreError
from daguerre.training.config import LoopConfig


def make_optimizer(network: nn.Module, config: LoopConfig, no_decay: Collection[nn.Parameter] = ()) -> torch.optim.Optimizer:
    """The optimizer of a network's trained parameters. Vectors (biases, norms) and `no_decay` are exempt from weight decay.

    Raises DaguerreError if its library is not installed.
    """
    exempt = {id(p) for p in no_decay}
    trained = [p for p in network.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1 and id(p) not in exempt]
    others = [p for p in trained if p.ndim <= 1 or id(p) in exempt]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
        case "adamw8bit":
            try:
                from bitsandbytes.optim.adamw import AdamW8bit  # only here, because it is an extra
            except ImportError as error:
                raise DaguerreError(
                    'The optimizer adamw8bit needs bitsandbytes; install it with pip install "daguerre[bitsandbytes]".'
                ) from error
            return AdamW8bit(groups, lr=config.learning_rate, betas=config.betas)
        case "adafactor":
            # PyTorch multiplies the rate by max(eps[1], RMS of the weights); with 1 it is the given one, also for LoRA's zeros.
            return torch.optim.Adafactor(groups, lr=config.learning_rate, eps=(None, 1.0))
        case "prodigy":
            return Prodigy(groups, lr=config.learning_rate, betas=config.betas)


class Prodigy(torch.optim.Optimizer):
    """Adam whose step size is lr · d: d only grows, as the weights move away from where they started in a constant direction.

    With bias correction, and with lr kept out of d's denominator, so that the warm-up does not disturb d.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1.0, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, d0: float = 1e-6
    ):
        """d0: the first d, smaller than any that is useful."""
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.d0 = d0

    @property
    def d(self) -> float:
        """The present estimate."""
        return float(self._estimate[0])

    @property
    def _estimate(self) -> Tensor:
        """d, its numerator, and the number of steps, (3,): in the state of the first parameter, so that checkpoints have them."""
        first = next(p for group in self.param_groups for p in group["params"])
        if "estimate" not in self.state[first]:
            self.state[first]["estimate"] = torch.tensor([self.d0, 0.0, 0.0])
        return self.state[first]["estimate"]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        lr, (beta1, beta2) = self.param_groups[0]["lr"], self.param_groups[0]["betas"]
        d, numerator, steps = self._estimate.tolist()
        rate = lr * d * sqrt(1 - beta2 ** (steps + 1)) / (1 - beta1 ** (steps + 1))
        numerator, denominator = numerator * sqrt(beta2), 0.0
        trained = [(p, p.grad, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p, grad, _ in trained:
            state = self._moments(p)
            numerator += d / self.d0 * rate * float((grad * (state["start"] - p)).sum())
            state["exp_avg"].mul_(beta1).add_(grad, alpha=d * (1 - beta1))
            state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=d * d * (1 - beta2))
            denominator += float(state["direction"].mul_(sqrt(beta2)).add_(grad, alpha=d * d / self.d0).abs().sum())
        if not denominator:
            return
        d = max(d, numerator / denominator)
        for p, _, group in trained:
            state = self.state[p]
            p.mul_(1 - rate * group["weight_decay"])
            p.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt().add_(d * group["eps"]), value=-rate)
        self._estimate.copy_(torch.tensor([d, numerator, steps + 1]))

    def _moments(self, p: Tensor) -> dict[str, Tensor]:
        state = self.state[p]
        if "exp_avg" not in state:
            state.update({name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq", "direction")}, start=p.clone())
        return state
