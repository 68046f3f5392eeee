"""The autoencoder's loss: reconstruction, a weak KL regularisation of the latent, and an optional discriminator.

    L = |x − x̂|·l1 + |x − x̂|²·l2 + |∇x − ∇x̂|·gradient + perceptual(x, x̂) + kl·KL(q(z|x) ‖ N(0, 1)) + λ·w·g
    λ = ‖∂rec/∂W‖ / (‖∂g/∂W‖ + 1e-4),  W the decoder's last convolution     (Esser et al. 2021, arXiv:2012.09841, eq. 6 and 7)

All terms are means over elements, so the weights do not depend on the image size. With `equivariance`, a share of the batches has its
latent scaled or rotated before the decoder, and the target is the image with the same transform. Diffusion models train faster on such
latents (Kouzelis et al. 2025, arXiv:2502.09509).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from daguerre.data import Batch, to_image
from daguerre.errors import DaguerreError
from daguerre.metrics import psnr
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.vq_model import VQModel
from daguerre.pipelines.images.grid import labelled_grid
from daguerre.training.batch_random import BatchRandom
from daguerre.training.config import AutoencoderLoss


class AutoencoderTask:
    """Trains an AutoencoderKL, with a PatchDiscriminator if one is given."""

    name = "autoencoder"
    ema_networks = ("autoencoder",)

    def __init__(
        self,
        autoencoder: AutoencoderKL | VQModel,
        weights: AutoencoderLoss,
        preview: Tensor,
        *,
        discriminator: nn.Module | None = None,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    ):
        """preview: the images (N, 3, H, W) of the sample grid. perceptual(x, x̂): a distance per image, (B,).

        Raises DaguerreError for a perceptual distance without a weight, or a weight without a distance.
        """
        self.networks: dict[str, nn.Module] = {"autoencoder": autoencoder}
        if discriminator is not None:
            self.networks["discriminator"] = discriminator
        if (perceptual is None) != (weights.perceptual_weight == 0):
            raise DaguerreError("A perceptual distance needs a weight above 0, and a weight needs a distance; give both or neither.")
        self.autoencoder, self.weights, self.preview, self.perceptual = autoencoder, weights, preview, perceptual

    def to(self, device: torch.device) -> None:
        self.autoencoder.to(device)  # tasks that train only a decoder leave the rest out of `networks`
        self.preview = self.preview.to(device)
        if isinstance(self.perceptual, nn.Module):
            self.perceptual.to(device)

    def losses(
        self, batch: Batch, networks: Mapping[str, nn.Module], random: BatchRandom, step: int
    ) -> Iterator[tuple[str, Tensor, Mapping[str, Tensor]]]:
        x, reconstruction, regularizer, values = self.reconstruct(batch.x.to(self.preview.device), networks, random, step)
        reconstruction = reconstruction.float()
        logged = {"l1": (x - reconstruction).abs().mean(), "psnr": psnr(x, reconstruction.clamp(-1, 1)).mean(), **values}
        rec = self.reconstruction_loss(x, reconstruction)
        loss = rec + regularizer
        ramp = self._adversarial_ramp(step)
        discriminator = networks["discriminator"] if ramp > 0 else None
        if discriminator is not None:
            with frozen(discriminator):
                g = -discriminator(reconstruction).mean()
            # The only backward pass through discriminator and perceptual network.
            rec, g = linearize(rec, reconstruction), linearize(g, reconstruction)
            adaptive = adaptive_weight(rec, g, self.autoencoder.last_layer, self.weights.max_adaptive_weight)
            loss = rec + regularizer + ramp * self.weights.adversarial_weight * adaptive * g
            logged |= {"g": g, "lambda": adaptive}
        yield "autoencoder", loss, {k: v.detach() for k, v in logged.items()}
        if discriminator is not None:
            real, fake = discriminator(x), discriminator(reconstruction.detach())
            d = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
            yield "discriminator", d, {"logits real": real.detach().mean(), "logits fake": fake.detach().mean()}

    def reconstruct(
        self, x: Tensor, networks: Mapping[str, nn.Module], random: BatchRandom, step: int
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """The target for images x, its reconstruction, the loss of the latent, and values to log."""
        transform = random_transform(random.generator) if torch.rand((), generator=random.generator) < self.weights.equivariance else None
        noise = random.normal(self.latent_shape(x), x.device)
        reconstruction, posterior = networks["autoencoder"](x, noise, transform)
        kl = posterior.kl().mean() / noise[0].numel()
        return transform(x) if transform else x, reconstruction, self.weights.kl_weight * kl, {"kl": kl}

    def latent_shape(self, x: Tensor) -> tuple[int, int, int]:
        """(Z, h, w) of the latents of images x (B, 3, H, W)."""
        f = self.autoencoder.downsample_factor
        return self.autoencoder.config.latent_channels, x.shape[2] // f, x.shape[3] // f

    def sample(self) -> Image.Image:
        """The preview images above their reconstructions, labelled with the PSNR."""
        with torch.no_grad():
            reconstruction = self.autoencoder.decode(self.autoencoder.encode(self.preview)).clamp(-1, 1)
        return paired_grid(self.preview, reconstruction, [f"{db:.1f} dB" for db in psnr(self.preview, reconstruction)])

    def reconstruction_loss(self, x: Tensor, reconstruction: Tensor) -> Tensor:
        """The weighted l1, l2, gradient and perceptual terms, a scalar."""
        w = self.weights
        loss = w.l1_weight * (x - reconstruction).abs().mean() + w.l2_weight * (x - reconstruction).square().mean()
        if w.gradient_weight:
            loss = loss + w.gradient_weight * gradient_distance(x, reconstruction)
        if self.perceptual is not None and w.perceptual_weight:
            loss = loss + w.perceptual_weight * self.perceptual(x, reconstruction).mean()
        return loss

    def _adversarial_ramp(self, step: int) -> float:
        if "discriminator" not in self.networks:
            return 0.0
        return min(1.0, max(0.0, (step - self.weights.adversarial_start + 1) / max(self.weights.adversarial_ramp, 1)))


def paired_grid(before: Tensor, after: Tensor, labels: Sequence[str]) -> Image.Image:
    """Each image of `before` above the matching image of `after`, which has the label; both (N, 3, H, W) in [−1, 1]."""
    return labelled_grid([to_image(x) for x in (*before, *after)], [*[""] * len(before), *labels], columns=len(before))


def gradient_distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean |∇x − ∇y| over horizontal and vertical finite differences of (B, C, H, W)."""
    d = x - y
    return (d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()) / 2


