"""Training a text encoder to read variants of a caption alike: the loss, and a recipe that changes nothing else."""

import copy
from pathlib import Path

import pytest
import torch
from PIL import Image

import daguerre
from daguerre.training.batch_random import BatchRandom
from daguerre.training.config import LoopConfig
from daguerre.training.objectives.caption_variants import CaptionVariantTask, record_cross_attention_inputs
from daguerre.training.options.caption_variants import CaptionVariantsRecipe
from daguerre.training.recipes.caption_variants import run
from daguerre.weights import load_diffusion
from daguerre.weights.hashing import network_hash
from daguerre.weights.vocabulary import Vocabulary


@pytest.fixture
def task(tiny_model) -> CaptionVariantTask:
    model = copy.deepcopy(tiny_model)
    return CaptionVariantTask(model, model.conditioner, record_cross_attention_inputs(model, ["a cat", "a dog"], steps=2), ())


def test_inputs_of_every_cross_attention_are_recorded(task):
    attentions = [module for name, module in task.model.unet.named_modules() if name.endswith("attn2")]
    assert {id(layer) for layer, _ in task.inputs} == {id(layer) for layer in attentions}
    for layer, inputs in task.inputs:
        assert inputs.shape == (2 * 2 * 2 * 16, layer.to_q.in_features)  # prompts, steps, with and without prompt, positions
        assert not layer._forward_pre_hooks


def test_the_loss_is_the_lost_share_of_the_variance(task):
    with torch.no_grad():
        target = task.original(["a cat", "a dog", "an owl"])
        context = task.original(["a cat", "a cow", "a bee"])
        loss = task.lost_variance(context, target, torch.Generator().manual_seed(3), positions=8)
        generator, shares = torch.Generator().manual_seed(3), []
        for layer, inputs in task.inputs:
            h = inputs[torch.randint(len(inputs), (8,), generator=generator)].repeat(3, 1, 1)
            wanted, given = layer(h, target).double(), layer(h, context).double()
            shares.append(((given - wanted) ** 2).sum() / ((wanted - wanted.mean(0, keepdim=True)) ** 2).sum())
        assert task.lost_variance(target, target, torch.Generator()) == 0
    torch.testing.assert_close(loss.double(), torch.stack(shares).mean(), rtol=1e-4, atol=0)


def test_training_changes_only_the_text_encoder(tiny_model, tmp_path: Path):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("cat", "dog", "owl", "red apple"):
        Image.new("RGB", (32, 32), "teal").save(images / f"{name}.png")
        (images / f"{name}.txt").write_text(f"a {name}")
    base = daguerre.save(tiny_model, tmp_path / "base")
    Vocabulary.of(["cat"], ["a dog"]).write(base)
    loop = LoopConfig(max_train_steps=3, batch_size=8, learning_rate=3e-3, lr_warmup_steps=1, ema_decay=0, log_every=1, sample_every=0)
    out = run(CaptionVariantsRecipe(str(images), str(base), tmp_path / "run", loop))
    before, after = load_diffusion(base), load_diffusion(out)
    assert network_hash(before.unet) == network_hash(after.unet)
    assert network_hash(before.autoencoder) == network_hash(after.autoencoder)
    assert network_hash(before.conditioner) != network_hash(after.conditioner)
    vocabulary = Vocabulary.read(out)
    assert vocabulary is not None
    assert vocabulary.unknown(["a cat, a photo of a dog, please, in oil"]) == ["in", "oil"]


def test_the_loss_of_a_batch_falls(task):
    from daguerre.training.datasets.caption_variants import CaptionBatch

    batch = CaptionBatch(["a cat", "a dog", "an owl"] * 4, ["a cat.", "draw a dog", "owl, please"] * 4)
    optimizer = torch.optim.AdamW(task.networks["text_encoder"].parameters(), 1e-3)
    losses = []
    for step in range(15):
        ((name, loss, _),) = task.losses(batch, task.networks, BatchRandom(torch.Generator().manual_seed(0), len(batch)), step)
        assert name == "text_encoder"
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
