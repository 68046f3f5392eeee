"""Text to image equals diffusers end to end in each family, from a folder of diffusers and from one converted file."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import daguerre
from daguerre.conditioning import PromptSchedule, SizeConditioning
from daguerre.diffusion import (
    Denoiser,
    classifier_free_guidance,
    generators,
    randn_per_image,
    read_scheduler,
    scale_initial_noise,
    to_variance_preserving,
)
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines.tasks import Upscale
from daguerre.weights.convert import convert
from tests.families import peers

Peer = Callable[[str], tuple[Any, Path, LatentDiffusion]]
FAMILIES = ("sd1", "sd2", "sd2-v", "sdxl")
SAID = {"prompt": "a red apple, very red", "negative_prompt": "a blue apple"}
SIZE = {"height": 16, "width": 32}
STEPS = 5  # divides 1000, as the DDIM of diffusers needs for its trailing steps to meet

# Those that a request names: sampler, spacing and start against a scheduler of diffusers.
EULER = {"sampler": "euler", "initial_noise": "variance_preserving"}  # explicit, so that no scheduler of a folder sets the initial scale
NAMED: dict[str, tuple[dict[str, Any], type, dict[str, Any]]] = {
    "euler": (
        EULER,
        diffusers.DDIMScheduler,
        {"clip_sample": False, "timestep_spacing": "trailing"},
    ),
    "euler_a": (
        {"sampler": "euler_a", "initial_noise": "sigma_max"},
        diffusers.EulerAncestralDiscreteScheduler,
        {"timestep_spacing": "trailing"},
    ),
    "dpmpp_2m": ({"sampler": "dpmpp_2m"}, diffusers.DPMSolverMultistepScheduler, {"timestep_spacing": "trailing"}),
    "euler karras": (
        {"sampler": "Euler Karras", "initial_noise": "sigma_max"},
        diffusers.EulerDiscreteScheduler,
        {"use_karras_sigmas": True},
    ),
}
# Configurations as published with the models, and others that a person would choose; read by `read_scheduler`.
CONFIGURED: list[tuple[type, dict[str, Any]]] = [
    (diffusers.PNDMScheduler, {"steps_offset": 1, "set_alpha_to_one": False, "skip_prk_steps": True}),
    (diffusers.DDIMScheduler, {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}),
    (diffusers.EulerDiscreteScheduler, {"timestep_spacing": "leading", "steps_offset": 1}),
    (diffusers.EulerDiscreteScheduler, {"use_karras_sigmas": True}),
    (diffusers.HeunDiscreteScheduler, {}),
    (diffusers.LMSDiscreteScheduler, {}),
    (diffusers.KDPM2DiscreteScheduler, {}),
    (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    (diffusers.DPMSolverSinglestepScheduler, {}),
    (diffusers.UniPCMultistepScheduler, {}),
    (diffusers.DEISMultistepScheduler, {}),
    (diffusers.DDPMScheduler, {"clip_sample": False}),
]


def close(result: Tensor, reference: Tensor, tolerance: float = 1e-4) -> None:
    """Relative to the largest reference value, at the worst position."""
    assert result.shape == reference.shape
    assert reference.std() > 0.05 * reference.abs().max()  # not a plane that everything would equal
    difference = ((result - reference).abs().max() / reference.abs().max()).item()
    assert difference < tolerance, difference


def scheduled(pipeline: Any, kind: type, options: dict[str, Any]) -> Any:
    """The pipeline with another scheduler, which keeps the model's own betas and prediction."""
    kept = {key: pipeline.scheduler.config[key] for key in ("beta_schedule", "beta_start", "beta_end", "prediction_type")}
    return type(pipeline)(**{**pipeline.components, "scheduler": kind(**kept, **options), **rest(pipeline)})


def rest(pipeline: Any) -> dict[str, Any]:
    if isinstance(pipeline, diffusers.StableDiffusionXLPipeline):
        return {"force_zeros_for_empty_prompt": pipeline.config.force_zeros_for_empty_prompt, "add_watermarker": False}
    return {"requires_safety_checker": False}


def reference_latents(pipeline: Any, **options: Any) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    source = torch.Generator().manual_seed(5)
    given = {**SAID, **SIZE, "num_inference_steps": STEPS, "guidance_scale": 4.0, "output_type": "latent", "generator": source, **options}
    return pipeline(**{name: value for name, value in given.items() if value is not None}).images


def daguerre_latents(model: LatentDiffusion, **fields: Any) -> Tensor:
    given = {
        "prompt": SAID["prompt"],
        "negative_prompt": SAID["negative_prompt"],
        **SIZE,
        "steps": STEPS,
        "guidance_scale": 4.0,
        "seed": 5,
        **fields,
    }
    *_, last = daguerre.stream(model, **given)
    return to_variance_preserving(last.x, torch.tensor(last.sigma))


