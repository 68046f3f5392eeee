"""ControlNets in a run: condition maps at the size of each pass, and the network of each step with the residuals that apply in it."""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from daguerre.adapters.controlnet import ControlNet
from daguerre.conditioning.prompt_schedule import RowLabel
from daguerre.data.images import to_tensor
from daguerre.diffusion import Conditioning
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.nn.cpu.prepack import prepack
from daguerre.pipelines.images.preprocess import ImageSize, flatten_input
from daguerre.pipelines.request import Request

UNetCall = Callable[..., Tensor]  # (x, t, cond, control=None) to the prediction

log = logging.getLogger(__name__)


class MappedControl(NamedTuple):
    """A ControlNet and its condition map (1, 3, H, W) in [0, 1] at the size of a pass."""

    control: ControlNet
    map: Tensor


def check_control_images(model: LatentDiffusion, request: Request) -> None:
    """Raise DaguerreError unless the request has one condition map for each ControlNet of the model."""
    controls, images = controlnets_of(model), request.control_images
    if len(controls) != len(images):
        raise DaguerreError(
            f"The model has {len(controls)} ControlNets and the request {len(images)} condition maps (control_images); give one for each, "
            "in the same order."
        )
    for control in controls:
        if (factor := control.network.map_downsampling) != model.autoencoder.downsample_factor:
            raise DaguerreError(
                f"The ControlNet {control.record.name!r} needs latents of 1/{factor} of the image, and those of {model.name!r} have "
                f"1/{model.autoencoder.downsample_factor}; use one for its family."
            )


def controlnets_of(model: LatentDiffusion) -> list[ControlNet]:
    """The ControlNets among the adapters of a model, in order."""
    return [adapter for adapter in model.adapters if isinstance(adapter, ControlNet)]


def mapped_controls(model: LatentDiffusion, request: Request, size: ImageSize) -> list[MappedControl]:
    """The ControlNets of a model with the maps of a request at `size` (width, height); a map of another size is resized, with a note."""
    found = []
    for control, source in zip(controlnets_of(model), request.control_images, strict=True):
        image = flatten_input(source)
        if image.size != size:
            log.warning("The condition map of %r has %d×%d pixels and is resized to %d×%d.", control.record.name, *image.size, *size)
            image = image.resize(size, Image.Resampling.LANCZOS)
        pixels = (to_tensor(image)[None] + 1) / 2
        network = prepack(control.network, copies=not request.low_memory)
        found.append(MappedControl(ControlNet(network, control.record, control.pooled), pixels.to(model.device, model.dtype)))
    return found


def with_control(network: UNetCall, controls: Sequence[MappedControl]) -> UNetCall:
    """The network with the residuals of all ControlNets added; itself without any."""
    if not controls:
        return network

    def controlled(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        labels = cond.row_labels
        prompted = torch.tensor([not (isinstance(label, RowLabel) and label.negative) for label in labels] or [True] * len(x))
        total: list[Tensor] | None = None
        for control, control_map in controls:
            residuals = control.residuals(x, t, cond, control_map.to(x), prompted.to(x.device))
            total = residuals if total is None else [a + b for a, b in zip(total, residuals, strict=True)]
        return network(x, t, cond, control=total)

    return controlled
