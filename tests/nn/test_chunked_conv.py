"""Layers computed some rows at a time against the same layers on the whole feature map."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from daguerre.nn.chunked_conv import group_moments, kernel_moments, plain_moments, resblock_inplace, should_chunk, upsample_chunked
from daguerre.nn.encoder_decoder import Decoder, Encoder
from daguerre.nn.norm import GroupNormSiLU
from daguerre.nn.resample import Upsample
from daguerre.nn.resblock import ResBlock
from tests.tolerance import assert_as_accurate, assert_rounded

CHUNK = 3 * 16 * 12  # three rows of a map with 16 channels and width 12


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)


def randomize(network: nn.Module) -> nn.Module:
    """Give every channel of every norm its own weight."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval()


@torch.no_grad()
@pytest.mark.parametrize("channels", [(16, 16), (16, 8), (16, 4)])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_residual_block_is_equal_and_reuses_the_memory_of_its_input(channels: tuple[int, int], batch: int):
    block = ResBlock(*channels, groups=4)
    randomize(block)
    x = noise(batch, channels[0], 11, 12)
    whole, truth, memory = block(x), copy.deepcopy(block).double()(x.double()), x.untyped_storage().data_ptr()
    chunked = resblock_inplace(block, x, CHUNK)
    assert_as_accurate(chunked, whole, truth)
    assert chunked.untyped_storage().data_ptr() == memory


@torch.no_grad()
@pytest.mark.parametrize("height", [1, 2, 3, 7])
def test_upsampling_is_equal(height: int):
    upsample = Upsample(16)
    randomize(upsample)
    x = noise(2, 16, height, 12)
    assert_as_accurate(upsample_chunked(upsample, x, CHUNK), upsample(x), copy.deepcopy(upsample).double()(x.double()))


@torch.no_grad()
@pytest.mark.parametrize("attention_levels", [(), (0,)])
def test_a_decoder_is_equal(attention_levels: tuple[int, ...]):
    decoder = Decoder(4, 3, (16, 32), 1, groups=4, attention_levels=attention_levels)
    randomize(decoder)
    z = noise(2, 4, 8, 6)
    assert_as_accurate(decoder.forward_chunked(z, CHUNK), decoder.forward_full(z), copy.deepcopy(decoder).double().forward_full(z.double()))


@torch.no_grad()
@pytest.mark.parametrize("blocks", [1, 2])
def test_an_encoder_is_equal(blocks: int):
    encoder = Encoder(3, 4, (8, 16, 16), blocks, groups=4)
    randomize(encoder)
    x = noise(2, 3, 24, 16)
    assert_as_accurate(encoder.forward_chunked(x, CHUNK), encoder.forward_full(x), copy.deepcopy(encoder).double().forward_full(x.double()))


@torch.no_grad()
def test_a_large_image_gives_the_same_result_by_default():
    decoder = Decoder(4, 3, (8, 8), 1, groups=4, mid_attention=False)
    randomize(decoder)
    z = noise(1, 4, 368, 368)
    assert should_chunk(8, (2 * 368) ** 2)
    assert_rounded(decoder(z), decoder.forward_full(z), 72 * 16)  # sums of 72 terms in 16 layers


@torch.no_grad()
@pytest.mark.parametrize("moments", [kernel_moments, plain_moments])
def test_moments_are_precise_far_from_zero(moments: Callable[[Tensor, int], tuple[Tensor, Tensor]]):
    x = noise(1, 8, 64, 32) + 3
    groups = x.double().unflatten(1, (2, 4))
    mean, variance = moments(x, 2)
    assert_rounded(mean, groups.mean((0, 2, 3, 4)), 4 * 64 * 32, dtype=torch.float32)
    assert_rounded(variance, groups.var((0, 2, 3, 4), correction=0), 4 * 64 * 32, dtype=torch.float32)


@torch.no_grad()
def test_chunks_of_moments_are_precise():
    x = noise(1, 8, 256, 128) + 3
    mean, variance = group_moments(GroupNormSiLU(2, 8, 1e-6), x, 1 << 14)
    groups = x.double().unflatten(1, (2, 4))
    assert_rounded(mean[::4], groups.mean((0, 2, 3, 4)), 4 * 16 * 128)
    assert_rounded(variance[::4], groups.var((0, 2, 3, 4), correction=0), 4 * 16 * 128)
