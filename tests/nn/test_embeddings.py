"""Sinusoidal embeddings against their formula, one number at a time."""

import math

import pytest
import torch

from daguerre.nn.embeddings import sinusoidal


@pytest.mark.parametrize("cos_first", [True, False])
@pytest.mark.parametrize("shift", [0, 1])
def test_equals_the_formula(cos_first: bool, shift: int):
    waves = sinusoidal(torch.tensor([0.0, 17.5, 999.0]), 12, cos_first=cos_first, frequency_shift=shift)
    for row, t in zip(waves, (0.0, 17.5, 999.0), strict=True):
        angles = [t * 10000 ** (-i / (6 - shift)) for i in range(6)]
        cosines, sines = [math.cos(a) for a in angles], [math.sin(a) for a in angles]
        truth = torch.tensor(cosines + sines if cos_first else sines + cosines)
        torch.testing.assert_close(row, truth, rtol=0, atol=4 * torch.finfo(torch.float32).eps * max(t, 1))  # the rounding of the angle


def test_an_odd_width_is_padded_with_zero():
    waves = sinusoidal(torch.tensor([3]), 7)
    assert waves.shape == (1, 7)
    assert waves[0, -1] == 0
    torch.testing.assert_close(waves[:, :6], sinusoidal(torch.tensor([3]), 6))
