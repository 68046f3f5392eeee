"""`daguerre train ldm`: on KL and VQ first stages, without condition, with classes and with text; it opens in diffusers, too."""

import json
from pathlib import Path

import diffusers
import pytest
import torch
from PIL import Image

from daguerre.conditioning import TextConditioner
from daguerre.conditioning.class_map_image import LabelConditioner, UnconditionalConditioner
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.vector_quantizer import QuantizerConfig
from daguerre.models.vq_model import VQModel, VQModelConfig
from daguerre.pipelines import generate
from daguerre.training.config import LoopConfig
from daguerre.training.options.ddpm import UNetShape
from daguerre.training.options.images import TrainingImageOptions
from daguerre.training.options.ldm import LDMRecipe
from daguerre.training.recipes.ldm import run
from daguerre.weights import load_diffusion, save_first_stage

LOOP = LoopConfig(max_train_steps=1, batch_size=2, sample_every=0, checkpoint_every=1)
SMALL = {"channels": (8, 8), "blocks": 1, "attention_levels": (), "mid_attention": False, "norm_groups": 4}


def recipe(tmp_path: Path, kind: str, **options: object) -> LDMRecipe:
    torch.manual_seed(0)
    if kind == "kl":
        network = AutoencoderKL(AutoencoderKLConfig(latent_channels=4, quant_conv=False, post_quant_conv=False, **SMALL))
    else:
        network = VQModel(VQModelConfig(QuantizerConfig(codes=8, width=4), latent_channels=8, **SMALL))
    first_stage = save_first_stage(network, tmp_path / kind, 16)
    defaults = {"data": "shapes", "resolution": 16, "num_images": 4, "loop": LOOP, "shape": UNetShape((16, 32), 1, (1,), 16)}
    return LDMRecipe(**{"first_stage": first_stage, "out": tmp_path / "run", **defaults, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "condition", "conditioner", "prompt", "pipeline"),
    [
        ("kl", "none", UnconditionalConditioner, "", "LDMPipeline"),
        ("vq", "class", LabelConditioner, "circle", "LDMPipeline"),
        ("kl", "text", TextConditioner, "a red circle", "StableDiffusionPipeline"),
    ],
)
def test_each_condition_trains_and_samples(tmp_path: Path, kind: str, condition: str, conditioner: type, prompt: str, pipeline: str):
    folder = run(recipe(tmp_path, kind, condition=condition))
    model = load_diffusion(folder)
    assert isinstance(model.conditioner, conditioner)
    assert generate(model, prompt=prompt, steps=1)[0].image.size == (16, 16)
    assert diffusers.DiffusionPipeline.load_config(folder)["_class_name"] == pipeline
    unet = diffusers.UNet2DModel if pipeline == "LDMPipeline" else diffusers.UNet2DConditionModel
    assert sum(p.numel() for p in unet.from_pretrained(folder / "unet").parameters()) == sum(p.numel() for p in model.unet.parameters())


def test_the_log_has_the_loss_of_images_that_are_kept_out(tmp_path: Path):
    (tmp_path / "images").mkdir()
    for i in range(8):
        Image.new("RGB", (20, 24), (30 * i, 10, 10)).save(tmp_path / "images" / f"{i}.png")
    run(recipe(tmp_path, "kl", data=str(tmp_path / "images"), images=TrainingImageOptions(validation_fraction=0.4)))
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert 0 < last["validation unet"] < 10  # a new network predicts zero: the mean square of the noise is about 1


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("vq", {"condition": "text"}, "needs a KL first stage"),
        ("kl", {"resolution": 17}, "must be a multiple of 2"),
        ("kl", {"resolution": 18}, "multiple of 2, not 9"),
        ("kl", {"num_images": 1}, "num_images is 1"),
    ],
)
def test_what_does_not_fit_is_an_error(tmp_path: Path, kind: str, options: dict[str, object], message: str):
    with pytest.raises(DaguerreError, match=message):
        run(recipe(tmp_path, kind, **options))
    assert not (tmp_path / "run").exists()
