"""One image to latents and back, for use from Python."""

import torch
from PIL import Image
from torch import Tensor

from daguerre.data.images import flatten_alpha, to_image, to_tensor
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines.decode import LatentDecoder
from daguerre.runtime.dtype import without_autocast
from daguerre.runtime.overflow import retry_in_float32


@without_autocast()
@torch.no_grad()
def encode(model: LatentDiffusion, image: Image.Image) -> Tensor:
    """Encode one image with the model's autoencoder: latents (1, Z, height/f, width/f), float32, about unit variance.

    Raises:
        DaguerreError: a side of the image is not a multiple of f.
    """
    f = model.autoencoder.downsample_factor
    if image.width % f or image.height % f:
        raise DaguerreError(f"The image is {image.width}×{image.height}; both sides must be multiples of {f}. Resize it first.")
    x = to_tensor(flatten_alpha(image))[None].to(model.device, model.dtype)
    return retry_in_float32(model.autoencoder, model.autoencoder.encode, "autoencoder")(x).float()


@without_autocast()
@torch.no_grad()
def decode(model: LatentDiffusion, z: Tensor) -> Image.Image:
    """Decode the latents of one image, z (1, Z, h, w), with the model's autoencoder."""
    return to_image(LatentDecoder(model).decode(z)[0])
