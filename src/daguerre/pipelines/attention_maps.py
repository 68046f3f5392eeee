"""Cross-attention maps: which part of an image the model attends to for each word, averaged over heads, layers and steps.

    A_w(x, y) = mean over steps, layers, heads of  Σ softmax(QKᵀ / √d)[(x, y), k]  over the tokens k of word w

(DAAM: Tang et al. 2022, arXiv:2210.04885, section 3.) Maps of lower resolution are upscaled. Heads are averaged at once and maps of one
resolution are summed, so memory stays at one (H·W, tokens) map per resolution however many steps a run has.

    with record_attention(model) as record:
        images = generate(model, prompt="a cat and a pizza")
    overlay(images[0].image, record.words()[1])
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from daguerre.conditioning import Conditioner, Prompt
from daguerre.conditioning.prompt import is_empty
from daguerre.conditioning.prompt_schedule import RowLabel
from daguerre.diffusion.conditioning import Conditioning
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.nn.attention_hooks import GridSize, attention_probs, capture_cross_attention
from daguerre.pipelines.images.grid import labelled_grid
from daguerre.pipelines.request import Request

OVERLAY_SIZE = 192  # pixels, the least side of an overlay on a sheet


@dataclass(frozen=True)
class WordMap:
    """A word and its attention map.

    heatmap: (h, w) float32, the word's share of attention at each position; all words, begin, end and padding tokens together have 1.
    """

    text: str
    heatmap: Tensor

    @property
    def contrast(self) -> Tensor:
        """The heatmap stretched to [0, 1], (h, w)."""
        low, high = self.heatmap.min(), self.heatmap.max()
        return (self.heatmap - low) / (high - low).clamp(min=1e-12)

    def resized(self, height: int, width: int) -> Tensor:
        """The contrast at (height, width), for an image of that size."""
        return F.interpolate(self.contrast[None, None], size=(height, width), mode="bicubic")[0, 0].clamp(0, 1)


class AttentionRecord:
    """The attention maps gathered by `record_attention`. Rows of negative and empty prompts are left out."""

    def __init__(self, conditioner: Conditioner) -> None:
        self._conditioner = conditioner
        self._rows: dict[int, RowLabel] = {}  # of the present UNet call, by their index in the batch
        self._sums: dict[tuple[GridSize, tuple[RowLabel, ...]], Tensor] = {}  # (rows, H·W, tokens)
        self._counts: Counter[tuple[GridSize, tuple[RowLabel, ...]]] = Counter()

    def expected(self, request: Request) -> list[str]:
        """The words in the prompts of a request at any step, each once: what there will be maps of."""
        steps = range(request.steps)
        lines = dict.fromkeys(line for prompt in map(Prompt.parse, request.prompts) for i in steps for line in prompt.at(i, len(steps)))
        return list(dict.fromkeys(word.text for line in lines for word in self._conditioner.words(line) if _is_word(word.text)))

    def words(self, image: int = 0) -> list[WordMap]:
        """The words in the prompt of an image in order of their first appearance; an empty list if there are none.

        A word that occurs twice in the prompt is two words; one that is present at some steps only is averaged over those.
        """
        found: dict[tuple[str, int], list[tuple[Tensor, int]]] = defaultdict(list)
        height, width = (max(side) for side in zip(*(size for size, _ in self._sums), strict=True)) if self._sums else (0, 0)
        for (size, labels), total in self._sums.items():
            count = self._counts[size, labels]
            for label, weights in zip(labels, total, strict=True):
                if label.image != image:
                    continue
                occurrence: Counter[str] = Counter()
                for word in self._conditioner.words(label.line):
                    heat = weights[:, list(word.positions)].sum(1).reshape(1, 1, *size)
                    heat = F.interpolate(heat, size=(height, width), mode="bicubic").clamp(min=0) if size != (height, width) else heat
                    found[word.text, occurrence[word.text]].append((heat[0, 0], count))
                    occurrence[word.text] += 1
        return [
            WordMap(text, torch.stack([heat for heat, _ in heats]).sum(0).cpu() / sum(count for _, count in heats))
            for (text, _), heats in found.items()
            if _is_word(text)
        ]

    def _begin_call(self, cond: Conditioning | None) -> None:
        """Note which rows of a UNet call encode which prompt line."""
        labels = enumerate(() if cond is None else cond.row_labels)
        self._rows = {row: label for row, label in labels if isinstance(label, RowLabel) and not (label.negative or is_empty(label.line))}

    @torch.no_grad()
    def _add_layer(self, size: GridSize, q: Tensor, k: Tensor) -> None:
        if not self._rows:
            return
        rows, key = list(self._rows), (size, tuple(self._rows.values()))
        weights = attention_probs(q[rows], k[rows])  # (rows, H·W, tokens)
        self._sums[key] = self._sums[key].add_(weights) if key in self._sums else weights
        self._counts[key] += 1


def _is_word(text: str) -> bool:
    return any(sign.isalnum() for sign in text)


HEAT_COLOURS = ((0, 0, 4), (40, 11, 84), (101, 21, 110), (159, 42, 99), (212, 72, 66), (245, 125, 21), (250, 193, 39), (252, 255, 164))
MIN_OPACITY, MAX_OPACITY = 0.35, 0.75  # of the colour where attention is least and most


def overlay(image: Image.Image, word: WordMap) -> Image.Image:
    """The image in grey under the word's heatmap, from black over violet and orange to pale yellow."""
    heat = word.resized(image.height, image.width)[..., None]  # (H, W, 1)
    stops = torch.tensor(HEAT_COLOURS, dtype=torch.float32)
    position = heat[..., 0] * (len(stops) - 1)
    below = position.long().clamp(max=len(stops) - 2)
    colour = torch.lerp(stops[below], stops[below + 1], (position - below)[..., None])  # (H, W, 3)
    grey = torch.from_numpy(np.array(image.convert("L"), dtype=np.float32))[..., None]
    opacity = MIN_OPACITY + (MAX_OPACITY - MIN_OPACITY) * heat
    return Image.fromarray(torch.lerp(grey.expand_as(colour), colour, opacity).round().to(torch.uint8).numpy())


