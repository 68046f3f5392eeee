"""A text encoder learns that variants of a caption mean the same; the UNet stays as it is.

    L = mean over layers l of  Σ‖A_l(h_l, E(variant)) − A_l(h_l, E₀(caption))‖² / Σ‖A_l(h_l, E₀(caption)) − mean over captions‖²

A_l is a cross-attention of the UNet, E the trained text encoder and E₀ a frozen copy of it from before the training: distillation of the
layers' outputs (Romero et al. 2015, arXiv:1412.6550, section 2.2). A variant has other tokens at other positions, so the states themselves
cannot be compared; the outputs of cross-attention can, and the image depends on nothing else. The inputs h_l are recorded while the model
generates. L is the share of the variance between captions that is lost: 1 for an encoder that ignores the caption.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from daguerre.conditioning import TextConditioner
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.nn.attention import Attention, SpatialTransformer
from daguerre.nn.attention_hooks import cross_attentions
from daguerre.pipelines import Request, generate
from daguerre.training.batch_random import BatchRandom
from daguerre.training.datasets.caption_variants import CaptionBatch

CAPTION_DROPOUT = 0.05  # share of captions replaced by the empty one, whose states must not change: classifier-free guidance needs them
AttentionInputs = list[tuple[Attention, Tensor]]  # a cross-attention layer and inputs h (N, C)


class CaptionEncoder(nn.Module):
    """A text encoder as a network from captions to states (B, L, D)."""

    def __init__(self, conditioner: TextConditioner):
        super().__init__()
        self.conditioner = conditioner.requires_grad_(True)
        if conditioner.encoder.text_projection is not None:
            conditioner.encoder.text_projection.requires_grad_(False)  # the UNet does not use it, so it has no gradient

    def forward(self, captions: Sequence[str]) -> Tensor:
        context = self.conditioner.encode_captions(captions).context
        assert context is not None, "a text encoder without states"
        return context


class CaptionVariantTask:
    """Trains the text encoder of a latent diffusion model."""

    name = "caption-variants"
    ema_networks = ("text_encoder",)

    def __init__(self, model: LatentDiffusion, conditioner: TextConditioner, inputs: AttentionInputs, preview_prompts: Sequence[str]):
        """
        Args:
            conditioner: of `model`; it is trained in place.
            inputs: from `record_cross_attention_inputs`.
            preview_prompts: of the sample grid.
        """
        self.original = CaptionEncoder(copy.deepcopy(conditioner)).requires_grad_(False).eval()
        self.networks: dict[str, nn.Module] = {"text_encoder": CaptionEncoder(conditioner)}
        self.model, self.inputs, self.preview_prompts = model, inputs, tuple(preview_prompts)
        model.unet.requires_grad_(False)

    def to(self, device: torch.device) -> None:
        self.model.to(device)
        self.original.to(device)
        self.inputs = [(layer, h.to(device)) for layer, h in self.inputs]

    def losses(
        self, batch: CaptionBatch, networks: Mapping[str, nn.Module], random: BatchRandom, step: int
    ) -> Iterator[tuple[str, Tensor, Mapping[str, Tensor]]]:
        kept = (random.uniform() >= CAPTION_DROPOUT).tolist()
        captions, variants = (
            [text if keep else "" for text, keep in zip(texts, kept, strict=True)] for texts in (batch.captions, batch.variants)
        )
        with torch.no_grad():
            target = self.original(captions)
        context = networks["text_encoder"](variants)
        yield "text_encoder", self.lost_variance(context, target, random.generator), {}

    def lost_variance(self, context: Tensor, target: Tensor, generator: torch.Generator, positions: int = 32) -> Tensor:
        """L () of states (B, L, D), with `positions` random inputs of each layer."""
        shares = []
        for layer, inputs in self.inputs:
            chosen = torch.randint(len(inputs), (positions,), generator=generator)
            h = inputs[chosen].expand(len(context), -1, -1)  # (B, positions, C)
            with torch.no_grad():
                wanted = layer(h, target)
                variance = (wanted - wanted.mean(0)).square().sum()
            shares.append((layer(h, context) - wanted).square().sum() / variance.clamp(min=1e-12))
        return torch.stack(shares).mean()

    def sample(self) -> Image.Image:
        """Images of the preview prompts with the current weights."""
        return generate(self.model, prompt=self.preview_prompts, steps=10).grid().image


@torch.no_grad()
def record_cross_attention_inputs(
    model: LatentDiffusion, prompts: Sequence[str], *, steps: int = 8, positions: int = 16, seed: int = 0
) -> AttentionInputs:
    """What the cross-attentions of the UNet read while the model generates images for `prompts`.

    Returns for each layer the inputs h (N, C) at `positions` random positions of each image and step, with and without the prompt.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = [
        layer
        for transformer in model.unet.modules()
        if isinstance(transformer, SpatialTransformer)
        for block in transformer.transformer_blocks
        for layer in cross_attentions(block)
    ]
    kept: dict[Attention, list[Tensor]] = {layer: [] for layer in layers}

    def keep(layer: Attention, _module: nn.Module, arguments: tuple[Any, ...]) -> None:
        h = arguments[0]  # (B, H·W, C)
        kept[layer].append(h[:, torch.randint(h.shape[1], (positions,), generator=generator)].flatten(0, 1).clone())

    hooks = [layer.register_forward_pre_hook(partial(keep, layer)) for layer in layers]
    try:
        generate(model, Request(prompt=tuple(prompts), steps=steps, seed=seed))
    finally:
        for hook in hooks:
            hook.remove()
    return [(layer, torch.cat(parts)) for layer, parts in kept.items()]
