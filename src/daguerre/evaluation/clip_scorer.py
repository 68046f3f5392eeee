"""The judge: a CLIP that says how well an image shows its text. What it's worth is measured on true renders, never assumed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from daguerre.conditioning import Tokenizer
from daguerre.errors import DaguerreError
from daguerre.models.clip import CLIP
from daguerre.weights import load_clip
from daguerre.weights.diffusers.clip import CONFIG

SCORE_BATCH = 128  # images or texts in one call
T = TypeVar("T", Tensor, Sequence[str])


@dataclass(frozen=True)
class ClipScorer:
    """Embeds images and texts in one space, as (N, P) float32 unit vectors on the CPU."""

    clip: CLIP
    tokenizer: Tokenizer
    name: str

    def embed_images(self, x: Tensor) -> Tensor:
        """Embed images (N, 3, H, W) in [−1, 1], resized to the judge's own size where theirs is another, into (N, P)."""
        return torch.cat([self._look(part) for part in _parts(x)])

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts into (N, P); one that comes several times is read once."""
        distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        embeddings = torch.cat([self._read(part) for part in _parts(list(distinct))])
        return embeddings[[distinct[text] for text in texts]]

    @torch.inference_mode()
    def _look(self, x: Tensor) -> Tensor:
        side, weight = self.clip.config.vision.size, self.clip.logit_scale
        if x.shape[-2:] != (side, side):
            x = F.interpolate(x.float(), size=(side, side), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
        return self.clip.embed_image(x.to(weight.device, weight.dtype)).float().cpu()

    @torch.inference_mode()
    def _read(self, texts: Sequence[str]) -> Tensor:
        return self.clip.embed_text(self.tokenizer(texts).to(self.clip.logit_scale.device)).float().cpu()


def load_clip_scorer(folder: str | Path, *, device: torch.device | str = "cpu") -> ClipScorer:
    """Open a judge: a folder that `daguerre train judge` wrote, or any CLIP in that layout whose images are scaled to [−1, 1].

    Raises:
        DaguerreError: there is none, or its files are not whole.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise DaguerreError(f"There is no judge at '{folder}'. Train one with `daguerre train judge`, or name its folder with --judge.")
    clip, tokenizer = load_clip(folder, device=device)
    whole = folder.resolve()
    return ClipScorer(clip, tokenizer, f"{whole.parent.name}/{whole.name}")


def _parts(whole: T) -> Iterator[T]:
    for start in range(0, len(whole), SCORE_BATCH):
        yield whole[start : start + SCORE_BATCH]
