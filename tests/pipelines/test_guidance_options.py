"""Options of guidance, clip skip, thresholding and the model's own scheduler, from a request to the image and its metadata."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import daguerre
from daguerre.diffusion import SAMPLERS, Conditioning, Denoiser, SamplerConfig, classifier_free_guidance, dynamic_threshold
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines.context import resolve_request
from daguerre.pipelines.request import Request
from daguerre.weights.diffusers.scheduler_config import folder_sampler

COMMON = {"prompt": "a red apple", "negative_prompt": "two cats", "steps": 4, "seed": 3, "sampler": "euler", "guidance_scale": 4.0}


def x0s(model: LatentDiffusion, **fields: Any) -> list[Tensor]:
    return [step.x0 for step in daguerre.stream(model, **{**COMMON, **fields})]


@torch.no_grad()
def guided_x0(model: LatentDiffusion, **options: Any) -> Tensor:
    """The x0 of the first step, computed from the parts."""
    positive, negative = (model.conditioner([text]) for text in (COMMON["prompt"], COMMON["negative_prompt"]))
    sigmas = resolve_request(model, Request(**COMMON)).sampler_config.sigmas(model.schedule, COMMON["steps"])
    x = torch.randn(1, 6, 8, 8, generator=torch.Generator().manual_seed(COMMON["seed"]))
    x = x if sigmas[0].isinf() else x * (sigmas[0] ** 2 + 1).sqrt()
    scale = options.pop("scale", COMMON["guidance_scale"])
    denoiser = Denoiser(model.unet, model.schedule, model.prediction)
    return classifier_free_guidance(denoiser, [positive, negative], [scale, 1 - scale], **options)(x, sigmas[0])


def test_guidance_rescale_equals_its_formula(tiny_model: LatentDiffusion):
    torch.testing.assert_close(x0s(tiny_model, guidance_rescale=0.7)[0], guided_x0(tiny_model, rescale=0.7), rtol=1e-4, atol=1e-4)
    assert not torch.equal(x0s(tiny_model, guidance_rescale=0.7)[0], x0s(tiny_model)[0])


def test_guidance_interval_guides_a_share_of_the_steps(tiny_model: LatentDiffusion):
    guided, plain = x0s(tiny_model), x0s(tiny_model, guidance_scale=1.0)
    first_half, second_half = (x0s(tiny_model, guidance_interval=interval) for interval in ((0, 0.5), (0.5, 1)))
    assert torch.equal(first_half[0], guided[0])
    assert torch.equal(first_half[1], guided[1])
    assert not torch.equal(first_half[2], guided[2])
    assert torch.equal(second_half[0], plain[0])
    assert torch.equal(second_half[1], plain[1])
    assert not torch.equal(second_half[2], plain[2])


def test_cfg_plus_plus_uses_its_scale_of_the_first_step(make_tiny_model: Callable[..., LatentDiffusion]):
    model = make_tiny_model("epsilon", zero_terminal_snr=False)
    sigmas = resolve_request(model, Request(**COMMON)).sampler_config.sigmas(model.schedule, COMMON["steps"])
    scale = 0.6 / (1 - sigmas[1] / sigmas[0]).item()
    found = x0s(model, guidance_scale=0.6, cfg_plus_plus=True)[0]
    torch.testing.assert_close(found, guided_x0(model, scale=scale), rtol=1e-4, atol=1e-4)


def test_clip_skip_encodes_with_another_layer(tiny_model: LatentDiffusion):
    last, penultimate = (x0s(tiny_model, clip_skip=n)[0] for n in (1, 2))
    assert torch.equal(last, x0s(tiny_model)[0])
    skipped = replace(tiny_model, conditioner=tiny_model.conditioner.with_clip_skip(2))
    assert torch.equal(penultimate, x0s(skipped)[0])
    assert not torch.equal(penultimate, last)


class IdentityAutoencoder:
    """The "latents" of a model of pixels."""

    downsample_factor = 1

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z[:, :3]


def test_dynamic_threshold_is_for_models_of_pixels(tiny_model: LatentDiffusion):
    model = replace(tiny_model, autoencoder=IdentityAutoencoder(), sample_size=8)
    plain, limited = (x0s(model, dynamic_threshold=quantile, sampler="dpmpp_2m")[0] for quantile in (None, 0.9))
    torch.testing.assert_close(limited, dynamic_threshold(lambda _x, _sigma: plain, 0.9)(plain, torch.tensor(1.0)))
    with pytest.raises(DaguerreError, match="needs a model of pixels"):
        x0s(tiny_model, dynamic_threshold=0.9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cfg_plus_plus": True}, "guidance scale from 0 to 1"),
        ({"cfg_plus_plus": True, "guidance_scale": 0.5, "sampler": "heun"}, "CFG\\+\\+ needs the sampler 'euler'"),
        ({"sampler": "ddim_inversion"}, "turns images into noise"),
        ({"clip_skip": 99}, "clip_skip"),
        ({"clip_skip": 0}, "clip_skip is 0; it must be 1 or more"),
        ({"guidance_interval": (0.5, 0.2)}, "two shares of the steps"),
        ({"guidance_interval": [0.1]}, "guidance_interval is"),
        ({"guidance_rescale": 2.0}, "guidance_rescale is 2.0; it must be between"),
        ({"dynamic_threshold": 0.0}, "a quantile above 0"),
    ],
)
def test_wrong_options_are_refused(tiny_model: LatentDiffusion, fields: dict[str, Any], message: str):
    with pytest.raises(DaguerreError, match=message):
        daguerre.stream(tiny_model, **{**COMMON, **fields})


def test_clip_skip_needs_a_text_encoder(tiny_model: LatentDiffusion):
    context = tiny_model.conditioner([""]).context
    without = replace(tiny_model, conditioner=lambda prompts: Conditioning(context=context.expand(len(prompts), -1, -1)))
    with pytest.raises(DaguerreError, match="has no text encoder"):
        daguerre.stream(without, clip_skip=2)


def test_options_are_recorded_and_give_the_same_image_again(tiny_model: LatentDiffusion):
    request = Request(**COMMON, guidance_rescale=0.5, guidance_interval=(0.25, 0.75), clip_skip=2, initial_noise="sigma_max")
    (image,) = daguerre.generate(tiny_model, request)
    recorded = Request.from_json(image.provenance.to_json()["request"])
    assert (recorded.guidance_rescale, recorded.guidance_interval, recorded.clip_skip) == (0.5, (0.25, 0.75), 2)
    assert daguerre.generate(tiny_model, recorded)[0].image.tobytes() == image.image.tobytes()
    assert "CFG rescale: 0.5, Clip skip: 2" in image.parameters


PNDM = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}


def test_a_folder_written_by_diffusers_has_its_own_sampler():
    config = folder_sampler(PNDM)
    assert config is not None
    assert (config.sampler.name, config.spacing, config.clip) == ("plms", "leading", None)
    assert folder_sampler({name: value for name, value in PNDM.items() if name != "_diffusers_version"}) is None
    assert folder_sampler({**PNDM, "_class_name": "UnknownScheduler"}) is None


def test_the_models_own_scheduler_is_the_default_and_recorded(make_tiny_model: Callable[..., LatentDiffusion]):
    own = SamplerConfig(SAMPLERS["heun"], {}, "leading", {"steps_offset": 1}, initial_scale="sigma_max")
    model = replace(make_tiny_model("epsilon", zero_terminal_snr=False), sampler_config=own)
    fields = {name: value for name, value in COMMON.items() if name != "sampler"}
    (image,) = daguerre.generate(model, **fields)
    recorded = image.provenance.request
    assert (recorded.sampler, recorded.spacing, recorded.initial_noise) == ("heun", "leading", "sigma_max")
    assert resolve_request(model, recorded).sampler_config == own
    assert daguerre.generate(model, recorded)[0].image.tobytes() == image.image.tobytes()
    named = resolve_request(model, Request(**COMMON))
    assert (named.request.sampler, named.request.spacing, named.initial_noise) == ("euler", "trailing", "variance_preserving")
    assert resolve_request(model, Request(spacing="karras")).request.sampler == "heun"