def attention_sheet(image: Image.Image, title: str, words: Sequence[WordMap], mark: tuple[int, int] | None = None) -> Image.Image:
    """The image with its title, and an overlay for each word with its lowest and highest share of attention.

    mark: a position (x, y) in pixels, shown on each of them as a circle.
    """
    own = image.size
    if (side := min(own)) < OVERLAY_SIZE:  # small images are enlarged, so that smooth heatmaps stay smooth
        image = image.resize((own[0] * OVERLAY_SIZE // side, own[1] * OVERLAY_SIZE // side), Image.Resampling.LANCZOS)
    panels = [image, *(overlay(image, word) for word in words)]
    if mark is not None:
        x, y = ((at + 0.5) * now / before for at, now, before in zip(mark, image.size, own, strict=True))
        panels = [_with_circle(panel, x, y) for panel in panels]
    labels = [f"{word.text}  {word.heatmap.min():.0%} to {word.heatmap.max():.0%}" for word in words]
    return labelled_grid(panels, [title, *labels])


def _with_circle(image: Image.Image, x: float, y: float) -> Image.Image:
    """A copy with a white circle in a black one around a position in pixels."""
    image, radius = image.convert("RGB"), min(image.size) / 40
    canvas = ImageDraw.Draw(image)
    for r, colour in ((radius + 1, "black"), (radius, "white"), (radius - 2, "black")):
        canvas.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=1 if colour == "black" else 2)
    return image


@contextmanager
def record_attention(model: LatentDiffusion) -> Iterator[AttentionRecord]:
    """Within this context all images that the model generates are recorded, whatever the task; they stay bit-identical.

    Raises:
        DaguerreError: the model has no text encoder.
    """
    conditioner = model.conditioner
    if not isinstance(conditioner, Conditioner) or model.unet.config.context_width is None:
        raise DaguerreError(f"{model.name} takes no prompt, so there is no attention to words; take a model with a text encoder.")
    record = AttentionRecord(conditioner)

    with on_each_call(model.unet, record._begin_call), capture_cross_attention(model.unet, record._add_layer):
        yield record


@contextmanager
def on_each_call(unet: nn.Module, begin: Callable[[Conditioning | None], None]) -> Iterator[None]:
    """Call `begin` with the conditioning of every UNet call inside this context, before the call."""

    def before(_unet: nn.Module, _x: Tensor, _t: Tensor, cond: Conditioning | None = None, **_more: object) -> None:
        begin(cond)

    hook = unet.register_forward_pre_hook(lambda module, inputs, named: before(module, *inputs, **named), with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
