"""Each network of each family equals that of diffusers or transformers, loaded from the folder that they wrote."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from daguerre.diffusion import Conditioning
from daguerre.models.latent_diffusion import LatentDiffusion
from tests.families import peers

Peer = Callable[[str], tuple[Any, Path, LatentDiffusion]]
TOLERANCE = 1e-5


def close(result: Tensor, reference: Tensor) -> None:
    assert result.shape == reference.shape
    assert reference.std() > 0.05 * reference.abs().max()
    difference = ((result - reference).abs().max() / reference.abs().max()).item()
    assert difference < TOLERANCE, difference


@torch.no_grad()
@pytest.mark.parametrize("family", peers.PEERS)
def test_unet_equals_diffusers(peer: Peer, family: str):
    pipeline, _, model = peer(family)
    config, source = pipeline.unet.config, torch.Generator().manual_seed(0)
    x = torch.randn(2, config.in_channels, 8, 12, generator=source)
    t, context = torch.tensor([3, 961]), torch.randn(2, 77, config.cross_attention_dim, generator=source)
    told: dict[str, Any] = {}
    cond = Conditioning(context=context)
    if config.addition_embed_type:
        width = config.projection_class_embeddings_input_dim
        numbers = torch.tensor([[16.0, 32, 0, 7, 16, 32], [9.0, 8, 1, 2, 3, 4]])[:, : (width - 128) // 256]
        pooled = torch.randn(2, 128, generator=source)
        told = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": numbers}}
        waves = pipeline.unet.add_time_proj(numbers.flatten()).reshape(2, -1)
        cond = Conditioning(context=context, vector=torch.cat([pooled, waves], 1))
    if config.num_class_embeds:
        told["class_labels"] = label = torch.tensor([20, 350])
        cond = Conditioning(context=context, label=label)
    close(model.unet(x, t, cond), pipeline.unet(x, t, context, **told).sample)


@torch.no_grad()
@pytest.mark.parametrize("family", peers.PEERS)
def test_autoencoder_equals_diffusers(peer: Peer, family: str):
    pipeline, _, model = peer(family)
    source = torch.Generator().manual_seed(0)
    x, scale = torch.randn(2, 3, 16, 24, generator=source), pipeline.vae.config.scaling_factor
    posterior = pipeline.vae.encode(x).latent_dist
    close(model.autoencoder.encode(x), posterior.mean * scale)
    noise = torch.randn(posterior.mean.shape, generator=source)
    close(model.autoencoder.encode(x, noise), (posterior.mean + posterior.std * noise) * scale)
    close(model.autoencoder.decode(noise), pipeline.vae.decode(noise / scale).sample)


PROMPTS = ["", "a red apple, very red", "Ünïcödé 猫!! don't"]


@torch.no_grad()
@pytest.mark.parametrize("family", [family for family in peers.PEERS if family not in ("sd1-pix2pix", "sd1-variations")])
def test_text_encoders_equal_transformers(peer: Peer, family: str):
    pipeline, _, model = peer(family)
    cond = model.conditioner(PROMPTS)
    for prompt, context, vector in zip(PROMPTS, cond.context, cond.vector if cond.vector is not None else PROMPTS, strict=True):
        if "sdxl" not in family:
            close(context, pipeline.encode_prompt(prompt, "cpu", 1, False)[0][0])
            continue
        states, _, pooled, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
        close(context, states[0])
        close(vector[:128], pooled[0])
