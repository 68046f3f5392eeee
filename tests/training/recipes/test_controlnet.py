"""`train controlnet`: it starts at the model's own prediction, one step equals diffusers, and an interrupted run resumes exactly."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import daguerre
from daguerre.adapters import load_controlnet, with_adapters
from daguerre.adapters.controlnet import save_controlnet
from daguerre.data import BatchLoader, FolderDataset, ShapesDataset
from daguerre.diffusion import Conditioning
from daguerre.errors import DaguerreError
from daguerre.models.controlnet import ControlNetModel
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines.images.preprocessors import preprocess
from daguerre.training.batch_random import BatchRandom
from daguerre.training.condition_preview import find_examples
from daguerre.training.config import DiffusionLoss, LoopConfig
from daguerre.training.datasets.control_maps import split_pair, with_control_maps
from daguerre.training.objectives.adapters.controlnet import ControlledModel, ControlNetTask
from daguerre.training.options.adapters.controlnet import ControlNetRecipe
from daguerre.training.options.images import TrainingImageOptions
from daguerre.training.recipes.adapters.controlnet import run
from daguerre.weights import save
from daguerre.weights.hashing import network_hash
from daguerre.weights.tensors.safetensors import read_safetensors
from tests.families.conftest import peer
from tests.families.peers import randomized

__all__ = ["peer"]
LOOP = LoopConfig(max_train_steps=4, batch_size=2, learning_rate=1e-2, lr_warmup_steps=1, ema_decay=0, sample_every=0, checkpoint_every=2,
                  lr_scheduler="constant")  # fmt: skip
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, colour in enumerate(("red", "blue", "green")):
        image = Image.new("RGB", (40, 32), "white")
        ImageDraw.Draw(image).ellipse((4 + 4 * number, 4, 24 + 4 * number, 28), fill=colour)
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {colour} circle")
    return folder


@pytest.fixture
def saved(tiny_model: LatentDiffusion, tmp_path: Path) -> str:
    return str(save(tiny_model, tmp_path / "tiny"))


def encode(model: LatentDiffusion) -> Callable[..., Conditioning]:
    return model.conditioner.with_size(model.sample_size, model.sample_size).encode_captions  # pyright: ignore[reportAttributeAccessIssue]


def test_the_first_prediction_is_the_models_own(make_tiny_model: Callable[..., LatentDiffusion]):
    model = make_tiny_model()
    network = ControlledModel(model, ControlNetModel.from_unet(model.unet, 8))
    x, t, condition = torch.randn(2, 6, 8, 8), torch.tensor([10, 900]), encode(model)(["a", "b"])
    with torch.no_grad():
        assert torch.equal(network(x, t, ["a", "b"], torch.rand(2, 3, 64, 64)), model.unet(x, t, condition))
    copied, own = network.controlnet.state_dict(), model.unet.state_dict()
    assert all(torch.equal(copied[name], own[name]) for name in copied.keys() & own.keys())
    assert {name.split(".")[0] for name in copied.keys() - own.keys()} == {
        "controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block"
    }  # fmt: skip


def test_one_step_equals_diffusers(peer: Any, tmp_path: Path):
    """The loss and the gradients of diffusers' examples/controlnet/train_controlnet.py, with weights that let every part contribute."""
    pipeline, _, model = peer("sd1")
    ours = randomized(ControlNetModel.from_unet(model.unet, model.autoencoder.downsample_factor), 7)
    theirs = diffusers.ControlNetModel.from_pretrained(save_controlnet(ours, tmp_path / "edges"))
    network, loss = ControlledModel(model, ours), DiffusionLoss(caption_dropout=0)
    task = ControlNetTask(network, loss, ())
    pairs = with_control_maps(ShapesDataset(32), "canny")
    batch = BatchLoader(pairs, 2, 0).batch(0)
    ((name, value, _),) = task.losses(batch, task.networks, BatchRandom(torch.Generator().manual_seed(0), len(batch)), 0)
    assert name == "unet"
    value.backward()

    generator = torch.Generator().manual_seed(0)
    torch.rand(2, generator=generator)  # of the caption dropout
    image, control_map = split_pair(batch.x)
    t = (torch.rand(2, generator=generator, dtype=torch.float64) * 1000).long()
    with torch.no_grad():
        latents = pipeline.vae.encode(image).latent_dist.mean * pipeline.vae.config.scaling_factor
        text = pipeline.encode_prompt(batch.captions, "cpu", 1, do_classifier_free_guidance=False)[0]
    eps = torch.randn(*latents.shape, generator=generator)
    noisy = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config).add_noise(latents, eps, t)
    down, mid = theirs(noisy, t, encoder_hidden_states=text, controlnet_cond=control_map, return_dict=False)
    predicted = pipeline.unet(
        noisy, t, encoder_hidden_states=text, down_block_additional_residuals=down, mid_block_additional_residual=mid
    ).sample
    expected = torch.nn.functional.mse_loss(predicted, eps)
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        assert (parameter.grad - gradients[name]).abs().max() < 1e-4 * max(gradients[name].abs().max(), 1e-3), name


