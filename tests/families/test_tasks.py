"""Tasks that need a model trained for them, end to end against the pipelines of diffusers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import daguerre
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines.planners.refiner import with_refiner
from daguerre.pipelines.tasks import DepthToImage, ImageToImage, ImageVariation, InstructPix2Pix, Upscale
from tests.families.test_txt2img import NAMED, SAID, STEPS, close, daguerre_latents

Peer = Callable[[str], tuple[Any, Path, LatentDiffusion]]
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8))
TENSOR = torch.from_numpy(np.array(PICTURE)).movedim(-1, 0)[None].float() / 127.5 - 1
SIZE = {"width": 24, "height": 16}
COMMON = {**SAID, "num_inference_steps": STEPS, "guidance_scale": 4.0, "output_type": "latent"}


def source() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def with_scheduler(pipeline: Any, named: str, **options: Any) -> Any:
    """The pipeline with the scheduler of a named pair; each test sets its own."""
    _, kind, given = NAMED[named]
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **given, **options)
    return pipeline


@pytest.mark.parametrize("named", ["euler", "dpmpp_2m"])
def test_instruct_pix2pix_equals_diffusers(peer: Peer, named: str):
    pipeline, _, model = peer("sd1-pix2pix")
    reference = with_scheduler(pipeline, named)(**COMMON, image=TENSOR, image_guidance_scale=1.7, generator=source()).images
    result = daguerre_latents(model, task=InstructPix2Pix(PICTURE, image_guidance_scale=1.7), sampler=named, **SIZE)
    close(result, reference)
    assert (result - daguerre_latents(model, task=InstructPix2Pix(PICTURE), sampler=named, **SIZE)).abs().max() > 0.01  # the scale is heard


@pytest.mark.parametrize("named", ["euler", "dpmpp_2m"])
def test_depth_to_image_equals_diffusers(peer: Peer, named: str):
    pipeline, _, model = peer("sd2-depth")
    depth = np.random.default_rng(1).uniform(2, 9, (32, 48)).astype(np.float32)
    reference = with_scheduler(pipeline, named)(
        **COMMON, image=TENSOR, depth_map=torch.from_numpy(depth)[None], strength=0.6, generator=source()
    ).images
    task = DepthToImage(Image.fromarray(depth), PICTURE, strength=0.6, latent="sample")
    close(daguerre_latents(model, task=task, sampler=named, **SIZE), reference)


@pytest.mark.parametrize("named", ["euler", "dpmpp_2m"])
def test_upscaling_equals_diffusers(peer: Peer, named: str):
    pipeline, _, model = peer("sd2-upscaler")
    reference = with_scheduler(pipeline, named)(**COMMON, image=TENSOR, noise_level=120, generator=source()).images
    task = Upscale(PICTURE, noise=120)
    result = daguerre_latents(model, task=task, sampler=named, width=None, height=None)
    close(result, reference)
    (picture,) = daguerre.generate(model, prompt="", task=task, steps=1)
    assert picture.image.size == (96, 64)


@pytest.mark.parametrize("share", [0.8, 0.4])
@pytest.mark.parametrize("kind", [diffusers.EulerDiscreteScheduler, diffusers.DPMSolverMultistepScheduler])
def test_sdxl_with_its_refiner_equals_diffusers(peer: Peer, kind: Any, share: float):
    (base, _, model), (refiner, _, second) = peer("sdxl"), peer("sdxl-refiner")
    for pipeline in (base, refiner):
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    half = base(**COMMON, **SIZE, denoising_end=share, generator=source()).images
    reference = refiner(**COMMON, image=half, denoising_start=share, generator=source()).images
    fields = {"sampler": "euler", "initial_noise": "sigma_max"} if kind is diffusers.EulerDiscreteScheduler else {"sampler": "dpmpp_2m"}
    result = daguerre_latents(with_refiner(model, second), refiner_switch_at=share, **fields, **SIZE)
    close(result, reference)
    assert (result - daguerre_latents(model, **fields, **SIZE)).abs().max() > 0.01


@pytest.mark.parametrize("size", [(40, 64), (90, 33)])
def test_image_variations_equal_diffusers(peer: Peer, size: tuple[int, int]):
    pipeline, _, model = peer("sd1-variations")
    picture = PICTURE.resize(size, Image.Resampling.BICUBIC)
    common = {name: value for name, value in COMMON.items() if name not in SAID}
    reference = with_scheduler(pipeline, "euler")(**common, **SIZE, image=picture, generator=source()).images
    fields = {"prompt": "", "negative_prompt": "", "sampler": "euler", **SIZE}
    result = daguerre_latents(model, task=ImageVariation(picture), **fields)
    close(result, reference)
    other = daguerre_latents(model, task=ImageVariation(picture.rotate(180)), **fields)
    assert (result - other).abs().max() > 0.01  # the picture is seen


def test_img2img_with_the_refiner_alone_equals_diffusers(peer: Peer):
    pipeline, _, model = peer("sdxl-refiner")
    reference = with_scheduler(pipeline, "euler")(**COMMON, image=TENSOR, strength=0.6, generator=source()).images
    task = ImageToImage(PICTURE, strength=0.6, latent="sample")
    close(daguerre_latents(model, task=task, sampler="euler", **SIZE), reference)


def test_prompt_scheduling_counts_steps_across_the_refiner(peer: Peer):
    """The refiner's pass counts its steps as part of the whole run."""
    model = with_refiner(peer("sdxl")[2], peer("sdxl-refiner")[2])

    def steps_done(prompt: str) -> list[torch.Tensor]:
        return [step.x for step in daguerre.stream(model, prompt=prompt, sampler="euler", steps=STEPS, **SIZE)]

    pairs = zip(steps_done("[a red apple:a cat:.6]"), steps_done("a red apple"), strict=True)
    assert [torch.equal(one, other) for one, other in pairs] == [True, True, True, False, False]
    pairs = zip(steps_done("[a red apple:a cat:.8]"), steps_done("a red apple"), strict=True)
    assert [torch.equal(one, other) for one, other in pairs] == [True, True, True, True, False]


