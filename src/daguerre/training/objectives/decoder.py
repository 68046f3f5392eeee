"""Only the decoder: sharper pictures from the same latents, so that every model which makes such latents gains.

    L = ‖x − decode(z)‖² + 0.1·perceptual(x, decode(z)),   z = encode(x) as it was        (means over elements)

As Stable Diffusion's autoencoder was tuned after its UNet had been trained (stabilityai's sd-vae-ft-mse, model card).
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from daguerre.data import Batch
from daguerre.metrics import psnr
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.vq_model import VQModel
from daguerre.training.objectives.autoencoder import AutoencoderLoss, AutoencoderTask

DECODER_LOSS = AutoencoderLoss(l1=0.0, l2=1.0, gradient=0.0)


class DecoderTask(AutoencoderTask):
    """Trains the decoder of a first stage; all that lies before it is read and never moved."""

    name = "decoder"
    ema_networks = ("decoder",)

    def __init__(self, first_stage: AutoencoderKL | VQModel, preview: Tensor, perceptual: nn.Module | None = None, weight: float = 0.1):
        """`weight` of the distance `perceptual`, where there is one; `shown` as in AutoencoderStage."""
        super().__init__(first_stage, replace(DECODER_LOSS, perceptual=weight if perceptual else 0.0), preview, perceptual=perceptual)
        self.networks = {"decoder": first_stage.decoder}

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.plain.to(device)

    def losses(self, batch: Batch, draw: torch.Generator, step: int) -> Iterator[tuple[str, Tensor, Mapping[str, Tensor]]]:
        x = batch.x.to(self.shown.device)
        rebuilt = self.networks["decoder"](decoder_input(self.plain, x)).float()
        yield "decoder", self._reconstruction(x, rebuilt), {"psnr": psnr(x, rebuilt.detach().clamp(-1, 1)).mean()}


@torch.no_grad()
def decoder_input(first_stage: AutoencoderKL | VQModel, x: Tensor) -> Tensor:
    """What the decoder is given of pictures x (B, 3, H, W): (B, Z, h, w)."""
    if isinstance(first_stage, VQModel):
        return first_stage.post_quant_conv(first_stage.quantize.lookup(first_stage.encode_codes(x)))
    mean = first_stage.posterior(x).mean
    return mean if first_stage.post_quant_conv is None else first_stage.post_quant_conv(mean)
