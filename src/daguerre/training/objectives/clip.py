"""CLIP's symmetric contrastive loss (Radford et al. 2021, arXiv:2103.00020, figure 3).

    L = ½·CE(s·T·Vᵀ, rows) + ½·CE(s·T·Vᵀ, columns),  s = exp(logit_scale) ≤ 100

Captions of the same meaning are the same class: where a batch holds one twice, the target is shared between its pictures. Captions that
say the contrary stand among those that a picture is told from, or the order of words would never matter (Yuksekgonul et al. 2023,
arXiv:2210.01936, section 4).
"""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from daguerre.conditioning import Tokenizer
from daguerre.data import Batch
from daguerre.models.clip import CLIP


class ContrastiveTask:
    """Trains both towers of a CLIP."""

    name = "clip"
    ema_networks = ("clip",)

    def __init__(self, clip: CLIP, tokenizer: Tokenizer):
        self.networks: dict[str, nn.Module] = {"clip": clip}
        self.plain, self.tokenizer = clip, tokenizer

    def to(self, device: torch.device) -> None:
        """Everything here is trained, and moved by the loop."""

    def losses(self, batch: Batch, draw: torch.Generator, step: int) -> Iterator[tuple[str, Tensor, Mapping[str, Tensor]]]:
        scale = self.plain.logit_scale
        ids = self.tokenizer([*batch.captions, *filter(None, batch.hard_negatives)]).to(scale.device)
        with torch.no_grad():
            scale.clamp_(max=4.6052)  # ln 100, as in the paper
        embeddings = self.networks["clip"](ids, batch.x.to(scale.device))
        loss, right = contrastive_loss(embeddings.logits.float(), batch.label_keys or batch.captions)
        yield "clip", loss, {"retrieved": right, "scale": scale.detach().exp()}

    def sample(self) -> Image.Image | None:
        """Nothing to draw."""
        return None


def contrastive_loss(logits: Tensor, meanings: list[str]) -> tuple[Tensor, Tensor]:
    """The loss of logits (B captions and C more that are not true, B pictures), and the share of pictures whose best caption is theirs.

    Args:
        meanings: of the B captions.
    """
    index = {meaning: i for i, meaning in enumerate(dict.fromkeys(meanings))}
    klass = torch.tensor([index[meaning] for meaning in meanings], device=logits.device)
    same = (klass[:, None] == klass).float()
    target = same / same.sum(1, keepdim=True)
    untrue = F.pad(target, (0, len(logits) - len(meanings)))  # (B, B + C)
    loss = (F.cross_entropy(logits[: len(meanings)], target) + F.cross_entropy(logits.T, untrue)) / 2
    right = untrue.gather(1, logits.argmax(0)[:, None]).sign().mean()
    return loss, right.detach()
