"""JPEG and WebP at a size: never above it, each image back in its place, and better with more bytes."""

import pytest
import torch

from daguerre.errors import DaguerreError
from daguerre.metrics import psnr
from daguerre.metrics.codecs import CODECS, encode_with_codec


def images(count: int = 5) -> torch.Tensor:
    """Smooth slopes, each of its own colour and direction."""
    generator = torch.Generator().manual_seed(0)
    slope = torch.linspace(-1, 1, 48)
    across, down = torch.rand(2, count, 3, 1, 1, generator=generator) * 2 - 1
    return (across * slope[None, None, None, :] + down * slope[None, None, :, None]).clamp(-1, 1)


@pytest.mark.parametrize("codec", CODECS)
def test_encoding_fits_the_budget_and_keeps_the_order_of_images(codec: str):
    x = images()
    small, large = (encode_with_codec(x, codec, budget) for budget in (750, 6000))
    assert small is not None
    assert large is not None
    assert small.bytes <= 750
    assert large.bytes <= 6000
    assert large.x.shape == x.shape
    assert (psnr(x, large.x) > 30).all()
    assert psnr(x, small.x).mean() < psnr(x, large.x).mean()


@pytest.mark.parametrize("codec", CODECS)
def test_small_budgets_use_downscaled_images(codec: str):
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(4, 3, 64, 64, generator=generator) - 0.5) * 2  # noise, which no codec makes small
    tight = encode_with_codec(x, codec, 900)
    assert tight is not None
    assert tight.bytes <= 900
    assert tight.x.shape == x.shape


def test_impossible_budget_gives_none_and_too_many_images_raise():
    assert encode_with_codec(images(), "JPEG", 10) is None
    with pytest.raises(DaguerreError, match="a side of more than 16383"):
        encode_with_codec(torch.zeros(2, 3, 8, 9000), "JPEG", 1000)