def adaptive_weight(rec: Tensor, g: Tensor, last_layer: Tensor, largest: float = 1e4) -> Tensor:
    """λ: scales the discriminator's gradient at the decoder's last layer to that of the reconstruction (arXiv:2012.09841, eq. 7)."""
    (of_rec,) = torch.autograd.grad(rec, last_layer, retain_graph=True)
    (of_g,) = torch.autograd.grad(g, last_layer, retain_graph=True)
    return (of_rec.norm() / (of_g.norm() + 1e-4)).clamp(0, largest).detach()


def linearize(value: Tensor, x: Tensor) -> Tensor:
    """A scalar with the same value and the same gradient at x, whose graph starts at x; later backward passes skip what is before it."""
    (slope,) = torch.autograd.grad(value, x)
    change = (slope * x).sum()
    return value.detach() + (change - change.detach())


def random_transform(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """A random scale (1, 3/4 or 1/2) and rotation by a multiple of 90°, to apply to both latents and images."""
    scale = (1.0, 0.75, 0.5)[int(torch.randint(3, (), generator=generator))]
    turns = int(torch.randint(4, (), generator=generator))

    def transform(x: Tensor) -> Tensor:
        if scale < 1:
            x = F.interpolate(x, scale_factor=scale, mode="bilinear", antialias=True)
        return x.rot90(turns, (-2, -1)).contiguous()  # one memory format, so that a compiled decoder compiles once per size

    return transform


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Inside the block no gradient reaches the network's parameters, but it still reaches the network's input."""
    trained = [p for p in network.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
