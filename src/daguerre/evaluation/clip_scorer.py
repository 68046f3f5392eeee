"""A CLIP that scores how well an image matches its text. Evaluation measures its accuracy on true renders first."""

import sys
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
from daguerre.training.objectives.perceptual import image_normalization
from daguerre.weights import load_clip
from daguerre.weights.diffusers.folder_names import CONFIG_FILE
from daguerre.weights.tensors.safetensors import read_json

RUNS = Path("runs")  # where trainings are by default

SCORE_BATCH = 128  # images or texts per call
T = TypeVar("T", Tensor, Sequence[str])


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


def load_clip_scorer(folder: str | Path, *, device: torch.device | str = "cpu") -> ClipScorer:
    """Load a scorer: a folder from `daguerre train clip-scorer`, or a published CLIP in the layout of transformers.

    Raises:
        DaguerreError: there is none, or its files are incomplete.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise DaguerreError(
            f"There is no CLIP scorer at '{folder}'. Train one with `daguerre train clip-scorer`, or give its folder with --scorer."
        )
    clip, tokenizer = load_clip(folder, device=device)
    mean, std = image_normalization(folder) or ((), ())
    folder = folder.resolve()
    return ClipScorer(clip, tokenizer, f"{folder.parent.name}/{folder.name}", tuple(mean), tuple(std))


def find_clip_scorer(given: Path | None, *, device: torch.device | str = "cpu") -> ClipScorer:
    """The scorer in a given folder; by default the one of `runs/clip-scorer`, or of another training of it on emoji in `runs`.

    Raises:
        DaguerreError: there is none; says how to make one.
    """
    if given is not None:
        return load_clip_scorer(given, device=device)
    others = [path.parent / "model" for path in sorted(RUNS.glob("*/recipe.json")) if _scores_emoji(path)]
    for folder in (RUNS / "clip-scorer" / "model", *others):
        if (folder / CONFIG_FILE).is_file():
            print(f"scorer: {folder}", file=sys.stderr)
            return load_clip_scorer(folder, device=device)
    raise DaguerreError(
        f"There is no scorer in '{RUNS}'. Make one with `daguerre train clip-scorer`, give the folder of one "
        "with --scorer, or measure shapes, which need none, with --data shapes."
    )


def _scores_emoji(recipe: Path) -> bool:
    try:
        record = read_json(recipe)
    except DaguerreError:  # another program's file
        return False
    return record.get("recipe") == "ClipScorerRecipe" and '"emoji"' in str(record.get("source"))


def _batches(items: T) -> Iterator[T]:
    for start in range(0, len(items), SCORE_BATCH):
        yield items[start : start + SCORE_BATCH]
