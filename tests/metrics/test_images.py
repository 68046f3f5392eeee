"""PSNR and SSIM against their formulas, written out window by window in numpy."""

import math

import numpy as np
import pytest
import torch

from daguerre.errors import DaguerreError
from daguerre.metrics import psnr, ssim


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def ssim_by_the_window(x: np.ndarray, y: np.ndarray, span: float) -> float:
    """Eq. 13 of Wang et al. 2004 with weighted means and central moments, one 11×11 window at a time, for one channel (H, W)."""
    r = np.arange(11) - 5
    w = np.exp(-(r[:, None] ** 2 + r[None] ** 2) / (2 * 1.5**2))
    w /= w.sum()
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (w * a).sum(), (w * b).sum()
            va, vb, cov = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum(), (w * (a - ma) * (b - mb)).sum()
            values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return float(np.mean(values))


def test_psnr_of_a_known_error():
    x = torch.zeros(2, 3, 8, 8)
    y = torch.stack([torch.full((3, 8, 8), 0.2), torch.full((3, 8, 8), -0.02)])
    assert psnr(x, y).tolist() == pytest.approx([20.0, 40.0], abs=1e-5)  # 20·log₁₀(2/0.2), 20·log₁₀(2/0.02)
    assert psnr(x * 127.5, y * 127.5, span=255).tolist() == pytest.approx([20.0, 40.0], abs=1e-5)  # the unit doesn't matter


def test_psnr_of_equal_images_is_infinite():
    assert psnr(images(1, 3, 8, 8), images(1, 3, 8, 8)).item() == math.inf


@pytest.mark.parametrize("span", [2.0, 255.0])
def test_ssim_equals_the_formula(span: float):
    x = images(2, 3, 17, 14) * span / 2
    y = (0.7 * x + 0.1 * span * images(2, 3, 17, 14, seed=1)).float()
    wanted = [np.mean([ssim_by_the_window(x[b, c].double().numpy(), y[b, c].double().numpy(), span) for c in range(3)]) for b in range(2)]
    assert ssim(x, y, span=span).tolist() == pytest.approx(wanted, abs=1e-10)


def test_ssim_of_flat_images_is_the_luminance_term():
    x, y = torch.full((1, 1, 16, 16), 0.5), torch.full((1, 1, 16, 16), 0.25)
    c1 = 0.02**2
    assert ssim(x, y).item() == pytest.approx((2 * 0.125 + c1) / (0.25 + 0.0625 + c1), abs=1e-12)


def test_ssim_is_one_for_equal_images_symmetric_and_decreases_with_noise():
    x, noise = images(1, 3, 24, 24), images(1, 3, 24, 24, seed=3)
    assert ssim(x, x).item() == pytest.approx(1.0, abs=1e-12)
    scores = [ssim(x, x + a * noise).item() for a in (0.1, 0.3, 1.0)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] < 1
    assert ssim(x, x + noise).item() == pytest.approx(ssim(x + noise, x).item(), abs=1e-14)


def test_ssim_of_a_negative_has_the_opposite_sign():
    board = (torch.arange(32)[:, None] + torch.arange(32)).remainder(2).mul(2.0).sub(1).expand(1, 1, 32, 32)  # means near 0 in every window
    assert ssim(board, -board).item() == pytest.approx(-1, abs=0.01)


def test_invalid_images_raise():
    with pytest.raises(DaguerreError, match=r"at least 11×11 pixels; got 8×16"):
        ssim(torch.zeros(1, 3, 16, 8), torch.zeros(1, 3, 16, 8))
    with pytest.raises(DaguerreError, match="the same shape"):
        psnr(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9))
