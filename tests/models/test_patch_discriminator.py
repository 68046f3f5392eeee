"""PatchGAN: the published size, the reach of one output, and how it starts."""

import torch
from torch import nn

from daguerre.models.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig


def test_default_config_has_the_published_parameter_count():
    # pix2pix's 70×70 PatchGAN, which judges a pair of images.
    assert sum(p.numel() for p in PatchDiscriminator(PatchDiscriminatorConfig(in_channels=6)).parameters()) == 2_768_705


def test_receptive_field_is_seventy_pixels():
    critic = PatchDiscriminator(PatchDiscriminatorConfig(channels=4)).eval()
    x = torch.zeros(1, 3, 140, 140, requires_grad=True)
    logits = critic(x)
    assert logits.shape == (1, 1, 15, 15)
    # All weights positive: every pixel in reach has a gradient.
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.abs_()
    critic(x)[0, 0, 7, 7].backward()
    assert x.grad is not None
    assert int((x.grad[0, 0].abs().sum(dim=0) > 0).sum()) == 70


def test_initial_weights_are_small_normals():
    torch.manual_seed(0)
    critic = PatchDiscriminator(PatchDiscriminatorConfig())
    convolutions = torch.cat([m.weight.flatten() for m in critic.modules() if isinstance(m, nn.Conv2d)])
    gains = torch.cat([m.weight for m in critic.modules() if isinstance(m, nn.BatchNorm2d)])
    torch.testing.assert_close(convolutions.std(), torch.tensor(0.02), rtol=0.01, atol=0)
    torch.testing.assert_close(gains.mean(), torch.tensor(1.0), rtol=0, atol=0.005)
