"""The KL autoencoder against diffusers' at tiny random init, and its posterior against torch's own normal distribution."""

from dataclasses import replace

import diffusers
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig, DiagonalGaussian

TINY = AutoencoderKLConfig(latent_channels=3, channels=(8, 16, 16), blocks=1, norm_groups=4, scaling_factor=0.7)
REFERENCE = {
    "latent_channels": 3,
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
VARIANTS = {
    "sd": (TINY, REFERENCE),
    "two blocks": (replace(TINY, blocks=2), REFERENCE | {"layers_per_block": 2}),
    "no middle attention": (replace(TINY, mid_attention=False), REFERENCE | {"mid_block_add_attention": False}),
    "no quant convolutions": (
        replace(TINY, quant_conv=False, post_quant_conv=False),
        REFERENCE | {"use_quant_conv": False, "use_post_quant_conv": False},
    ),
    "attention at a level": (
        replace(TINY, attention_levels=(2,)),
        REFERENCE
        | {
            "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
            "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        },
    ),
}


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# A batch of 17 is large enough for the transposed-convolution upsampling at both levels.
@pytest.mark.parametrize(("name", "batch"), [*((name, 1) for name in VARIANTS), ("sd", 17)])
def test_output_and_gradients_equal_the_reference(name: str, batch: int):
    config, options = VARIANTS[name]
    torch.manual_seed(0)
    reference = diffusers.AutoencoderKL(**options)
    ours = AutoencoderKL(config)
    ours.load_state_dict(reference.state_dict(), strict=True)
    reference.load_state_dict(ours.state_dict(), strict=True)

    x, x_reference = (noise(batch, 3, 32, 32, seed=1).requires_grad_() for _ in range(2))
    eps = noise(batch, 3, 8, 8, seed=2)
    reconstruction, posterior = ours(x, eps)
    distribution = reference.encode(x_reference).latent_dist
    rebuilt_reference = reference.decode(distribution.mean + distribution.std * eps).sample
    torch.testing.assert_close(posterior.mean, distribution.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(posterior.logvar, distribution.logvar, rtol=0, atol=1e-5)
    torch.testing.assert_close(reconstruction, rebuilt_reference, rtol=0, atol=1e-5)
    torch.testing.assert_close(posterior.kl(), distribution.kl(), rtol=1e-5, atol=0)

    weight = noise(*reconstruction.shape, seed=3) / batch**0.5
    ((reconstruction * weight).mean() + posterior.kl().mean() / 100).backward()
    ((rebuilt_reference * weight).mean() + distribution.kl().mean() / 100).backward()
    torch.testing.assert_close(x.grad, x_reference.grad, rtol=0, atol=1e-5)
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for key, parameter in reference.named_parameters():
        torch.testing.assert_close(gradients[key], parameter.grad, rtol=0, atol=1e-5, msg=lambda m, n=key: f"{n}: {m}")


def test_posterior_is_a_normal_distribution():
    mean, logvar = noise(2, 4, 3, 3, seed=0), noise(2, 4, 3, 3, seed=1)
    truth = Normal(mean, (logvar / 2).exp())
    posterior = DiagonalGaussian(mean, logvar)
    torch.testing.assert_close(posterior.kl(), kl_divergence(truth, Normal(0.0, 1.0)).sum(dim=(1, 2, 3)))
    eps = noise(2, 4, 3, 3, seed=2)
    torch.testing.assert_close(posterior.sample(eps), truth.icdf(Normal(0.0, 1.0).cdf(eps)), rtol=1e-4, atol=1e-4)


def test_decode_inverts_the_scaling_of_encode():
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(replace(TINY, scaling_factor=0.5, shift_factor=0.25))
    x = noise(1, 3, 16, 16, seed=0)
    with torch.no_grad():
        posterior = autoencoder.posterior(x)
        reconstruction, _ = autoencoder(x)
        torch.testing.assert_close(autoencoder.encode(x), (posterior.mean - 0.25) * 0.5)
        torch.testing.assert_close(autoencoder.decode(autoencoder.encode(x)), reconstruction)
        eps = noise(1, 3, 4, 4, seed=1)
        torch.testing.assert_close(autoencoder.encode(x, eps), (posterior.sample(eps) - 0.25) * 0.5)


def test_log_variance_is_clamped():
    autoencoder = AutoencoderKL(TINY)
    assert autoencoder.quant_conv is not None
    with torch.no_grad():
        autoencoder.quant_conv.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 1e3, -1e3, 0.0]))
        logvar = autoencoder.posterior(noise(1, 3, 16, 16, seed=0)).logvar
    assert (logvar[:, 0] == 20).all()
    assert (logvar[:, 1] == -30).all()


def test_rejects_image_sides_that_are_not_multiples_of_f():
    autoencoder = AutoencoderKL(TINY)
    assert autoencoder.downsample_factor == 4
    with pytest.raises(DaguerreError, match=r"18×16.*multiples of 4"):
        autoencoder.encode(torch.zeros(1, 3, 16, 18))


def test_compile_covers_encoder_and_decoder_but_not_the_latent_transform():
    torch.manual_seed(0)
    plain = AutoencoderKL(TINY)
    x, latent_transform = torch.rand(1, 3, 32, 32) * 2 - 1, lambda latent: latent.rot90(1, (-2, -1)).contiguous()
    expected, _ = plain(x, None, latent_transform)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]):
        graphs.append(graph)
        return graph.forward

    plain.compile(backend=backend)
    compiled_output, _ = plain(x, None, latent_transform)
    torch.testing.assert_close(compiled_output, expected)
    assert len(graphs) == 2  # encoder and decoder
    assert not any("rot90" in graph.code for graph in graphs)
