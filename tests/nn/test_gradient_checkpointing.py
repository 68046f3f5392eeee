"""Gradient checkpointing saves memory and changes nothing else."""

import pytest
import torch
from torch import Tensor

from daguerre.diffusion.conditioning import Conditioning
from daguerre.models.unet import UNet, UNetConfig
from daguerre.nn.gradient_checkpointing import checkpointed

CONFIG = UNetConfig(channels=(16, 32), blocks=1, depth=(1, 1), heads=(2, 4), context_width=12, norm_groups=4, dropout=0.3)


def saved_elements_and_gradients(unet: UNet, checkpoint: bool, half: bool) -> tuple[int, list[Tensor]]:
    """The number of elements saved for the backward pass, without the inputs of checkpointed blocks, and the gradients."""
    saved = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.numel() * (not isinstance(tensor, torch.nn.Parameter))
        return tensor

    def step() -> None:
        generator = torch.Generator().manual_seed(0)
        x, context = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 5, 12, generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=half), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            out = unet(x, torch.tensor([3.0, 700.0]), Conditioning(context))
            assert torch.is_autocast_cache_enabled() != checkpoint  # it would hold a half-precision copy of all weights
        (out.float() - 1).square().mean().backward()

    unet.zero_grad()
    torch.manual_seed(1)  # dropout
    if checkpoint:
        with checkpointed(unet):
            step()
    else:
        step()
    return saved, [parameter.grad for parameter in unet.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("half", [False, True])
def test_gradients_are_bit_identical_and_less_is_saved(half: bool):
    torch.manual_seed(0)
    unet = UNet(CONFIG)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    plain, gradients = saved_elements_and_gradients(unet, False, half)
    gradients = [gradient.clone() for gradient in gradients]
    light, again = saved_elements_and_gradients(unet, True, half)
    assert light < plain / 3
    assert len(gradients) == len(again) == len(list(unet.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))


def test_the_context_restores_everything_after_an_error():
    unet = UNet(CONFIG)

    def fail() -> None:
        with checkpointed(unet):
            assert "forward" in vars(unet.down_blocks[0].resnets[0])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not any("forward" in vars(module) for module in unet.modules())
    assert torch.is_autocast_cache_enabled()
