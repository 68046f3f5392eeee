"""LPIPS against its formula written out with plain convolutions, and the distance on a given encoder's features."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from daguerre.models.lpips import LPIPS, EncoderFeatures, FeatureDistance
from daguerre.nn.encoder_decoder import Encoder
from tests.tolerance import NETWORK_TERMS, assert_rounded

# The published layout: convolutions of VGG16 by their index in `features`, a row a stage.
STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
WIDTHS = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256, 17: 512, 19: 512, 21: 512, 24: 512, 26: 512, 28: 512}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Random weights under the published names; the linear layers are not negative, as the trained ones are."""
    generator = torch.Generator().manual_seed(0)
    weights, before = {}, 3
    for index, width in WIDTHS.items():
        weights[f"features.{index}.weight"] = torch.randn(width, before, 3, 3, generator=generator) * (2 / (9 * before)) ** 0.5
        weights[f"features.{index}.bias"] = torch.randn(width, generator=generator) * 0.1
        before = width
    for stage, indices in enumerate(STAGES):
        weights[f"lin{stage}.model.1.weight"] = torch.rand(1, WIDTHS[indices[-1]], 1, 1, generator=generator)
    return weights


@pytest.fixture(scope="module")
def lpips(weights: dict[str, Tensor]) -> LPIPS:
    network = LPIPS()
    network.load_state_dict(weights, strict=True)
    return network


def by_formula(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    total = torch.zeros(len(x))
    a, b = (torch.stack([(p[:, 0] + 0.030) / 0.458, (p[:, 1] + 0.088) / 0.448, (p[:, 2] + 0.188) / 0.450], dim=1) for p in (x, y))
    for stage, indices in enumerate(STAGES):
        if stage:
            a, b = F.max_pool2d(a, 2), F.max_pool2d(b, 2)
        for i in indices:
            a, b = (F.conv2d(p, weights[f"features.{i}.weight"], weights[f"features.{i}.bias"], padding=1).clamp(min=0) for p in (a, b))
        unit_a, unit_b = (p / (p.square().sum(dim=1, keepdim=True).sqrt() + 1e-10) for p in (a, b))
        linear = weights[f"lin{stage}.model.1.weight"].flatten()
        total = total + torch.einsum("bchw,c->bhw", (unit_a - unit_b).square(), linear).mean(dim=(1, 2))
    return total


def images(seed: int) -> Tensor:
    return torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_lpips_equals_its_formula_and_gradient(lpips: LPIPS, weights: dict[str, Tensor]):
    x, y = images(1).requires_grad_(), images(2)
    x_formula = x.detach().clone().requires_grad_()
    ours, formula = lpips(x, y), by_formula(weights, x_formula, y)
    assert ours.shape == (2,)
    assert formula.min() > 0.1
    torch.testing.assert_close(ours, formula, rtol=0, atol=1e-5)
    ours.sum().backward()
    formula.sum().backward()
    assert x_formula.grad is not None
    assert x.grad is not None
    assert_rounded(x.grad, x_formula.grad, NETWORK_TERMS)


def test_lpips_is_zero_for_equal_images_and_grows_with_noise(lpips: LPIPS):
    x = images(3)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    distances = [lpips(x, x + strength * noise) for strength in (0.0, 0.05, 0.2, 0.8)]
    assert (distances[0] == 0).all()
    assert all((nearer < farther).all() for nearer, farther in pairwise(distances))


def test_zero_features_have_finite_gradients(lpips: LPIPS, weights: dict[str, Tensor]):
    dead = LPIPS()
    dead.load_state_dict({name: -tensor.abs() if name.endswith("bias") else 0 * tensor for name, tensor in weights.items()})
    x = images(5).requires_grad_()
    dead(x, images(6)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_lpips_weights_are_frozen(lpips: LPIPS):
    x = images(7).requires_grad_()
    lpips(x, images(8)).sum().backward()
    assert all(parameter.grad is None for parameter in lpips.parameters())


def test_feature_distance_is_the_angle_between_features():
    # For unit vectors |a − b|² = 2 − 2·cos(a, b), whatever the features' lengths.
    distance = FeatureDistance(lambda x: [x, 5 * x[:, :2]])
    x, y = images(9), images(10)
    cosines = [2 - 2 * F.cosine_similarity(a, b, dim=1).mean(dim=(1, 2)) for a, b in ((x, y), (x[:, :2], y[:, :2]))]
    torch.testing.assert_close(distance(x, y), (cosines[0] + cosines[1]) / 2)


def test_feature_distance_on_an_encoder_uses_every_level():
    torch.manual_seed(0)
    encoder = Encoder(3, 8, (8, 16, 16), 1, groups=4)
    features = EncoderFeatures(encoder)
    x, y = images(11).requires_grad_(), images(12)
    assert [tuple(state.shape[1:]) for state in features(x)] == [(8, 16, 12), (16, 8, 6), (16, 8, 6)]
    distance = FeatureDistance(features)(x, y)
    distance.sum().backward()
    assert distance.shape == (2,)
    assert x.grad is not None
    assert x.grad.abs().min() > 0
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert (FeatureDistance(features)(y, y) == 0).all()
