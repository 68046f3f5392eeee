"""Attention grounding against hand calculations, and the coverage maps of rendered shapes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from daguerre.conditioning import TextConditioner
from daguerre.conditioning.prompt import WeightedText
from daguerre.data import Batch, BatchLoader, EmojiDataset, ShapesDataset
from daguerre.data.condition_maps import SHAPES_NOUNS, SHAPES_PALETTE
from daguerre.data.shapes import SHAPES
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.nn.attention import TransformerBlock
from daguerre.training.batch_random import BatchRandom
from daguerre.training.datasets.latents import CachedLatents
from daguerre.training.objectives.attention_grounding import AttentionMaps, Grounding, coverage, off_object_attention
from daguerre.training.objectives.diffusion import DiffusionLoss, DiffusionTask

CIRCLE = SHAPES_NOUNS["circle"]


def at(row: int, column: int, side: int = 2) -> torch.Tensor:
    return torch.zeros(side, side).index_put((torch.tensor(row), torch.tensor(column)), torch.tensor(1.0))


def test_off_object_attention_equals_hand_calculations():
    uniform, thing = torch.full((1, 2, 2), 0.3), at(0, 1)[None]
    assert off_object_attention(uniform, thing).item() == pytest.approx((1 - 1 / 4) ** 2)
    assert off_object_attention(0.01 * thing, thing).item() == pytest.approx(0)  # the amount of attention does not matter
    assert off_object_attention(0.7 * at(1, 1)[None], thing).item() == pytest.approx(1)
    assert off_object_attention(0 * uniform, thing).item() == 1  # no attention at all, as softmax may round it
    assert off_object_attention(0.7 * at(0, 1)[None], 0.2 * thing).item() == pytest.approx(0)  # an object smaller than one position
    assert off_object_attention(uniform, 0.4 * thing + 0.2 * at(1, 1)).item() == pytest.approx((1 - 1.5 / 4) ** 2)
    both = torch.cat([0.7 * at(1, 1)[None], 0.7 * at(0, 1)[None]])
    assert off_object_attention(both, thing.expand(2, -1, -1)).tolist() == pytest.approx([1, 0])


def test_each_noun_is_compared_with_its_own_object(tiny_model: LatentDiffusion):
    """The tokens of "circle" have their attention at the top left, all others at the bottom right."""
    conditioner = tiny_model.conditioner
    assert isinstance(conditioner, TextConditioner)
    caption = "a green circle on a white background"
    tokens = next(word.positions for word in conditioner.words(((WeightedText(caption, 1.0),),)) if word.text == "circle")
    weights = torch.zeros(2, 4, 16)
    weights[:, 3] = 1 / 16
    weights[:, 3, list(tokens)] = 0.0
    weights[:, 0, list(tokens)] = 0.5
    maps, coarse = AttentionMaps(), weights.mean(1, keepdim=True)  # a layer with a single position
    maps.layers = [((2, 2), weights), ((2, 2), weights)]
    covered = torch.zeros(2, 10, 2, 2)
    covered[0, CIRCLE], covered[1, CIRCLE] = at(0, 0), at(1, 1)

    def loss(*captions: str, **more) -> float:
        return Grounding(1.0, conditioner, **more).loss(maps, captions, covered, torch.tensor([0.5, 0.8])).item()

    assert loss(caption, "") == pytest.approx(0)
    assert loss("", caption) == pytest.approx(0.8)  # alpha_bar of that row
    assert loss(caption, caption) == pytest.approx(0.8 / 2)
    assert loss("", caption.replace("circle", "apple")) == 0  # an unknown object
    covered[1, 3] = at(0, 0)
    assert loss("", caption, nouns={"circle": 3}) == pytest.approx(0)  # the noun of another object in the same image
    assert loss("", "a white apple " * 9 + "circle") == 0  # beyond the token limit
    maps.layers.append(((1, 1), coarse))
    share = (2 * 0.5 + 0.125) / (2 * 0.5 + 4 * 0.125)
    assert loss(caption, "") == pytest.approx(0.5 * (1 - share) ** 2)


def test_grounding_adds_its_loss_to_an_unchanged_diffusion_loss(tiny_model: LatentDiffusion):
    model = replace(tiny_model)
    assert isinstance(model.conditioner, TextConditioner)
    grounding = Grounding(0.5, model.conditioner)
    covered = torch.zeros(3, 10, 8, 8)
    covered[:, CIRCLE, 2:4, 2:4] = 1.0
    batch = Batch(torch.randn(3, 6, 8, 8, generator=seeded(1)), ["a green circle"] * 3, latent=True, coverage=covered)
    plain = DiffusionTask(model, DiffusionLoss(caption_dropout=0), model.conditioner.encode_captions, ["x"])
    grounded = DiffusionTask(model, DiffusionLoss(caption_dropout=0), model.conditioner.encode_captions, ["x"], grounding=grounding)
    ((_, before, _),) = plain.losses(batch, plain.networks, BatchRandom(seeded(), len(batch)), step=0)
    ((_, after, logged),) = grounded.losses(batch, grounded.networks, BatchRandom(seeded(), len(batch)), step=0)
    assert torch.equal(logged["mse"], before)
    assert 0 < logged["grounding"] < 1
    torch.testing.assert_close(after, before + 0.5 * logged["grounding"])
    keys = [block.attn2.to_k.weight for block in model.unet.modules() if isinstance(block, TransformerBlock)]
    moved = torch.autograd.grad(after - before, keys)
    assert all(gradient.abs().max() > 0 for gradient in moved)
    unknown = replace(batch, coverage=None)  # a dataset without positions
    ((_, without, logged),) = grounded.losses(unknown, grounded.networks, BatchRandom(seeded(), len(unknown)), step=0)
    assert torch.equal(without, before)
    assert not logged


def seeded(n: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def test_coverage_matches_the_images_and_captions():
    source = ShapesDataset(32)
    batches = BatchLoader(source, 16, seed=3)
    covered = coverage(batches, source, 40, side=8)
    assert covered.shape == (40, len(SHAPES_PALETTE), 8, 8)
    assert torch.equal(covered.sum(1), torch.ones(40, 8, 8).half())
    batch = batches.batch(2)
    for i, caption in enumerate(batch.captions[:8]):
        named = {SHAPES_NOUNS[word] for word in caption.split() if word in SHAPES_NOUNS}
        assert named == {label for label in range(1, 1 + len(SHAPES)) if covered[32 + i, label].any()}
        # Positions that an object covers completely differ from the background.
        whole = covered[32 + i, 1:].amax(0) == 1, covered[32 + i, 0] == 1
        pixels = batch.x[i].unfold(1, 4, 4).unfold(2, 4, 4)[..., 1:3, 1:3].mean((3, 4))  # (3, 8, 8)
        thing, background = (pixels[:, positions] for positions in whole)
        if thing.shape[1]:
            assert np.ptp(background.numpy(), axis=1).max() < 0.02
            assert (thing - background[:, :1]).abs().amax(0).min() > 0.1
    with pytest.raises(DaguerreError, match="There are no 'semantic' maps"):
        coverage(BatchLoader(EmojiDataset(32), 4, seed=0), EmojiDataset(32), 4, side=8)


def test_coverage_stays_aligned_with_the_latents():
    n = 12
    latents, captions = torch.arange(n).float().reshape(n, 1, 1, 1), [str(i) for i in range(n)]
    batches = CachedLatents(latents, captions, 4, 0, coverage=torch.arange(n).half().reshape(n, 1, 1, 1))
    for step in range(3):
        batch = batches.batch(step)
        assert batch.coverage is not None
        assert torch.equal(batch.coverage.float(), batch.x.float())
        assert torch.equal(batch[1:3].coverage, batch.coverage[1:3])  # pyright: ignore[reportArgumentType]
    assert Batch(latents, captions)[:2].coverage is None
