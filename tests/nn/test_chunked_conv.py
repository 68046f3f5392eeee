"""Maps some rows at a time against the same layers on the whole map."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from daguerre.nn import chunked_conv
from daguerre.nn.encoder_decoder import Decoder, Encoder
from daguerre.nn.norm import GroupNormSiLU
from daguerre.nn.resample import Upsample
from daguerre.nn.resblock import ResBlock


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_conv, "CHUNK_ELEMENTS", 3 * 16 * 12)  # three rows of a map of 16 channels and 12 places


def shaken(network: nn.Module) -> nn.Module:
    """Norms that differ from channel to channel."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval()


@torch.no_grad()
@pytest.mark.parametrize("channels", [(16, 16), (16, 8), (16, 4)])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_block_answers_the_same_in_the_memory_of_its_input(channels: tuple[int, int], batch: int):
    block = ResBlock(*channels, groups=4)
    shaken(block)
    x = noise(batch, channels[0], 11, 12)
    whole, memory = block(x), x.untyped_storage().data_ptr()
    answer = chunked_conv.resblock_inplace(block, x)
    torch.testing.assert_close(answer, whole, rtol=0, atol=1e-5)
    assert answer.untyped_storage().data_ptr() == memory


@torch.no_grad()
@pytest.mark.parametrize("height", [1, 2, 3, 7])
def test_an_enlargement_is_the_same(height: int):
    upsample = Upsample(16)
    shaken(upsample)
    x = noise(2, 16, height, 12)
    torch.testing.assert_close(chunked_conv.upsample_chunked(upsample, x), upsample(x), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("attention_levels", [(), (0,)])
def test_a_decoder_answers_the_same(attention_levels: tuple[int, ...]):
    decoder = Decoder(4, 3, (16, 32), 1, groups=4, attention_levels=attention_levels)
    shaken(decoder)
    z = noise(2, 4, 8, 6)
    whole = decoder.forward_full(z)
    torch.testing.assert_close(decoder(z), whole, rtol=0, atol=1e-5 * whole.abs().max().item())


@torch.no_grad()
@pytest.mark.parametrize("way", [chunked_conv.kernel_moments, chunked_conv.plain_moments])
def test_the_moments_are_precise_far_from_zero(way: Callable[[Tensor, int], tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch):
    """On a CPU and on a GPU."""
    monkeypatch.setattr(chunked_conv, "kernel_moments", way)
    monkeypatch.setattr(chunked_conv, "CHUNK_ELEMENTS", 1 << 14)
    x = noise(1, 8, 256, 128) + 3
    mean, variance = chunked_conv.group_moments(GroupNormSiLU(2, 8, 1e-6), x)
    groups = x.double().unflatten(1, (2, 4))
    torch.testing.assert_close(mean.double()[::4], groups.mean((0, 2, 3, 4)), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance.double()[::4], groups.var((0, 2, 3, 4), correction=0), rtol=1e-5, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("blocks", [1, 2])
def test_an_encoder_answers_the_same(blocks: int):
    encoder = Encoder(3, 4, (8, 16, 16), blocks, groups=4)
    shaken(encoder)
    x = noise(2, 3, 24, 16)
    whole = encoder.forward_full(x)
    torch.testing.assert_close(encoder(x), whole, rtol=0, atol=1e-5 * whole.abs().max().item())
