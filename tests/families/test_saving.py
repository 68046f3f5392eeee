"""Saved folders open in diffusers as the same pipeline, and both programs generate the same images as before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import daguerre
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines.tasks import DepthToImage, ImageToImage, ImageVariation, Inpaint, InstructPix2Pix, TextToImage, Upscale

Peer = Callable[[str], tuple[Any, Path, LatentDiffusion]]
PICTURE = Image.effect_mandelbrot((32, 32), (-2, -1, 1, 1), 50).convert("RGB")
MASK = Image.new("L", (32, 32)).point(lambda _: 0)
MASK.paste(255, (8, 8, 24, 24))
DEPTH = torch.linspace(0, 1, 32 * 32).reshape(1, 32, 32)
WORDS = {"prompt": "a red apple", "guidance_scale": 3.0}

# family -> what diffusers is given, and our task
FAMILIES: dict[str, tuple[dict[str, Any], Any]] = {
    "sd1": ({**WORDS, "height": 32, "width": 32}, TextToImage()),
    "sd2-v": ({**WORDS, "height": 32, "width": 32}, TextToImage()),
    "sd1-inpainting": ({**WORDS, "image": PICTURE, "mask_image": MASK, "height": 32, "width": 32}, Inpaint(PICTURE, MASK)),
    "sd1-pix2pix": ({**WORDS, "image": PICTURE}, InstructPix2Pix(PICTURE)),
    "sd2-depth": ({**WORDS, "image": PICTURE, "depth_map": DEPTH}, DepthToImage(Image.fromarray(DEPTH[0].numpy(), "F"), PICTURE)),
    "sd2-upscaler": ({**WORDS, "image": PICTURE}, Upscale(PICTURE)),
    "sdxl": ({**WORDS, "height": 32, "width": 32}, TextToImage()),
    "sdxl-refiner": ({**WORDS, "image": PICTURE}, ImageToImage(PICTURE)),
    "sdxl-inpainting": ({**WORDS, "image": PICTURE, "mask_image": MASK, "height": 32, "width": 32}, Inpaint(PICTURE, MASK)),
    "sd1-variations": ({"image": PICTURE, "guidance_scale": 3.0, "height": 32, "width": 32}, ImageVariation(PICTURE)),
}


def reference(pipeline: Any, given: dict[str, Any]) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(**given, num_inference_steps=4, output_type="np", generator=torch.Generator().manual_seed(3)).images


def result(model: LatentDiffusion, given: dict[str, Any], task: Any) -> torch.Tensor:
    size = {"width": 32, "height": 32} if task == TextToImage() else {}
    *_, last = daguerre.stream(
        model, prompt=given.get("prompt", ""), task=task, sampler="dpmpp_2m", guidance_scale=3.0, steps=4, seed=3, **size
    )
    return last.x


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_gives_the_same_in_both_programs(peer: Peer, tmp_path: Path, family: str):
    pipeline, _, model = peer(family)
    given, task = FAMILIES[family]
    folder = daguerre.save(model, tmp_path / "saved")
    again = daguerre.load(folder, device="cpu")
    assert (again.prediction, again.sample_size, again.schedule.config) == (model.prediction, model.sample_size, model.schedule.config)
    assert torch.equal(result(again, given, task), result(model, given, task))
    without = {"depth_estimator": None, "feature_extractor": None} if family == "sd2-depth" else {}
    opened = diffusers.DiffusionPipeline.from_pretrained(folder, **without)
    assert type(opened) is type(pipeline)
    opened.scheduler = pipeline.scheduler  # saved folders have a DDIMScheduler, whatever the model came with
    found, wanted = reference(opened, given), reference(pipeline, given)
    assert wanted.std() > 0.01
    np.testing.assert_allclose(found, wanted, atol=1e-5)
