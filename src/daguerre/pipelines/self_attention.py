"""Self-attention maps: which positions of an image one position takes information from, averaged over heads, layers and steps.

    A_p(x, y) = mean over steps, layers, heads of  softmax(q_p Kᵀ / √d)[(x, y)]

Every feature map that has self-attention gives its own map, because positions of coarse maps are larger. Only the query of one position is
used, so memory stays at one number per position whatever the size of the image.

    with record_self_attention(model, (64, 40)) as record:
        images = generate(model, prompt="a cat and a pizza")
    record.maps()
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from daguerre.conditioning.prompt import is_empty
from daguerre.conditioning.prompt_schedule import RowLabel
from daguerre.diffusion.conditioning import Conditioning
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.nn.attention_hooks import GridSize, attention_probs, capture_self_attention
from daguerre.pipelines.attention_maps import WordMap, on_each_call
from daguerre.pipelines.images.preprocess import ImageSize


class SelfAttentionRecord:
    """The maps gathered by `record_self_attention`, for the rows of prompts; rows of negative and empty prompts are left out.

    position: (x, y) in pixels. image_size: (width, height) in pixels.
    """

    def __init__(self, position: tuple[int, int], image_size: ImageSize) -> None:
        self._position, self._image_size = position, image_size
        self._labels: tuple[object, ...] = ()  # of the rows of the present UNet call
        self._sums: dict[tuple[GridSize, int], Tensor] = {}  # by the size of the feature map and the image: (H·W,)
        self._counts: Counter[tuple[GridSize, int]] = Counter()

    def maps(self, image: int = 0) -> list[WordMap]:
        """The map of an image at each resolution, the finest first, after the mean of them all at the finest resolution."""
        sizes = sorted((size for size, number in self._sums if number == image), reverse=True)
        found = [(self._sums[size, image] / self._counts[size, image]).reshape(size).cpu() for size in sizes]
        if not found:
            return []
        same_size = [self._spread(heat, sizes[0]) for heat in found]
        weights = [self._counts[size, image] for size in sizes]
        mean = torch.stack([heat * weight for heat, weight in zip(same_size, weights, strict=True)]).sum(0) / sum(weights)
        single = [WordMap(f"{size[1]}×{size[0]} map", heat) for size, heat in zip(sizes, found, strict=True)]
        return [WordMap("all layers", mean), *single]

    @staticmethod
    def _spread(heat: Tensor, size: GridSize) -> Tensor:
        """A map at a finer resolution, with the same sum."""
        finer = F.interpolate(heat[None, None], size=size, mode="nearest")[0, 0]
        return finer * (heat.sum() / finer.sum())

    def _begin_call(self, cond: Conditioning | None) -> None:
        self._labels = () if cond is None else cond.row_labels

    @torch.no_grad()
    def _add_layer(self, size: GridSize, q: Tensor, k: Tensor) -> None:
        (x, y), (width, height) = self._position, self._image_size
        index = min(y * size[0] // height, size[0] - 1) * size[1] + min(x * size[1] // width, size[1] - 1)
        for row, image in self._rows(len(q)):
            weights = attention_probs(q[row : row + 1, :, index : index + 1], k[row : row + 1])[0, 0]  # (H·W,)
            key = size, image
            self._sums[key] = self._sums[key] + weights if key in self._sums else weights
            self._counts[key] += 1

    def _rows(self, batch: int) -> list[tuple[int, int]]:
        """The rows of a batch to record, with the image of each. Layers before the first cross-attention run on one row per image."""
        labels = [label for label in self._labels if isinstance(label, RowLabel)]
        if not labels or batch < len(labels):
            return [(row, row) for row in range(batch)]
        rows = [(row, label.image) for row, label in enumerate(labels) if not (label.negative or is_empty(label.line))]
        return rows or [(row, label.image) for row, label in enumerate(labels)]


def check_position(position: tuple[int, int], image_size: ImageSize) -> None:
    """Raise DaguerreError if a position (x, y) in pixels is outside an image of `image_size` (width, height)."""
    (x, y), (width, height) = position, image_size
    if not (0 <= x < width and 0 <= y < height):
        raise DaguerreError(f"The position {x},{y} is outside the image: x is 0 to {width - 1}, y is 0 to {height - 1}.")


@contextmanager
def record_self_attention(model: LatentDiffusion, position: tuple[int, int], image_size: ImageSize) -> Iterator[SelfAttentionRecord]:
    """Within this context the self-attention of one position is recorded for all images that the model generates; they stay bit-identical.

    Args:
        position: (x, y) in pixels, from the upper left corner.
        image_size: (width, height) in pixels of the images.

    Raises:
        DaguerreError: the position is outside the images, or the UNet has no self-attention.
    """
    check_position(position, image_size)
    if not any(model.unet.config.depth) and not model.unet.config.mid_depth:
        raise DaguerreError(f"The UNet of {model.name!r} has no attention; take another model.")
    record = SelfAttentionRecord(position, image_size)

    with on_each_call(model.unet, record._begin_call), capture_self_attention(model.unet, record._add_layer):
        yield record
