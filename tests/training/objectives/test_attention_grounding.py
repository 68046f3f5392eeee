"""Grounding against hand calculations: attention to a noun on its thing costs nothing; and samples know where their own things are."""

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
from daguerre.training.datasets.latents import CachedLatents
from daguerre.training.objectives.attention_grounding import AttentionMaps, Grounding, coverage, off_object_attention
from daguerre.training.objectives.diffusion import DiffusionLoss, DiffusionTask

CIRCLE = SHAPES_NOUNS["circle"]


def at(row: int, column: int, side: int = 2) -> torch.Tensor:
    return torch.zeros(side, side).index_put((torch.tensor(row), torch.tensor(column)), torch.tensor(1.0))


def test_attention_astray_by_hand():
    even, thing = torch.full((1, 2, 2), 0.3), at(0, 1)[None]
    assert off_object_attention(even, thing).item() == pytest.approx((1 - 1 / 4) ** 2)
    assert off_object_attention(0.01 * thing, thing).item() == pytest.approx(0)  # however little there is of it
    assert off_object_attention(0.7 * at(1, 1)[None], thing).item() == pytest.approx(1)
    assert off_object_attention(0 * even, thing).item() == 1  # none at all, as softmax may round it
    assert off_object_attention(0.7 * at(0, 1)[None], 0.2 * thing).item() == pytest.approx(0)  # a thing smaller than any place
    assert off_object_attention(even, 0.4 * thing + 0.2 * at(1, 1)).item() == pytest.approx((1 - 1.5 / 4) ** 2)
    both = torch.cat([0.7 * at(1, 1)[None], 0.7 * at(0, 1)[None]])
    assert off_object_attention(both, thing.expand(2, -1, -1)).tolist() == pytest.approx([1, 0])


def test_each_noun_is_looked_for_where_its_own_thing_is(tiny_model: LatentDiffusion):
    """The tokens of "circle" are looked at top left, all others at the bottom right."""
    conditioner = tiny_model.conditioner
    assert isinstance(conditioner, TextConditioner)
    caption = "a green circle on a white background"
    tokens = next(word.positions for word in conditioner.words(((WeightedText(caption, 1.0),),)) if word.text == "circle")
    weights = torch.zeros(2, 4, 16)
    weights[:, 3] = 1 / 16
    weights[:, 3, list(tokens)] = 0.0
    weights[:, 0, list(tokens)] = 0.5
    looks, coarse = AttentionMaps(), weights.mean(1, keepdim=True)  # one layer has a single place, and so points nowhere
    looks.layers = [((2, 2), weights), ((2, 2), weights)]
    covered = torch.zeros(2, 10, 2, 2)
    covered[0, CIRCLE], covered[1, CIRCLE] = at(0, 0), at(1, 1)

    def loss(*captions: str, **more) -> float:
        return Grounding(1.0, conditioner, **more).loss(looks, captions, covered, torch.tensor([0.5, 0.8])).item()

    assert loss(caption, "") == pytest.approx(0)
    assert loss("", caption) == pytest.approx(0.8)  # as much as there is of the picture under the noise
    assert loss(caption, caption) == pytest.approx(0.8 / 2)
    assert loss("", caption.replace("circle", "apple")) == 0  # no thing that is known
    covered[1, 3] = at(0, 0)
    assert loss("", caption, nouns={"circle": 3}) == pytest.approx(0)  # as if it named another thing of the same picture
    assert loss("", "a white apple " * 9 + "circle") == 0  # cut off: the network never read it
    looks.layers.append(((1, 1), coarse))
    share = (2 * 0.5 + 0.125) / (2 * 0.5 + 4 * 0.125)
    assert loss(caption, "") == pytest.approx(0.5 * (1 - share) ** 2)


def test_the_stage_adds_the_loss_and_leaves_the_other_as_it_was(tiny_model: LatentDiffusion):
    model = replace(tiny_model)
    assert isinstance(model.conditioner, TextConditioner)
    grounding = Grounding(0.5, model.conditioner)
    covered = torch.zeros(3, 10, 8, 8)
    covered[:, CIRCLE, 2:4, 2:4] = 1.0
    batch = Batch(torch.randn(3, 6, 8, 8, generator=seeded(1)), ["a green circle"] * 3, latent=True, coverage=covered)
    plain = DiffusionTask(model, DiffusionLoss(caption_dropout=0), model.conditioner.captions, ["x"])
    taught = DiffusionTask(model, DiffusionLoss(caption_dropout=0), model.conditioner.captions, ["x"], grounding=grounding)
    ((_, before, _),) = plain.losses(batch, seeded(), step=0)
    ((_, after, logged),) = taught.losses(batch, seeded(), step=0)
    assert torch.equal(logged["mse"], before)
    assert 0 < logged["astray"] < 1
    torch.testing.assert_close(after, before + 0.5 * logged["astray"])
    keys = [block.attn2.to_k.weight for block in model.unet.modules() if isinstance(block, TransformerBlock)]
    moved = torch.autograd.grad(after - before, keys)
    assert all(gradient.abs().max() > 0 for gradient in moved)
    ((_, blind, logged),) = taught.losses(replace(batch, covered=None), seeded(), step=0)  # a source that does not know
    assert torch.equal(blind, before)
    assert not logged


def seeded(n: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def test_the_places_are_those_of_the_same_pictures_and_captions():
    source = ShapesDataset(32)
    drawn = BatchLoader(source, 16, seed=3)
    covered = coverage(drawn, source, 40, side=8)
    assert covered.shape == (40, len(SHAPES_PALETTE), 8, 8)
    assert torch.equal(covered.sum(1), torch.ones(40, 8, 8).half())
    batch = drawn.batch(2)
    for i, caption in enumerate(batch.captions[:8]):
        named = {SHAPES_NOUNS[word] for word in caption.split() if word in SHAPES_NOUNS}
        assert named == {klass for klass in range(1, 1 + len(SHAPES)) if covered[32 + i, klass].any()}
        # The paint of whole places differs from that of the background.
        whole = covered[32 + i, 1:].amax(0) == 1, covered[32 + i, 0] == 1
        pixels = batch.x[i].unfold(1, 4, 4).unfold(2, 4, 4)[..., 1:3, 1:3].mean((3, 4))  # (3, 8, 8)
        thing, background = (pixels[:, places] for places in whole)
        if thing.shape[1]:
            assert np.ptp(background.numpy(), axis=1).max() < 0.02
            assert (thing - background[:, :1]).abs().amax(0).min() > 0.1
    with pytest.raises(DaguerreError, match="not known"):
        coverage(BatchLoader(EmojiDataset(32), 4, seed=0), EmojiDataset(32), 4, side=8)


def test_they_stay_with_their_latents():
    n = 12
    latents, captions = torch.arange(n).float().reshape(n, 1, 1, 1), [str(i) for i in range(n)]
    batches = CachedLatents(latents, captions, 4, 0, covered=torch.arange(n).half().reshape(n, 1, 1, 1))
    for step in range(3):
        batch = batches.batch(step)
        assert batch.coverage is not None
        assert torch.equal(batch.coverage.float(), batch.x.float())
        assert torch.equal(batch[1:3].coverage, batch.coverage[1:3])  # pyright: ignore[reportArgumentType]
    assert Batch(latents, captions)[:2].coverage is None
