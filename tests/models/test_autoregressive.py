"""Sampling filters, inverse transform sampling and bits against hand calculations; every prior is a normalised distribution."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from daguerre.errors import DaguerreError
from daguerre.models.autoregressive import CodePrior, Sampling, bits_per_code, bits_per_pixel, probabilities, sample_codes, uniform_noise
from daguerre.models.pixelcnn import PixelCNN, PixelCNNConfig
from daguerre.models.pixelsnail import PixelSNAIL, PixelSNAILConfig
from daguerre.models.transformer_prior import TransformerPrior, TransformerPriorConfig


def priors(codes: int, grid: tuple[int, int]) -> dict[str, CodePrior]:
    """One tiny prior of each kind with 3 classes and large random weights, so that the distributions are not uniform."""
    torch.manual_seed(0)
    models = {
        "transformer": TransformerPrior(TransformerPriorConfig(codes, 3, grid[0] * grid[1], grid, width=8, layers=2, heads=2)),
        "pixelcnn": PixelCNN(PixelCNNConfig(codes, width=6, layers=3, first_kernel=3, classes=3)),
        "pixelsnail": PixelSNAIL(PixelSNAILConfig(codes, width=4, blocks=2, layers=1, heads=2, key_width=4, classes=3)),
    }
    for prior in models.values():
        for parameter in prior.eval().parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return models  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("name", ["transformer", "pixelcnn", "pixelsnail"])
def test_probabilities_of_all_grids_sum_to_one(name: str):
    """Holds only for a causal model: no logits may depend on their own or a later code."""
    prior = priors(3, (2, 3))[name]
    grids = torch.tensor(list(itertools.product(range(3), repeat=6))).view(-1, 2, 3)  # all 729
    with torch.no_grad():
        bits = bits_per_code(prior(grids, torch.ones(len(grids), 1, dtype=torch.long)), grids).double() * 6
    assert (2**-bits).sum().item() == pytest.approx(1.0, abs=1e-4)
    assert bits.std() > 0.5  # far from uniform


@pytest.mark.parametrize("name", ["transformer", "pixelcnn", "pixelsnail"])
def test_sample_frequencies_match_the_prior(name: str):
    prior = priors(2, (2, 2))[name]
    grids = torch.tensor(list(itertools.product(range(2), repeat=4))).view(-1, 2, 2)
    label = torch.full((len(grids), 1), 2)
    with torch.no_grad():
        expected = 2 ** -(bits_per_code(prior(grids, label), grids) * 4)
    u = torch.rand(4000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    *_, codes = prior.sample((2, 2), u, torch.full((4000, 1), 2))
    observed = torch.bincount(codes.flatten(1) @ torch.tensor([8, 4, 2, 1]), minlength=16) / 4000
    torch.testing.assert_close(observed, expected, rtol=0, atol=0.03)


def test_temperature_top_k_and_top_p_match_hand_calculations():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()

    def p(**options: float) -> list[float]:
        return probabilities(logits, Sampling(**options))[0].tolist()  # pyright: ignore[reportArgumentType]

    assert p() == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert p(top_k=2) == pytest.approx([4 / 7, 3 / 7, 0, 0])
    assert p(top_p=0.69) == pytest.approx([4 / 7, 3 / 7, 0, 0])
    assert p(top_p=0.71) == pytest.approx([4 / 9, 3 / 9, 2 / 9, 0])
    assert p(top_p=1e-9) == [1, 0, 0, 0]
    assert p(temperature=0.5) == pytest.approx([16 / 30, 9 / 30, 4 / 30, 1 / 30])
    assert p(temperature=0.0) == [1, 0, 0, 0]
    assert p(top_k=9) == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_sample_codes_inverts_the_cumulative_distribution():
    p = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0], dtype=torch.float64)
    u = torch.tensor([0.0, 0.2499, 0.25, 0.9999999999999999], dtype=torch.float64)
    assert sample_codes(p.expand(4, -1), u).tolist() == [1, 1, 3, 3]


def test_bits_of_known_distributions():
    codes = torch.tensor([[[0, 1], [2, 3]]])
    assert bits_per_code(torch.zeros(1, 2, 2, 4), codes).item() == pytest.approx(2.0)
    certain = torch.nn.functional.one_hot(codes, 4).float() * 100
    assert bits_per_code(certain, codes).item() == pytest.approx(0.0, abs=1e-6)
    skewed = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().expand(1, 2, 2, 4)
    bits = bits_per_code(skewed, codes)
    assert bits.item() == pytest.approx((1 + 2 + 3 + 3) / 4)
    assert bits_per_pixel(bits, 16).item() == pytest.approx(2.25 / 256)


def test_each_generator_determines_its_own_row():
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    both = uniform_noise(generators, (2, 3))
    assert torch.equal(both[1:], uniform_noise([torch.Generator().manual_seed(4)], (2, 3)))
    assert both.dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
    ],
)
def test_rejects_invalid_sampling_options(options: dict, message: str):
    with pytest.raises(DaguerreError, match=message):
        Sampling(**options)


def test_rejects_uniforms_of_the_wrong_size():
    prior = priors(2, (2, 2))["pixelcnn"]
    with pytest.raises(DaguerreError, match="needs 6 random numbers per image"):
        next(prior.sample((2, 3), Tensor(1, 4).double(), torch.zeros(1, dtype=torch.long)))
