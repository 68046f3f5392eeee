"""How much memory a run needs, told from configs and the request before anything is loaded.

The peak of a network is found by walking its blocks and summing what is alive at once, in elements: the states kept for the way up,
what the callers still hold, and the working set of the block. Names of quantities: C channels, N = H·W places of a level.
`tests/weights/test_estimate.py` compares the walk with the live tensors of real calls.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.clip import CLIPText, CLIPTextConfig
from daguerre.models.unet import UNet, UNetConfig
from daguerre.nn import chunked_conv
from daguerre.nn.meta import shapes_only

SLACK = 1.25  # what allocators and the reordered copies inside convolutions add to the live tensors; measured on a CPU
KEPT_FREE = 0.1  # of the free memory, for everything else
PLAIN_ATTENTION = 8  # states alive in an attention block: its input, the norm, queries, keys, values and answers, and what they become
TILE = 64  # latents on a side of a tile, where decoding is cut into tiles


@dataclass(frozen=True)
class Estimate:
    """Bytes. weights: by part. text, unet, decode: the peak beside the weights in one call of each."""

    weights: Mapping[str, int]
    text: int
    unet: int
    decode: int

    @property
    def together(self) -> int:
        """The peak with all parts loaded."""
        return sum(self.weights.values()) + max(self.text, self.unet, self.decode)

    @property
    def in_order(self) -> int:
        """The peak where each part is loaded when it is needed and dropped after."""
        texts = sum(size for part, size in self.weights.items() if part.startswith("text"))
        return max(texts + self.text, self.weights["unet"] + self.unet, self.weights["vae"] + self.decode)


@dataclass(frozen=True)
class Way:
    """How a run is done. guidance_in_turns: one condition a call. tiled: decoding in tiles. in_order: one part in memory at a time."""

    guidance_in_turns: bool = False
    tiled: bool = False
    in_order: bool = False
    peak: int = 0
    line: str = ""  # what to tell the user; empty where nothing was switched


def estimate(
    unet: UNetConfig,
    autoencoder: AutoencoderKLConfig,
    texts: Sequence[CLIPTextConfig] = (),
    *,
    width: int,
    height: int,
    count: int = 1,
    conditions: int = 2,
    dtype: torch.dtype = torch.float32,
    tiled: bool = False,
    stored: torch.dtype | None = None,
) -> Estimate:
    """The memory of a run.

    Args:
        width, height: of the pictures, in pixels.
        count: pictures at once.
        conditions: that one call of the UNet holds for each picture; 2 with classifier-free guidance, 1 without.
        tiled: decode in tiles of 64 latents a side, one after the other.
        stored: the dtype of the UNet's weights, if it converts them in use.
    """
    stored = stored or dtype
    parts = {"unet": _size(unet), "vae": _size(autoencoder)}
    parts |= {f"text_encoder{f'_{i + 1}' if i else ''}": _size(config) for i, config in enumerate(texts)}
    factor = 2 ** (len(autoencoder.channels) - 1)
    h, w = -(-height // factor), -(-width // factor)
    th, tw, tiles = (min(h, TILE), min(w, TILE), 1) if tiled else (h, w, count)
    picture = autoencoder.out_channels * count * height * width

    def bytes_of(elements: float, part: str) -> int:
        # A convolution reorders its weights once more beside them, and what is converted lies there, too.
        copies = 2 if part == "unet" and stored != dtype else 1
        return round((elements * SLACK + copies * parts[part].largest) * dtype.itemsize)

    text = max((_text_peak(config) * count * conditions for config in texts), default=0.0)
    return Estimate(
        weights={part: size.parameters * (stored if part == "unet" else dtype).itemsize for part, size in parts.items()},
        text=round(text * SLACK * dtype.itemsize),
        unet=bytes_of(unet_peak(unet, h, w) * count * conditions, "unet"),
        decode=bytes_of(decoder_peak(autoencoder, th, tw) * tiles + (picture if tiled else 0), "vae"),
    )


class _Size(NamedTuple):
    """parameters: in all. largest: in the largest tensor."""

    parameters: int
    largest: int


@cache
def _size(config: UNetConfig | AutoencoderKLConfig | CLIPTextConfig) -> _Size:
    with shapes_only():
        match config:
            case UNetConfig():
                network: nn.Module = UNet(config)
            case AutoencoderKLConfig():
                network = AutoencoderKL(config)
            case _:
                network = CLIPText(config)
    sizes = [parameter.numel() for parameter in network.parameters()]
    return _Size(sum(sizes), max(sizes))


def unet_peak(config: UNetConfig, height: int, width: int) -> float:
    """Elements alive at once in a call for one latent of this size."""
    N = [height * width / 4**level for level in range(len(config.channels))]
    skips = [config.channels[0] * N[0]]
    held, x, peak = skips[0], config.channels[0], 0.0  # held: what the caller keeps, the input of the level

    def block(level: int, inside: int, out: int, depth: int) -> float:
        work = _resblock(inside, out, scale_shift=config.scale_shift)
        if depth:
            # GEGLU: input, its norm, 8C, and two products of 4C; around it the map and the block's first state.
            work = max(work, (20 if config.context_width else PLAIN_ATTENTION) * out)
        return work * N[level]

    for level, out in enumerate(config.channels):
        for _ in range(config.blocks):
            peak = max(peak, sum(skips) + block(level, x, out, config.depth[level]))
            skips.append(out * N[level])
            x = out
        if level < len(config.channels) - 1:
            skips.append(out * N[level + 1])
        held = out * N[min(level + 1, len(config.channels) - 1)]
    peak = max(peak, sum(skips) + held + block(len(config.channels) - 1, x, x, config.mid_depth))
    for level, out in reversed(list(enumerate(config.channels))):
        for _ in range(config.blocks + 1):
            skip = skips.pop()
            peak = max(peak, sum(skips) + held + block(level, x + round(skip / N[level]), out, config.depth[level]))
            x = out
        if level:
            peak = max(peak, sum(skips) + held + out * (N[level] + 2 * N[level - 1]))
            held = out * N[level - 1]
    return max(peak, held + 3 * x * N[0])


def decoder_peak(config: AutoencoderKLConfig, height: int, width: int) -> float:
    """Elements alive at once while a latent of this size is decoded."""
    last = len(config.channels) - 1
    by_rows = config.channels[0] * height * width * 4**last > chunked_conv.CHUNK_ELEMENTS
    x, held = config.channels[-1], 0.0
    peak = float(PLAIN_ATTENTION * x * height * width) if config.mid_attention else 0.0
    for level in range(last, -1, -1):
        N = height * width * 4 ** (last - level)
        out = config.channels[level]
        if by_rows:
            peak = max(peak, _by_rows(x, out, N), _enlarged(x, out, N) if level else 0)
            x = out
            continue
        for _ in range(config.blocks + 1):
            # The level's input stays with the caller; in its first block it is the block's own.
            peak = max(peak, _resblock(x, out) * N + (held if x == out else 0))
            x = out
        if level:
            peak = max(peak, held + out * (N + 8 * N))
        held = out * N * (4 if level else 1)
    return peak


def encoder_peak(config: AutoencoderKLConfig, height: int, width: int) -> float:
    """Elements alive at once while a picture of this size in pixels is encoded."""
    x, peak = config.channels[0], 0.0
    by_rows = x * height * width > chunked_conv.CHUNK_ELEMENTS
    for level, out in enumerate(config.channels):
        N = height * width / 4**level
        if by_rows:
            peak = max(peak, _by_rows(x, out, N))
        else:
            first, others = _resblock(x, out), _resblock(out, out) + x  # the level's input stays with the caller
            peak = max(peak, (max(first, others) if config.blocks > 1 else first) * N)
        x = out
    middle = x * height * width / 4 ** (len(config.channels) - 1)
    return max(peak, PLAIN_ATTENTION * middle) if config.mid_attention else peak


def _by_rows(inside: int, out: int, N: float) -> float:
    """The block's input, the map between its convolutions, another for the answer where it is wider, and what is made of some rows."""
    maps = inside + out + (out if out > inside else 0)
    return maps * N + 2 * min(max(inside, out) * N, chunked_conv.CHUNK_ELEMENTS)


