"""Adapters with images in a run: their images at the size of each pass, and the network of each step with the adapters that apply in it.

A ControlNet adds residuals that depend on the noisy latents. A T2I-Adapter adds features, and an IP-Adapter tokens, which both depend on
the image alone: they are computed once for each pass.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from daguerre.adapters.controlnet import ControlNet
from daguerre.adapters.image_adapter import ImageAdapter
from daguerre.adapters.ip_adapter import IPAdapter, with_image_attention
from daguerre.adapters.t2i_adapter import T2IAdapter
from daguerre.conditioning.prompt_schedule import RowLabel
from daguerre.data.images import to_tensor
from daguerre.diffusion import Conditioning
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.nn.cpu.prepack import prepack
from daguerre.pipelines.images.input import InputImage
from daguerre.pipelines.images.preprocess import ImageSize, clip_pixels, flatten_input
from daguerre.pipelines.memory_plan import one_at_a_time
from daguerre.pipelines.request import Request
from daguerre.runtime.engines import UNetCall, engine_of
from daguerre.runtime.overflow import retry_in_float32

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PreparedAdapter:
    """An adapter with what it made of its images at the size of a pass.

    tensors: of a ControlNet the map (1, 3, H, W) in [0, 1], of a T2I-Adapter its features, of an IP-Adapter the tokens (1, N, D) of the
        images and those of the negative condition.
    """

    adapter: ImageAdapter
    tensors: tuple[Tensor, ...]

    @property
    def is_inside(self) -> bool:
        """Whether it changes the UNet itself, unlike a ControlNet."""
        return not isinstance(self.adapter, ControlNet)


def check_control_images(model: LatentDiffusion, request: Request) -> None:
    """Raise DaguerreError unless the request has the images that the adapters of the model take."""
    adapters, images = image_adapters_of(model), request.control_images
    needed = sum(adapter.record.images for adapter in adapters)
    if needed != len(images):
        kinds = ", ".join(f"the {adapter.record.kind} {adapter.record.name!r}" for adapter in adapters) or "no adapter with images"
        raise DaguerreError(
            f"The model has {kinds}, which needs {needed} images, and the request has {len(images)} (control_images); give one for each, "
            "in the same order."
        )
    factor = model.autoencoder.downsample_factor
    for control in adapters:
        if isinstance(control, ControlNet) and control.network.map_downsampling != factor:
            raise DaguerreError(
                f"The ControlNet {control.record.name!r} needs latents of 1/{control.network.map_downsampling} of the image, and those of "
                f"{model.name!r} have 1/{factor}; use one for its family."
            )


def image_adapters_of(model: LatentDiffusion) -> list[ImageAdapter]:
    """The adapters of a model that take images, in order."""
    return [adapter for adapter in model.adapters if isinstance(adapter, ImageAdapter)]


@torch.no_grad()
def prepared_adapters(model: LatentDiffusion, request: Request, size: ImageSize) -> list[PreparedAdapter]:
    """The adapters of a model that take images, with those of a request at `size` (width, height)."""
    images, prepared = iter(request.control_images), []
    for adapter in image_adapters_of(model):
        own = [next(images) for _ in range(adapter.record.images)]
        match adapter:
            case IPAdapter():
                pixels = [clip_pixels(flatten_input(image), adapter.encoder.config.size) for image in own]
                prepared.append(PreparedAdapter(adapter, adapter.tokens(torch.cat(pixels))))
            case T2IAdapter(network=network):
                control_map = _map(adapter, own[0], size, grey=network.config.map_channels == 1).to(model.device, model.dtype)
                prepared.append(PreparedAdapter(adapter, tuple(adapter.features(control_map))))
            case ControlNet():
                packed = replace(adapter, network=prepack(adapter.network, copies=not request.low_memory))
                prepared.append(PreparedAdapter(packed, (_map(adapter, own[0], size).to(model.device, model.dtype),)))
    return prepared


def _map(adapter: ImageAdapter, source: InputImage, size: ImageSize, *, grey: bool = False) -> Tensor:
    """A condition map (1, 3, H, W), or (1, 1, H, W) if grey, in [0, 1] at `size` (width, height); one of another size is resized."""
    image = flatten_input(source)
    if image.size != size:
        log.warning("The condition map of %r has %d×%d pixels and is resized to %d×%d.", adapter.record.name, *image.size, *size)
        image = image.resize(size, Image.Resampling.LANCZOS)
    pixels = (to_tensor(image.convert("L").convert("RGB") if grey else image)[None] + 1) / 2
    return pixels[:, :1] if grey else pixels


def adapted_network(model: LatentDiffusion, inside: Sequence[PreparedAdapter], *, low_memory: bool) -> UNetCall:
    """The UNet of a model with T2I- and IP-Adapters, prepared for one run by the model's engine."""
    tokens = [(each.adapter, each.tensors) for each in inside if isinstance(each.adapter, IPAdapter)]
    features = [each.tensors for each in inside if isinstance(each.adapter, T2IAdapter)]
    unet = with_image_attention(model.unet, [(adapter, positive.shape[1]) for adapter, (positive, _) in tokens])
    network = retry_in_float32(unet, engine_of(model).prepare(unet, low_memory=low_memory), "UNet")
    if inside:
        network = _with_inputs(network, [pair for _, pair in tokens], [torch.stack(level).sum(0) for level in zip(*features, strict=True)])
    return one_at_a_time(network) if low_memory else network


def _with_inputs(network: UNetCall, tokens: Sequence[tuple[Tensor, ...]], features: Sequence[Tensor]) -> UNetCall:
    """The network with features, and with image tokens after the text in the context."""

    def call(x: Tensor, t: Tensor, cond: Conditioning, **more: Sequence[Tensor]) -> Tensor:
        if tokens:
            assert cond.context is not None
            prompted = _prompted_rows(cond, len(x)).to(x.device).reshape(-1, 1, 1)
            images = [torch.where(prompted, positive, negative).to(cond.context) for positive, negative in tokens]
            cond = replace(cond, context=torch.cat([cond.context, *images], dim=1))
        return network(x, t, cond, **more, features=features)

    return call


def with_control(network: UNetCall, active: Sequence[PreparedAdapter]) -> UNetCall:
    """The network with the residuals of all ControlNets added; itself without any."""
    controls = [(each.adapter, each.tensors[0]) for each in active if isinstance(each.adapter, ControlNet)]
    if not controls:
        return network

    def controlled(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        total: list[Tensor] | None = None
        for control, control_map in controls:
            residuals = control.residuals(x, t, cond, control_map.to(x), _prompted_rows(cond, len(x)).to(x.device))
            total = residuals if total is None else [a + b for a, b in zip(total, residuals, strict=True)]
        return network(x, t, cond, control=total)

    return controlled


def _prompted_rows(cond: Conditioning, batch: int) -> Tensor:
    """(B,) whether each row has a prompt, not a negative prompt."""
    labels = cond.row_labels
    return torch.tensor([not (isinstance(label, RowLabel) and label.negative) for label in labels] or [True] * batch)
