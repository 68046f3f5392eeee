"""CLIP's symmetric contrastive loss (Radford et al. 2021, arXiv:2103.00020, figure 3).

    L = ½·CE(s·T·Vᵀ, rows) + ½·CE(s·T·Vᵀ, columns),  s = exp(logit_scale) ≤ 100

Captions with the same label key are one class: if a batch has several of them, the target is shared between their images. Hard negatives,
captions that swap a relation, are additional wrong choices for each image; without them the order of words would not matter (Yuksekgonul et
al. 2023, arXiv:2210.01936, section 4).
"""

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from daguerre.conditioning import Tokenizer
from daguerre.data import Batch
from daguerre.models.clip import CLIP
from daguerre.training.batch_random import BatchRandom

MAX_LOGIT_SCALE = math.log(100)  # as in the paper


class ContrastiveTask:
    """Trains both towers of a CLIP."""

    name = "clip"
    ema_networks = ("clip",)

    def __init__(self, clip: CLIP, tokenizer: Tokenizer):
        self.networks: dict[str, nn.Module] = {"clip": clip}
        self.clip, self.tokenizer = clip, tokenizer

    def to(self, device: torch.device) -> None:
        """Nothing to move: both towers are trained."""

    def losses(
        self, batch: Batch, networks: Mapping[str, nn.Module], random: BatchRandom, step: int
    ) -> Iterator[tuple[str, Tensor, Mapping[str, Tensor]]]:
        scale = self.clip.logit_scale
        ids = self.tokenizer([*batch.captions, *filter(None, batch.hard_negatives)]).to(scale.device)
        with torch.no_grad():
            scale.clamp_(max=MAX_LOGIT_SCALE)
        embeddings = networks["clip"](ids, batch.x.to(scale.device))
        loss, retrieved = contrastive_loss(embeddings.logits.float(), batch.label_keys or batch.captions)
        yield "clip", loss, {"retrieved": retrieved, "scale": scale.detach().exp()}

    def sample(self) -> Image.Image | None:
        """CLIP generates no images."""
        return None


def contrastive_loss(logits: Tensor, label_keys: list[str]) -> tuple[Tensor, Tensor]:
    """The loss, and the share of images whose highest-scoring caption is correct.

    Args:
        logits: (B + C, B), of B captions and C hard negatives (rows) with B images (columns).
        label_keys: of the B captions; equal keys are one class.
    """
    index = {key: i for i, key in enumerate(dict.fromkeys(label_keys))}
    labels = torch.tensor([index[key] for key in label_keys], device=logits.device)
    same = (labels[:, None] == labels).float()
    target = same / same.sum(1, keepdim=True)
    image_target = F.pad(target, (0, len(logits) - len(label_keys)))  # (B, B + C)
    loss = (F.cross_entropy(logits[: len(label_keys)], target) + F.cross_entropy(logits.T, image_target)) / 2
    retrieved = image_target.gather(1, logits.argmax(0)[:, None]).sign().mean()
    return loss, retrieved.detach()
