"""The forward process on one image, and what a network makes of it at each timestep t:

    x_t = √ᾱ·x0 + √(1−ᾱ)·ε        →  predicted ε and x0        (Ho et al. 2020, arXiv:2006.11239, eq. 4 and 15)

In a latent diffusion model x0 is the latent of the image, and everything is decoded to be seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from daguerre.data.images import to_image
from daguerre.diffusion import Conditioning, Denoiser, generators, randn_per_image, to_variance_preserving
from daguerre.errors import DaguerreError
from daguerre.metrics import psnr
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines.capabilities import check_capability
from daguerre.pipelines.context import add_noise_at
from daguerre.pipelines.decode import LatentDecoder
from daguerre.pipelines.images.grid import image_table
from daguerre.pipelines.latents import encode
from daguerre.pipelines.tasks import TextToImage
from daguerre.runtime.dtype import without_autocast


@dataclass(frozen=True)
class NoisePrediction:
    """A noisy latent and the prediction from it; all tensors (1, Z, h, w) in float32.

    t: timestep, 0 to T − 1. snr: signal-to-noise ratio ᾱ/(1−ᾱ). x_t: of about unit variance. eps: the noise in it.
    eps_predicted, x0_predicted: what the network predicts, whatever its prediction type.
    """

    t: int
    snr: float
    x_t: Tensor
    eps: Tensor
    eps_predicted: Tensor
    x0_predicted: Tensor

    @property
    def error(self) -> float:
        """The mean squared error of the predicted noise: the loss of training with epsilon prediction."""
        return (self.eps_predicted - self.eps).square().mean().item()


@without_autocast()
@torch.no_grad()
def predict_noise(model: LatentDiffusion, z: Tensor, timesteps: Sequence[int], prompt: str = "", seed: int = 0) -> list[NoisePrediction]:
    """Add the same noise to a latent at several timesteps and predict it with the network, without guidance.

    Args:
        z: scaled latents of one image, (1, Z, h, w).
        timesteps: of training, from 0 to T − 1.

    Raises:
        DaguerreError: a timestep is out of range, the model needs more than a prompt, or it predicts epsilon and ᾱ is 0.
    """
    check_timesteps(model, timesteps)
    check_capability(model, TextToImage())
    cond = model.conditioner([prompt])
    eps = randn_per_image(generators([seed]), tuple(z.shape[1:])).to(z)
    denoiser = Denoiser(model.unet, model.schedule, model.prediction, model.dtype, rounding="nearest")
    return [_predict(model, denoiser, cond, z.float(), eps.float(), t) for t in timesteps]


def _predict(model: LatentDiffusion, denoiser: Denoiser, cond: Conditioning, z: Tensor, eps: Tensor, t: int) -> NoisePrediction:
    sigma = model.schedule.sigmas[t].float()
    x = add_noise_at(z, eps, sigma)  # x0 + σ·ε; ε itself at σ = inf
    x0 = denoiser(x, sigma, cond)
    infinite = bool(sigma.isinf())
    x_t, predicted = (x, x) if infinite else (to_variance_preserving(x, sigma), (x - x0) / sigma)
    return NoisePrediction(t, sigma.item() ** -2, x_t, eps, predicted, x0)


def check_timesteps(model: LatentDiffusion, timesteps: Sequence[int]) -> None:
    """Raise DaguerreError if there are no timesteps, or one is outside the schedule of the model."""
    last = len(model.schedule) - 1
    if not timesteps or not all(0 <= t <= last for t in timesteps):
        given = ", ".join(map(str, timesteps)) or "none"
        raise DaguerreError(f"The timesteps are {given}; give at least one, each from 0 (no noise) to {last} (only noise).")


def noise_sheet(
    model: LatentDiffusion, image: Image.Image, timesteps: Sequence[int], prompt: str | None = None, seed: int = 0
) -> Image.Image:
    """A labelled table with a column for each timestep: x_t, its noise, the predicted noise, and the predicted image.

    Args:
        image: RGB; both sides are multiples of the model's downsampling factor.
        prompt: also predict with this prompt, in two more rows.

    Raises:
        DaguerreError: as `predict_noise`.
    """
    z, decoder = encode(model, image), LatentDecoder(model)

    def show(x: Tensor) -> Image.Image:
        return to_image(decoder.decode(x)[0])

    plain = predict_noise(model, z, timesteps, seed=seed)
    reference = decoder.decode(z).clamp(-1, 1)
    rows = ["x_t", "noise"]
    images = [[show(each.x_t) for each in plain], [show(plain[0].eps)] * len(plain)]
    captions = [[f"SNR {each.snr:.3g}" for each in plain], [""] * len(plain)]
    for text in ("", *([prompt] if prompt else [])):
        found = predict_noise(model, z, timesteps, text, seed) if text else plain
        x0 = [decoder.decode(each.x0_predicted) for each in found]
        with_prompt = f', prompt "{text}"' if text else ", no prompt" if prompt else ""
        rows += [f"predicted noise{with_prompt}", f"predicted image{with_prompt}"]
        images += [[show(each.eps_predicted) for each in found], [to_image(x[0]) for x in x0]]
        captions += [
            [f"squared error {each.error:.3g}" for each in found],
            [f"PSNR {psnr(reference, x.clamp(-1, 1)).item():.1f} dB" for x in x0],
        ]
    return image_table(images, captions, rows=rows, columns=[f"t = {t}" for t in timesteps]).image