@pytest.mark.parametrize("named", NAMED)
@pytest.mark.parametrize("family", FAMILIES)
def test_latents_and_images_equal_diffusers(peer: Peer, family: str, named: str):
    pipeline, _, model = peer(family)
    fields, kind, options = NAMED[named]
    reference = reference_latents(scheduled(pipeline, kind, options))
    result = daguerre_latents(model, **fields)
    close(result, reference)
    with torch.no_grad():
        close(model.autoencoder.decode(result), pipeline.vae.decode(reference / pipeline.vae.config.scaling_factor).sample)


@pytest.mark.parametrize(("kind", "options"), CONFIGURED, ids=lambda value: getattr(value, "__name__", "") or "-".join(value))
@pytest.mark.parametrize("family", ["sd1", "sd2-v"])
def test_scheduler_configurations_give_the_latents_of_diffusers(peer: Peer, family: str, kind: type, options: dict[str, Any]):
    pipeline, _, model = peer(family)
    pipeline = scheduled(pipeline, kind, options)
    reference = reference_latents(pipeline)
    close(configured(model, pipeline.scheduler), reference)


@torch.no_grad()
def configured(model: LatentDiffusion, scheduler: Any) -> Tensor:
    """The latents with the settings that `read_scheduler` returns."""
    sampling = read_scheduler(type(scheduler).__name__, dict(scheduler.config))
    sigmas = sampling.sigmas(model.schedule, STEPS)
    sources = generators([5])
    x = scale_initial_noise(randn_per_image(sources, (4, SIZE["height"] // 2, SIZE["width"] // 2)), sigmas[0], sampling.initial_scale)
    plan = PromptSchedule(model.conditioner, [SAID["prompt"]], [SAID["negative_prompt"]], STEPS)
    denoise = classifier_free_guidance(
        Denoiser(model.unet, model.schedule, model.prediction, rounding=sampling.rounding), *plan.at(0).with_guidance(4.0)
    )
    options = sampling.sampler_options(model.schedule, sigmas)
    noise = lambda x, *_: randn_per_image(sources, x.shape[1:])  # noqa: E731
    *_, (x, _x0) = sampling.sampler(denoise, x, sigmas, noise=noise, **options)
    return to_variance_preserving(x, sigmas[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_converted_file_gives_the_same_latents(peer: Peer, tmp_path: Path, family: str):
    _, folder, whole = peer(family)
    model = daguerre.load(convert(folder, tmp_path / "one.safetensors"), device="cpu")
    assert model.prediction == whole.prediction
    assert model.schedule.config == whole.schedule.config
    assert model.sample_size == whole.sample_size
    assert torch.equal(daguerre_latents(model, **EULER), daguerre_latents(whole, **EULER))


@pytest.mark.parametrize("family", ["sd2", "sd2-v", "sdxl-refiner", "sd2-upscaler"])
def test_a_file_without_configs_gives_the_same_latents(peer: Peer, tmp_path: Path, family: str):
    """Names and shapes determine everything but the prediction type of Stable Diffusion 2. (Other families need the true CLIP width.)"""
    _, folder, whole = peer(family)
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(convert(folder, tmp_path / "result.safetensors")), bare)
    model = daguerre.load(bare, device="cpu", prediction=whole.prediction if family in ("sd2", "sd2-v") else None)
    assert (model.prediction, model.schedule.config) == (whole.prediction, whole.schedule.config)
    assert model.unet.config == whole.unet.config
    fields = {"width": None, "height": None, "task": Upscale(Image.effect_mandelbrot((24, 16), (-2, -1, 1, 1), 50))}
    fields = fields if family == "sd2-upscaler" else {}
    assert torch.equal(daguerre_latents(model, **EULER, **fields), daguerre_latents(whole, **EULER, **fields))


def test_sdxl_size_and_crop_conditioning_equals_diffusers(peer: Peer):
    """Image size and crop in training are inputs of SDXL."""
    pipeline, _, model = peer("sdxl")
    sizes = {"original_size": (20, 30), "target_size": (16, 32), "crops_coords_top_left": (3, 7)}
    negative = {f"negative_{name}": value for name, value in sizes.items()}
    reference = reference_latents(scheduled(pipeline, *NAMED["euler"][1:]), **sizes, **negative)
    size = SizeConditioning((20, 30), (16, 32), crop_top_left=(3, 7))
    fixed = model.conditioner.with_size(16, 32, size)
    fixed.with_size = lambda *_: fixed
    close(daguerre_latents(replace(model, conditioner=fixed), **EULER), reference)


@pytest.mark.parametrize("zeros", [True, False])
def test_sdxl_empty_negative_prompt_follows_the_folder(tmp_path: Path, zeros: bool):
    pipeline = peers.sdxl(zeros=zeros)
    model = daguerre.load(peers.saved(pipeline, tmp_path / "xl"), device="cpu")
    reference = reference_latents(scheduled(pipeline, *NAMED["euler"][1:]), negative_prompt=None)
    close(daguerre_latents(model, **EULER, negative_prompt=""), reference)
