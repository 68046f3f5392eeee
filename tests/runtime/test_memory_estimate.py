"""The estimate against the live tensors of real calls, walked on the meta device."""

import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from daguerre.diffusion.conditioning import Conditioning
from daguerre.errors import DaguerreError
from daguerre.models import autoencoder_kl as autoencoders
from daguerre.models import clip
from daguerre.models import unet as unets
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.unet import UNet
from daguerre.nn.meta import shapes_only
from daguerre.runtime.memory_estimate import Way, decoder_peak, encoder_peak, estimate, free_memory, unet_peak, way


class Meter(TorchDispatchMode):
    """Counts the elements of all tensors that are alive, apart from a network's own, and keeps the highest count."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.own = {tensor.untyped_storage()._cdata for tensor in [*network.parameters(), *network.buffers()]}
        self.alive: dict[int, list[int]] = {}  # storage -> tensors on it, elements
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        self.peak = max(self.peak, self.now)
        return result

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() // tensor.itemsize
        if key in self.own:
            return
        if key not in self.alive:
            self.alive[key] = [0, size]
            self.now += size
        self.alive[key][0] += 1
        weakref.finalize(tensor, self.drop, key)

    def drop(self, key: int) -> None:
        self.alive[key][0] -= 1
        if not self.alive[key][0]:
            self.now -= self.alive.pop(key)[1]


class Fused(TorchFunctionMode):
    """Real devices never make the matrix of attention, nor what lies between the parts of a group norm; the meta device would."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            q, _, v = args[:3]
            return q.new_empty(*q.shape[:-1], v.shape[-1])
        if func is F.group_norm:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def counted(network: nn.Module, call: Callable[[], object]) -> int:
    meter = Meter(network)
    with torch.inference_mode(), Fused(), meter:
        call()
    return meter.peak


SMALL = replace(unets.SD1, channels=(64, 128, 256), depth=(1, 1, 0), heads=(8, 8, 8), context_width=32)
UNETS = {
    "SD 1": (unets.SD1, 64, 64),
    "SDXL's shape": (replace(unets.SDXL, channels=(64, 128, 256), depth=(0, 2, 4), mid_depth=4, heads=(1, 2, 4)), 128, 128),
    "upscaler's shape": (replace(unets.SD2_UPSCALER, channels=(64, 128, 128, 256)), 128, 96),
    "churches' shape": (replace(unets.LDM_CHURCHES, channels=(64, 128, 128, 256, 256)), 32, 32),
    "small": (SMALL, 16, 24),
    "one block a level": (replace(SMALL, blocks=1), 32, 32),
}


@pytest.mark.parametrize("name", UNETS)
def test_the_walk_of_a_unet_is_what_lives_in_a_call(name):
    config, height, width = UNETS[name]
    with shapes_only():
        network = UNet(config)
        cond = Conditioning(
            context=torch.empty(1, 77, config.context_width) if config.context_width else None,
            vector=torch.empty(1, config.vector_width) if config.vector_width else None,
            label=torch.zeros(1, dtype=torch.long) if config.classes else None,
        )
        x, t = torch.empty(1, config.in_channels, height, width), torch.zeros(1)
    lived = counted(network, lambda: network(x, t, cond))
    assert unet_peak(config, height, width) == pytest.approx(lived, rel=0.08)


AUTOENCODERS = {
    "SD": (autoencoders.VAE_SD, 64, 64),
    "SD, wide": (autoencoders.VAE_SD, 32, 128),
    "upscaler": (autoencoders.VAE_UPSCALER, 64, 64),
    "f16": (autoencoders.KL_F16, 16, 16),
    "small": (replace(autoencoders.VAE_SD, channels=(32, 64), blocks=1), 16, 16),
}


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_the_walk_of_an_autoencoder_is_what_lives_in_a_call(name):
    config, height, width = AUTOENCODERS[name]
    with shapes_only():
        network = AutoencoderKL(config)
        z = torch.empty(1, config.latent_channels, height, width)
        x = torch.empty(1, 3, height * network.downsample_factor, width * network.downsample_factor)
    assert decoder_peak(config, height, width) == pytest.approx(counted(network, lambda: network.decode(z)), rel=0.08)
    assert encoder_peak(config, *x.shape[2:]) == pytest.approx(counted(network, lambda: network.posterior(x)), rel=0.08)


SD1 = (unets.SD1, autoencoders.VAE_SD, (clip.CLIP_L,))
XL = (unets.SDXL, autoencoders.VAE_SDXL, (clip.CLIP_L, clip.OPENCLIP_BIGG))


def test_weights_are_the_published_numbers_of_parameters():
    weights = estimate(*SD1, width=512, height=512, dtype=torch.float16).weights
    assert weights == {"unet": 2 * 859_520_964, "vae": 2 * 83_653_863, "text_encoder": 2 * 123_060_480}
    assert round(estimate(*XL, width=1024, height=1024, dtype=torch.float16).weights["unet"] / 2e6) == 2567


def test_more_pixels_pictures_and_precision_need_more():
    plain = estimate(*SD1, width=512, height=512)
    assert estimate(*SD1, width=512, height=512, dtype=torch.float16).together < 0.51 * plain.together
    assert estimate(*SD1, width=512, height=512, conditions=1).unet < plain.unet
    assert estimate(*SD1, width=512, height=512, count=4).decode > 3.5 * plain.decode
    assert estimate(*SD1, width=1024, height=1024, tiled=True).decode < 1.2 * plain.decode
    assert plain.in_order < plain.together


def test_the_plainest_way_that_fits_is_taken():
    run = {"width": 1024, "height": 1024, "dtype": torch.float16}
    whole = estimate(*XL, **run).together
    assert way(*XL, free=2 * whole, **run) == Way(peak=whole)
    tiled = way(*XL, free=round(0.99 * whole / 0.9), **run)
    assert tiled.tiled
    assert not tiled.in_order
    assert way(*XL, free=2 * whole, in_order=True, **run).line == ""
    alone = way(*XL, free=round(0.95 * whole / 0.9), in_order=True, **run)
    assert (alone.in_order, alone.tiled, alone.guidance_in_turns) == (True, False, False)
    assert "one part in memory at a time" in alone.line
    assert "decoding in tiles" in tiled.line
    assert way(*XL, free=round(0.8 * whole / 0.9), **run).in_order
    assert way(*XL, free=whole // 100, loaded=whole, **run).peak <= whole
    assert way(*XL, free=2 * whole, low_memory=True, **run).line.endswith("as asked.")


def test_what_fits_in_no_way_is_refused_with_both_numbers():
    with pytest.raises(DaguerreError, match=r"4 × 2048×2048 pixels need about \d+\.\d GB .* and 1\.8 GB are free"):
        way(*SD1, width=2048, height=2048, count=4, free=2_000_000_000)


def test_free_memory_is_a_part_of_this_machine():
    assert 1 << 20 < free_memory() < 1 << 50
