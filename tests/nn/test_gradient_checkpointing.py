"""Gradient checkpointing saves memory and changes nothing else."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from daguerre.diffusion.conditioning import Conditioning
from daguerre.models.clip import CLIPText, CLIPTextConfig
from daguerre.models.pixelcnn import PixelCNN, PixelCNNConfig
from daguerre.models.pixelsnail import PixelSNAIL, PixelSNAILConfig
from daguerre.models.transformer_prior import TransformerPrior, TransformerPriorConfig
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


@pytest.mark.parametrize("name", ["transformer", "pixelcnn", "pixelsnail", "clip"])
def test_other_networks_have_blocks_with_the_same_gradients(name: str):
    networks: dict[str, Callable[[], torch.nn.Module]] = {
        "transformer": lambda: TransformerPrior(TransformerPriorConfig(codes=8, condition_codes=1, length=17, width=16, layers=2, heads=2)),
        "pixelcnn": lambda: PixelCNN(PixelCNNConfig(codes=8, width=8, layers=2)),
        "pixelsnail": lambda: PixelSNAIL(PixelSNAILConfig(codes=8, width=8, blocks=2, layers=1)),
        "clip": lambda: CLIPText(CLIPTextConfig(vocab_size=8, width=16, layers=2, heads=2, mlp_width=32, length=16, eos=7)),
    }
    torch.manual_seed(0)
    network, codes = networks[name](), torch.arange(16).view(1, 4, 4) % 8
    found = []
    for checkpoint in (False, True):
        with checkpointed(network) if checkpoint else nullcontext():
            out = network(codes.flatten(1)).last if name == "clip" else network(codes)
            assert any("forward" in vars(module) for module in network.modules()) == checkpoint
            out.square().mean().backward()
        found.append([p.grad for p in network.parameters() if p.grad is not None])
        network.zero_grad()
    assert found[0]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


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
