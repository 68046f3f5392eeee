"""Plain, variational and vector-quantised autoencoders (VQ-VAE, and VQGAN with a discriminator).

    plain:            L = rec(x, x̂)                                               x̂ = decode(μ(x))
    variational:      L = −log₂ p(x|z) + KL(q(z|x) ‖ N(0, 1)) / ln 2  per number    (Kingma and Welling 2014, arXiv:1312.6114, eq. 3)
    vector-quantised: L = rec(x, x̂) + codebook + λ·w·g                             (Esser et al. 2021, arXiv:2012.09841, eq. 4 to 7)

The variational p(x|z) is a Gaussian around x̂, discretised to the 256 values of a byte. Its standard deviation is the RMS error of the
batch, clamped to the range of pixels, which nearly maximises the likelihood (Rybkin et al. 2021, arXiv:2006.13202, section 3.2).
"""

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from PIL import Image
from torch import Tensor, nn

from daguerre.data import Batch
from daguerre.errors import DaguerreError
from daguerre.metrics import psnr
from daguerre.models.autoencoder_kl import AutoencoderKL, DiagonalGaussian
from daguerre.models.vector_quantizer import GumbelQuantizer, code_use
from daguerre.models.vq_model import VQModel
from daguerre.training.batch_random import BatchRandom
from daguerre.training.config import AutoencoderLoss
from daguerre.training.objectives.autoencoder import AutoencoderTask, paired_grid

BIN = 2 / 255  # from one value of a byte to the next, for pixels in [−1, 1]


class PlainAutoencoderTask(AutoencoderTask):
    """Trains an AutoencoderKL as a plain autoencoder: the latent is the mean, without noise and without regularisation."""

    def reconstruct(
        self, x: Tensor, networks: Mapping[str, nn.Module], random: BatchRandom, step: int
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        reconstruction, _ = networks["autoencoder"](x)
        return x, reconstruction, reconstruction.new_zeros(()), {}


class VariationalTask(AutoencoderTask):
    """Trains an AutoencoderKL on the evidence lower bound, in bits per number of the image. No loss weights, no discriminator."""

    def __init__(self, autoencoder: AutoencoderKL, preview: Tensor):
        super().__init__(autoencoder, AutoencoderLoss(), preview)

    def losses(
        self, batch: Batch, networks: Mapping[str, nn.Module], random: BatchRandom, step: int
    ) -> Iterator[tuple[str, Tensor, Mapping[str, Tensor]]]:
        x = batch.x.to(self.preview.device)
        reconstruction, posterior = networks["autoencoder"](x, random.normal(self.latent_shape(x), x.device))
        reconstruction = reconstruction.float()
        # The tails of the likelihood reward values beyond white and black, so σ is that of the clamped image; else both grow without end.
        deviation = (x - reconstruction.detach().clamp(-1, 1)).square().mean().sqrt()
        loss = bits_per_number(x, reconstruction, posterior, deviation).mean()
        kl = posterior.kl().mean() / math.log(2) / x[0].numel()
        decibels = psnr(x, reconstruction.detach().clamp(-1, 1)).mean()
        yield "autoencoder", loss, {"bits/dim": loss.detach(), "kl bits/dim": kl.detach(), "psnr": decibels}


def bits_per_number(x: Tensor, reconstruction: Tensor, posterior: DiagonalGaussian, deviation: Tensor) -> Tensor:
    """The negative evidence lower bound of each image, (B,), in bits per number (C·H·W of them). x holds bytes scaled to [−1, 1]."""
    nats = -log_likelihood(x, reconstruction, deviation).flatten(1).sum(dim=1) + posterior.kl()
    return nats / math.log(2) / x[0].numel()


def log_likelihood(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """ln P(x) under N(mean, deviation²) discretised to the 256 values of a byte in [−1, 1]; the outermost bins include the tails."""
    distance = (x - mean).abs()
    # By symmetry the bin may lie in the lower tail, where the logarithm is exact at any distance.
    upper = torch.special.log_ndtr((BIN / 2 - distance) / deviation)
    lower = torch.special.log_ndtr((-BIN / 2 - distance) / deviation)
    inner = upper + (-torch.expm1(lower - upper)).log()
    outermost = torch.special.log_ndtr((BIN / 2 - x.sign() * (x - mean)) / deviation)
    return torch.where(x.abs() > 1 - BIN / 2, outermost, inner)


class QuantizedTask(AutoencoderTask):
    """Trains a VQModel: a VQ-VAE, or with a PatchDiscriminator a VQGAN."""

    name = "vq"
    autoencoder: VQModel

    def __init__(
        self,
        autoencoder: VQModel,
        weights: AutoencoderLoss,
        preview: Tensor,
        *,
        discriminator: nn.Module | None = None,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
        temperature: Callable[[int], float] = lambda step: 1.0,
        codebook_start: int | None = None,
    ):
        """preview, discriminator, perceptual: as in AutoencoderTask. Raises DaguerreError for options that the codebook does not support.

        Args:
            temperature: of a Gumbel codebook by step, see `cosine_anneal`.
            codebook_start: before this step the latent is not quantised; at this step the codes are initialised from a batch of latents
                (compare Łańcucki et al. 2020, arXiv:2005.08520). None quantises from the first step, with random codes.
        """
        if weights.equivariance:
            raise DaguerreError("A vector-quantised latent cannot be scaled or rotated; set equivariance to 0.")
        super().__init__(autoencoder, weights, preview, discriminator=discriminator, perceptual=perceptual)
        if codebook_start is not None and isinstance(autoencoder.quantize, GumbelQuantizer):
            raise DaguerreError("codebook_start does not apply to a gumbel codebook, which has no distances; leave it out.")
        self.quantizer, self.temperature, self.codebook_start = autoencoder.quantize, temperature, codebook_start

    def reconstruct(
        self, x: Tensor, networks: Mapping[str, nn.Module], random: BatchRandom, step: int
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        if isinstance(self.quantizer, GumbelQuantizer):
            self.quantizer.temperature = self.temperature(step)
        elif step == self.codebook_start and self.autoencoder.training:
            with torch.no_grad():
                self.quantizer.init_codebook_from(self.autoencoder.encode(x) / self.autoencoder.config.scaling_factor, random.generator)
        reconstruction, codes, loss = networks["autoencoder"](x, quantized=step >= (self.codebook_start or 0))
        use = code_use(codes, self.quantizer.config.codes)
        return x, reconstruction, loss, {"codebook": loss, "perplexity": use.perplexity, "use": use.share}

    def sample(self) -> Image.Image:
        """The preview images above their reconstructions, labelled with the PSNR and the number of distinct codes."""
        with torch.no_grad():
            codes = self.autoencoder.encode_codes(self.preview)
            reconstruction = self.autoencoder.decode_codes(codes).clamp(-1, 1)
        rows = zip(psnr(self.preview, reconstruction), codes, strict=True)
        return paired_grid(self.preview, reconstruction, [f"{db:.1f} dB, {len(grid.unique())} codes" for db, grid in rows])


def cosine_anneal(steps: int, start: float = 1.0, end: float = 1 / 16) -> Callable[[int], float]:
    """A temperature that falls along half a cosine over `steps` steps, then stays (Ramesh et al. 2021, arXiv:2102.12092, appendix A.2)."""
    return lambda step: end + (start - end) * (1 + math.cos(math.pi * min(step / max(steps, 1), 1.0))) / 2
