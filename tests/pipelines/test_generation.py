"""From a request to images: equal to diffusers, reproducible, and the same in a batch as alone."""

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import daguerre
from daguerre.diffusion import SAMPLERS, Conditioning
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines.decode import LatentDecoder
from daguerre.pipelines.images.output import GeneratedImages
from daguerre.pipelines.tasks import ImageToImage, TextToImage

SCHEDULERS = {
    "ddim": ("euler", {}, diffusers.DDIMScheduler, {}),
    "ddim, eta 1": ("euler", {"eta": 1.0}, diffusers.DDIMScheduler, {}),
    "euler": ("euler", {"initial_noise": "sigma_max"}, diffusers.EulerDiscreteScheduler, {}),
    "dpmpp_2m": ("dpmpp_2m", {}, diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "heun": ("heun", {"initial_noise": "sigma_max"}, diffusers.HeunDiscreteScheduler, {}),
}
CASES = [(scheduler, prediction) for scheduler in SCHEDULERS for prediction in ("v", "epsilon")]
CASES.remove(("heun", "v"))  # its own class there knows no zero terminal SNR


def pixels(pictures: GeneratedImages) -> np.ndarray:
    return np.stack([np.asarray(picture.image) for picture in pictures]).astype(int)


@pytest.mark.parametrize(("scheduler", "prediction"), CASES)
def test_diffusers_generates_the_same_image_from_the_same_folder(
    make_tiny_model: Callable[..., LatentDiffusion], tmp_path: Path, scheduler: str, prediction: str
):
    model = make_tiny_model(prediction, zero_terminal_snr=prediction == "v")
    name, fields, kind, options = SCHEDULERS[scheduler]
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(daguerre.save(model, tmp_path / "tiny"))
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **options)
    pipeline.set_progress_bar_config(disable=True)
    common = {"prompt": "a red apple", "negative_prompt": "a blue apple", "num_inference_steps": 8, "guidance_scale": 3.0}
    sources = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    reference = pipeline(**common, eta=fields.get("eta", 0.0), num_images_per_prompt=2, generator=sources, output_type="np").images

    result = daguerre.generate(
        model,
        prompt="a red apple",
        negative_prompt="a blue apple",
        steps=8,
        guidance_scale=3.0,
        seed=5,
        num_images=2,
        sampler=name,
        **fields,
    )
    difference = np.abs(pixels(result) - (reference * 255).round().astype(int))
    assert difference.max() <= 2, difference.max()
    assert pixels(result).std() > 20  # a picture, not a grey plane that everything would equal


def test_diffusers_opens_a_folder_in_half_precision(tiny_model: LatentDiffusion, tmp_path: Path):
    folder = daguerre.save(tiny_model, tmp_path / "half", dtype=torch.float16)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    source = torch.Generator().manual_seed(5)
    reference = pipeline("a red apple", num_inference_steps=4, guidance_scale=3.0, generator=source, output_type="np").images
    result = daguerre.generate(
        daguerre.load(folder, device="cpu"), prompt="a red apple", steps=4, guidance_scale=3.0, seed=5, sampler="euler"
    )
    assert np.abs(pixels(result) - (reference * 255).round().astype(int)).max() <= 2


def test_an_image_of_a_batch_equals_the_image_alone(tiny_model: LatentDiffusion):
    for sampler in ("dpmpp_2m", "euler_a"):
        request = daguerre.Request(prompt=("a red apple", "a pizza"), seed=11, num_images=3, steps=6, sampler=sampler)
        batch = daguerre.generate(tiny_model, request)
        alone = [daguerre.generate(tiny_model, single)[0] for single in request.split()]
        assert len(batch) == 6
        assert np.abs(pixels(batch) - pixels(GeneratedImages(alone))).max() <= 1
        assert len({picture.image.tobytes() for picture in batch}) == 6