@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("sd1-pix2pix", InstructPix2Pix(PICTURE)),
        ("sd2-depth", DepthToImage(PICTURE.convert("L"), PICTURE)),
        ("sd2-depth", DepthToImage(PICTURE.convert("L"))),
        ("sd2-upscaler", Upscale(PICTURE)),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_an_image_of_a_batch_equals_the_image_alone_and_keeps_its_request(peer: Peer, tmp_path: Path, family: str, task: Any):
    model = peer(family)[2]
    request = daguerre.Request(prompt=("a red apple", "a cat"), steps=2, seed=3, num_images=2, task=task)
    batch = daguerre.generate(model, request)
    alone = [daguerre.generate(model, single)[0] for single in request.split()]
    for one, other in zip(batch, alone, strict=True):
        assert np.abs(np.asarray(one.image).astype(int) - np.asarray(other.image)).max() <= 1
    assert len({picture.image.tobytes() for picture in batch}) == 4
    again = daguerre.Request.from_json(request.to_json())
    assert again == request
    assert again.task.input_images.keys() == task.input_images.keys()


def test_upscaling_pads_odd_sides_and_crops_the_result(peer: Peer):
    model = peer("sd2-upscaler")[2]
    (picture,) = daguerre.generate(model, prompt="", task=Upscale(PICTURE.crop((0, 0, 9, 7))), steps=1)
    assert picture.image.size == (36, 28)


# What goes wrong.

FLAT, COLOURS = Image.new("L", (24, 16), 90), Image.fromarray(np.eye(3, dtype=np.uint8)[None].repeat(2, 0) * 255)
HOLES = Image.fromarray(np.where(np.eye(16, 24) > 0, np.nan, 1).astype(np.float32))


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("sd1", {"task": InstructPix2Pix(PICTURE)}, "cannot do pix2pix; .* such as instruct-pix2pix, with eight"),
        ("sd1", {"task": DepthToImage(PICTURE)}, "cannot do depth2img; .* such as Stable Diffusion 2 depth"),
        ("sdxl", {"task": Upscale(PICTURE)}, "cannot do upscale; .* the Stable Diffusion x4 upscaler"),
        ("sd2-depth", {}, "cannot do txt2img; .* This one does depth2img"),
        ("sd2-depth", {"task": DepthToImage(FLAT)}, "without depth"),
        ("sd2-depth", {"task": DepthToImage(COLOURS)}, "has colours"),
        ("sd2-depth", {"task": DepthToImage(HOLES)}, "NaN or infinity"),
        ("sd2-depth", {"task": DepthToImage(PICTURE.convert("L").resize((16, 16)), PICTURE)}, "map is 16×16 and the image 24×16"),
        ("sd1-variations", {"task": ImageVariation(PICTURE), "prompt": "a cat"}, "takes an image and no prompt"),
        ("sd1-variations", {}, "cannot do txt2img; .* This one does variations"),
        ("sd1", {"task": ImageVariation(PICTURE)}, "cannot do variations; .* Stable Diffusion image variations"),
        ("sd2-upscaler", {"task": Upscale(PICTURE), "width": 96}, "leave width and height out"),
    ],
)
def test_tasks_the_model_cannot_do_are_refused(peer: Peer, family: str, fields: dict[str, Any], message: str):
    with pytest.raises(DaguerreError, match=message):
        daguerre.generate(peer(family)[2], steps=1, **fields)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Upscale(PICTURE, noise=351), "noise is 351; it is a whole number of timesteps from 0 to 350"),
        (lambda: InstructPix2Pix(PICTURE, image_guidance_scale=float("nan")), "from 0 to 100"),
        (lambda: DepthToImage(PICTURE, strength=2), "strength is 2"),
        (lambda: daguerre.Request(refiner_switch_at=1.2), "refiner_switch_at is 1.2"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], object], message: str):
    with pytest.raises(DaguerreError, match=message):
        make()


def test_a_refiner_with_other_latents_is_refused(peer: Peer):
    with pytest.raises(DaguerreError, match="has 7 input channels where 'sdxl' has 4"):
        with_refiner(peer("sdxl")[2], peer("sd2-upscaler")[2])