def _enlarged(stored: int, out: int, N: float) -> float:
    """The map, in the memory of a wider one, the one of twice its sides, and some rows of that."""
    return (stored + 4 * out) * N + min(4 * out * N, chunked_conv.CHUNK_ELEMENTS)


def _resblock(inside: int, out: int, *, scale_shift: bool = False) -> int:
    """Its input, the norm of it and the first convolution's output; or its input with states of the output's width."""
    return max(2 * inside + out, inside + (3 if scale_shift else 2) * out)


def _text_peak(config: CLIPTextConfig) -> float:
    """All hidden states, and the widest layer twice."""
    return config.length * ((config.layers + 5) * config.width + 2 * config.mlp_width)


def free_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that can still be taken on a device: of the machine, and of the group of processes that this one is limited with."""
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


def way(
    unet: UNetConfig,
    autoencoder: AutoencoderKLConfig,
    texts: Sequence[CLIPTextConfig] = (),
    *,
    width: int,
    height: int,
    free: int,
    count: int = 1,
    conditions: int = 2,
    dtype: torch.dtype = torch.float32,
    loaded: int = 0,
    low_memory: bool = False,
    in_order: bool | None = None,
    in_turns: torch.dtype | None = None,
) -> Way:
    """The plainest way of doing a run that fits; arguments as for `estimate`.

    Args:
        free: bytes that can be taken.
        loaded: bytes of the model's weights that are in memory already, which the run need not take again.
        low_memory: take the smallest way, whether it is needed or not.
        in_order: whether the parts take turns in memory, where that is settled because the model is open; None: as is needed.
        in_turns: the dtype of the UNet's weights if they do.

    Raises:
        DaguerreError: no way fits; tells what is needed and what there is.
    """
    room = free * (1 - KEPT_FREE) + loaded
    smallest = Way(guidance_in_turns=conditions > 1, tiled=True, in_order=in_order is not False)
    orders = [each for each in (False, True) if in_order in (None, each)]
    ways = [Way(turns, tiled, each) for each in orders for turns, tiled in ((False, False), (False, True), (True, True))]
    peak = 0
    for plan in [smallest] if low_memory else ways:
        turns = 1 if plan.guidance_in_turns else conditions
        run = {"width": width, "height": height, "count": count, "conditions": turns, "dtype": dtype, "tiled": plan.tiled}
        together = estimate(unet, autoencoder, texts, **run).together
        peak = estimate(unet, autoencoder, texts, **run, stored=in_turns).in_order if plan.in_order else together
        if peak <= room:
            said = plan if low_memory or together > room else replace(plan, in_order=False)
            return replace(plan, peak=peak, line=_line(said, peak, room, forced=low_memory))
    raise DaguerreError(
        f"{count} × {width}×{height} pixels need about {_gigabytes(peak)} even in the smallest way, and {_gigabytes(room)} are free. "
        "Ask for fewer or smaller pictures, or for half precision."
    )


def _line(plan: Way, peak: int, room: float, *, forced: bool) -> str:
    names = {"guidance in turns": plan.guidance_in_turns, "decoding in tiles": plan.tiled, "one part in memory at a time": plan.in_order}
    switched = [name for name, holds in names.items() if holds]
    if not switched:
        return ""
    reason = "as asked" if forced else f"because {_gigabytes(room)} are free"
    return f"{', '.join(switched)}: about {_gigabytes(peak)}, {reason}."


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
