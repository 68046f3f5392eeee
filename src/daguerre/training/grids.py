"""Pictures that show how far training is."""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from daguerre.data.images import to_image
from daguerre.pipelines.images.grid import labelled_grid


def to_images(x: Tensor) -> list[Image.Image]:
    """Pictures (B, 3, H, W) in [-1, 1] as Pillow's."""
    return [to_image(picture) for picture in x]


def paired_grid(before: Tensor, after: Tensor, labels: Sequence[str]) -> Image.Image:
    """Each picture of `before` over its counterpart of `after`, which carries the label; (N, 3, H, W) both."""
    return labelled_grid([*to_images(before), *to_images(after)], [*[""] * len(before), *labels], columns=len(before))
