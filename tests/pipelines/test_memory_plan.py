"""Low-memory runs give the same images, and overflowing half precision is repaired."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from daguerre.diffusion import Conditioning
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines import Request, generate, memory_plan
from daguerre.pipelines.decode import tiled_decode
from daguerre.pipelines.memory_plan import one_at_a_time
from daguerre.runtime.overflow import retry_in_float32
from daguerre.weights.loading import load_diffusion


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return load_diffusion(dtype=torch.float32)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(16, 16), (9, 21), (8, 8), (5, 13)])
def test_tiled_decoding_of_a_pointwise_decoder_is_exact(shape: tuple[int, int]):
    z = noise(2, 3, *shape)

    def enlarge(z: Tensor) -> Tensor:
        return nn.functional.interpolate(z, scale_factor=2.0)

    torch.testing.assert_close(tiled_decode(enlarge, z, tile=8, overlap=3), enlarge(z))


@torch.no_grad()
def test_no_seam_shows_between_tiles(model: LatentDiffusion):
    """Where tiles overlap, neighbouring pixels differ no more than in the image decoded at once."""
    f = model.autoencoder.downsample_factor
    x = torch.linspace(-0.8, 0.8, 32 * f).expand(1, 3, 32 * f, -1)  # a smooth picture shows every seam
    z = model.autoencoder.encode(x)
    whole, tiled = model.autoencoder.decode(z), tiled_decode(model.autoencoder.decode, z, tile=16, overlap=8)
    assert (whole - tiled).abs().mean() < 0.05
    for dim in (-1, -2):
        assert tiled.diff(dim=dim).abs().amax() <= 1.25 * whole.diff(dim=dim).abs().amax()


@torch.no_grad()
def test_one_row_at_a_time_gives_the_same_output(model: LatentDiffusion):
    x, t = noise(3, 16, 8, 8)[:, : model.unet.config.in_channels], torch.tensor([1.0, 50.0, 900.0])
    cond = Conditioning(context=noise(3, 77, model.unet.config.context_width or 0, seed=1))
    torch.testing.assert_close(one_at_a_time(model.unet)(x, t, cond), model.unet(x, t, cond), rtol=1e-4, atol=1e-4)


def test_low_memory_gives_the_same_image_and_logs_it(model: LatentDiffusion, caplog: pytest.LogCaptureFixture):
    request = Request("a red apple", steps=4, num_images=2)
    plain, sparing = generate(model, request), generate(model, request, low_memory=True)
    for a, b in zip(plain, sparing, strict=True):
        assert np.abs(np.asarray(a.image, dtype=int) - np.asarray(b.image, dtype=int)).max() <= 1
        assert (a.provenance.request.low_memory, b.provenance.request.low_memory) == (False, True)
    assert "as asked" in caplog.text


def test_a_run_that_does_not_fit_uses_low_memory_or_is_refused(
    model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    request = Request("a red apple", steps=1, width=512, height=512, num_images=4)
    free = {"plenty": 1 << 40, "some": 640 << 20, "none": 1 << 20}
    settled = {}
    for name, size in free.items():
        monkeypatch.setattr(memory_plan, "free_memory", lambda _device, size=size: size)
        try:
            settled[name] = memory_plan.with_memory_plan(model, request, (512, 512)).low_memory
        except DaguerreError as error:
            settled[name] = str(error)
    assert settled["plenty"] is False
    assert settled["some"] is True
    assert "decoding in tiles" in caplog.text
    assert "Generate fewer or smaller images" in settled["none"]


class Overflowing(nn.Module):
    """Multiplies by 4 and divides again; the intermediate value overflows float16."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(4.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight / self.weight


def test_a_network_that_overflows_computes_in_float32_from_then_on(caplog: pytest.LogCaptureFixture):
    module = Overflowing().half()
    x = torch.tensor([3.0, 60000.0]).half()
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        assert retry_in_float32(module, module, "UNet")(x[:1]).dtype == torch.float16
        assert retry_in_float32(module, module, "UNet")(x).tolist() == [3.0, 60000.0]
        assert "The UNet overflowed in float16" in caplog.text
        caplog.clear()
        assert retry_in_float32(module, module, "UNet")(x).tolist() == [3.0, 60000.0]
        assert module.weight.dtype == torch.float32
        assert not caplog.text


def test_images_survive_an_overflowing_decoder(caplog: pytest.LogCaptureFixture):
    """A decoder whose last two layers are scaled up and down by the same factor is unchanged in float32 and overflows in float16."""
    model = load_diffusion(dtype=torch.float32)
    request = Request("a red apple", steps=2)
    truth = generate(model, request)[0].image
    half = load_diffusion(dtype=torch.float16)
    decoder = half.autoencoder.decoder  # type: ignore[attr-defined]
    last = decoder.conv_norm_out
    factor = 2.0**15
    plain = last.forward
    last.forward = lambda input: plain(input) * factor
    decoder.conv_out.weight.data /= factor
    made = generate(half, replace(request))[0].image
    assert "The autoencoder overflowed in float16" in caplog.text
    assert np.abs(np.asarray(made, dtype=int) - np.asarray(truth, dtype=int)).mean() < 4
