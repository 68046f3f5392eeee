"""The loss of the decoder alone: sharper images from the same latents, so that every model with these latents improves.

    L = ‖x − decode(z)‖² + 0.1·perceptual(x, decode(z)),   z = encode(x), frozen        (means over elements)

Stable Diffusion's autoencoder was fine-tuned like this after its UNet had been trained (model card of stabilityai/sd-vae-ft-mse).

A tiny decoder (see `models.tiny_autoencoder`) learns the decoder itself, x̂ = decode(z):

    L = |x̂ − tiny(z)| + ‖x̂ − tiny(z)‖² + |∇x̂ − ∇tiny(z)| + 0.1·perceptual(x̂, tiny(z))
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor, nn

from daguerre.data import Batch
from daguerre.metrics import psnr
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.tiny_autoencoder import TinyDecoder
from daguerre.models.vq_model import VQModel
from daguerre.training.batch_random import BatchRandom
from daguerre.training.config import AutoencoderLoss
from daguerre.training.objectives.autoencoder import AutoencoderTask, paired_grid

TINY_LOSS = AutoencoderLoss()
DECODER_LOSS = AutoencoderLoss(l1_weight=0.0, l2_weight=1.0, gradient_weight=0.0)


class DecoderTask(AutoencoderTask):
    """Trains the decoder of a first stage; the encoder and the quantiser stay as they are."""

    name = "decoder"
    ema_networks = ("decoder",)

    def __init__(self, first_stage: AutoencoderKL | VQModel, preview: Tensor, perceptual: nn.Module | None = None, weight: float = 0.1):
        """preview: as in AutoencoderTask. weight: of the perceptual distance, if there is one."""
        super().__init__(
            first_stage, replace(DECODER_LOSS, perceptual_weight=weight if perceptual else 0.0), preview, perceptual=perceptual
        )
        self.networks = {"decoder": first_stage.decoder}

    def losses(
        self, batch: Batch, networks: Mapping[str, nn.Module], random: BatchRandom, step: int
    ) -> Iterator[tuple[str, Tensor, Mapping[str, Tensor]]]:
        x = batch.x.to(self.preview.device)
        reconstruction = networks["decoder"](decoder_input(self.autoencoder, x)).float()
        yield "decoder", self.reconstruction_loss(x, reconstruction), {"psnr": psnr(x, reconstruction.detach().clamp(-1, 1)).mean()}


class TinyDecoderTask(AutoencoderTask):
    """Distils the decoder of a first stage, which stays as it is, into a tiny one."""

    name = "tiny decoder"
    ema_networks = ("decoder",)

    def __init__(
        self,
        first_stage: AutoencoderKL | VQModel,
        decoder: TinyDecoder,
        preview: Tensor,
        perceptual: nn.Module | None = None,
        weight: float = 0.1,
    ):
        """preview: as in AutoencoderTask. weight: of the perceptual distance, if there is one."""
        super().__init__(first_stage, replace(TINY_LOSS, perceptual_weight=weight if perceptual else 0.0), preview, perceptual=perceptual)
        self.decoder = decoder
        self.networks = {"decoder": decoder}

    def losses(
        self, batch: Batch, networks: Mapping[str, nn.Module], random: BatchRandom, step: int
    ) -> Iterator[tuple[str, Tensor, Mapping[str, Tensor]]]:
        z, target = self.teach(batch.x.to(self.preview.device))
        decoded = networks["decoder"](z).float()
        yield "decoder", self.reconstruction_loss(target, decoded), {"psnr": psnr(target, decoded.detach().clamp(-1, 1)).mean()}

    @torch.no_grad()
    def teach(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The scaled latents (B, Z, h, w) of images x (B, 3, H, W), and what the decoder makes of them, (B, 3, H, W) in [−1, 1]."""
        z = self.autoencoder.encode(x)
        return z, self.autoencoder.decode(z).float().clamp(-1, 1)

    def sample(self) -> Image.Image:
        """What the decoder gives above what the tiny one gives, labelled with the PSNR between the two."""
        z, target = self.teach(self.preview)
        with torch.no_grad():
            decoded = self.decoder(z).float().clamp(-1, 1)
        return paired_grid(target, decoded, [f"{db:.1f} dB" for db in psnr(target, decoded)])


@torch.no_grad()
def decoder_input(first_stage: AutoencoderKL | VQModel, x: Tensor) -> Tensor:
    """The decoder's input (B, Z, h, w) for images x (B, 3, H, W)."""
    if isinstance(first_stage, VQModel):
        return first_stage.post_quant_conv(first_stage.quantize.lookup(first_stage.encode_codes(x)))
    mean = first_stage.posterior(x).mean
    return mean if first_stage.post_quant_conv is None else first_stage.post_quant_conv(mean)
