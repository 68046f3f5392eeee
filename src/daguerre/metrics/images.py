"""Distances between two images.

PSNR = 10·log₁₀(span² / MSE) in decibels.
SSIM = ((2·μx·μy + c₁)(2·σxy + c₂)) / ((μx² + μy² + c₁)(σx² + σy² + c₂)), averaged over the windows of an image
(Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", eq. 13 and section III-C).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from daguerre.errors import DaguerreError

SSIM_WINDOW = 11  # width of the Gaussian window in the paper, in pixels
SSIM_SIGMA = 1.5  # its standard deviation
K1, K2 = 0.01, 0.03


def psnr(x: Tensor, y: Tensor, *, span: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio of images x and y (B, C, H, W): (B,) float64 in decibels, +inf if equal.

    `span` is the range from black to white: 2 for pixels in [−1, 1], 1 for [0, 1], 255 for 8 bits.
    """
    _check(x, y)
    error = (x.double() - y.double()).square().flatten(1).mean(1)
    return 10 * (span**2 / error).log10()


def ssim(x: Tensor, y: Tensor, *, span: float = 2.0) -> Tensor:
    """Structural similarity of images x and y (B, C, H, W): (B,) float64 in [−1, 1], 1 if equal.

    As in the paper: an 11×11 Gaussian window inside the image and biased variances. Averaged over channels. Raises DaguerreError for images
    smaller than the window.
    """
    _check(x, y)
    B, C, H, W = x.shape
    if min(H, W) < SSIM_WINDOW:
        raise DaguerreError(f"SSIM needs images of at least {SSIM_WINDOW}×{SSIM_WINDOW} pixels; got {W}×{H}.")
    # In float32, σ² = E[x²] − E[x]² would lose the small variance of smooth images.
    x, y = x.double().reshape(B * C, 1, H, W), y.double().reshape(B * C, 1, H, W)
    means = _blur(torch.cat([x, y, x * x, y * y, x * y]))  # (5·B·C, 1, H − 10, W − 10)
    mx, my, xx, yy, xy = means.chunk(5)
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
    luminance = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
    structure = (2 * (xy - mx * my) + c2) / ((xx - mx**2) + (yy - my**2) + c2)
    return (luminance * structure).reshape(B, -1).mean(1)  # (B,)


def _blur(x: Tensor) -> Tensor:
    offset = torch.arange(SSIM_WINDOW, dtype=x.dtype, device=x.device) - SSIM_WINDOW // 2
    weight = (-(offset**2) / (2 * SSIM_SIGMA**2)).exp()
    weight = weight / weight.sum()
    return F.conv2d(F.conv2d(x, weight.view(1, 1, 1, -1)), weight.view(1, 1, -1, 1))


def _check(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape or x.ndim != 4:
        raise DaguerreError(f"The images must have the same shape (B, C, H, W); got {tuple(x.shape)} and {tuple(y.shape)}.")
