"""Where a model looks for each word: its cross-attention, averaged over heads, layers and steps, as a map over the picture.

    A_w(x, y) = mean over steps, layers, heads of  Σ softmax(QKᵀ / √d)[(x, y), k]  over the tokens k of word w

(DAAM: Tang et al. 2022, arXiv:2210.04885, section 3.) Layers of lower resolution are enlarged. Heads are averaged at once and the maps of
one resolution added up, so that a walk of any length keeps one (H·W, tokens) map for each resolution.

    with recorded(model) as record:
        pictures = generate(model, prompt="a cat and a pizza")
    overlay(pictures[0].image, record.words()[1])
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from daguerre.conditioning import Conditioner, Prompt
from daguerre.conditioning.prompt import PromptLine, is_empty
from daguerre.diffusion.conditioning import Conditioning
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.nn.attention_hooks import GridSize, attention_probs, capture_cross_attention
from daguerre.pipelines.images.grid import labelled_grid
from daguerre.pipelines.request import Request

OVERLAY_SIZE = 192  # pixels, the least side of an overlay on a sheet
PromptImage = tuple[PromptLine, int]  # what was said, and the picture it was said of


@dataclass(frozen=True)
class WordMap:
    """A word and where the model looked for it.

    heat: (h, w) float32, the share of attention that the word had at each place; all words, begin, end and padding together have 1.
    """

    text: str
    heatmap: Tensor

    @property
    def contrast(self) -> Tensor:
        """The heat stretched to [0, 1], (h, w)."""
        low, high = self.heatmap.min(), self.heatmap.max()
        return (self.heatmap - low) / (high - low).clamp(min=1e-12)

    def resized(self, height: int, width: int) -> Tensor:
        """The contrast at (height, width), for a picture of that size."""
        return F.interpolate(self.contrast[None, None], size=(height, width), mode="bicubic")[0, 0].clamp(0, 1)


class AttentionRecord:
    """What `recorded` gathers. It knows the rows of a call by the states that they are told: negative prompts are never counted."""

    def __init__(self, conditioner: Conditioner, pictures: int) -> None:
        self._conditioner, self._pictures = conditioner, pictures
        self._told: dict[tuple[PromptLine, int], Tensor] = {}  # (line, tokens) -> its states (tokens, D)
        self._rows: list[int] = []
        self._places: tuple[PromptImage, ...] = ()
        self._sums: dict[tuple[GridSize, tuple[PromptImage, ...]], Tensor] = {}  # (rows, H·W, tokens)
        self._counts: Counter[tuple[GridSize, tuple[PromptImage, ...]]] = Counter()

    def expected(self, request: Request) -> list[str]:
        """The words that the prompts of a request say at one step or another, each once: what there will be maps of."""
        steps = range(request.steps)
        lines = dict.fromkeys(line for prompt in map(Prompt.parse, request.prompts) for i in steps for line in prompt.at(i, len(steps)))
        return list(dict.fromkeys(word.text for line in lines for word in self._conditioner.words(line) if _is_word(word.text)))

    def words(self, picture: int = 0) -> list[WordMap]:
        """The words said of a picture in the order of their first appearance, an empty list where none was.

        A word that stands in the prompt twice is two words; one that is said at some steps only is averaged over those.
        """
        found: dict[tuple[str, int], list[tuple[Tensor, int]]] = defaultdict(list)
        height, width = (max(side) for side in zip(*(size for size, _ in self._sums), strict=True)) if self._sums else (0, 0)
        for (size, places), total in self._sums.items():
            count = self._counts[size, places]
            for (line, of), weights in zip(places, total, strict=True):
                if of != picture:
                    continue
                seen: Counter[str] = Counter()
                for word in self._conditioner.words(line):
                    heat = weights[:, list(word.positions)].sum(1).reshape(1, 1, *size)
                    heat = F.interpolate(heat, size=(height, width), mode="bicubic").clamp(min=0) if size != (height, width) else heat
                    found[word.text, seen[word.text]].append((heat[0, 0], count))
                    seen[word.text] += 1
        return [
            WordMap(text, torch.stack([heat for heat, _ in heats]).sum(0).cpu() / sum(count for _, count in heats))
            for (text, _), heats in found.items()
            if _is_word(text)
        ]

    def _remember_encoding(self, lines: Sequence[PromptLine], negative: Sequence[bool], cond: Conditioning) -> None:
        """Remember the states of the lines that say something."""
        assert cond.context is not None
        for line, no, states in zip(lines, negative or [False] * len(lines), cond.context, strict=True):
            if not no and not is_empty(line):
                self._told[line, len(states)] = states

    def _match_rows(self, context: Tensor | None) -> None:
        """Find out which rows of a call (B, tokens, D) are told which line; row r speaks of picture r mod the number of pictures."""
        rows = enumerate(() if context is None else context)
        found = [(r, (line, r % self._pictures)) for r, states in rows if (line := self._line(states)) is not None]
        self._rows, self._places = [r for r, _ in found], tuple(place for _, place in found)

    def _line(self, states: Tensor) -> PromptLine | None:
        alike = ((line, told) for (line, tokens), told in self._told.items() if tokens == len(states))
        return next((line for line, told in alike if torch.equal(told.to(states), states)), None)

    @torch.no_grad()
    def _accumulate(self, size: GridSize, q: Tensor, k: Tensor) -> None:
        if not self._rows:
            return
        weights = attention_probs(q[self._rows], k[self._rows])  # (rows, H·W, tokens)
        key = size, self._places
        self._sums[key] = self._sums[key].add_(weights) if key in self._sums else weights
        self._counts[key] += 1


def _is_word(text: str) -> bool:
    return any(sign.isalnum() for sign in text)


HEAT_COLOURS = ((0, 0, 4), (40, 11, 84), (101, 21, 110), (159, 42, 99), (212, 72, 66), (245, 125, 21), (250, 193, 39), (252, 255, 164))
FAINT, STRONG = 0.35, 0.75  # how much of the colour shows where the heat is least and most


def overlay(image: Image.Image, word: WordMap) -> Image.Image:
    """The picture in grey under the word's heat, from black over violet and orange to pale yellow."""
    heat = word.resized(image.height, image.width)[..., None]  # (H, W, 1)
    stops = torch.tensor(HEAT_COLOURS, dtype=torch.float32)
    place = heat[..., 0] * (len(stops) - 1)
    below = place.long().clamp(max=len(stops) - 2)
    colour = torch.lerp(stops[below], stops[below + 1], (place - below)[..., None])  # (H, W, 3)
    grey = torch.from_numpy(np.array(image.convert("L"), dtype=np.float32))[..., None]
    return Image.fromarray(torch.lerp(grey.expand_as(colour), colour, FAINT + (STRONG - FAINT) * heat).round().to(torch.uint8).numpy())


