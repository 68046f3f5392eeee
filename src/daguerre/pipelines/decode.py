"""Latents to images: in full through the autoencoder's decoder, or as a preview through a tiny decoder or a linear map.

The linear map is rgb ≈ A·z + b at each latent position, with A and b fitted to the decoder by least squares. Most of what latent channels
hold locally is colour, so this shows the image at 1/f of its size at almost no cost, for models without a tiny decoder.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.tiny_autoencoder import TinyAutoencoder
from daguerre.nn.cpu.prepack import prepack
from daguerre.runtime.dtype import without_autocast
from daguerre.runtime.memory_estimate import TILE_SIZE
from daguerre.runtime.overflow import retry_in_float32

CALIBRATION_SIDE, CALIBRATION_IMAGES = 16, 4  # the linear map is fitted on 4 latents of 16×16, each with patches of another size
TILE_OVERLAP = 16  # latents shared by neighbouring tiles, over which one fades into the other


class LatentDecoder:
    """Decodes the latents (B, Z, h, w) of one model, in tiles if memory is low.

    The linear map is fitted at the first preview, by decoding four small latents.
    """

    def __init__(self, model: LatentDiffusion, *, low_memory: bool = False) -> None:
        self._model, self._low_memory = model, low_memory
        self._linear_map: Tensor | None = None  # (Z + 1, 3)

    @without_autocast()
    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Images (B, 3, H, W) in float32, about [−1, 1], of scaled latents z (B, Z, h, w)."""
        autoencoder = self._model.autoencoder
        z = z.to(self._model.device, self._model.dtype)
        decode = autoencoder.decode
        if isinstance(autoencoder, nn.Module) and z.dtype == torch.float32:
            decode = prepack(autoencoder, copies=False).decode  # no copies: they pay off only from the second call on
        decode = retry_in_float32(autoencoder, decode, "autoencoder")
        return tiled_decode(decode, z) if self._low_memory else decode(z).float()

    @without_autocast()
    @torch.no_grad()
    def preview(self, z: Tensor) -> Tensor:
        """Images in float32 of scaled latents z (B, Z, h, w): (B, 3, H, W) from a tiny decoder, else (B, 3, h, w)."""
        model = self._model
        if model.autoencoder.downsample_factor == 1 or isinstance(model.autoencoder, TinyAutoencoder):
            return self.decode(z)
        if model.preview_decoder is not None:
            return model.preview_decoder(z.to(model.device, model.dtype)).float()
        if self._linear_map is None:
            self._linear_map = self._fit(z.shape[1])
        return (_append_one(z.float().cpu()) @ self._linear_map).movedim(-1, 1)  # (B, 3, h, w)

    def _fit(self, channels: int) -> Tensor:
        """The linear map (Z + 1, 3)."""
        z = _calibration_latents(channels)
        colours = F.avg_pool2d(self.decode(z).cpu().clamp(-1, 1), self._model.autoencoder.downsample_factor)  # (B, 3, h, w)
        return torch.linalg.lstsq(_append_one(z).flatten(0, 2), colours.movedim(1, -1).flatten(0, 2)).solution


def tiled_decode(decode: Callable[[Tensor], Tensor], z: Tensor, *, tile: int = TILE_SIZE, overlap: int = TILE_OVERLAP) -> Tensor:
    """Images (B, 3, H, W) of latents z (B, Z, h, w), decoded one image and one tile of tile × tile latents at a time.

    Where tiles overlap, their weights fall towards their edges, so no seam is visible. Group norms are computed per tile, so colours may
    differ slightly from those of the whole image.
    """
    images = []
    for single in z.split(1):
        rows, columns = _tile_starts(z.shape[2], tile, overlap), _tile_starts(z.shape[3], tile, overlap)
        image = total = torch.zeros(())
        for top in rows:
            for left in columns:
                part = decode(single[..., top : top + tile, left : left + tile]).float()
                f = part.shape[2] // min(tile, z.shape[2])
                if not image.ndim:
                    image = part.new_zeros(*part.shape[:2], f * z.shape[2], f * z.shape[3])
                    total = part.new_zeros(image.shape[2:])
                weight = _edge_ramp(part.shape[2], f * overlap).to(part)[:, None] * _edge_ramp(part.shape[3], f * overlap).to(part)
                region = slice(f * top, f * top + part.shape[2]), slice(f * left, f * left + part.shape[3])
                image[:, :, region[0], region[1]] += part * weight
                total[region] += weight
        images.append(image / total)
    return torch.cat(images)


def _tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin: evenly over the length, each sharing at least `overlap` with the next."""
    if length <= tile:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def _edge_ramp(length: int, overlap: int) -> Tensor:
    """Weights (length,) that rise from nearly 0 at both ends to 1 over the overlap."""
    position = torch.arange(length) + 0.5
    return (torch.minimum(position, length - position) / max(overlap, 1)).clamp(max=1)


def _calibration_latents(channels: int) -> Tensor:
    """The same latents each time, of unit variance and constant in patches of 1, 2, 4 and 8 positions a side: (4, Z, 16, 16)."""
    generator = torch.Generator("cpu").manual_seed(0)
    coarse = [
        torch.randn(1, channels, CALIBRATION_SIDE >> i, CALIBRATION_SIDE >> i, generator=generator) for i in range(CALIBRATION_IMAGES)
    ]
    return torch.cat([F.interpolate(each, size=(CALIBRATION_SIDE, CALIBRATION_SIDE)) for each in coarse])


def _append_one(z: Tensor) -> Tensor:
    """(B, Z, h, w) to (B, h, w, Z + 1), the last channel being 1."""
    z = z.movedim(1, -1)
    return torch.cat([z, torch.ones_like(z[..., :1])], dim=-1)
