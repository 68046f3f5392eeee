"""With circular padding a network commutes with rolling its input, so generated images have no seam."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import daguerre
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.nn.circular import circular_padding, pad_circular
from tests.tolerance import NETWORK_TERMS, assert_rounded


@pytest.mark.parametrize(("axes", "dims"), [("both", (2, 3)), ("x", (3,)), ("y", (2,))])
def test_networks_commute_with_rolling(tiny_model: LatentDiffusion, axes: Any, dims: tuple[int, ...]):
    unet, autoencoder = circular_padding(tiny_model.unet, axes), circular_padding(tiny_model.autoencoder, axes)
    context = tiny_model.conditioner(["a red apple"])
    z, x, t = torch.randn(1, 6, 8, 8), torch.randn(1, 3, 32, 32), torch.tensor([500.0])
    networks: list[tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor], torch.Tensor, int, float]] = [
        (lambda z: unet(z, t, context), lambda z: tiny_model.unet(z, t, context), z, 4, 1),
        (autoencoder.decode, tiny_model.autoencoder.decode, z, 2, 4),
        (autoencoder.encode, tiny_model.autoencoder.encode, x, 8, 1 / 4),
    ]
    with torch.no_grad():
        for circular, plain, data, by, scale in networks:
            rolled, shifted = data.roll([by] * len(dims), dims), [int(by * scale)] * len(dims)
            assert_rounded(circular(rolled), circular(data).roll(shifted, dims), NETWORK_TERMS)
            assert (plain(rolled) - plain(data).roll(shifted, dims)).abs().max() > 1e-2


def test_the_original_network_is_unchanged_and_shares_its_weights(tiny_model: LatentDiffusion):
    z = torch.randn(1, 6, 8, 8)
    with torch.no_grad():
        before = tiny_model.autoencoder.decode(z)
        circular = circular_padding(tiny_model.autoencoder, "both")
        assert not torch.equal(circular.decode(z), before)
        assert torch.equal(tiny_model.autoencoder.decode(z), before)
    assert all(a is b for a, b in zip(circular.parameters(), tiny_model.autoencoder.parameters(), strict=True))


def test_padding_continues_at_the_opposite_edge():
    x = torch.arange(12.0).reshape(1, 1, 3, 4)
    assert pad_circular(x, (1, 1, 1, 1), "both")[0, 0].tolist() == [
        [11, 8, 9, 10, 11, 8], [3, 0, 1, 2, 3, 0], [7, 4, 5, 6, 7, 4], [11, 8, 9, 10, 11, 8], [3, 0, 1, 2, 3, 0]
    ]  # fmt: skip
    assert pad_circular(x, (1, 0, 1, 0), "x")[0, 0].tolist() == [[0] * 5, [3, 0, 1, 2, 3], [7, 4, 5, 6, 7], [11, 8, 9, 10, 11]]


def test_rolled_noise_gives_the_rolled_image(tiny_model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch):
    """The whole pipeline commutes with rolling, so the edge is invisible."""
    plain = daguerre.generate(tiny_model, prompt="a red apple", steps=3, tiling="both")
    from daguerre.pipelines import context

    randn = context.randn_per_image
    monkeypatch.setattr(context, "randn_per_image", lambda *args: randn(*args).roll(4, -1))
    rolled = daguerre.generate(tiny_model, prompt="a red apple", steps=3, tiling="both")

    def pixels(images: Any) -> torch.Tensor:
        return torch.frombuffer(bytearray(images[0].image.tobytes()), dtype=torch.uint8).reshape(32, 32, 3).int()

    assert (pixels(rolled) - pixels(plain).roll(16, 1)).abs().max() <= 1
