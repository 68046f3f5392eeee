"""The autoencoders before and beside the KL one, as stages: plain, variational, vector-quantised (VQ-VAE, and VQGAN with a critic).

    plain:            L = rec(x, x̂)                                               x̂ = decode(μ(x))
    variational:      L = −log₂ p(x|z) + KL(q(z|x) ‖ N(0, 1)) / ln 2  per number    (Kingma and Welling 2014, arXiv:1312.6114, eq. 3)
    vector-quantised: L = rec(x, x̂) + codebook + λ·w·g                             (Esser et al. 2021, arXiv:2012.09841, eq. 4 to 7)

The variational p(x|z) is a Gaussian around x̂ over the 256 values of a byte, as wide as the batch's error: the likeliest width of all
(Rybkin et al. 2021, arXiv:2006.13202, section 3.2).
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
from daguerre.training.grids import paired_grid
from daguerre.training.noise import normal
from daguerre.training.objectives.autoencoder import AutoencoderLoss, AutoencoderTask

BIN = 2 / 255  # from one value of a byte to the next, for pixels in [−1, 1]


class AutoencoderOnlyTask(AutoencoderTask):
    """Trains an AutoencoderKL as a plain autoencoder: its mean is the latent, nothing is drawn and nothing keeps it close to anything."""

    def reconstruct(self, x: Tensor, draw: torch.Generator, step: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        rebuilt, _ = self.networks["autoencoder"](x)
        return x, rebuilt, rebuilt.new_zeros(()), {}


class VariationalTask(AutoencoderTask):
    """Trains an AutoencoderKL on the evidence lower bound itself, in bits for each of a picture's numbers. No weights, no critic."""

    def __init__(self, autoencoder: AutoencoderKL, shown: Tensor):
        super().__init__(autoencoder, AutoencoderLoss(), shown)

    def losses(self, batch: Batch, draw: torch.Generator, step: int) -> Iterator[tuple[str, Tensor, Mapping[str, Tensor]]]:
        x = batch.x.to(self.shown.device)
        B, _, H, W = x.shape
        f, Z = self.plain.downsample_factor, self.plain.config.latent_channels
        noise = normal((B, Z, H // f, W // f), draw, x.device)
        rebuilt, posterior = self.networks["autoencoder"](x, noise)
        rebuilt = rebuilt.float()
        deviation = (x - rebuilt.detach()).square().mean().sqrt()
        loss = bits_per_number(x, rebuilt, posterior, deviation).mean()
        kl = posterior.kl().mean() / math.log(2) / x[0].numel()
        decibels = psnr(x, rebuilt.detach().clamp(-1, 1)).mean()
        yield "autoencoder", loss, {"bits/dim": loss.detach(), "kl bits/dim": kl.detach(), "psnr": decibels}


def bits_per_number(x: Tensor, rebuilt: Tensor, posterior: DiagonalGaussian, deviation: Tensor) -> Tensor:
    """The negative evidence lower bound of each picture, (B,), in bits for each of its C·H·W numbers. x holds bytes as [−1, 1]."""
    nats = -log_likelihood(x, rebuilt, deviation).flatten(1).sum(dim=1) + posterior.kl()
    return nats / math.log(2) / x[0].numel()


def log_likelihood(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """ln P(x) under N(mean, deviation²) rounded to the 256 values of a byte in [−1, 1]; all that lies beyond falls to the ends."""
    distance = (x - mean).abs()
    # By symmetry the bin may lie in the lower tail, where the logarithm is exact however far away it is.
    upper = torch.special.log_ndtr((BIN / 2 - distance) / deviation)
    lower = torch.special.log_ndtr((-BIN / 2 - distance) / deviation)
    inside = upper + (-torch.expm1(lower - upper)).log()
    at_end = torch.special.log_ndtr((BIN / 2 - x.sign() * (x - mean)) / deviation)
    return torch.where(x.abs() > 1 - BIN / 2, at_end, inside)


class QuantizedTask(AutoencoderTask):
    """Trains a VQModel: a VQ-VAE, or, against a PatchDiscriminator, a VQGAN."""

    name = "vq"
    modules: VQModel

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
        """Shown, discriminator and perceptual as in AutoencoderStage. Raises DaguerreError for options that a codebook has not.

        temperature: of a Gumbel codebook by step, see `cooled`.
        enters: the step before which the codebook is passed by, while the latent finds its form, and at which its codes are spread over
            the latents that there are (compare Łańcucki et al. 2020, arXiv:2005.08520); None for one that takes part at once.
        """
        if weights.equivariance:
            raise DaguerreError("A vector-quantised latent cannot be scaled or turned between encoder and decoder; set equivariance to 0.")
        super().__init__(autoencoder, weights, preview, discriminator=discriminator, perceptual=perceptual)
        if codebook_start is not None and isinstance(autoencoder.quantize, GumbelQuantizer):
            raise DaguerreError("A codebook of kind 'gumbel' has no distances to be spread by; let it take part from the first step.")
        self.quantizer, self.temperature, self.enters = autoencoder.quantize, temperature, codebook_start

    def reconstruct(self, x: Tensor, draw: torch.Generator, step: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        if isinstance(self.quantizer, GumbelQuantizer):
            self.quantizer.temperature = self.temperature(step)
        elif step == self.enters:
            with torch.no_grad():
                self.quantizer.init_codebook_from(self.modules.encode(x) / self.modules.config.scaling_factor, draw)
        rebuilt, codes, loss = self.networks["autoencoder"](x, quantized=step >= (self.enters or 0))
        use = code_use(codes, self.quantizer.config.codes)
        return x, rebuilt, loss, {"codebook": loss, "perplexity": use.perplexity, "use": use.share}

    def sample(self) -> Image.Image:
        """The shown pictures above their reconstructions, with the number of different codes in each."""
        with torch.no_grad():
            codes = self.modules.encode_codes(self.shown)
            rebuilt = self.modules.decode_codes(codes).clamp(-1, 1)
        each = zip(psnr(self.shown, rebuilt), codes, strict=True)
        return paired_grid(self.shown, rebuilt, [f"{db:.1f} dB, {len(grid.unique())} codes" for db, grid in each])


def cosine_anneal(steps: int, start: float = 1.0, end: float = 1 / 16) -> Callable[[int], float]:
    """A temperature that falls along half a cosine for `steps` steps, then stays (Ramesh et al. 2021, arXiv:2102.12092, appendix A.2)."""
    return lambda step: end + (start - end) * (1 + math.cos(math.pi * min(step / max(steps, 1), 1.0))) / 2