def attention_sheet(image: Image.Image, title: str, words: Sequence[WordMap]) -> Image.Image:
    """The picture over its title, then an overlay over each word with the least and the largest share of attention that it had."""
    if (small := min(image.size)) < OVERLAY_SIZE:  # maps are smooth: they gain by being drawn larger than the picture
        image = image.resize((image.width * OVERLAY_SIZE // small, image.height * OVERLAY_SIZE // small), Image.Resampling.LANCZOS)
    labels = [f"{word.text}  {word.heatmap.min():.0%} to {word.heatmap.max():.0%}" for word in words]
    return labelled_grid([image, *(overlay(image, word) for word in words)], [title, *labels])


@contextmanager
def record_attention(model: LatentDiffusion, pictures: int = 1) -> Iterator[AttentionRecord]:
    """Within this context everything that the model draws is recorded, whatever the task; pictures come out bit-identical.

    Args:
        model: one that reads words.
        pictures: how many are drawn together: `len(request.each)`.

    Raises:
        DaguerreError: the model reads no words.
    """
    conditioner = model.conditioner
    if not isinstance(conditioner, Conditioner) or model.unet.config.context_width is None:
        raise DaguerreError(f"{model.name} reads no words, so there is no attention to them; take a model with a text encoder.")
    record = AttentionRecord(conditioner, pictures)

    def enter(_unet: nn.Module, x: Tensor, t: Tensor, cond: Conditioning | None = None, **_more: object) -> None:
        record._match_rows(None if cond is None else cond.context)

    hook = model.unet.register_forward_pre_hook(lambda unet, inputs, named: enter(unet, *inputs, **named), with_kwargs=True)
    try:
        with _intercept_encode(conditioner, record), capture_cross_attention(model.unet, record._accumulate):
            yield record
    finally:
        hook.remove()


@contextmanager
def _intercept_encode(conditioner: Conditioner, record: AttentionRecord) -> Iterator[None]:
    """Within this context the record hears what the conditioner, and the copies it makes for a size, are asked to read."""
    encode, sized = conditioner.encode, conditioner.with_size

    def heard(read: Callable[..., Conditioning]) -> Callable[..., Conditioning]:
        def encode(lines: Sequence[PromptLine], negative: Sequence[bool] = ()) -> Conditioning:
            cond = read(lines, negative)
            record._remember_encoding(lines, negative, cond)
            return cond

        return encode

    def sized_too(*args: Any, **named: Any) -> Conditioner:
        copy = sized(*args, **named)
        if copy is not conditioner:
            copy.encode = heard(copy.encode)
        return copy

    conditioner.encode, conditioner.with_size = heard(encode), sized_too
    try:
        yield
    finally:
        del conditioner.encode, conditioner.with_size  # the instance's; the class's show again