def test_a_saved_network_opens_in_diffusers(peer: Any, tmp_path: Path):
    pipeline, _, model = peer("sdxl")
    ours = randomized(ControlNetModel.from_unet(model.unet, 8), 7)
    theirs = diffusers.ControlNetModel.from_pretrained(save_controlnet(ours, tmp_path / "xl"))
    reference = diffusers.ControlNetModel.from_unet(pipeline.unet)
    assert theirs.state_dict().keys() == reference.state_dict().keys()
    for name in ("addition_embed_type", "projection_class_embeddings_input_dim", "use_linear_projection", "cross_attention_dim"):
        assert theirs.config[name] == reference.config[name]
    again = load_controlnet(tmp_path / "xl", model).network.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in ours.state_dict().items())


@torch.no_grad()
def mean_error(model: LatentDiffusion, controlnet: ControlNetModel, folder: Path) -> float:
    """The mean squared error on the folder's images with their edges, with the same noise each time."""
    task = ControlNetTask(ControlledModel(model, controlnet), DiffusionLoss(caption_dropout=0), ())
    batch = BatchLoader(with_control_maps(FolderDataset(folder, 32), "canny"), 16, 0).batch(0)
    ((_, loss, _),) = task.losses(batch, task.networks, BatchRandom(torch.Generator().manual_seed(0), len(batch)), 0)
    return loss.item()


