"""How much memory a run needs, from the configs and the request, before any weights are loaded; and which plan fits into it.

The peak of a network is measured: one call on the meta device, where tensors have shapes but no values, counts the elements that are
alive at the same time.
"""

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from daguerre.diffusion import Conditioning
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.clip import CLIPText, CLIPTextConfig
from daguerre.models.unet import UNet, UNetConfig
from daguerre.nn.meta import shapes_only

ACTIVATION_FACTOR = 1.25  # allocators and reordered copies inside convolutions, relative to the live tensors; measured on a CPU
USABLE_FACTOR = 0.9  # of the free memory; the rest is left to everything else
TILE_SIZE = 64  # latents on a side of a tile, if decoding is tiled
TEXT_TOKENS = 77

NetworkConfig = UNetConfig | AutoencoderKLConfig | CLIPTextConfig


@dataclass(frozen=True)
class Estimate:
    """Bytes. weights: per network. text, unet, decode: the peak of one call of each, without the weights."""

    weights: Mapping[str, int]
    text: int
    unet: int
    decode: int

    @property
    def all_loaded(self) -> int:
        """The peak with all networks in memory."""
        return sum(self.weights.values()) + max(self.text, self.unet, self.decode)

    @property
    def offloaded(self) -> int:
        """The peak if each network is in memory only while it runs."""
        texts = sum(size for name, size in self.weights.items() if name.startswith("text"))
        return max(texts + self.text, self.weights["unet"] + self.unet, self.weights["vae"] + self.decode)


@dataclass(frozen=True)
class MemoryPlan:
    """How a run saves memory.

    guidance_one_at_a_time: one condition per call of the UNet. tiled: decode in tiles. offload: one network in memory at a time.
    peak: estimated bytes. message: what to show the user; empty if nothing is saved.
    """

    guidance_one_at_a_time: bool = False
    tiled: bool = False
    offload: bool = False
    peak: int = 0
    message: str = ""


