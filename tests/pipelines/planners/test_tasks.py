"""Tasks with input images: equal to diffusers, exact outside masks, and consistent at the limits of their settings."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import daguerre
from daguerre import Request
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import UNet
from daguerre.pipelines.metadata.write import read_provenance
from daguerre.pipelines.request import Variation
from daguerre.pipelines.tasks import Hires, ImageToImage, Inpaint, Outpaint, TextToImage

WORDS = {"prompt": "a red apple", "negative_prompt": "a blue apple", "guidance_scale": 3.0, "seed": 5}


def smooth(width: int = 32, height: int = 32) -> Any:
    """A smooth image."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / width * 3 + i) * 60 + np.cos(y / height * 2 - i) * 50 + 128 for i in range(3)]
    return Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))


def half(width: int = 32, height: int = 32) -> Any:
    """A mask of the right half."""
    mask = Image.new("L", (width, height))
    mask.paste(255, (width // 2, 0, width, height))
    return mask


def with_channels(model: LatentDiffusion, channels: int) -> LatentDiffusion:
    """The model with a random UNet with so many input channels."""
    torch.manual_seed(1)
    unet = UNet(replace(model.unet.config, in_channels=channels)).eval()
    for end in unet.modules():
        if getattr(end, "bias", None) is not None and not torch.count_nonzero(end.weight):
            torch.nn.init.normal_(end.weight, std=0.05)
    return replace(model, unet=unet)


def reference(kind: Any, model: LatentDiffusion, folder: Path, scheduler: Any, **fields: Any) -> torch.Tensor:
    """The latents of a pipeline of diffusers for the same request, two images."""
    pipeline = kind.from_pretrained(daguerre.save(model, folder))
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    sources = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    words = {"prompt": WORDS["prompt"], "negative_prompt": WORDS["negative_prompt"], "guidance_scale": WORDS["guidance_scale"]}
    return pipeline(**words, num_images_per_prompt=2, generator=sources, output_type="latent", **fields).images


def result(model: LatentDiffusion, **fields: Any) -> torch.Tensor:
    *_, last = daguerre.stream(model, **WORDS, num_images=2, **fields)
    return last.x


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


SCHEDULERS = [("euler", diffusers.DDIMScheduler), ("dpmpp_2m", diffusers.DPMSolverMultistepScheduler)]


@pytest.mark.parametrize(("sampler", "scheduler"), SCHEDULERS)
@pytest.mark.parametrize("prediction", ["v", "epsilon"])
def test_img2img_equals_diffusers(
    make_tiny_model: Callable[..., LatentDiffusion], tmp_path: Path, sampler: str, scheduler: Any, prediction: str
):
    model = make_tiny_model(prediction, zero_terminal_snr=prediction == "v")
    kind = diffusers.StableDiffusionImg2ImgPipeline
    wanted = reference(kind, model, tmp_path, scheduler, image=smooth(), strength=0.7, num_inference_steps=10)
    made = result(model, sampler=sampler, steps=10, task=ImageToImage(smooth(), 0.7, latent="sample"))
    assert relative(made, wanted) < 1e-4


@pytest.fixture
def four_channels(make_tiny_model: Callable[..., LatentDiffusion], monkeypatch: pytest.MonkeyPatch) -> LatentDiffusion:
    """A tiny model with four latent channels, the only number that diffusers can inpaint; its posterior is replaced by the mean."""
    from daguerre.models.autoencoder_kl import AutoencoderKL

    model = make_tiny_model("epsilon", zero_terminal_snr=False)
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    torch.manual_seed(2)
    autoencoder = AutoencoderKL(replace(model.autoencoder.config, latent_channels=4)).eval()
    return with_channels(replace(model, autoencoder=autoencoder, unet=UNet(replace(model.unet.config, in_channels=4, out_channels=4))), 4)


@pytest.mark.parametrize("channels", [4, 9])
def test_inpainting_equals_diffusers(four_channels: LatentDiffusion, tmp_path: Path, channels: int):
    """The latents equal those of diffusers; the images do not, because diffusers changes bytes outside the mask."""
    model = with_channels(four_channels, channels)
    fields = {"image": smooth(), "mask_image": half(), "height": 32, "width": 32, "strength": 0.8, "num_inference_steps": 10}
    wanted = reference(diffusers.StableDiffusionInpaintPipeline, model, tmp_path, diffusers.DDIMScheduler, **fields)
    made = result(model, sampler="euler", steps=10, task=Inpaint(smooth(), half(), 0.8))
    assert relative(made, wanted) < 1e-4


def test_inpainting_models_start_from_noise_as_in_diffusers(four_channels: LatentDiffusion, tmp_path: Path):
    model = with_channels(four_channels, 9)
    fields = {"image": smooth(), "mask_image": half(), "height": 32, "width": 32, "strength": 1.0, "num_inference_steps": 10}
    wanted = reference(diffusers.StableDiffusionInpaintPipeline, model, tmp_path, diffusers.DDIMScheduler, **fields)
    assert relative(result(model, sampler="euler", steps=10, task=Inpaint(smooth(), half())), wanted) < 1e-4


def pixels(picture: Any) -> np.ndarray:
    return np.asarray(getattr(picture, "image", picture).convert("RGB")).astype(int)


def made(model: LatentDiffusion, **fields: Any) -> np.ndarray:
    return pixels(daguerre.generate(model, **{"prompt": "a red apple", "steps": 3, **fields})[0])


def test_strength_ranges_from_the_image_to_the_prompt_alone(tiny_model: LatentDiffusion):
    x = torch.from_numpy(np.array(smooth())).movedim(-1, 0)[None] / 127.5 - 1
    with torch.no_grad():
        kept = tiny_model.autoencoder.decode(tiny_model.autoencoder.encode(x))
    kept = ((kept[0] / 2 + 0.5).clamp(0, 1) * 255).round().movedim(0, -1).numpy()
    assert np.abs(made(tiny_model, task=ImageToImage(smooth(), 0)) - kept).max() <= 1
    words = made(tiny_model, task=TextToImage())
    assert np.array_equal(made(tiny_model, task=ImageToImage(smooth(), 1)), words)
    away = [np.abs(made(tiny_model, steps=8, task=ImageToImage(smooth(), s)) - kept).mean() for s in (0.25, 0.5, 0.75)]
    assert away == sorted(away)


@pytest.mark.parametrize("sampler", ["euler_a", "heun", "dpmpp_2m_sde", "plms"])
def test_every_task_works_with_every_kind_of_sampler(tiny_model: LatentDiffusion, sampler: str):
    for task in (ImageToImage(smooth(), 0.5), Inpaint(smooth(), half()), Hires(1.5, 0.5)):
        request = Request(prompt="a red apple", steps=6, sampler=sampler, num_images=2, seed=1, task=task)
        steps_done = list(daguerre.stream(tiny_model, request))
        assert [step.index for step in steps_done] == list(range(steps_done[0].total or 0))
        alone = daguerre.generate(tiny_model, request.split()[1])
        assert np.abs(pixels(steps_done[-1].images[1]) - pixels(alone[0])).max() <= 1


SIZES = st.tuples(st.integers(20, 48), st.integers(20, 48))
FEATHERS, PADDINGS = st.sampled_from([None, 0, 3]), st.sampled_from([None, 0, 4])


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=SIZES, seed=st.integers(0, 99), feather=st.sampled_from([None, 0, 3]), soft=st.booleans(), padding=st.sampled_from([None, 0, 4])
)
@pytest.mark.parametrize("channels", [6, 13])
def test_no_byte_outside_the_mask_changes(
    tiny_model: LatentDiffusion, channels: int, size: tuple[int, int], seed: int, feather: int | None, soft: bool, padding: int | None
):
    random = np.random.default_rng(seed)
    picture = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    mask = np.uint8(random.random((size[1], size[0])) < 0.3) * (random.integers(1, 256) if soft else 255)
    mask[: size[1] // 2] = 0
    mask[-1, -1] = 255
    model = with_channels(tiny_model, channels)
    task = Inpaint(picture, np.uint8(mask), (0.5, 1.0)[seed % 2], feather, crop_padding=padding)
    after = made(model, steps=2, task=task)
    assert after.shape == picture.shape
    assert np.array_equal(after[mask == 0], picture[mask == 0])
    if not soft and feather == 0:
        assert not np.array_equal(after[mask == 255], picture[mask == 255])


def test_a_cropped_mask_is_the_crop_alone(tiny_model: LatentDiffusion):
    picture, mask = smooth().resize((96, 64)), Image.new("L", (96, 64))
    mask.paste(255, (60, 20, 72, 28))
    area = (50, 8, 82, 40)  # 12 × 8 pixels, 1 around them, 9 of padding on each side, and as high as wide
    whole = made(tiny_model, task=Inpaint(picture, mask, crop_padding=9), width=32, height=32)
    alone = made(tiny_model, task=Inpaint(picture.crop(area), mask.crop(area)), width=32, height=32)
    left, top, right, bottom = area
    assert np.array_equal(whole[top:bottom, left:right], alone)


@pytest.mark.parametrize("margins", [(8, 0, 0, 0), (0, 4, 12, 0), (3, 5, 7, 2)])
def test_outpainting_keeps_the_image_unchanged(tiny_model: LatentDiffusion, margins: tuple[int, int, int, int]):
    left, top, right, bottom = margins
    after = made(tiny_model, task=Outpaint(smooth(), *margins))
    assert after.shape == (32 + top + bottom, 32 + left + right, 3)
    assert np.array_equal(after[top : top + 32, left : left + 32], pixels(smooth()))
    edges = np.pad(pixels(smooth()), ((top, bottom), (left, right), (0, 0)), mode="edge")
    assert np.abs(after - edges).max() > 20


def test_outpainting_strength_depends_on_the_model(four_channels: LatentDiffusion):
    for channels, strength, other in ((4, 0.8, 1.0), (9, 1.0, 0.8)):
        model = with_channels(four_channels, channels)
        asked, unasked, another = (made(model, steps=5, task=Outpaint(smooth(), left=16, strength=s)) for s in (strength, None, other))
        assert np.array_equal(asked, unasked)
        assert not np.array_equal(another, unasked)


def test_a_white_mask_ignores_the_image_and_a_black_one_is_refused(tiny_model: LatentDiffusion):
    white, black = (Image.new("L", (32, 32), value) for value in (255, 0))
    assert np.array_equal(made(tiny_model, task=Inpaint(smooth(), white)), made(tiny_model))
    with pytest.raises(DaguerreError, match="black all over"):
        daguerre.stream(tiny_model, task=Inpaint(smooth(), black))


@pytest.mark.parametrize("place", [24, 32, 41])
def test_mask_blur_hides_the_seam(tiny_model: LatentDiffusion, place: int):
    """On a smooth image, steps across the mask's border stay below the 99th percentile of its own, with noise inside the mask."""
    x = np.arange(64) / 64
    waves = np.stack([128 + 100 * np.sin(12 * x + i) for i in range(3)], axis=-1)
    picture = np.broadcast_to(waves, (64, 64, 3)).astype(np.uint8)
    own = np.abs(np.diff(picture.astype(int), axis=1))
    mask = np.zeros((64, 64), np.uint8)
    mask[:, place:] = 255

    def seam(feather: int) -> int:
        after = made(tiny_model, task=Inpaint(picture, mask, mask_blur=feather))
        return np.abs(after[:, place] - after[:, place - 1]).max()

    assert seam(12) <= np.percentile(own, 99) < seam(0) / 4  # so it is the feather that does it


@pytest.mark.parametrize("through", ["lanczos", "latent"])
def test_a_hires_fix_starts_from_the_small_image(tiny_model: LatentDiffusion, through: Any):
    steps_done = list(daguerre.stream(tiny_model, prompt="a red apple", steps=6, task=Hires(2, 0.5, through)))
    assert len(steps_done) == steps_done[0].total == 9
    assert [step.x.shape[-1] for step in steps_done] == [8] * 6 + [16] * 3
    assert steps_done[-1].images[0].image.size == (64, 64)
    plain = [step.x for step in daguerre.stream(tiny_model, prompt="a red apple", steps=6)]
    assert torch.equal(plain[-1], steps_done[5].x)
    # Nothing drawn anew: the small picture enlarged and through the autoencoder, which a Lanczos enlargement is close to.
    still = daguerre.generate(tiny_model, prompt="a red apple", steps=6, task=Hires(2, 0, through))[0]
    again = daguerre.generate(tiny_model, prompt="a red apple", steps=6, task=Hires(2, 0, through), seed=1)[0]
    assert still.image.size == (64, 64)
    assert still.image.tobytes() != again.image.tobytes()


def test_a_variation_interpolates_between_seeds(tiny_model: LatentDiffusion):
    here, there = made(tiny_model, seed=3), made(tiny_model, seed=8)
    assert np.array_equal(made(tiny_model, seed=3, variation=Variation(8, 0.0)), here)
    assert np.abs(made(tiny_model, seed=3, variation=Variation(8, 1.0)) - there).max() <= 1
    away = [np.abs(made(tiny_model, seed=3, variation=Variation(8, s)) - here).mean() for s in (0.1, 0.4, 0.8)]
    assert away == sorted(away)
    request = Request(prompt="a", seed=3, num_images=3, steps=2, variation=Variation(8, 0.3))
    assert [single.variation.seed for single in request.split()] == [8, 9, 10]
    batch = daguerre.generate(tiny_model, request)
    for single, picture in zip(request.split(), batch, strict=True):
        assert np.abs(pixels(daguerre.generate(tiny_model, single)[0]) - pixels(picture)).max() <= 1


TASKS = [
    TextToImage(),
    Hires(1.5, 0.4, "latent"),
    ImageToImage(smooth(), 0.3, "pad", "sample"),
    Inpaint(smooth(), half(), 0.9, 5),
    Inpaint(smooth().convert("RGBA"), None),
    Outpaint(smooth(), 1, 2, 3, 4),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_saved_image_keeps_its_task(tiny_model: LatentDiffusion, tmp_path: Path, task: Any):
    request = Request(prompt="a", task=task, variation=Variation(4, 0.5), tiling="y")
    again = Request.from_json(json.loads(json.dumps(request.to_json())))
    assert again == request
    for name, given_ in again.task.input_images.items():
        assert given_.image is None
        assert given_.sha256 == task.input_images[name].sha256
    if again.task.input_images:
        with pytest.raises(DaguerreError, match="has not been opened"):
            daguerre.stream(tiny_model, again)
    picture = replace(daguerre.generate(tiny_model, steps=1)[0])
    saved = replace(picture, provenance=replace(picture.provenance, request=request)).save(tmp_path / "a.png")
    assert read_provenance(saved)[1].request == request


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (lambda: ImageToImage(smooth(), 1.5), "strength is 1.5; it is between 0"),
        (lambda: ImageToImage(smooth(), resize_mode="crob"), "Did you mean 'crop'"),  # type: ignore[arg-type]
        (lambda: ImageToImage("cat.png"), "An input image is a Pillow image, or an array"),  # type: ignore[arg-type]
        (lambda: ImageToImage(np.zeros((4, 4, 2), np.uint8)), "An input image is a Pillow image, or an array"),  # type: ignore[arg-type]
        (lambda: ImageToImage(smooth(), 0.2), "Strength 0.2 of 4 steps is less than one step; use a strength of 0.25 or more, or 5 steps"),
        (lambda: ImageToImage(Image.new("RGB", (20000, 1)), 0.5), "20000×1, one side more than 8 times the other"),
        (lambda: Inpaint(smooth()), "There is no mask, and no part of the image is transparent"),
        (lambda: Inpaint(smooth(), Image.new("L", (16, 32))), "The mask is 16×32 and the image 32×32"),
        (lambda: Inpaint(smooth(), half(), mask_blur=-1), "mask_blur is -1"),
        (lambda: Outpaint(smooth()), "one must be above 0"),
        (lambda: Outpaint(smooth(), left=8, strength=1.5), "strength"),
        (lambda: Outpaint(smooth(), left=-4, right=8), "none may be below 0"),
        (lambda: Hires(0.5), "more than 1 and up to 8"),
    ],
)
def test_wrong_task_settings_are_refused_before_generating(tiny_model: LatentDiffusion, task: Callable[[], Any], message: str):
    with pytest.raises(DaguerreError, match=message):
        daguerre.stream(tiny_model, prompt="a", steps=4, task=task())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": {"name": "img2mig"}}, "no task 'img2mig'.*Did you mean 'img2img'"),
        ({"task": {"name": "img2img"}}, "is incomplete"),
        ({"task": {"name": "hires", "skale": 2}}, "no field 'skale'.*Did you mean 'scale'"),
        ({"task": "img2img"}, "task is 'img2img'"),
        ({"variation": {"seed": 3}}, "has the fields seed and strength"),
        ({"variation": {"seed": 3, "strength": 2}}, "strength is 2"),
        ({"tiling": "yes"}, "tiling is 'yes'"),
    ],
)
def test_invalid_json_is_refused(fields: dict[str, object], message: str):
    with pytest.raises(DaguerreError, match=message):
        Request.from_json(fields)


def test_a_task_the_model_cannot_do_names_models_that_can(tiny_model: LatentDiffusion):
    filler = with_channels(tiny_model, 13)
    with pytest.raises(
        DaguerreError, match=r"a model for inpainting\) cannot do img2img; take .*embedded model.*This one does inpaint, outpaint"
    ):
        daguerre.stream(filler, task=ImageToImage(smooth()))
    with pytest.raises(DaguerreError, match="cannot do txt2img"):
        daguerre.stream(with_channels(tiny_model, 7), prompt="a")