def test_training_lowers_the_loss_and_leaves_the_model(saved: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("daguerre.training.recipes.adapters.controlnet.find_examples", partial(find_examples, count=1))
    model = daguerre.load(saved)
    assert isinstance(model, LatentDiffusion)
    before = network_hash(model.unet)
    loop = replace(LOOP, max_train_steps=12, checkpoint_every=12, sample_every=12)
    path = run(ControlNetRecipe(str(folder), "canny", tmp_path / "edges", saved, loop=loop, loss=DiffusionLoss(caption_dropout=0)))
    assert path == tmp_path / "edges" / "edges"
    trained = load_controlnet(path, model)
    assert mean_error(model, trained.network, folder) < 0.95 * mean_error(model, ControlNetModel.from_unet(model.unet, 4), folder)
    edges = preprocess(Image.open(folder / "0.png").crop((0, 0, 32, 32)), "canny")
    blank = Image.new("RGB", (32, 32))
    images = [
        daguerre.generate(with_adapters(model, [trained]), "a red circle", steps=2, seed=0, control_images=[each])[0].image.tobytes()
        for each in (edges, blank)
    ]
    assert images[0] != images[1]
    assert network_hash(model.unet) == before
    (sample,) = (tmp_path / "edges" / "samples").rglob("*.png")
    assert Image.open(sample).width > 3 * 32  # a map, its image and the original


def test_an_interrupted_run_resumes_exactly(saved: str, folder: Path, tmp_path: Path):
    """Also if it recomputes activations."""

    def trained(out: str, steps: int, **settings: Any) -> dict[str, Tensor]:
        recipe = ControlNetRecipe(str(folder), "lines", tmp_path / out, saved, loop=replace(LOOP, max_train_steps=steps, **settings))
        return read_safetensors(run(replace(recipe, images=TrainingImageOptions(mirror=True))) / WEIGHTS)

    whole, half = trained("whole", 4), trained("parts", 2, gradient_checkpointing=True)
    parts = trained("parts", 4, gradient_checkpointing=True)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert any(not torch.equal(whole[name], half[name]) for name in whole)
    with pytest.raises(DaguerreError, match="belongs to a run with"):
        run(ControlNetRecipe(str(folder), "canny", tmp_path / "parts", saved, loop=LOOP))


def test_training_continues_from_a_controlnet(saved: str, folder: Path, tmp_path: Path):
    first = run(ControlNetRecipe(str(folder), "grey", tmp_path / "first", saved, loop=LOOP))
    still = replace(LOOP, learning_rate=0, max_train_steps=1)
    second = run(ControlNetRecipe(str(folder), "grey", tmp_path / "second", saved, init_controlnet=first, loop=still))
    before, after = read_safetensors(first / WEIGHTS), read_safetensors(second / WEIGHTS)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("from_files", [False, True])
def test_a_map_has_the_crop_of_its_image(folder: Path, tmp_path: Path, from_files: bool):
    source = FolderDataset(folder, 32, mirror=True)
    control = "grey"
    if from_files:
        control = str(tmp_path / "maps")
        Path(control).mkdir()
        for item in source.items:
            Image.open(item.path).convert("L").convert("RGB").save(Path(control) / f"{item.path.stem}.png")
    pairs = with_control_maps(source, control)
    for seed in range(4):
        sample = pairs.sample(1, np.random.default_rng(seed))
        image, control_map = sample.image.crop((0, 0, 32, 32)), sample.image.crop((32, 0, 64, 32))
        difference = np.abs(np.asarray(image.convert("L"), dtype=int) - np.asarray(control_map.convert("L"), dtype=int))
        assert difference.max() <= 2  # the map of a file is grey before it is resized
        assert sample.caption == "a blue circle"


def test_examples_are_different_images(folder: Path, make_tiny_model: Callable[..., LatentDiffusion]):
    controlnet = ControlNetModel.from_unet(make_tiny_model().unet, 8)
    examples = find_examples(controlnet, with_control_maps(FolderDataset(folder, 32), "tile"))
    assert sorted(each.prompt for each in examples) == ["a blue circle", "a green circle", "a red circle"]
    assert all(each.request().control_images[0].pixels.size == (32, 32) for each in examples)


def test_unknown_maps_and_models_are_refused(saved: str, folder: Path, tmp_path: Path):
    with pytest.raises(DaguerreError, match=r"no preprocessor and no directory 'cany'.*Did you mean 'canny'"):
        run(ControlNetRecipe(str(folder), "cany", tmp_path / "x", saved))
    (tmp_path / "maps").mkdir()
    with pytest.raises(DaguerreError, match="There is no map"):
        run(ControlNetRecipe(str(folder), str(tmp_path / "maps"), tmp_path / "x", saved))
    with pytest.raises(DaguerreError, match="There is no file"):
        run(ControlNetRecipe(str(folder), "canny", tmp_path / "x", saved, init_controlnet=tmp_path / "maps"))
    assert not (tmp_path / "x").exists()
    with pytest.raises(DaguerreError, match="not 1/1"):
        ControlNetModel.from_unet(daguerre.load(saved).unet, 1)  # pyright: ignore[reportAttributeAccessIssue]
