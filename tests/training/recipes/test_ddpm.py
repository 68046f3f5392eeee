"""`daguerre train ddpm`: from images to a model that samples, with classes, learned variance and resumption; and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from daguerre.conditioning.class_map_image import LabelConditioner, UnconditionalConditioner
from daguerre.data import BatchLoader
from daguerre.errors import DaguerreError
from daguerre.pipelines import generate
from daguerre.training.batch_random import BatchRandom
from daguerre.training.config import DiffusionLoss, LoopConfig
from daguerre.training.datasets.classes import open_labelled
from daguerre.training.objectives.diffusion import DiffusionTask
from daguerre.training.options.ddpm import DDPMRecipe, UNetShape
from daguerre.training.options.images import TrainingImageOptions
from daguerre.training.recipes.ddpm import build_model, encoder_of, run
from daguerre.weights import load_diffusion

LOOP = LoopConfig(max_train_steps=2, batch_size=2, learning_rate=1e-2, lr_warmup_steps=0, lr_decay=0, sample_every=0, checkpoint_every=1)
SHAPE = UNetShape((8, 16), blocks=1, attention_levels=(1,), head_width=8)


def recipe(tmp_path: Path, **options: object) -> DDPMRecipe:
    defaults = {"data": "emoji-faces", "out": tmp_path / "run", "resolution": 16, "shape": SHAPE, "loop": LOOP}
    return DDPMRecipe(**{**defaults, **options})  # type: ignore[arg-type]


def colours(folder: Path, **counts: int) -> str:
    """Images of one colour each, in a subfolder per class."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = np.full((20, 24, 3), 40 * i + 10, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return str(folder)


def test_an_unconditional_model_trains_and_samples(tmp_path: Path):
    folder = run(recipe(tmp_path, data=colours(tmp_path / "images", all=3), loop=replace(LOOP, sample_every=2)))
    model = load_diffusion(folder)
    assert isinstance(model.conditioner, UnconditionalConditioner)
    assert generate(model, steps=2)[0].image.size == (16, 16)
    assert Image.open(tmp_path / "run" / "samples" / "000002.png").width > 4 * 16


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path):
    options = {"condition": "class", "variance": "learned", "schedule": "cosine", "prediction": "v"}
    whole = run(recipe(tmp_path, **options, out=tmp_path / "whole"))
    run(recipe(tmp_path, **options, loop=replace(LOOP, max_train_steps=1)))
    resumed = run(recipe(tmp_path, **options))
    first, second = (load_file(folder / "unet" / "diffusion_pytorch_model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    model = load_diffusion(resumed)
    assert (model.variance, model.prediction, model.unet.config.out_channels) == ("learned", "v", 6)
    with pytest.raises(DaguerreError, match="prediction"):
        run(recipe(tmp_path, **{**options, "prediction": "epsilon"}))


def test_classes_come_from_subfolders(tmp_path: Path):
    model = load_diffusion(run(recipe(tmp_path, data=colours(tmp_path / "images", red_fox=2, cat=2), condition="class")))
    assert isinstance(model.conditioner, LabelConditioner)
    assert model.conditioner.names == ("cat", "red fox")
    assert model.unet.config.classes == 3  # with the null class
    assert generate(model, prompt="cat", steps=1)[0].image.size == (16, 16)


@pytest.mark.parametrize("condition", ["none", "class"])
def test_the_log_has_the_loss_of_images_that_are_kept_out(tmp_path: Path, condition: str):
    data = colours(tmp_path / "images", cat=6, fox=6)
    run(recipe(tmp_path, data=data, condition=condition, images=TrainingImageOptions(validation_fraction=0.4)))
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert 0 < last["validation unet"] < 10  # a new network predicts zero: the mean square of the noise is about 1


def test_built_in_classes(tmp_path: Path):
    for data, name in (("shapes", "circle"), ("emoji", "food-fruit"), ("emoji-faces", "panda")):
        images, names, _ = open_labelled(data, 16, TrainingImageOptions())
        assert name in names
        assert set(BatchLoader(images, 8, 0).batch(0).captions) <= {*names}


def test_the_variational_bound_trains_only_the_variance(tmp_path: Path):
    torch.manual_seed(0)
    model = build_model(recipe(tmp_path, variance="learned"), None)
    for parameter in model.unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    simple = build_model(recipe(tmp_path), None)
    state = {name: tensor[:3] if name.startswith("conv_out") else tensor for name, tensor in model.unet.state_dict().items()}
    simple.unet.load_state_dict(state)
    batch = BatchLoader(open_labelled("emoji-faces", 16, TrainingImageOptions())[0], 4, 0).batch(0)
    gradients = []
    for each in (model, simple):
        task = DiffusionTask(each, DiffusionLoss(), encoder_of(each), ())
        ((_, loss, _),) = task.losses(batch, task.networks, BatchRandom(torch.Generator().manual_seed(0), len(batch)), 0)
        loss.backward()
        gradients.append(each.unet.conv_out.weight.grad)
    both, mean = gradients
    assert both is not None
    assert mean is not None
    assert torch.allclose(both[:3], mean, rtol=1e-4, atol=1e-7)
    assert both[3:].abs().max() > 0


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ({"all": 1}, {}, "There are 1 images, fewer than --batch-size 2"),
        ({"cat": 3, "dog": 1}, {"condition": "class"}, "1 of the 2 classes .* have a single image .dog"),
        ({"": 3, "dog": 2}, {"condition": "class"}, "3 of the 5 images .* have no class"),
    ],
)
def test_too_few_images_are_an_error(tmp_path: Path, counts: dict[str, int], options: dict[str, str], message: str):
    with pytest.raises(DaguerreError, match=message):
        run(recipe(tmp_path, data=colours(tmp_path / "images", **counts), **options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"channels": (6, 16)}, "multiple of 4"),
        ({"channels": ()}, "one number per level"),
        ({"channels": (8, 8, 8, 8, 8, 8)}, "multiple of 32, not 16"),
        ({"attention_levels": (2,)}, "the levels are 0 to 1"),
        ({"blocks": 0}, "blocks is 0"),
        ({"dropout": 1.0}, "dropout 1.0"),
    ],
)
def test_an_impossible_shape_is_an_error(tmp_path: Path, shape: dict[str, object], message: str):
    with pytest.raises(DaguerreError, match=message):
        recipe(tmp_path, shape=UNetShape(**{"channels": (8, 16), "attention_levels": (), **shape}))  # type: ignore[arg-type]
