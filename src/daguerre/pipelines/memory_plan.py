"""Doing the same with less memory: the network told of one picture at a time, and decoding in overlapping tiles.

Which way a run takes is settled from the estimate of `weights.estimate` before its first step, and said in one line where it is not the
plain one. What is estimated is what the run takes beside the weights, which are in memory by then.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from daguerre.diffusion import Conditioning
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines.images.preprocess import ImageSize
from daguerre.pipelines.request import Request
from daguerre.runtime.memory_estimate import TILE, free_memory, way

OVERLAP = 16  # latents that two tiles share, over which one passes into the other
Network = Callable[[Tensor, Tensor, Conditioning], Tensor]

log = logging.getLogger(__name__)


def with_memory_plan(model: LatentDiffusion, request: Request, size: ImageSize) -> Request:
    """The request, with `low_memory` where it is asked for or pictures of `size` (width, height) would not fit otherwise.

    Raises:
        DaguerreError: they fit in no way; tells what is needed and what there is.
    """
    if not isinstance(model.autoencoder, AutoencoderKL):
        return request
    taken = way(
        model.unet.config,
        model.autoencoder.config,
        width=size[0],
        height=size[1],
        free=free_memory(model.device),
        count=len(request.items),
        conditions=1 if request.guidance_scale == 1 else 2,
        dtype=model.dtype,
        loaded=0 if model.unet_offload_dtype else sum(_bytes(part) for part in (model.unet, model.autoencoder)),
        low_memory=request.low_memory,
        in_order=model.unet_offload_dtype is not None,
        in_turns=model.unet_offload_dtype,
    )
    if taken.line:
        log.warning(taken.line)
    return replace(request, low_memory=True) if taken.tiled or taken.guidance_in_turns else request


def _bytes(network: nn.Module) -> int:
    """Of the weights that are in memory."""
    return sum(weight.nbytes for weight in network.parameters() if not weight.is_meta)


def one_at_a_time(network: Network) -> Network:
    """A network that is told of one picture and one condition at a time."""

    def one_by_one(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        cond = cond.expand(len(x))
        return torch.cat([network(x[i : i + 1], t[i : i + 1], cond[i : i + 1]) for i in range(len(x))])

    return one_by_one


def tiled_decode(decode: Callable[[Tensor], Tensor], z: Tensor, *, tile: int = TILE, overlap: int = OVERLAP) -> Tensor:
    """Pictures (B, 3, H, W) of latents z (B, Z, h, w), decoded one picture and one tile of `tile` latents a side at a time.

    Where tiles overlap, each counts the more the further the place is from its edge, so no edge shows. Each tile has group norms of its
    own, so colours may differ a little from those of the whole.
    """
    pictures = []
    for one in z.split(1):
        rows, columns = _starts(z.shape[2], tile, overlap), _starts(z.shape[3], tile, overlap)
        picture = total = torch.zeros(())
        for top in rows:
            for left in columns:
                part = decode(one[..., top : top + tile, left : left + tile]).float()
                f = part.shape[2] // min(tile, z.shape[2])
                if not picture.ndim:
                    picture = part.new_zeros(*part.shape[:2], f * z.shape[2], f * z.shape[3])
                    total = part.new_zeros(picture.shape[2:])
                weight = _ramp(part.shape[2], f * overlap).to(part)[:, None] * _ramp(part.shape[3], f * overlap).to(part)
                place = slice(f * top, f * top + part.shape[2]), slice(f * left, f * left + part.shape[3])
                picture[:, :, place[0], place[1]] += part * weight
                total[place] += weight
        pictures.append(picture / total)
    return torch.cat(pictures)


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin: evenly over the length, each sharing at least `overlap` with the next."""
    if length <= tile:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def _ramp(length: int, overlap: int) -> Tensor:
    """Weights (length,) that rise from nearly 0 to 1 over the overlap at both ends."""
    place = torch.arange(length) + 0.5
    return (torch.minimum(place, length - place) / max(overlap, 1)).clamp(max=1)
