"""SDXL's conditions: the hidden states of two text encoders, and a vector of the pooled text and the image size.

    context = [h_L ‖ h_bigG],   vector = [pooled_bigG ‖ emb(height) ‖ emb(width) ‖ emb(top) ‖ emb(left) ‖ ...]

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

SIZE_EMBEDDING_DIM = 256  # of the sinusoidal embedding of one number


class SDXLConditioner(Conditioner):
    """SDXL's two text encoders, or the refiner's one, each used at its penultimate layer without the final norm.

    The pooled text is that of the last encoder. With `uses_aesthetic_score` (the refiner) the vector holds an aesthetic score instead of
    the target size. With `zero_empty` the conditions of an empty negative prompt are zeros, as the base model was trained.
    """

    def __init__(
        self,
        towers: Sequence[TextConditioner],
        *,
        size: SizeConditioning | None = None,
        uses_aesthetic_score: bool = False,
        zero_empty: bool = True,
    ) -> None:
        """Combine the text encoders; `size` is 1024×1024 pixels by default.

        Raises:
            DaguerreError: the last encoder has no projection, which the pooled text needs.
        """
        super().__init__()
        if not towers or towers[-1].encoder.text_projection is None:
            raise DaguerreError("SDXL's last text encoder needs a projection; text_projection is missing in this checkpoint.")
        self.towers = nn.ModuleList(towers)
        self.size = size or SizeConditioning((1024, 1024), (1024, 1024))
        self.uses_aesthetic_score, self.zero_empty = uses_aesthetic_score, zero_empty

    def with_size(self, height: int, width: int, size: SizeConditioning | None = None) -> "SDXLConditioner":
        size = size or SizeConditioning((height, width), (height, width))
        return self._with(self._towers(), size)

    def with_clip_skip(self, clip_skip: int) -> "SDXLConditioner":
        return self.with_towers([tower.with_clip_skip(clip_skip) for tower in self._towers()])

    def with_towers(self, towers: Sequence[TextConditioner]) -> "SDXLConditioner":
        """The same with other text encoders, such as edited copies."""
        return self._with(towers, self.size)

    def encode(self, lines: Sequence[PromptLine], negative: Sequence[bool] = ()) -> Conditioning:
        negative = negative or [False] * len(lines)
        towers = self._towers()
        chunks = [tower.chunks(lines) for tower in towers]
        # The tokenizers may split a long prompt differently, because their padding tokens differ.
        count = max((len(row) for rows in chunks for row in rows), default=1)
        encoded = [tower.encode_chunks(rows, count) for tower, rows in zip(towers, chunks, strict=True)]
        context = torch.cat([states for states, _ in encoded], dim=-1)  # (B, chunks · L, D_L + D_bigG)
        pooled = encoded[-1][1]  # (B, P)
        if self.zero_empty:
            zero = torch.tensor([neg and is_empty(line) for line, neg in zip(lines, negative, strict=True)], device=pooled.device)
            context = context.masked_fill(zero[:, None, None], 0)
            pooled = pooled.masked_fill(zero[:, None], 0)
        return Conditioning(context=context, vector=torch.cat([pooled, self._size_embedding(negative).to(pooled)], dim=1))

    def words(self, line: PromptLine) -> list[Word]:
        return self._towers()[0].words(line)

    def _size_embedding(self, negative: Sequence[bool]) -> Tensor:
        """The sinusoidal embeddings of the size conditioning, one row per line: (B, 6 · 256), for the refiner (B, 5 · 256)."""
        size = self.size
        scores = {False: (size.aesthetic_score,), True: (size.negative_aesthetic_score,)}
        ends = [scores[is_negative] if self.uses_aesthetic_score else size.target_size for is_negative in negative]
        numbers = torch.tensor([(*size.original_size, *size.crop_top_left, *end) for end in ends], dtype=torch.float32)  # (B, 6)
        return sinusoidal(numbers.flatten(), SIZE_EMBEDDING_DIM).reshape(len(ends), -1)

    def _with(self, towers: Sequence[TextConditioner], size: SizeConditioning) -> "SDXLConditioner":
        return SDXLConditioner(towers, size=size, uses_aesthetic_score=self.uses_aesthetic_score, zero_empty=self.zero_empty)

    def _towers(self) -> list[TextConditioner]:
        return [tower for tower in self.towers if isinstance(tower, TextConditioner)]