def test_the_same_request_gives_the_same_bytes(tiny_model: LatentDiffusion, tmp_path: Path):
    torch.manual_seed(1)
    daguerre.generate(tiny_model, prompt="a red apple", sampler="euler_a", steps=4).save(tmp_path / "a.png")
    torch.manual_seed(2)
    daguerre.generate(tiny_model, prompt="a red apple", sampler="euler_a", steps=4).save(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_prompt_negative_prompt_and_seed_change_the_image(tiny_model: LatentDiffusion):
    def made(**fields: object) -> bytes:
        return daguerre.generate(tiny_model, steps=3, **fields)[0].image.tobytes()

    plain = made(prompt="a red apple")
    assert made(prompt="two cats") != plain
    assert made(prompt="a red apple", negative_prompt="two cats") != plain
    assert made(prompt="a red apple", seed=1) != plain
    # With scale 1 the negative has weight 0.
    assert made(prompt="a red apple", guidance_scale=1.0) == made(prompt="a red apple", guidance_scale=1.0, negative_prompt="two cats")


def test_a_scheduled_prompt_takes_effect_from_its_step_on(tiny_model: LatentDiffusion):
    fields = {"steps": 6, "sampler": "euler", "seed": 2}
    plain = [step.x0 for step in daguerre.stream(tiny_model, prompt="a red apple", **fields)]
    turned = [step.x0 for step in daguerre.stream(tiny_model, prompt="[a red apple:two cats:.5]", **fields)]
    assert [torch.equal(a, b) for a, b in zip(plain, turned, strict=True)] == [True] * 3 + [False] * 3


def test_a_model_without_prompts_ignores_them(tiny_model: LatentDiffusion):
    context = tiny_model.conditioner([""]).context
    silent = replace(tiny_model, conditioner=lambda prompts: Conditioning(context=context.expand(len(prompts), -1, -1)))
    a, b = (daguerre.generate(silent, prompt=prompt, steps=2, num_images=2) for prompt in ("a red apple", "two cats"))
    assert np.array_equal(pixels(a), pixels(b))


def test_steps_report_progress_and_the_last_has_the_images(tiny_model: LatentDiffusion):
    steps_done = list(daguerre.stream(tiny_model, prompt="a red apple", steps=5, sampler="euler", num_images=2))
    assert [step.index for step in steps_done] == [0, 1, 2, 3, 4]
    assert {step.total for step in steps_done} == {5}
    assert all(before.sigma > after.sigma for before, after in pairwise(steps_done))
    assert [step.images is None for step in steps_done] == [True] * 4 + [False]
    assert steps_done[-1].sigma == 0
    assert steps_done[-1].x.shape == (2, 6, 8, 8)
    torch.testing.assert_close(steps_done[-1].x, steps_done[-1].x0)
    assert steps_done[-1].decode(1).tobytes() == steps_done[-1].images[1].image.tobytes()
    assert not steps_done[-1].x.requires_grad
    assert daguerre.generate(tiny_model, prompt="a", steps=2, width=48, height=16)[0].image.size == (48, 16)


def test_half_precision_gives_nearly_the_same_image(tiny_model: LatentDiffusion, tmp_path: Path):
    half = daguerre.load(daguerre.save(tiny_model, tmp_path / "half"), device="cpu", dtype=torch.bfloat16)
    whole = pixels(daguerre.generate(tiny_model, prompt="a red apple", steps=4, guidance_scale=1.0))
    assert np.abs(pixels(daguerre.generate(half, prompt="a red apple", steps=4, guidance_scale=1.0)) - whole).mean() < 12


@pytest.mark.parametrize("sampler", sorted(name for name, sampler in SAMPLERS.items() if not sampler.inversion))
def test_every_sampler_gives_the_same_image_in_a_batch_and_alone(tiny_model: LatentDiffusion, sampler: str):
    request = daguerre.Request(prompt="a red apple", steps=6, num_images=2, seed=4, sampler=sampler)
    both = pixels(daguerre.generate(tiny_model, request))
    alone = pixels(daguerre.generate(tiny_model, request.split()[1]))
    assert np.abs(both[1:] - alone).max() <= 1
    assert both.std() > 20


def test_joined_sampler_names_are_recorded_as_two(tiny_model: LatentDiffusion):
    (joined,) = daguerre.generate(tiny_model, prompt="a", steps=3, sampler="DPM++ 2M Karras")
    (result,) = daguerre.generate(tiny_model, prompt="a", steps=3, sampler="dpmpp_2m", spacing="karras")
    assert joined == result
    (asked,) = daguerre.generate(tiny_model, prompt="a", steps=3, sampler="DPM++ 2M Karras", spacing="trailing")
    assert asked.provenance.request.spacing == "trailing"
    assert asked.provenance == daguerre.generate(tiny_model, prompt="a", steps=3)[0].provenance


class LinearAutoencoder:
    """rgb = A·z + b, with four pixels a side for each latent position."""

    downsample_factor = 4

    def __init__(self) -> None:
        self.matrix = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)) * 0.02

    def decode(self, z: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(torch.einsum("cz,bzhw->bchw", self.matrix, z) + 0.1, scale_factor=4.0)

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        raise NotImplementedError


def test_the_preview_of_a_linear_decoder_is_exact(tiny_model: LatentDiffusion):
    developer = LatentDecoder(replace(tiny_model, autoencoder=LinearAutoencoder()))
    z = torch.randn(2, 6, 5, 7)
    torch.testing.assert_close(developer.preview(z), developer.decode(z)[..., ::4, ::4], atol=1e-5, rtol=0)


def test_a_preview_is_small_and_of_the_requested_image(tiny_model: LatentDiffusion):
    *_, last = daguerre.stream(tiny_model, prompt="a red apple", steps=2, num_images=2)
    assert last.preview().size == (8, 8)
    assert last.preview(0).tobytes() != last.preview(1).tobytes()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampler": "eular_a"}, "Did you mean 'euler_a'"),
        ({"spacing": "trayling"}, "Did you mean 'trailing'"),
        ({"width": 30}, "The width 30 is not a multiple of 4, as this model needs; 32 would be"),
        ({"height": 1}, "The height 1 is not a multiple of 4"),
        ({"steps": 1001}, "1 to 1000"),
        ({"sampler": "dpmpp_2m", "initial_noise": "sgima_max"}, "Did you mean 'sigma_max'"),
        ({"sampler": "heun", "eta": 0.5}, "no option 'eta'"),
        ({"promt": "x"}, "Did you mean 'prompt'"),
    ],
)
def test_unknown_names_are_refused_before_generating(tiny_model: LatentDiffusion, fields: dict[str, object], message: str):
    with pytest.raises(DaguerreError, match=message):
        daguerre.stream(tiny_model, **fields)


