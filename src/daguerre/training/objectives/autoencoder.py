"""The autoencoder's loss: rebuild the picture, keep the latent close to a unit Gaussian, and, if wanted, fool a critic.

    L = |x − x̂|·l1 + |x − x̂|²·l2 + |∇x − ∇x̂|·gradient + perceptual(x, x̂) + kl·KL(q(z|x) ‖ N(0, 1)) + λ·w·g
    λ = ‖∂rec/∂W‖ / (‖∂g/∂W‖ + 1e-4),  W the decoder's last convolution     (Esser et al. 2021, arXiv:2012.09841, eq. 6 and 7)

All terms are means over elements, so the weights do not depend on the size of the picture. With `equivariance` a share of the batches has
its latent scaled or turned between encoder and decoder and must decode to the picture scaled or turned alike, which makes latents that
diffusion learns faster (Kouzelis et al. 2025, arXiv:2502.09509).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from daguerre.data import Batch
from daguerre.errors import DaguerreError
from daguerre.metrics import psnr
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.vq_model import VQModel
from daguerre.training.grids import paired_grid
from daguerre.training.lineage_options import AutoencoderLoss
from daguerre.training.noise import normal


class AutoencoderTask:
    """Trains an AutoencoderKL, against a PatchDiscriminator where one is given."""

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
        """`shown` (N, 3, H, W) are pictures for the sample grid; `perceptual(x, x̂)` gives a distance per picture."""
        self.networks: dict[str, nn.Module] = {"autoencoder": autoencoder}
        if discriminator is not None:
            self.networks["discriminator"] = discriminator
        if (perceptual is None) != (weights.perceptual == 0):
            raise DaguerreError("A perceptual weight and a perceptual distance go together; give both or neither.")
        self.plain, self.weights, self.shown, self.perceptual = autoencoder, weights, preview, perceptual

    def to(self, device: torch.device) -> None:
        self.shown = self.shown.to(device)
        if isinstance(self.perceptual, nn.Module):
            self.perceptual.to(device)

    def losses(self, batch: Batch, draw: torch.Generator, step: int) -> Iterator[tuple[str, Tensor, Mapping[str, Tensor]]]:
        x, rebuilt, regularizer, values = self.reconstruct(batch.x.to(self.shown.device), draw, step)
        rebuilt = rebuilt.float()
        logged = {"l1": (x - rebuilt).abs().mean(), "psnr": psnr(x, rebuilt.clamp(-1, 1)).mean(), **values}
        rec = self._reconstruction(x, rebuilt)
        loss = rec + regularizer
        rise = self._adversarial_ramp(step)
        critic = self.networks["discriminator"] if rise > 0 else None
        if critic is not None:
            with frozen(critic):
                g = -critic(rebuilt).mean()
            rec, g = linearize(rec, rebuilt), linearize(g, rebuilt)  # critic and perceptual network are gone back through only here
            lam = adaptive_weight(rec, g, self.plain.last_layer, self.weights.largest_lambda)
            loss = rec + regularizer + rise * self.weights.adversarial * lam * g
            logged |= {"g": g, "lambda": lam}
        yield "autoencoder", loss, {k: v.detach() for k, v in logged.items()}
        if critic is not None:
            real, fake = critic(x), critic(rebuilt.detach())
            d = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
            yield "discriminator", d, {"logits real": real.detach().mean(), "logits fake": fake.detach().mean()}

    def reconstruct(self, x: Tensor, draw: torch.Generator, step: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """What is to be rebuilt of pictures x, its reconstruction, the loss of the latent itself, and values to log."""
        change = latent_change(draw) if torch.rand((), generator=draw) < self.weights.equivariance else None
        B, _, H, W = x.shape
        f, Z = self.plain.downsample_factor, self.plain.config.latent_channels
        noise = normal((B, Z, H // f, W // f), draw, x.device)
        rebuilt, posterior = self.networks["autoencoder"](x, noise, change)
        kl = posterior.kl().mean() / noise[0].numel()
        return change(x) if change else x, rebuilt, self.weights.kl * kl, {"kl": kl}

    def sample(self) -> Image.Image:
        """The shown pictures above their reconstructions."""
        with torch.no_grad():
            rebuilt = self.plain.decode(self.plain.encode(self.shown)).clamp(-1, 1)
        return paired_grid(self.shown, rebuilt, [f"{db:.1f} dB" for db in psnr(self.shown, rebuilt)])

    def _adversarial_ramp(self, step: int) -> float:
        if "discriminator" not in self.networks:
            return 0.0
        return min(1.0, max(0.0, (step - self.weights.adversarial_start + 1) / max(self.weights.adversarial_ramp, 1)))

    def _reconstruction(self, x: Tensor, rebuilt: Tensor) -> Tensor:
        w = self.weights
        loss = w.l1 * (x - rebuilt).abs().mean() + w.l2 * (x - rebuilt).square().mean()
        if w.gradient:
            loss = loss + w.gradient * gradient_distance(x, rebuilt)
        if self.perceptual is not None and w.perceptual:
            loss = loss + w.perceptual * self.perceptual(x, rebuilt).mean()
        return loss


def gradient_distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean |∇x − ∇y| over horizontal and vertical finite differences of (B, C, H, W)."""
    d = x - y
    return (d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()) / 2


def adaptive_weight(rec: Tensor, g: Tensor, last_layer: Tensor, largest: float = 1e4) -> Tensor:
    """λ: makes the critic's gradient at the decoder's last layer as large as the reconstruction's (arXiv:2012.09841, eq. 7)."""
    (of_rec,) = torch.autograd.grad(rec, last_layer, retain_graph=True)
    (of_g,) = torch.autograd.grad(g, last_layer, retain_graph=True)
    return (of_rec.norm() / (of_g.norm() + 1e-4)).clamp(0, largest).detach()


def linearize(value: Tensor, x: Tensor) -> Tensor:
    """A scalar of the same value and the same gradient at x, whose graph begins there: what computed it need not be gone through again."""
    (slope,) = torch.autograd.grad(value, x)
    change = (slope * x).sum()
    return value.detach() + (change - change.detach())


def latent_change(draw: torch.Generator) -> Callable[[Tensor], Tensor]:
    """A random scale (1, 3/4 or 1/2) and number of quarter turns, to be done to latents and pictures alike."""
    scale = (1.0, 0.75, 0.5)[int(torch.randint(3, (), generator=draw))]
    turns = int(torch.randint(4, (), generator=draw))

    def change(x: Tensor) -> Tensor:
        if scale < 1:
            x = F.interpolate(x, scale_factor=scale, mode="bilinear", antialias=True)
        return x.rot90(turns, (-2, -1)).contiguous()  # one order of memory, so that a compiled decoder is compiled once a size

    return change


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Inside the block no gradient reaches the network's parameters, though it passes through to its input."""
    trained = [p for p in network.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
