"""Images, large decodes and training steps on a CUDA GPU equal those on the CPU. Skipped without a GPU."""

import numpy as np
import pytest
import torch

import daguerre
from daguerre.models.autoencoder_kl import VAE_SD, AutoencoderKL
from daguerre.nn.norm import GroupNorm
from daguerre.training.batch_random import BatchRandom

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, which CI does not have")
CUDA = torch.device("cuda")


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 2), (torch.float16, 2), (torch.bfloat16, 12)])
def test_the_embedded_model_gives_the_image_of_the_cpu(dtype: torch.dtype, apart: int):
    pictures = [
        np.asarray(daguerre.generate(daguerre.load(device=device, dtype=kind), prompt="a red apple", seed=3)[0].image, dtype=int)
        for device, kind in ((torch.device("cpu"), torch.float32), (CUDA, dtype))
    ]
    assert np.abs(pictures[0] - pictures[1]).max() <= apart


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_large_image_is_encoded_and_decoded_in_chunks_of_rows(dtype: torch.dtype):
    """At 512×512 pixels with Stable Diffusion's channels, feature maps are large enough for chunking."""
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(VAE_SD).eval()
    x = torch.rand(1, 3, 512, 512) * 2 - 1
    z = autoencoder.encode(x)
    decoded = autoencoder.decode(z)
    autoencoder.to(CUDA, dtype)
    for mine, reference in (
        (autoencoder.encode(x.to(CUDA, dtype)), z),
        (autoencoder.decode(z.to(CUDA, dtype)), decoded),
    ):
        assert (mine.float().cpu() - reference).norm() < 0.01 * reference.norm()


def test_group_norm_under_autocast_keeps_bfloat16_and_is_right():
    layer = GroupNorm(4, 24).to(CUDA)
    x = torch.randn(3, 24, 16, 16, device=CUDA)
    with torch.autocast("cuda", torch.bfloat16):
        y = layer(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.02, atol=0.03)


def test_training_noise_comes_from_the_generator_of_the_step():
    a, b, c = (BatchRandom(torch.Generator().manual_seed(seed), 4).normal((16,), CUDA) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert abs(float(BatchRandom(torch.Generator(), 1000).normal((1000,), CUDA).std()) - 1) < 0.01