@pytest.mark.parametrize("prompt", ["a red apple", ["a red apple", "a pizza"], ("a red apple", "a pizza")])
def test_the_prompt_can_be_the_second_argument(tiny_model: LatentDiffusion, prompt):
    short = daguerre.generate(tiny_model, prompt, steps=1, seed=2)
    assert np.array_equal(pixels(short), pixels(daguerre.generate(tiny_model, prompt=prompt, steps=1, seed=2)))
    assert short[0].provenance.request.prompt == (prompt if isinstance(prompt, str) else tuple(prompt))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_of_the_caller_changes_nothing(tiny_model: LatentDiffusion, dtype: torch.dtype):
    expected = daguerre.generate(tiny_model, "a red apple", steps=2, sampler="euler_a")
    with torch.autocast("cpu", dtype):
        *_, last = daguerre.stream(tiny_model, "a red apple", steps=2, sampler="euler_a")
        assert torch.is_autocast_enabled("cpu")
        shown = last.preview(), last.decode()
        latents = daguerre.encode(tiny_model, expected[0].image)
        decoded = daguerre.decode(tiny_model, latents)
    assert last.images is not None
    assert np.array_equal(pixels(last.images), pixels(expected))
    assert np.array_equal(*map(np.asarray, (shown[1], last.decode())))
    assert np.array_equal(*map(np.asarray, (shown[0], last.preview())))
    assert torch.equal(latents, daguerre.encode(tiny_model, expected[0].image))
    assert np.array_equal(*map(np.asarray, (decoded, daguerre.decode(tiny_model, latents))))


@pytest.mark.parametrize(
    ("sampler", "spacing"), [("plms", "linspace"), ("plms", "trailing"), ("dpm_solver_2s", None), ("pndm_prk", "karras")]
)
@pytest.mark.parametrize("strength", [1, 0.5])
def test_too_few_steps_name_the_steps_that_are_enough(tiny_model: LatentDiffusion, sampler: str, spacing: str | None, strength: float):
    task = TextToImage() if strength == 1 else ImageToImage(Image.new("RGB", (32, 32)), strength)

    def steps_that_are_enough(steps: int) -> int:
        try:
            daguerre.stream(tiny_model, steps=steps, sampler=sampler, spacing=spacing, task=task)
        except DaguerreError as error:
            asked, enough = re.findall(r"(\d+) steps", str(error))
            return int(enough) if int(asked) == steps else 0
        return steps

    found = [steps_that_are_enough(steps) for steps in range(1, 12)]
    least = found[0]
    assert 1 < least < 12
    assert found == [*[least] * least, *range(least + 1, 12)]
