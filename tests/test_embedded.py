"""The embedded model: size, provenance, prompts, and the same image in diffusers."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import daguerre
from benchmarks.caption_variants import VARIANTS
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.weights.catalog import find
from daguerre.weights.vocabulary import Vocabulary

FOLDER = Path(find(None))


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return daguerre.load()


def test_the_embedded_model_is_small_and_its_hashes_are_in_the_notice():
    weights = sorted(FOLDER.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 64 * 2**20
    notice = (Path(__file__).parent.parent / "NOTICE").read_text()
    for path in [*weights, FOLDER.parent / "clip" / "model.safetensors", FOLDER.parent / "emoji-pictures.zip"]:
        assert hashlib.sha256(path.read_bytes()).hexdigest() in notice, path.name


@pytest.mark.parametrize(("sampler", "scheduler"), [("dpmpp_2m", "DPMSolverMultistepScheduler"), ("euler", "EulerDiscreteScheduler")])
def test_diffusers_generates_the_same_image(model, sampler, scheduler):
    import diffusers

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 16, model.sample_size // 8, model.sample_size // 8, generator=torch.Generator().manual_seed(7))
    asked = {"num_inference_steps": 6, "guidance_scale": 4.0, "height": model.sample_size, "width": model.sample_size, "latents": noise}
    reference = np.asarray(pipe("a red apple", **asked).images[0], dtype=int)
    (result,) = daguerre.generate(
        model, prompt="a red apple", steps=6, guidance_scale=4.0, seed=7, sampler=sampler, spacing="trailing", initial_noise="sigma_max"
    )
    assert np.abs(np.asarray(result.image, dtype=int) - reference).max() <= 2


def test_the_background_has_the_colour_of_the_prompt(model):
    """A coarse check on pixels that any broken part would fail; the model card has the measurements."""
    colours = ("red", "green", "blue", "yellow", "purple")
    pictures = daguerre.generate(model, prompt=tuple(f"a gift on a {colour} background" for colour in colours), steps=6)
    wanted = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0), "purple": (1, 0, 1)}
    right = 0
    for colour, picture in zip(colours, pictures, strict=True):
        pixels = np.asarray(picture.image, dtype=float)
        corner = np.concatenate([pixels[:4, :4], pixels[-4:, -4:], pixels[:4, -4:], pixels[-4:, :4]]).mean((0, 1)) / 255
        nearest = min(wanted, key=lambda name: np.linalg.norm(_chroma(corner) - _chroma(np.array(wanted[name]))))
        right += nearest == colour
    assert right >= 4


def test_wordings_of_a_prompt_give_the_same_thing(model):
    """Each image is nearer to the one of its own plain prompt than to the other one."""
    wordings = [("a red apple", "draw a red apple, please"), ("a blue car", "Can you show me a photo of a blue car?")]
    results = daguerre.generate(model, prompt=[text for pair in wordings for text in pair], steps=4)
    first, same_first, second, same_second = (np.asarray(result.image, dtype=float) for result in results)
    assert np.abs(same_first - first).mean() < np.abs(same_first - second).mean()
    assert np.abs(same_second - second).mean() < np.abs(same_second - first).mean()


def test_the_vocabulary_has_the_words_of_trained_wordings_and_names_others():
    vocabulary = Vocabulary.read(FOLDER)
    assert vocabulary is not None
    assert {"red apple", "apple", "astronaut", "horse"} <= {*vocabulary.names}
    assert vocabulary.unknown(variant("a red apple") for variant in VARIANTS if variant.trained) == []
    assert vocabulary.unknown(["a photograph of an astronaut riding a horse"]) == ["photograph", "riding"]
    assert '"photograph" (nearest: photo), "riding" (nearest: horse racing, person biking)' in vocabulary.note(
        "emoji", ["a photograph of an astronaut riding a horse"]
    )


def _chroma(rgb: np.ndarray) -> np.ndarray:
    return rgb / max(np.linalg.norm(rgb), 1e-9)


def test_the_model_card_reports_r_precision():
    card = (FOLDER / "README.md").read_text()
    report = json.loads((FOLDER / "report.json").read_text())
    assert "R-precision" in card
    assert report["scorer"]
