"""SDXL's conditions: two text towers side by side, and a vector of pooled text and picture size.

    context = [h_L ‖ h_bigG],   vector = [pooled_bigG ‖ waves(height) ‖ waves(width) ‖ waves(top) ‖ waves(left) ‖ ...]

(Podell et al. 2023, arXiv:2307.01952, section 2.2 and table 1.)
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from daguerre.conditioning.chunks import Word
from daguerre.conditioning.clip import Conditioner, SizeConditioning, TextConditioner
from daguerre.conditioning.prompt import PromptLine, is_empty
from daguerre.diffusion.conditioning import Conditioning
from daguerre.errors import DaguerreError
from daguerre.nn.embeddings import sinusoidal

WAVES = 256  # the width of one number's embedding


class SDXLConditioner(Conditioner):
    """SDXL's two text towers, or the refiner's one, each read at its penultimate layer without the final norm.

    The pooled text is the last tower's. `scored` is the refiner's way: an aesthetic score stands where the base model is told the
    target size. With `zero_empty` an empty negative prompt is all zeros, as the base model was trained.
    """

    def __init__(
        self,
        towers: Sequence[TextConditioner],
        *,
        size: SizeConditioning | None = None,
        scored: bool = False,
        zero_empty: bool = True,
    ) -> None:
        """Join the towers; `size` is 1024 pixels square unless told.

        Raises:
            DaguerreError: if the last tower has no projection, whose output is the pooled text.
        """
        super().__init__()
        if not towers or towers[-1].encoder.text_projection is None:
            raise DaguerreError("SDXL's vector needs a last text tower with a projection; its text_projection is missing.")
        self.towers = nn.ModuleList(towers)
        self.size = size or SizeConditioning(original=(1024, 1024), target=(1024, 1024))
        self.scored, self.zero_empty = scored, zero_empty

    def with_size(self, height: int, width: int, size: SizeConditioning | None = None) -> "SDXLConditioner":
        size = size or SizeConditioning(original=(height, width), target=(height, width))
        return SDXLConditioner(self._towers(), size=size, scored=self.scored, zero_empty=self.zero_empty)

    def with_clip_skip(self, clip_skip: int) -> "SDXLConditioner":
        towers = [tower.with_clip_skip(clip_skip) for tower in self._towers()]
        return SDXLConditioner(towers, size=self.size, scored=self.scored, zero_empty=self.zero_empty)

    def encode(self, lines: Sequence[PromptLine], negative: Sequence[bool] = ()) -> Conditioning:
        negative = negative or [False] * len(lines)
        towers = self._towers()
        windows = [tower.chunks(lines) for tower in towers]
        # The towers' tokenizers may cut a long prompt differently, as their padding tokens differ.
        count = max((len(row) for rows in windows for row in rows), default=1)
        read = [tower.encode_chunks(rows, count) for tower, rows in zip(towers, windows, strict=True)]
        context = torch.cat([states for states, _ in read], dim=-1)  # (B, windows · L, D_L + D_bigG)
        pooled = read[-1][1]  # (B, P)
        if self.zero_empty:
            unsaid = torch.tensor([no and is_empty(line) for line, no in zip(lines, negative, strict=True)], device=pooled.device)
            context = context.masked_fill(unsaid[:, None, None], 0)
            pooled = pooled.masked_fill(unsaid[:, None], 0)
        return Conditioning(context=context, vector=torch.cat([pooled, self._waves(negative).to(pooled)], dim=1))

    def words(self, line: PromptLine) -> list[Word]:
        return self._towers()[0].words(line)

    def _waves(self, negative: Sequence[bool]) -> Tensor:
        """The picture's numbers as waves, one row for each line: (B, 6 · 256), the refiner's (B, 5 · 256)."""
        size = self.size
        scores = {False: (size.score,), True: (size.negative_score,)}
        rows = [(*size.original, *size.crop, *(scores[no] if self.scored else size.target)) for no in negative]
        numbers = torch.tensor(rows, dtype=torch.float32)  # (B, 6)
        return sinusoidal(numbers.flatten(), WAVES).reshape(len(rows), -1)

    def _towers(self) -> list[TextConditioner]:
        return [tower for tower in self.towers if isinstance(tower, TextConditioner)]
