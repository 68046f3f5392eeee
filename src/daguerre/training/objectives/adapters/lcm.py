"""Latent consistency distillation: a student learns to go from any noise level to the end of its teacher's trajectory in one step.

    f(z, t) = c_skip(t)·z + c_out(t)·x0(z, t)                         with f(z, 0) = z exactly: the boundary condition
    L = d(f(z_s, s), f⁻(ẑ_t, t)),   t = s − T/50                      f⁻: the moving average of the student, without a gradient
    ẑ_t = √ᾱ_t·x̂0 + √(1−ᾱ_t)·ε̂                                        one DDIM step of the teacher with guidance

Luo et al. 2023, arXiv:2310.04378, algorithm 1 and section 4.3, with a fixed guidance scale instead of an embedded one; the student is a
LoRA of the teacher, as in arXiv:2311.05556. Of the 1000 noise levels only those of 50 steps are visited, so that a step is long enough to
learn from.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from PIL import Image
from torch import Tensor, nn

from daguerre.adapters.presets import STEP_PRESETS
from daguerre.data import Batch
from daguerre.diffusion import predicted_x0
from daguerre.diffusion.denoiser import add_noise
from daguerre.pipelines import Request, generate
from daguerre.training.batch_random import BatchRandom
from daguerre.training.config import DiffusionLoss
from daguerre.training.ema import EMA
from daguerre.training.objectives.adapters.frozen_model import AdapterTask
from daguerre.training.objectives.adapters.lora import LoraNetwork
from daguerre.training.options.adapters.lcm import ConsistencyLoss

SOLVER_STEPS = 50  # of the teacher; the spacing `lcm` takes its steps from the same ones
SIGMA_DATA, TIME_SCALE = 0.5, 10.0  # of the boundary scalings, as published


class ConsistencyTask(AdapterTask):
    """Trains a LoRA on the consistency loss; the model without it is the teacher."""

    name = "lcm"

    def __init__(self, network: LoraNetwork, options: ConsistencyLoss, preview_prompts: Sequence[str]):
        super().__init__(network, DiffusionLoss(), preview_prompts)
        self.network, self.options = network, options
        self.guidance = self.model.default_guidance if options.guidance_scale is None else options.guidance_scale
        self.average: EMA | None = None

    def use_average(self, ema: EMA) -> None:
        """Take the targets from the moving average of the student instead of the student itself."""
        self.average = ema

    def losses(
        self, batch: Batch, networks: Mapping[str, nn.Module], random: BatchRandom, step: int
    ) -> Iterator[tuple[str, Tensor, Mapping[str, Tensor]]]:
        x0 = self.latents(batch)
        start, end = self.timesteps(random)
        z_start = add_noise(x0, random.normal(x0.shape[1:], x0.device), self.alpha_bar(start))
        with torch.no_grad():
            z_end = self.teacher_step(z_start, start, end, batch.captions)
            with self.average.applied() if self.average else nullcontext():
                target = self.consistency(self.network, z_end, end, batch.captions)
        predicted = self.consistency(networks["unet"], z_start, start, batch.captions)
        yield "unet", self.distance(predicted, target), {}

    def timesteps(self, random: BatchRandom) -> tuple[Tensor, Tensor]:
        """The two ends of a random step of the teacher's 50, integers (B,); the last one ends at 0."""
        length = len(self.model.schedule) // SOLVER_STEPS
        start = (random.integers(SOLVER_STEPS) + 1) * length - 1
        return start, (start - length).clamp(min=0)

    def alpha_bar(self, t: Tensor) -> Tensor:
        """ᾱ (B,) of integer timesteps (B,), float32."""
        return self.model.schedule.alphas_cumprod[t].float().to(self.model.device)

    def teacher_step(self, z: Tensor, start: Tensor, end: Tensor, captions: Sequence[str]) -> Tensor:
        """z (B, Z, h, w) one DDIM step of the guided teacher further, from timesteps (B,) to others (B,)."""
        twice, t = torch.cat([z, z]), torch.cat([start, start]).to(z.device)
        with self.network.suspended():
            prompt, empty = self.network(twice, t, [*captions, *[""] * len(captions)]).float().chunk(2)
        before, after = self.alpha_bar(start), self.alpha_bar(end)
        x0 = predicted_x0(self.model.prediction, empty + self.guidance * (prompt - empty), z, before)
        a, b, a_end, b_end = (value.sqrt()[:, None, None, None] for value in (before, 1 - before, after, 1 - after))
        return a_end * x0 + b_end * (z - a * x0) / b

    def consistency(self, network: Callable[..., Tensor], z: Tensor, t: Tensor, captions: Sequence[str]) -> Tensor:
        """f(z, t) (B, Z, h, w) of a student, at timesteps (B,)."""
        output = network(z, t.to(z.device), captions).float()
        c_skip, c_out = (value.to(z.device)[:, None, None, None] for value in boundary_scalings(t))
        return c_skip * z + c_out * predicted_x0(self.model.prediction, output, z, self.alpha_bar(t))

    def distance(self, predicted: Tensor, target: Tensor) -> Tensor:
        """The distance d of latents, the mean over all their values, ()."""
        squared, c = (predicted - target).square(), self.options.huber_c
        return squared.mean() if self.options.loss_type == "l2" else ((squared + c**2).sqrt() - c).mean()

    def sample(self) -> Image.Image:
        """Images of the preview prompts with the settings of the finished file."""
        with torch.compiler.set_stance("force_eager"):
            return generate(self.model, Request(self.preview_prompts, **STEP_PRESETS["lcm"].fields)).grid().image


def boundary_scalings(t: Tensor) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) at timesteps of any shape, float32: (1, 0) at 0, and nearly (0, 1) from the first step of the teacher on."""
    scaled = TIME_SCALE * t.float()
    total = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, scaled / total.sqrt()
