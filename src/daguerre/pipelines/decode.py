"""Latents into pictures: in full through the autoencoder's decoder, or at a glance through a linear map.

The glance is rgb ≈ A·z + b at each place, with A and b fitted to the decoder by least squares. Most of what a latent's channels hold
locally is colour, so this shows the picture at 1/f of its size for next to nothing.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.nn.cpu.prepack import prepack
from daguerre.pipelines.memory_plan import tiled_decode
from daguerre.runtime.overflow import retry_in_float32

PLACES, KINDS = 16, 4  # the map is fitted on latents of 16×16 places, of four kinds of roughness


class LatentDecoder:
    """Develops the latents (B, Z, h, w) of one model, with low memory in tiles.

    The linear map is fitted at the first glance, by decoding four small latents.
    """

    def __init__(self, model: LatentDiffusion, *, low_memory: bool = False) -> None:
        self._model, self._low_memory = model, low_memory
        self._map: Tensor | None = None

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in float32, about [−1, 1], of scaled latents z (B, Z, h, w)."""
        autoencoder = self._model.autoencoder
        z = z.to(self._model.device, self._model.dtype)
        decode = autoencoder.decode
        if isinstance(autoencoder, nn.Module) and z.dtype == torch.float32:
            decode = prepack(autoencoder, copies=False).decode  # it decodes once: nothing laid out would be met again
        decode = retry_in_float32(autoencoder, decode, "autoencoder")
        return tiled_decode(decode, z) if self._low_memory else decode(z).float()

    @torch.no_grad()
    def preview(self, z: Tensor) -> Tensor:
        """Small pictures (B, 3, h, w) in float32 of scaled latents z (B, Z, h, w)."""
        if self._map is None:
            self._map = self._fit(z.shape[1])
        return (_with_one(z.float().cpu()) @ self._map).movedim(-1, 1)  # (B, 3, h, w)

    def _fit(self, channels: int) -> Tensor:
        """The map (Z + 1, 3)."""
        z = _calibration_latents(channels)
        colours = F.avg_pool2d(self.decode(z).cpu().clamp(-1, 1), self._model.autoencoder.downsample_factor)  # (P, 3, h, w)
        return torch.linalg.lstsq(_with_one(z).flatten(0, 2), colours.movedim(1, -1).flatten(0, 2)).solution


def _calibration_latents(channels: int) -> Tensor:
    """Latents of unit variance in patches of 1, 2, 4 and 8 places, the same each time: (P, Z, h, w)."""
    generator = torch.Generator("cpu").manual_seed(0)
    kinds = [torch.randn(1, channels, PLACES >> i, PLACES >> i, generator=generator) for i in range(KINDS)]
    return torch.cat([F.interpolate(kind, size=(PLACES, PLACES)) for kind in kinds])


def _with_one(z: Tensor) -> Tensor:
    """(B, Z, h, w) to (B, h, w, Z + 1), the last being 1."""
    z = z.movedim(1, -1)
    return torch.cat([z, torch.ones_like(z[..., :1])], dim=-1)
