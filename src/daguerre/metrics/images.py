"""How far one image is from another.

PSNR = 10·log₁₀(span² / MSE) in decibels.
SSIM = ((2·μx·μy + c₁)(2·σxy + c₂)) / ((μx² + μy² + c₁)(σx² + σy² + c₂)), averaged over the windows of an image
(Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", eq. 13 and section III-C).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from daguerre.errors import DaguerreError

WINDOW = 11  # the paper's window: a circular Gaussian of this width and deviation
DEVIATION = 1.5
K1, K2 = 0.01, 0.03


def psnr(x: Tensor, y: Tensor, *, span: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio of each image, (B, C, H, W) twice -> (B,) float64 in decibels; +inf where they are equal.

    `span` is the distance from black to white: 2 for pixels in [-1, 1], 1 for [0, 1], 255 for bytes.
    """
    _check(x, y)
    error = (x.double() - y.double()).square().flatten(1).mean(1)
    return 10 * (span**2 / error).log10()


def ssim(x: Tensor, y: Tensor, *, span: float = 2.0) -> Tensor:
    """Structural similarity of each image, (B, C, H, W) twice -> (B,) float64 in [-1, 1]; 1 where they are equal.

    As in the paper: an 11×11 Gaussian window that stays inside the image, and variances not corrected for the sample. The channels are
    compared apart and averaged. Raises DaguerreError for images smaller than the window.
    """
    _check(x, y)
    B, C, H, W = x.shape
    if min(H, W) < WINDOW:
        raise DaguerreError(f"SSIM looks through a {WINDOW}×{WINDOW} window and was given images of {W}×{H} pixels. Enlarge them first.")
    # float64, for σ² = E[x²] − E[x]² loses in float32 what smooth images have of variance.
    x, y = x.double().reshape(B * C, 1, H, W), y.double().reshape(B * C, 1, H, W)
    means = _blur(torch.cat([x, y, x * x, y * y, x * y]))  # (5·B·C, 1, H − 10, W − 10)
    mx, my, xx, yy, xy = means.chunk(5)
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
    luminance = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
    structure = (2 * (xy - mx * my) + c2) / ((xx - mx**2) + (yy - my**2) + c2)
    return (luminance * structure).reshape(B, -1).mean(1)  # (B,)


def _blur(x: Tensor) -> Tensor:
    offset = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weight = (-(offset**2) / (2 * DEVIATION**2)).exp()
    weight = weight / weight.sum()
    return F.conv2d(F.conv2d(x, weight.view(1, 1, 1, -1)), weight.view(1, 1, -1, 1))


def _check(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape or x.ndim != 4:
        raise DaguerreError(f"Images to compare need one shape (B, C, H, W); given {tuple(x.shape)} and {tuple(y.shape)}.")
