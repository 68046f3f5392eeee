"""A CLIP that scores how well an image matches its text. Evaluation measures its accuracy on true renders first."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from daguerre.conditioning import Tokenizer
from daguerre.data.images import to_tensor
from daguerre.errors import DaguerreError
from daguerre.models.clip import CLIP
from daguerre.training.objectives.perceptual import image_normalization
from daguerre.weights import load_clip
from daguerre.weights.catalog import clip_folder
from daguerre.weights.diffusers.folder_names import CONFIG_FILE

SCORE_BATCH = 128  # images or texts per call
T = TypeVar("T", Tensor, Sequence[str])


@dataclass(frozen=True)
class TextScore:
    """How well a text matches an image: the cosine of the embeddings, and the probability among the texts that were compared."""

    text: str
    similarity: float
    probability: float


@dataclass(frozen=True)
class ClipScorer:
    """Embeds images and texts as (N, P) float32 unit vectors on the CPU."""

    clip: CLIP
    tokenizer: Tokenizer
    name: str
    mean: tuple[float, ...] = ()  # of the images that a published CLIP was trained on, for pixels in [0, 1]; empty: it takes x itself
    std: tuple[float, ...] = ()

    def embed_images(self, x: Tensor) -> Tensor:
        """Embed images (N, 3, H, W) in [−1, 1], resized to the size of the CLIP: (N, P)."""
        return torch.cat([self._embed_images(batch) for batch in _batches(x)])

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts: (N, P). Equal texts are embedded once."""
        distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        embeddings = torch.cat([self._embed_texts(batch) for batch in _batches(list(distinct))])
        return embeddings[[distinct[text] for text in texts]]

    def score(self, image: Image.Image, texts: Sequence[str]) -> list[TextScore]:
        """Zero-shot classification of an RGB image (Radford et al. 2021, arXiv:2103.00020, section 3.1): a score for each text."""
        cosines = self.embed_images(to_tensor(image)[None]) @ self.embed_texts(texts).T  # (1, N)
        probabilities = (self.clip.logit_scale.exp().item() * cosines).softmax(-1)
        return [TextScore(*each) for each in zip(texts, cosines[0].tolist(), probabilities[0].tolist(), strict=True)]

    @torch.inference_mode()
    def _embed_images(self, x: Tensor) -> Tensor:
        side, weight = self.clip.config.vision.size, self.clip.logit_scale
        if x.shape[-2:] != (side, side):
            x = F.interpolate(x.float(), size=(side, side), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
        if self.mean:
            mean, std = (torch.tensor(values).view(1, 3, 1, 1).to(x) for values in (self.mean, self.std))
            x = ((x + 1) / 2 - mean) / std
        return self.clip.embed_image(x.to(weight.device, weight.dtype)).float().cpu()

    @torch.inference_mode()
    def _embed_texts(self, texts: Sequence[str]) -> Tensor:
        return self.clip.embed_text(self.tokenizer(texts).to(self.clip.logit_scale.device)).float().cpu()


def load_clip_scorer(folder: str | Path | None = None, *, device: torch.device | str = "cpu") -> ClipScorer:
    """Load a scorer: a folder from `daguerre train clip-scorer`, or a published CLIP in the layout of transformers; None is the embedded
    CLIP, which knows emoji.

    Raises:
        DaguerreError: there is none, or its files are incomplete.
    """
    folder = clip_folder(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise DaguerreError(
            f"There is no CLIP scorer at '{folder}'. Train one with `daguerre train clip-scorer`, or give its folder with --scorer."
        )
    clip, tokenizer = load_clip(folder, device=device)
    mean, std = image_normalization(folder) or ((), ())
    folder = folder.resolve()
    return ClipScorer(clip, tokenizer, f"{folder.parent.name}/{folder.name}", tuple(mean), tuple(std))


def _batches(items: T) -> Iterator[T]:
    for start in range(0, len(items), SCORE_BATCH):
        yield items[start : start + SCORE_BATCH]
