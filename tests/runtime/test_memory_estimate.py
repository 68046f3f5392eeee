"""The estimate against the live tensors of real calls on a CPU."""

import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from daguerre.diffusion.conditioning import Conditioning
from daguerre.errors import DaguerreError
from daguerre.models import autoencoder_kl as autoencoders
from daguerre.models import clip
from daguerre.models import unet as unets
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.clip import CLIPText
from daguerre.models.unet import UNet
from daguerre.runtime.memory_estimate import (
    ACTIVATION_FACTOR,
    MemoryPlan,
    choose_memory_plan,
    decoder_peak,
    estimate,
    free_memory,
    text_peak,
    unet_peak,
)


class LiveElements(TorchDispatchMode):
    """Counts the elements of every tensor that an operator returns, as long as it lives."""

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


def live_elements(network: nn.Module, call: Callable[[], object]) -> int:
    mode = LiveElements(network)
    with torch.inference_mode(), mode:
        call()
    return mode.peak


def check(estimated: int, live: int) -> None:
    """The margin of the estimate covers the real call, and the estimate does not promise half as much again."""
    assert live / ACTIVATION_FACTOR <= estimated <= 1.5 * live


SMALL = replace(unets.SD1, channels=(64, 128, 256), depth=(1, 1, 0), heads=(8, 8, 8), context_width=32)
UNETS = {
    "SDXL's structure": replace(unets.SDXL, channels=(32, 64, 128), depth=(0, 2, 4), mid_depth=4, heads=(1, 2, 4), context_width=64),
    "the upscaler's structure": replace(unets.SD2_UPSCALER, channels=(64, 64, 64, 128)),
    "LDM churches' structure": replace(unets.LDM_CHURCHES, channels=(32, 64, 64, 96, 96)),
    "one block per level": replace(SMALL, blocks=1),
}


@pytest.mark.parametrize("name", UNETS)
def test_unet_estimate_matches_a_real_call(name):
    config, height, width = UNETS[name], 32, 48
    network = UNet(config)
    cond = Conditioning(
        context=torch.zeros(1, 77, config.context_width) if config.context_width else None,
        vector=torch.zeros(1, config.vector_width) if config.vector_width else None,
        label=torch.zeros(1, dtype=torch.long) if config.classes else None,
    )
    x, t = torch.zeros(1, config.in_channels, height, width), torch.zeros(1)
    check(unet_peak(config, height, width), live_elements(network, lambda: network(x, t, cond)))


AUTOENCODERS = {
    "in one piece": (replace(autoencoders.VAE_SD, channels=(32, 64), blocks=1), 16, 24),
    "f16": (replace(autoencoders.KL_F16, channels=(32, 32, 64, 64, 128)), 12, 16),
    "in chunks of rows": (replace(autoencoders.VAE_UPSCALER, channels=(32, 32, 64)), 96, 128),
}


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_decoder_estimate_matches_a_real_call(name):
    config, height, width = AUTOENCODERS[name]
    network, z = AutoencoderKL(config), torch.zeros(1, config.latent_channels, height, width)
    check(decoder_peak(config, height, width), live_elements(network, lambda: network.decode(z)))


def test_text_estimate_matches_a_real_call():
    config = replace(clip.CLIP_L, width=64, layers=3, heads=2, mlp_width=256, vocab_size=100)
    network, ids = CLIPText(config), torch.zeros(1, config.length, dtype=torch.long)
    check(text_peak(config), live_elements(network, lambda: network(ids)))


def test_estimating_does_not_import_the_compiler():
    """Several operators import it on the meta device, which takes seconds."""
    code = """
import sys
from daguerre.models import autoencoder_kl, clip, unet
from daguerre.runtime.memory_estimate import estimate
for config in (unet.SD1, unet.SDXL, unet.LDM_CHURCHES):
    estimate(config, autoencoder_kl.VAE_SD, [clip.CLIP_L], width=512, height=512)
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


SD1 = (unets.SD1, autoencoders.VAE_SD, (clip.CLIP_L,))
XL = (unets.SDXL, autoencoders.VAE_SDXL, (clip.CLIP_L, clip.OPENCLIP_BIGG))


def test_weights_are_the_published_numbers_of_parameters():
    weights = estimate(*SD1, width=512, height=512, dtype=torch.float16).weights
    assert weights == {"unet": 2 * 859_520_964, "vae": 2 * 83_653_863, "text_encoder": 2 * 123_060_480}
    assert round(estimate(*XL, width=1024, height=1024, dtype=torch.float16).weights["unet"] / 2e6) == 2567


def test_more_pixels_images_and_precision_need_more():
    plain = estimate(*SD1, width=512, height=512)
    assert estimate(*SD1, width=512, height=512, dtype=torch.float16).all_loaded < 0.51 * plain.all_loaded
    assert estimate(*SD1, width=512, height=512, conditions=1).unet < plain.unet
    assert estimate(*SD1, width=512, height=512, num_images=4).decode > 3.5 * plain.decode
    assert estimate(*SD1, width=1024, height=1024, tiled=True).decode < 1.2 * plain.decode
    assert plain.offloaded < plain.all_loaded


def test_the_fastest_plan_that_fits_is_chosen():
    run = {"width": 1024, "height": 1024, "dtype": torch.float16}
    all_loaded = estimate(*XL, **run).all_loaded
    assert choose_memory_plan(*XL, free=2 * all_loaded, **run) == MemoryPlan(peak=all_loaded)
    tiled = choose_memory_plan(*XL, free=round(0.99 * all_loaded / 0.9), **run)
    assert tiled.tiled
    assert not tiled.offload
    assert "decoding in tiles" in tiled.message
    assert choose_memory_plan(*XL, free=2 * all_loaded, offload=True, **run).message == ""
    offloaded = choose_memory_plan(*XL, free=round(0.95 * all_loaded / 0.9), offload=True, **run)
    assert (offloaded.offload, offloaded.tiled, offloaded.guidance_one_at_a_time) == (True, False, False)
    assert "one network in memory at a time" in offloaded.message
    assert choose_memory_plan(*XL, free=round(0.8 * all_loaded / 0.9), **run).offload
    assert choose_memory_plan(*XL, free=all_loaded // 100, loaded=all_loaded, **run).peak <= all_loaded
    assert choose_memory_plan(*XL, free=2 * all_loaded, low_memory=True, **run).message.endswith("as asked.")


def test_a_run_that_cannot_fit_is_refused_with_both_numbers():
    with pytest.raises(DaguerreError, match=r"4 × 2048×2048 pixels need about \d+\.\d GB .* and 1\.8 GB are free"):
        choose_memory_plan(*SD1, width=2048, height=2048, num_images=4, free=2_000_000_000)


def test_free_memory_is_between_a_megabyte_and_a_petabyte():
    assert 1 << 20 < free_memory() < 1 << 50
