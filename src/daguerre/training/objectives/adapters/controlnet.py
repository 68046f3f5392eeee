"""Train a ControlNet on the diffusion loss of a frozen model.

    L = ‖F(x_t, t, c, control(x_t, t, c, map)) − target‖²           Zhang et al. 2023, arXiv:2302.05543, sections 3.1 and 3.3

The network starts as a copy of the UNet's encoder whose outputs pass through zero convolutions, so the first step's prediction is the
model's own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from PIL import Image
from torch import Tensor, nn

from daguerre.adapters import ControlNet, with_adapters
from daguerre.adapters.record import AdapterRecord
from daguerre.data import Batch
from daguerre.models.controlnet import ControlNetModel
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.training.batch_random import BatchRandom
from daguerre.training.condition_preview import ConditionExample, example_sheet
from daguerre.training.config import DiffusionLoss
from daguerre.training.datasets.control_maps import split_pair
from daguerre.training.objectives.adapters.frozen_model import AdaptedModel, AdapterTask


class ControlledModel(AdaptedModel):
    """A frozen model and the ControlNet that steers it."""

    def __init__(self, model: LatentDiffusion, controlnet: ControlNetModel):
        super().__init__(model, cached=True)
        self.controlnet = controlnet

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  # a map in addition
        self, x: Tensor, t: Tensor, captions: Sequence[str], control_map: Tensor
    ) -> Tensor:
        """The prediction for noisy latents x (B, Z, h, w) with condition maps (B, 3, H, W) in [0, 1]."""
        condition = self.encode(captions, x)
        return self.model.unet(x, t, condition, control=self.controlnet(x, t, condition, control_map))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile both networks."""
        self.controlnet.compile(*args, **kwargs)
        super().compile(*args, **kwargs)


class ControlNetTask(AdapterTask):
    """Trains a ControlNet on batches of images with their maps."""

    name = "controlnet"

    def __init__(self, network: ControlledModel, weights: DiffusionLoss, examples: Sequence[ConditionExample]):
        """examples: of the sample images."""
        super().__init__(network, weights, ())
        self.controlnet, self.examples = network.controlnet, examples

    def losses(
        self, batch: Batch, networks: Mapping[str, nn.Module], random: BatchRandom, step: int
    ) -> Iterator[tuple[str, Tensor, Mapping[str, Tensor]]]:
        x, control_map = split_pair(batch.x.to(self.model.device))
        controlled: Any = partial(networks["unet"], control_map=control_map)
        yield from super().losses(replace(batch, x=x), {"unet": controlled}, random, step)

    def sample(self) -> Image.Image:
        """The example maps, the image that each gives with its caption, and the original."""
        controlled = ControlNet(AdapterRecord("controlnet", self.name), self.controlnet)
        return example_sheet(with_adapters(self.model, [controlled]), self.examples)