def estimate(
    unet: UNetConfig,
    autoencoder: AutoencoderKLConfig,
    texts: Sequence[CLIPTextConfig] = (),
    *,
    width: int,
    height: int,
    num_images: int = 1,
    conditions: int = 2,
    dtype: torch.dtype = torch.float32,
    tiled: bool = False,
    unet_offload_dtype: torch.dtype | None = None,
) -> Estimate:
    """Estimate the memory of a run.

    Args:
        width, height: of the images, in pixels.
        num_images: images per batch.
        conditions: per image in one call of the UNet; 2 with classifier-free guidance, 1 without.
        tiled: decode in tiles of 64×64 latents, one after the other.
        unet_offload_dtype: dtype of the UNet's weights in memory, if its layers convert them in use. Default: `dtype`.
    """
    stored = unet_offload_dtype or dtype
    sizes = {"unet": _size(unet), "vae": _size(autoencoder)}
    sizes |= {f"text_encoder{f'_{i + 1}' if i else ''}": _size(config) for i, config in enumerate(texts)}
    factor = 2 ** (len(autoencoder.channels) - 1)
    h, w = -(-height // factor), -(-width // factor)
    tile_h, tile_w, at_once = (min(h, TILE_SIZE), min(w, TILE_SIZE), 1) if tiled else (h, w, num_images)
    output = autoencoder.out_channels * num_images * height * width if tiled else 0
    # A convolution reorders a copy of its weight, and a layer that converts its weight in use holds another one.
    unet_copies = (1 + (stored != dtype)) * sizes["unet"].largest
    text = max((text_peak(config) for config in texts), default=0) * num_images * conditions
    decode = decoder_peak(autoencoder, tile_h, tile_w) * at_once + output
    return Estimate(
        weights={name: size.parameters * (stored if name == "unet" else dtype).itemsize for name, size in sizes.items()},
        text=round(text * ACTIVATION_FACTOR * dtype.itemsize),
        unet=round((unet_peak(unet, h, w) * num_images * conditions * ACTIVATION_FACTOR + unet_copies) * dtype.itemsize),
        decode=round((decode * ACTIVATION_FACTOR + sizes["vae"].largest) * dtype.itemsize),
    )


@cache
def unet_peak(config: UNetConfig, height: int, width: int) -> int:
    """Elements alive at the same time in a call for one latent (Z, height, width)."""
    unet = _on_meta(config)
    x, t = _empty(1, config.in_channels, height, width), _empty(1)
    cond = Conditioning(
        context=_empty(1, TEXT_TOKENS, config.context_width) if config.context_width else None,
        vector=_empty(1, config.vector_width) if config.vector_width else None,
        label=_empty(1, dtype=torch.long) if config.classes else None,
    )
    return peak_elements(unet, lambda: unet(x, t, cond))


@cache
def decoder_peak(config: AutoencoderKLConfig, height: int, width: int) -> int:
    """Elements alive at the same time while one latent (Z, height, width) is decoded."""
    autoencoder, z = _on_meta(config), _empty(1, config.latent_channels, height, width)
    assert isinstance(autoencoder, AutoencoderKL)
    return peak_elements(autoencoder, lambda: autoencoder.decode(z))


@cache
def text_peak(config: CLIPTextConfig) -> int:
    """Elements alive at the same time while one prompt is encoded."""
    encoder, ids = _on_meta(config), _empty(1, config.length, dtype=torch.long)
    return peak_elements(encoder, lambda: encoder(ids))


def peak_elements(network: nn.Module, call: Callable[[], object]) -> int:
    """Elements of all tensors alive at the same time during `call` on the meta device, without the network's own."""
    meter = _Meter(network)
    with torch.inference_mode(), meter:
        call()
    return meter.peak


class _Meter(TorchFunctionMode):
    """Counts the elements of the tensors that torch functions return, as long as they live."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.own = {tensor.untyped_storage()._cdata for tensor in [*network.parameters(), *network.buffers()]}
        self.tensors: dict[int, int] = {}  # storage -> living tensors on it
        self.now = self.peak = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = _call_on_meta(func, args, kwargs or {})
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        self.peak = max(self.peak, self.now)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, elements = storage._cdata, storage.nbytes() // tensor.itemsize
        if key in self.own:
            return
        if key not in self.tensors:
            self.tensors[key] = 0
            self.now += elements
        self.tensors[key] += 1
        weakref.finalize(tensor, self._drop, key, elements)

    def _drop(self, key: int, elements: int) -> None:
        self.tensors[key] -= 1
        if not self.tensors[key]:
            del self.tensors[key]
            self.now -= elements


SAME_SHAPE = {"batch_norm", "group_norm", "layer_norm", "silu", "gelu", "sigmoid", "exp", "cos", "sin", "square", "__eq__"}
BROADCAST = {"add", "sub", "mul", "div"}


def _call_on_meta(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """func(*args, **kwargs). Functions that are slow on the meta device, or import the compiler there, only compute their shapes."""
    name: str = func.__name__
    first: Any = args[0] if args else None
    if name == "arange":
        return _empty(len(range(*args)), dtype=kwargs.get("dtype") or torch.long)
    if name == "stack" and not kwargs:
        return first[0].new_empty(len(first), *first[0].shape)
    if name == "cat":
        shape = [*first[0].shape]
        dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        shape[dim] = sum(part.shape[dim] for part in first)
        return first[0].new_empty(shape)
    if not isinstance(first, Tensor):
        return func(*args, **kwargs)
    if name == "add_" or (name in SAME_SHAPE and kwargs.get("inplace")):
        return first
    if name in SAME_SHAPE or (name in BROADCAST and getattr(args[1], "shape", first.shape) == first.shape):
        channels_last = first.ndim == 4 and first.is_contiguous(memory_format=torch.channels_last)
        return torch.empty(first.shape, device="meta", memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    if name in BROADCAST:
        return first.new_empty(np.broadcast_shapes(first.shape, args[1].shape))
    if name == "conv2d":
        weight, _, stride, padding = args[1:5]
        sides = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(first.shape[2:], weight.shape[2:], stride, padding, strict=True)]
        return first.new_empty(len(first), len(weight), *sides)
    if name == "interpolate":
        return first.new_empty(*first.shape[:2], *(kwargs.get("size") or [int(n * kwargs["scale_factor"]) for n in first.shape[2:]]))
    if name == "embedding":
        return args[1].new_empty(*first.shape, args[1].shape[1])
    if name == "linear":
        return first.new_empty(*first.shape[:-1], len(args[1]))
    if name == "scaled_dot_product_attention":
        return first.new_empty(*first.shape[:-1], args[2].shape[-1])
    if name == "var_mean":
        mean = first.new_empty([n for i, n in enumerate(first.shape) if i not in kwargs["dim"]])
        return mean, mean.clone()
    return func(*args, **kwargs)


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


class _Size(NamedTuple):
    """parameters: in all. largest: in the largest tensor."""

    parameters: int
    largest: int


@cache
def _size(config: NetworkConfig) -> _Size:
    sizes = [parameter.numel() for parameter in _on_meta(config).parameters()]
    return _Size(sum(sizes), max(sizes))


@cache
def _on_meta(config: NetworkConfig) -> nn.Module:
    with shapes_only():
        match config:
            case UNetConfig():
                return UNet(config)
            case AutoencoderKLConfig():
                return AutoencoderKL(config)
            case CLIPTextConfig():
                return CLIPText(config)


def free_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that are free on a device. On a CPU, the limit of this process' control group counts, too."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = []
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        limits.append(int(fields["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):  # not Linux
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    try:
        group = Path("/sys/fs/cgroup")
        limits.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no such group, or no limit
        pass
    return max(0, min(limits))


def choose_memory_plan(
    unet: UNetConfig,
    autoencoder: AutoencoderKLConfig,
    texts: Sequence[CLIPTextConfig] = (),
    *,
    width: int,
    height: int,
    free: int,
    num_images: int = 1,
    conditions: int = 2,
    dtype: torch.dtype = torch.float32,
    loaded: int = 0,
    low_memory: bool = False,
    offload: bool | None = None,
    unet_offload_dtype: torch.dtype | None = None,
) -> MemoryPlan:
    """Choose the fastest plan that fits into the free memory; the other arguments are those of `estimate`.

    Args:
        free: free bytes.
        loaded: bytes of the model's weights that are in memory already.
        low_memory: take the plan that needs the least, whether it is necessary or not.
        offload: whether one network is in memory at a time, if the model is open and this is settled. None: if necessary.
        unet_offload_dtype: counts only with offload.

    Raises:
        DaguerreError: no plan fits; states what is needed and what is free.
    """
    available = free * USABLE_FACTOR + loaded
    smallest = MemoryPlan(conditions > 1, tiled=True, offload=offload is not False)
    offloads = [choice for choice in (False, True) if offload in (None, choice)]
    plans = [MemoryPlan(split, tiled, choice) for choice in offloads for split, tiled in ((False, False), (False, True), (True, True))]
    run: dict[str, Any] = {"width": width, "height": height, "num_images": num_images, "dtype": dtype}
    peak = 0
    for plan in [smallest] if low_memory else plans:
        run |= {"conditions": 1 if plan.guidance_one_at_a_time else conditions, "tiled": plan.tiled}
        peak = all_loaded = estimate(unet, autoencoder, texts, **run).all_loaded
        if plan.offload:
            peak = estimate(unet, autoencoder, texts, **run, unet_offload_dtype=unet_offload_dtype).offloaded
        if peak <= available:
            offload_is_needed = plan.offload and (low_memory or all_loaded > available)
            reason = "as asked" if low_memory else f"because {_gigabytes(available)} are free"
            return replace(plan, peak=peak, message=_message(plan, peak, reason, offload=offload_is_needed))
    raise DaguerreError(
        f"{num_images} × {width}×{height} pixels need about {_gigabytes(peak)} even with all memory savings, and "
        f"{_gigabytes(available)} are free. Generate fewer or smaller images, or use half precision."
    )


def _message(plan: MemoryPlan, peak: int, reason: str, *, offload: bool) -> str:
    names = {
        "guidance one condition at a time": plan.guidance_one_at_a_time,
        "decoding in tiles": plan.tiled,
        "one network in memory at a time": offload,
    }
    saved = [name for name, is_on in names.items() if is_on]
    return f"{', '.join(saved)}: about {_gigabytes(peak)}, {reason}." if saved else ""


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
